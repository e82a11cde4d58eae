"""The README keeps its word: its commands, targets, options, programs and files exist."""

import ast
import dataclasses
import inspect
import re
import shlex
from pathlib import Path

import pytest

from mosaic_gym.cli import parse, split
from mosaic_gym.envs.mosaic_env import make_learned_env
from mosaic_gym.model.wan.pipeline import WanOptions

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """What follows a program's name wherever the README calls it, in a shell block or within a line."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += re.findall(rf"`({program} [^`]+)`", README)
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0] == program]


def test_the_readme_shows_what_it_must():
    shown = {" ".join(words) for words in commands("make")}
    assert {"demo", "test"} <= shown
    assert {words[0] for words in commands("mosaic-gym")} == {"play", "record", "train", "evaluate"}
    assert any("gym.make" in block for block in blocks("python"))


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_every_make_target_exists(words):
    targets = [word for word in words if "=" not in word]
    assert targets and set(targets) <= TARGETS


@pytest.mark.parametrize("words", commands("mosaic-gym"), ids=" ".join)
def test_every_command_takes_the_options_shown(words):
    name, options = split(words)
    function, _ = parse(name, options)
    assert callable(function)


def defaults(head: str) -> dict[str, object]:
    """The names and defaults in the first column of the table under a head."""
    table = README.split(f"| {head} | |\n")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[1:]]
    found = [pair for cell in cells for pair in re.findall(r"`(\w+)=([^`]+)`", cell)]
    return {name: ast.literal_eval(default) for name, default in found}


def test_the_table_of_arguments_is_what_the_environment_takes():
    taken = inspect.signature(make_learned_env).parameters.values()
    assert defaults("argument of `gym.make`") == {each.name: each.default for each in taken}


def test_the_table_of_loading_is_what_a_pipeline_takes():
    assert defaults("key of `loading={...}`") == {each.name: each.default for each in dataclasses.fields(WanOptions)}


@pytest.mark.parametrize("source", blocks("python"))
def test_every_program_runs(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_every_file_it_points_to_exists(path):
    assert (ROOT / path).exists()


def test_the_ci_runs_the_test_command_of_the_readme():
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()
