"""The command line: `mosaic-gym COMMAND [OPTIONS]`.

A command is a frozen dataclass, which tyro turns into options, and a function that takes it. Both are
imported when their command is chosen and not before, so that the list of commands answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from typing import Any

PROGRAM = "mosaic-gym"


@dataclass(frozen=True)
class Command:
    """Where a command lives.

    Attributes:
        module: its dotted name.
        config: the dataclass of its options, in that module.
        function: what runs, in that module; takes the config alone.
        summary: one line for the list of commands.
        needs: packages of extras that it needs in the end, and asks for before it has spent minutes on anything.
        room: what to give it, or to leave out, where an accelerator's memory is too small.
    """

    module: str
    config: str
    function: str
    summary: str
    needs: tuple[str, ...] = ()
    room: str = "give a smaller batch, clip or size"


LOG = ("tensorboard",)
"""What every run writes its log with."""
ROOM = "give a shorter --clip, or a smaller --height and --width"
"""Of recipes that have one sample at a time on the accelerator, whose blocks run again for their gradients already."""
COMMANDS: dict[str, Command] = {
    "demo": Command("mosaic_gym.evaluation.demo", "Config", "demo", "walk out and back, dream beside engine"),
    "play": Command("mosaic_gym.play", "PlayConfig", "play", "walk through the dream with the keyboard"),
    "record": Command("mosaic_gym.worlds.recording", "RecordConfig", "record", "record episodes of the engine"),
    "train atlas": Command("mosaic_gym.training.atlas", "Config", "train", "learn the recorded map by heart", LOG),
    "train codec": Command("mosaic_gym.training.codec", "Config", "train", "fit the codec to recorded frames"),
    "train depth": Command("mosaic_gym.training.depth", "Config", "train", "train the depth estimator", LOG),
    "train reward-heads": Command(
        "mosaic_gym.training.reward_heads", "Config", "train", "train heads for reward and end", LOG
    ),
    "train world": Command("mosaic_gym.training.world", "Config", "train", "train the world model", LOG),
    "train world --from": Command(
        "mosaic_gym.training.finetune",
        "Config",
        "train",
        "fine-tune a pretrained Wan",
        LOG,
        f"{ROOM}, or train adapters (without --full); samples are run one at a time, whatever the batch",
    ),
    "train student": Command(
        "mosaic_gym.training.distill",
        "Config",
        "train",
        "distil Wan to few causal steps",
        LOG,
        f"{ROOM}; samples are run one at a time",
    ),
    "evaluate atlas": Command("mosaic_gym.evaluation.suites.atlas", "Config", "evaluate", "what is known of the map"),
    "evaluate collision": Command("mosaic_gym.evaluation.suites.collision", "Config", "evaluate", "where the body stops"),
    "evaluate depth": Command("mosaic_gym.evaluation.suites.depth", "Config", "evaluate", "error of the depth estimator"),
    "evaluate revisit": Command("mosaic_gym.evaluation.suites.revisit", "Config", "evaluate", "what is there on the way back"),
    "evaluate transfer": Command("mosaic_gym.evaluation.suites.transfer.benchmark", "Config", "evaluate", "dream to engine"),
    "evaluate wan": Command("mosaic_gym.evaluation.wan", "Config", "evaluate", "a full-size Wan step, stage by stage"),
    "evaluate speed": Command("mosaic_gym.evaluation.speed.steps", "Config", "evaluate", "environment steps per second"),
}
"""All commands, by the one or two words that choose them."""

RESUMED = {name for name, command in COMMANDS.items() if command.needs == LOG}
"""Commands that go on where they were interrupted."""
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
    """The list of commands that begin with these words, as help shows it."""
    chosen = [name for name in sorted(COMMANDS) if name.split()[: len(words)] == list(words)]
    width = max(len(name) for name in chosen)
    lines = [f"usage: {PROGRAM} {' '.join([*words, 'COMMAND'])} [OPTIONS]", "", "commands:"]
    lines += [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in chosen]
    return "\n".join([*lines, "", f"`{PROGRAM} COMMAND --help` lists the options of a command."])


def split(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The command that the first words choose, and the options after them.

    Raises:
        ValueError: the words choose no command; the message lists the known ones.
    """
    for count in (1, 2):
        name = " ".join(arguments[:count])
        if name in COMMANDS:
            options = arguments[count:]
            known = [option for option in options if f"{name} {option.split('=')[0]}" in COMMANDS]
            return (f"{name} {known[0].split('=')[0]}" if known else name), options
    words = list(takewhile(lambda word: not word.startswith("-"), arguments[:2]))
    said = f"unknown command {' '.join(words)!r}" if words else "no command given"
    raise ValueError(f"{said}; the known ones are {', '.join(sorted(COMMANDS))}")


def parse(name: str, options: Sequence[str]) -> tuple[Callable[[Any], Any], Any]:
    """The function of a command and the config that its options make.

    Args:
        name: a key of `COMMANDS`.
        options: what follows it on the command line. `--help` and mistakes leave by SystemExit, as tyro does.
    """
    import tyro

    command = COMMANDS[name]
    module = import_module(command.module)
    if {"-h", "--help"} & set(options):
        options = ["--help"]  # also behind an option that still waits for its value
    config = tyro.cli(getattr(module, command.config), prog=f"{PROGRAM} {name}", args=list(options))
    return getattr(module, command.function), config


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """The extra whose absence the error tells of; None if the module belongs to no extra."""
    return EXTRAS.get((error.name or "").split(".")[0])


def no_room(error: BaseException | None) -> bool:
    """Whether this is torch's error for an accelerator whose memory is too small."""
    return type(error).__name__ == "OutOfMemoryError"  # by name, for what takes no network imports none


def crowded(name: str, error: BaseException) -> int:
    """Says what makes room for a command; the exit code."""
    return fail(f"the accelerator has no room for this: {COMMANDS[name].room} ({error})", code=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 1 for what the user can put right, 2 for an unknown command, 130
    for an interruption.

    Args:
        arguments: the words after the program's name; None for those of the process.
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
        function, config = parse(name, options)
        for package in COMMANDS[name].needs:
            import_module(package)
        function(config)
    except KeyboardInterrupt:
        goes_on = ": the same command goes on from the last checkpoint, if there is one" if name in RESUMED else ""
        return fail(f"interrupted{goes_on}", code=130)
    except ModuleNotFoundError as error:
        extra = missing_extra(error)
        if extra is None:
            raise
        return fail(f"`{name}` needs {error.name}: pip install '{PROGRAM}[{extra}]'", code=1)
    except (ValueError, FileNotFoundError, MemoryError) as error:
        if name.startswith("train ") and no_room(error.__cause__):  # said with what makes some in play
            return crowded(name, error.__cause__)
        return fail(error, code=1)
    except RuntimeError as error:
        if not no_room(error):
            raise
        return crowded(name, error)
    return 0


def fail(message: object, code: int) -> int:
    """Says what was wrong in one line, and returns the exit code."""
    print(f"{PROGRAM}: error: {' '.join(str(message).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
