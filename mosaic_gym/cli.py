"""The command line: `mosaic-gym COMMAND [OPTIONS]`.

A command is a frozen dataclass, which tyro turns into options, and a function that takes it. Both are imported only
when their command runs, so that the list of commands appears at once.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from typing import Any

from mosaic_gym.deprecation import warn_renamed
from mosaic_gym.processes import Terminated, orderly_exit

PROGRAM = "mosaic-gym"


@dataclass(frozen=True)
class Command:
    """A command: the code that it runs, and its line in lists.

    Attributes:
        module: its dotted name.
        config: the dataclass of its options, in that module.
        function: in that module; its only argument is the config.
        summary: one line for the list of commands.
        needs: optional packages that it needs; they are looked for before it starts.
        memory_advice: which options need less memory on the accelerator.
        resumption: where the same command continues after an interruption; None if it starts again.
    """

    module: str
    config: str
    function: str
    summary: str
    needs: tuple[str, ...] = ()
    memory_advice: str = "give a smaller batch, clip or size"
    resumption: str | None = None


LOG = ("tensorboard",)
"""The package that writes the log of a training run."""
SMALLER_SAMPLES = "give a shorter --clip, or a smaller --height and --width"
"""Memory advice for recipes that hold one sample at a time and already recompute activations for the gradients."""
MISSING_EPISODES = "with the episodes that are missing"
LAST_CHECKPOINT = "from the last checkpoint, if there is one"
COMMANDS: dict[str, Command] = {
    "demo": Command(
        "mosaic_gym.evaluation.demo", "Config", "demo", "walk out and back, learned world beside simulator"
    ),
    "maps": Command("mosaic_gym.evaluation.maps", "Config", "draw", "draw a generated map from above, or all themes"),
    "play": Command("mosaic_gym.play", "PlayConfig", "play", "walk through the learned world in a window"),
    "serve": Command(
        "mosaic_gym.play.serve",
        "ServeConfig",
        "serve",
        "the same in a browser, for machines without a display",
        ("viser",),
    ),
    "inspect": Command(
        "mosaic_gym.play.inspect_file", "InspectConfig", "inspect_file", "show what a saved moment or episode holds"
    ),
    "record": Command(
        "mosaic_gym.worlds.recording",
        "RecordConfig",
        "record",
        "record episodes of the simulator",
        resumption=MISSING_EPISODES,
    ),
    "train atlas": Command("mosaic_gym.training.atlas", "Config", "train", "train the atlas of the recorded map", LOG),
    "train codec": Command("mosaic_gym.training.codec", "Config", "train", "fit the codec to recorded frames"),
    "train depth": Command("mosaic_gym.training.depth", "Config", "train", "train the depth estimator", LOG),
    "train evaluator": Command("mosaic_gym.training.evaluator", "Config", "train", "train the evaluation net", LOG),
    "train reward-heads": Command(
        "mosaic_gym.training.reward_heads", "Config", "train", "train reward and termination heads", LOG
    ),
    "train world": Command("mosaic_gym.training.world", "Config", "train", "train the world model", LOG),
    "train world --from": Command(
        "mosaic_gym.training.finetune",
        "Config",
        "train",
        "fine-tune a pretrained Wan",
        LOG,
        f"{SMALLER_SAMPLES}, or train adapters (without --full); samples are run one at a time, whatever the batch",
    ),
    "train rgbd-codec": Command(
        "mosaic_gym.training.rgbd_codec", "Config", "train", "train the codec of pictures with depth", LOG
    ),
    "train generator": Command(
        "mosaic_gym.training.generator", "Config", "train", "train the generative model of generated maps", LOG
    ),
    "train student": Command(
        "mosaic_gym.training.distill",
        "Config",
        "train",
        "distil Wan to few causal steps",
        LOG,
        f"{SMALLER_SAMPLES}; samples are run one at a time",
    ),
    "evaluate atlas": Command(
        "mosaic_gym.evaluation.suites.atlas", "Config", "evaluate", "accuracy of the atlas on held-out walks"
    ),
    "evaluate collision": Command(
        "mosaic_gym.evaluation.suites.collision",
        "Config",
        "evaluate",
        "where walls stop the body, compared with the simulator",
    ),
    "evaluate depth": Command(
        "mosaic_gym.evaluation.suites.depth", "Config", "evaluate", "error of the depth estimator"
    ),
    "evaluate edits": Command(
        "mosaic_gym.evaluation.suites.edits",
        "Config",
        "evaluate",
        "whether edits of memory are seen in generated frames",
    ),
    "evaluate revisit": Command(
        "mosaic_gym.evaluation.suites.revisit",
        "Config",
        "evaluate",
        "whether a place looks the same after a walk away and back",
    ),
    "evaluate transfer": Command(
        "mosaic_gym.evaluation.suites.transfer.benchmark",
        "Config",
        "evaluate",
        "success in the simulator of agents trained in the learned world",
        ("stable_baselines3", "matplotlib", "scipy"),
        resumption="with the results that are missing",
    ),
    "evaluate world": Command(
        "mosaic_gym.evaluation.suites.world.benchmark",
        "Config",
        "evaluate",
        "quality of what a world invents on unseen maps, and its faithfulness",
        resumption="with the roll-outs that are missing",
    ),
    "evaluate wan": Command(
        "mosaic_gym.evaluation.speed.wan", "Config", "evaluate", "time of a full-size Wan step, stage by stage"
    ),
    "evaluate speed": Command(
        "mosaic_gym.evaluation.speed.steps", "Config", "evaluate", "environment steps per second"
    ),
}
"""All commands, by the one or two words that choose them."""

RENAMED_COMMANDS = {"train outcome": "train reward-heads"}  # old spelling
"""Old names of commands, accepted for one version."""
RENAMED_OPTIONS: dict[str, dict[str, str]] = {
    "evaluate transfer": {
        "--engine-steps": "--simulator-steps",  # old spelling
        "--scenes": "--goals",  # old spelling
    },
    "train world": {
        "--outcome": "--reward-heads",  # old spelling
        "--dream": "--rollout",  # old spelling
        "--mix.forget": "--augmentation.no-memory",  # old spelling
        "--mix.last-only": "--augmentation.last-only",  # old spelling
        "--mix.most": "--augmentation.max-keyframes",  # old spelling
        "--mix.worn": "--augmentation.degraded",  # old spelling
        "--mix.wedge": "--augmentation.cropped",  # old spelling
        "--mix.away": "--augmentation.no-recent",  # old spelling
        "--mix.longest-away": "--augmentation.max-recent-steps",  # old spelling
        "--mix.astray": "--augmentation.place-noise-m",  # old spelling
        "--mix.unplaced": "--augmentation.no-place",  # old spelling
        "--mix.alone": "--augmentation.single-warp",  # old spelling
    },
    "train world --from": {
        "--mix.forget": "--augmentation.no-memory",  # old spelling
        "--mix.last-only": "--augmentation.last-only",  # old spelling
        "--mix.most": "--augmentation.max-keyframes",  # old spelling
        "--mix.away": "--augmentation.no-recent",  # old spelling
        "--mix.longest-away": "--augmentation.max-recent-steps",  # old spelling
        "--mix.alone": "--augmentation.single-warp",  # old spelling
    },
    "train student": {
        "--mix.forget": "--augmentation.no-memory",  # old spelling
        "--mix.last-only": "--augmentation.last-only",  # old spelling
        "--mix.most": "--augmentation.max-keyframes",  # old spelling
        "--mix.away": "--augmentation.no-recent",  # old spelling
        "--mix.longest-away": "--augmentation.max-recent-steps",  # old spelling
        "--mix.alone": "--augmentation.single-warp",  # old spelling
    },
}
"""New options by old ones, by command; the old ones are accepted for one version."""
EXTRAS: dict[str, str] = {
    "bitsandbytes": "quantisation",
    "ftfy": "wan",
    "matplotlib": "rl",
    "peft": "wan",
    "protobuf": "wan",
    "scipy": "rl",
    "sentencepiece": "wan",
    "stable_baselines3": "rl",
    "tensorboard": "train",
}
"""The extra that installs an optional package, by the package's import name."""


