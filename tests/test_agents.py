"""Agents and examples run as their first lines say, on small budgets."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["agents/scripted.py", "--steps", "4"], "explorer:"),
        (["agents/scripted.py", "--real", "--steps", "4"], "chance:"),
        (["agents/planner.py", "--episodes", "1", "--steps", "1"], "memory place: home"),
        (["agents/planner.py", "--method=mppi", "--memory=off", "--episodes", "1", "--steps", "1"], "memory off: home"),
        (["agents/ppo.py", "--steps", "1", "--members", "2", "--episodes", "1"], "in the engine"),
        (["examples/04_plan_with_forks.py"], "step 1: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_it_runs(words, said, tmp_path):
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
