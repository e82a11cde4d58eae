"""The command line: what it lists, what it takes, and what it answers to mistakes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from mosaic_gym.cli import COMMANDS, LOG, RENAMED_COMMANDS, RENAMED_OPTIONS, Command, main, split


@dataclass(frozen=True)
class Config:
    """A command made for these tests."""

    file: Path = Path("here.txt")
    """Read it."""
    optional: str = "json"
    """Import it."""


def read(config: Config) -> str:
    import_module(config.optional)
    return config.file.read_text()


def refuse(config: Config) -> None:
    raise ValueError(f"{config.file} is no recording;\n  record one first")


@pytest.fixture
def own_commands(monkeypatch):
    monkeypatch.setitem(COMMANDS, "read", Command(__name__, "Config", "read", "reads"))
    monkeypatch.setitem(COMMANDS, "refuse", Command(__name__, "Config", "refuse", "refuses"))


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mosaic_gym.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_lists_every_command_and_is_quick():
    spent = []
    for _ in range(3):  # other work on the machine may hold up any one of them
        started = time.monotonic()
        done = run("--help")
        spent.append(time.monotonic() - started)
    assert min(spent) < 2
    assert done.returncode == 0 and not done.stderr
    for name, command in COMMANDS.items():
        assert f"  {name} " in done.stdout and command.summary in done.stdout


def test_help_and_mistakes_import_nothing_heavy():
    program = (
        "import sys\n"
        "from mosaic_gym.cli import main\n"
        "assert main(['--help']) == main(['train', '--help']) == 0 and main(['dream']) == 2\n"
        "heavy = {'torch', 'diffusers', 'vizdoom', 'tyro', 'pygame'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_group_lists_its_own_commands(capsys):
    assert main(["evaluate", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: mosaic-gym evaluate COMMAND" in shown
    assert "evaluate revisit" in shown and "train world" not in shown


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_documents_all_its_arguments(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([*name.split(), "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert f"mosaic-gym {name}" in shown
    command = COMMANDS[name]
    module = import_module(command.module)
    assert callable(getattr(module, command.function))
    for option in fields(getattr(module, command.config)):
        assert f"--{option.name.rstrip('_').replace('_', '-')}" in shown


def test_the_help_of_a_command_in_a_process_of_its_own():
    done = run("play", "--help")
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout and "gamepad" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no command given"),
        (["dream"], "unknown command 'dream'"),
        (["train"], "unknown command 'train'"),
        (["train", "everything", "--minutes", "3"], "unknown command 'train everything'"),
        (["dream", "--minutes", "3"], "unknown command 'dream'"),
        (["--minutes", "3"], "no command given"),
    ],
)
def test_an_unknown_command_lists_the_known_ones(arguments, said, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mosaic-gym: error: {said}; the known ones are demo, ")
    assert all(name in error for name in COMMANDS)


def test_an_unknown_option_is_refused(own_commands, capsys):
    with pytest.raises(SystemExit) as left:
        main(["read", "--fiel", "here.txt"])
    assert left.value.code == 2
    assert "--fiel" in capsys.readouterr().err


def test_options_reach_the_command(own_commands, tmp_path, capsys):
    (tmp_path / "there.txt").write_text("")
    assert main(["read", "--file", str(tmp_path / "there.txt")]) == 0
    assert capsys.readouterr().err == ""


def test_what_the_user_can_put_right_is_one_line(own_commands, tmp_path, capsys):
    assert main(["refuse", "--file", "x"]) == 1
    assert capsys.readouterr().err == "mosaic-gym: error: x is no recording; record one first\n"
    assert main(["read", "--file", str(tmp_path / "nowhere.txt")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mosaic-gym: error: ") and "nowhere.txt" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["record", "--episodes", "0"], "--episodes is a whole number from 1; got 0"),
        (["record", "--scenario", "nope"], "unknown scenario 'nope'; known: my_way_home, "),
        (["record", "--height", "65"], "no screen of the simulator can be averaged down to 65x64; "),
    ],
)
def test_options_that_a_config_refuses_are_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"mosaic-gym: error: {message}") and error.count("\n") == 1


def test_an_interruption_is_one_line(own_commands, monkeypatch, capsys):
    monkeypatch.setattr(f"{__name__}.Path.read_text", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["read", "--file", "x"]) == 130
    assert capsys.readouterr().err == "mosaic-gym: error: interrupted\n"
    monkeypatch.setitem(COMMANDS, "read", replace(COMMANDS["read"], needs=LOG))
    assert main(["read", "--file", "x"]) == 130
    assert "the same command goes on from the last checkpoint" in capsys.readouterr().err


def test_sigterm_is_one_line(own_commands, monkeypatch, capsys):
    monkeypatch.setattr(f"{__name__}.Path.read_text", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(COMMANDS, "read", replace(COMMANDS["read"], resumption="here"))
    assert main(["read", "--file", "x"]) == 143
    assert capsys.readouterr().err == "mosaic-gym: error: terminated: the same command goes on here\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_old_commands_and_options_are_accepted_with_a_warning(own_commands, monkeypatch, tmp_path):
    (tmp_path / "there.txt").write_text("")
    monkeypatch.setitem(RENAMED_COMMANDS, "fetch", "read")
    monkeypatch.setitem(RENAMED_OPTIONS, "read", {"--old-file": "--file"})
    path = str(tmp_path / "there.txt")
    for options in (["--old-file", path], [f"--old-file={path}"], [f"--old_file={path}"]):
        with pytest.warns(DeprecationWarning, match=f"{options[0].split('=')[0]} is deprecated: use --file"):
            assert main(["read", *options]) == 0
    with pytest.warns(DeprecationWarning, match="mosaic-gym fetch is deprecated: use mosaic-gym read"):
        assert main(["fetch", "--file", path]) == 0


def test_the_warning_is_one_line_that_the_user_sees():
    done = run("train", "outcome", "--help")
    expected = "mosaic-gym: warning: mosaic-gym train outcome is deprecated: use mosaic-gym train reward-heads"
    assert done.returncode == 0 and done.stderr.splitlines()[0] == expected


@pytest.mark.parametrize("name", sorted(RENAMED_OPTIONS))
def test_renamed_options_name_present_ones(name, capsys):
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    shown = capsys.readouterr().out
    for old, new in RENAMED_OPTIONS[name].items():
        assert f"{new} " in shown and f"{old} " not in shown


def test_the_old_name_of_the_reward_heads_recipe():
    with pytest.warns(DeprecationWarning, match="mosaic-gym train outcome is deprecated"):
        assert split(["train", "outcome", "--minutes", "1"]) == ("train reward-heads", ["--minutes", "1"])


def test_an_accelerator_without_room_is_one_line(own_commands, monkeypatch, capsys):
    for error in (
        torch.OutOfMemoryError("Tried to allocate 3 GiB"),
        MemoryError("not enough memory for the transformer"),
    ):
        monkeypatch.setattr(f"{__name__}.Path.read_text", lambda self, error=error: (_ for _ in ()).throw(error))
        assert main(["read", "--file", "x"]) == 1
        told = capsys.readouterr().err
        assert told.startswith("mosaic-gym: error: ") and "not enough memory" in told and told.count("\n") == 1
    monkeypatch.setattr(f"{__name__}.Path.read_text", lambda self: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["read", "--file", "x"])


def test_a_missing_extra_is_named(own_commands, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as Python itself marks a module that cannot be found
    assert main(["read", "--optional", "tensorboard"]) == 1
    expected = "mosaic-gym: error: `read` needs tensorboard: pip install 'mosaic-gym[train]'\n"
    assert capsys.readouterr().err == expected


def test_a_missing_module_that_is_no_extra_is_not_hushed_up(own_commands):
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main(["read", "--optional", "no_such_module"])
