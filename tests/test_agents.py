"""Agents and examples run as their first lines say, on small budgets."""

import shlex
from pathlib import Path

import pytest

from mosaic_gym.cli import parse, split
from tests.programs import ROOT, run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["agents/scripted.py", "--steps", "4"], "explorer:"),
        (["agents/scripted.py", "--real", "--steps", "4"], "explorer:"),
        pytest.param(
            ["agents/planner.py", "--memory=place", "--episodes", "1", "--steps", "1"],
            "memory place: home",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["agents/planner.py", "--method=mppi", "--memory=off", "--episodes", "1", "--steps", "1"],
            "memory off: home",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["agents/ppo.py", "--steps", "1", "--members", "2", "--episodes", "1"],
            "in the simulator",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["agents/rooms.py", "--steps", "1", "--members", "2", "--episodes", "2", "--model", "ppo.zip"],
            "| PPO, 512 steps |",
            marks=pytest.mark.slow,
        ),
        (["examples/01_step_a_world.py"], "an image (64, 64, 3) uint8; 9 actions: noop, forward"),
        (["examples/04_plan_with_forks.py"], "step 1: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_it_runs(words, said, tmp_path):
    assert said in run(tmp_path, *words)


def test_the_commands_of_the_shell_example_take_their_options():
    source = (ROOT / "examples" / "05_make_your_own_world.sh").read_text()
    lines = source.replace("\\\n", " ").replace("${1:-out/my_world}", "out").replace("$out", "out").splitlines()
    commands = [words[1:] for line in lines if (words := shlex.split(line, comments=True)) and words[0] == "mosaic-gym"]
    assert [words[:2] for words in commands[1:-1]] == [
        ["train", name] for name in ("codec", "depth", "reward-heads", "atlas", "world")
    ]
    written = {}
    for words in commands:
        name, options = split(words)
        function, config = parse(name, options)
        assert callable(function)
        written[name] = config
    # What one recipe writes, the next is told to read.
    world = written["train world"]
    assert world.data == written["record"].out and world.codec == written["train codec"].out
    for part in ("depth", "reward_heads", "atlas"):
        assert getattr(world, part) == written[f"train {part.replace('_', '-')}"].out / "weights"
    assert Path(written["play"].checkpoint) == world.out / "weights"
