"""Signals to a run: it ends with its workers, writes a checkpoint, and resumes as if it had never been interrupted."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from mosaic_gym.training import world
from mosaic_gym.training.checkpoint import checkpoint_in, read_metadata
from mosaic_gym.training.run import Run
from tests.training.tiny_run import tiny_world_config

PROGRAM = """
import os, sys
from dataclasses import replace
from pathlib import Path
from mosaic_gym.processes import orderly_exit
from mosaic_gym.training import world
from mosaic_gym.training.run import Run
from tests.training.tiny_run import tiny_world_config

update = Run.update

def update_and_report(run, *arguments):
    update(run, *arguments)
    print(run.step_index, flush=True)

Run.update = update_and_report
data, parts, out, steps, workers = sys.argv[1:]
config = tiny_world_config(Path(data), Path(parts), Path(out), int(steps))
with orderly_exit():
    world.train(replace(config, workers=int(workers)))
"""


def group_ended(group: int, seconds: float = 10.0) -> bool:
    """Whether a process group has no member any more, or comes to have none."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return False


@pytest.mark.parametrize(
    ("send", "number", "code", "workers"),
    [
        (os.kill, signal.SIGTERM, 143, 2),
        # As `timeout` and service managers do, and Ctrl-C.
        pytest.param(os.killpg, signal.SIGTERM, 143, 2, marks=pytest.mark.slow),
        pytest.param(os.killpg, signal.SIGINT, -signal.SIGINT, 2, marks=pytest.mark.slow),
        pytest.param(os.kill, signal.SIGTERM, 143, 0, marks=pytest.mark.slow),
        pytest.param(os.kill, signal.SIGKILL, -signal.SIGKILL, 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_ends_with_its_workers_and_resumes(data, parts, tmp_path, send, number, code, workers):
    steps = 20
    arguments = [sys.executable, "-c", PROGRAM, data, parts, tmp_path / "run", steps, workers]
    with open(tmp_path / "errors", "w") as errors:
        running = subprocess.Popen(
            [*map(str, arguments)], stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
    for line in running.stdout:
        if int(line) == 3:
            break
    send(running.pid, number)
    running.stdout.read()
    assert running.wait(30) == code, (tmp_path / "errors").read_text()
    assert group_ended(running.pid), "no worker lives on"
    if number == signal.SIGKILL:
        assert checkpoint_in(tmp_path / "run") is None
        return
    assert "killed by signal" not in (tmp_path / "errors").read_text()
    step = read_metadata(checkpoint_in(tmp_path / "run"))["step"]
    assert 3 <= step < steps
    if send is os.kill:
        config = replace(tiny_world_config(data, parts, tmp_path / "run", steps), workers=workers)
        world.train(config)
        world.train(replace(config, out=tmp_path / "whole"))
        for name in ("model", "average", "optimizer"):
            resumed, whole = (load_file(tmp_path / run / f"checkpoint/{name}.safetensors") for run in ("run", "whole"))
            assert resumed.keys() == whole.keys() and all(torch.equal(resumed[key], whole[key]) for key in whole)


def open_run(folder) -> Run:
    return Run(folder, nn.Linear(2, 1), 1e-2, None, 10, Accelerator())


def one_step(run: Run) -> None:
    run.update(run.model(torch.ones(1, 2)).square().sum())


def test_an_interruption_writes_a_checkpoint_and_an_error_writes_none(tmp_path):
    for error, saved in ((KeyboardInterrupt, True), (SystemExit, True), (ValueError, False)):
        folder = tmp_path / error.__name__
        with pytest.raises(error), open_run(folder) as run:
            one_step(run)
            raise error
        assert (checkpoint_in(folder) is not None) == saved
    with open_run(tmp_path / "whole") as run:
        one_step(run)
    assert read_metadata(checkpoint_in(tmp_path / "whole"))["step"] == 1


def test_an_optimizer_step_that_was_cut_in_two_is_not_written(tmp_path, monkeypatch):
    def interrupt(run):
        raise KeyboardInterrupt

    run = open_run(tmp_path)
    monkeypatch.setattr(Run, "_update_average", interrupt)
    with pytest.raises(KeyboardInterrupt), run:
        run.step_index = 1
        one_step(run)
    assert checkpoint_in(tmp_path) is None


def test_an_interruption_before_the_first_step_writes_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path):
        raise KeyboardInterrupt
    assert checkpoint_in(tmp_path) is None