def overview(words: Sequence[str] = ()) -> str:
    """The list of commands that start with these words, for the help text."""
    chosen = [name for name in sorted(COMMANDS) if name.split()[: len(words)] == list(words)]
    width = max(len(name) for name in chosen)
    lines = [f"usage: {PROGRAM} {' '.join([*words, 'COMMAND'])} [OPTIONS]", "", "commands:"]
    lines += [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in chosen]
    return "\n".join([*lines, "", f"`{PROGRAM} COMMAND --help` lists the options of a command."])


def split(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The command that the first words name, and its options, both in their present spelling.

    Raises:
        ValueError: the words name no command; the message lists the known ones.
    """
    for count in (1, 2):
        words = " ".join(arguments[:count])
        name = RENAMED_COMMANDS.get(words, words)
        if name in COMMANDS:
            if name != words:
                _warn(f"{PROGRAM} {words}", f"{PROGRAM} {name}")
            options = arguments[count:]
            variants = [variant for row in options if (variant := f"{name} {row.split('=')[0]}") in COMMANDS]
            name = variants[0] if variants else name
            return name, current_options(name, options)
    words = list(takewhile(lambda word: not word.startswith("-"), arguments[:2]))
    problem = f"unknown command {' '.join(words)!r}" if words else "no command given"
    raise ValueError(f"{problem}; the known ones are {', '.join(sorted(COMMANDS))}")


def current_options(name: str, options: Sequence[str]) -> list[str]:
    """Options with old names replaced by new ones, with a DeprecationWarning for each.

    Args:
        name: a key of `COMMANDS`.
        options: as given on the command line: `--old value`, `--old=value`, or with underscores as tyro accepts them.
    """
    renamed, current = RENAMED_OPTIONS.get(name, {}), []
    for index, row in enumerate(options):
        if row == "--":
            return current + list(options[index:])
        option, equals, value = row.partition("=")
        new = renamed.get(option.replace("_", "-")) if option.startswith("--") else None
        if new is not None:
            _warn(option, new)
        current.append(row if new is None else f"{new}{equals}{value}")
    return current


def parse(name: str, options: Sequence[str]) -> tuple[Callable[[Any], Any], Any]:
    """The function of a command, and the config made from its options.

    Args:
        name: a key of `COMMANDS`.
        options: the words after the command. `--help` and mistakes raise SystemExit, as in tyro.

    Raises:
        ValueError: a value that the config does not allow.
    """
    import tyro

    command = COMMANDS[name]
    module = import_module(command.module)
    if {"-h", "--help"} & set(options):
        options = ["--help"]  # also after an option whose value is missing
    output = io.StringIO()
    try:
        with redirect_stderr(output):
            config = tyro.cli(getattr(module, command.config), prog=f"{PROGRAM} {name}", args=list(options))
    except SystemExit as exit_of_tyro:
        if (refusal := _refusal(exit_of_tyro.__context__)) is not None:
            raise refusal from exit_of_tyro
        sys.stderr.write(output.getvalue())
        raise
    sys.stderr.write(output.getvalue())
    return getattr(module, command.function), config


def _refusal(error: BaseException | None) -> ValueError | None:
    """The ValueError of a config's own checks, for which tyro prints a box and exits; None for any other error."""
    if isinstance(error, ValueError):
        return error
    if isinstance(getattr(error, "arg", None), str):  # tyro's error for a nested config, which it names by its prefix
        return ValueError(getattr(error, "message", error))
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the words after the program's name; None for those of the process.

    Returns:
        The exit code: 0; 1 for an error that the user can correct; 2 for an unknown command; 130 after Ctrl-C; 143
        after SIGTERM; 129 after SIGHUP.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    *words, last = arguments or [""]
    if last in ("-h", "--help") and (not words or (len(words) == 1 and words[0] in groups)):
        print(overview(words))
        return 0
    try:
        name, options = split(arguments)
    except ValueError as error:
        return fail(error, code=2)
    try:
        with orderly_exit():
            _run(name, options)
    except KeyboardInterrupt:
        return fail(f"interrupted{_continuation(name)}", code=130)
    except Terminated as error:
        return fail(f"terminated{_continuation(name)}", code=error.code)
    except ModuleNotFoundError as error:
        extra = missing_extra(error)
        if extra is None:
            raise
        return fail(f"`{name}` needs {error.name}: pip install '{PROGRAM}[{extra}]'", code=1)
    except (ValueError, OSError, MemoryError) as error:
        if name.startswith("train ") and is_out_of_memory(error.__cause__):  # which options of a recipe need less
            return fail(_out_of_memory(name, error.__cause__), code=1)
        return fail(error, code=1)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return fail(_out_of_memory(name, error), code=1)
    return 0


def _run(name: str, options: Sequence[str]) -> None:
    """Runs a command after looking for the packages that it needs."""
    function, config = parse(name, options)
    for package in COMMANDS[name].needs:
        import_module(package)
    function(config)


def fail(message: object, code: int) -> int:
    """Prints an error as one line; returns the exit code."""
    with suppress(OSError):  # after SIGHUP the terminal may be gone
        print(f"{PROGRAM}: error: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """The extra that installs the missing module; None if it belongs to no extra."""
    return EXTRAS.get((error.name or "").split(".")[0])


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this is torch's error for an accelerator whose memory is too small."""
    return type(error).__name__ == "OutOfMemoryError"  # by name, because commands without a network do not import torch


def _out_of_memory(name: str, error: BaseException) -> str:
    return f"not enough memory on the accelerator: {COMMANDS[name].memory_advice} ({error})"


def _continuation(name: str) -> str:
    """For the message after an interruption: where the same command continues; empty if it starts again."""
    command = COMMANDS[name]
    resumption = command.resumption or (LAST_CHECKPOINT if command.needs == LOG else None)
    return f": the same command goes on {resumption}" if resumption else ""


def _warn(old: str, new: str) -> None:
    """A DeprecationWarning that the user sees, as one line."""

    def one_line(message: Warning | str, *_: object, **__: object) -> str:
        return f"{PROGRAM}: warning: {message}\n"

    usual, warnings.formatwarning = warnings.formatwarning, one_line
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", DeprecationWarning)
            warn_renamed(old, new)
    finally:
        warnings.formatwarning = usual


if __name__ == "__main__":
    sys.exit(main())
