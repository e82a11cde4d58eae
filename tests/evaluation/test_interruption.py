"""An evaluation that is ended leaves no process behind, however it ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.test_processes import is_alive, wait_for_end
from tests.tiny import tiny_model

MEASURING = "paths:"
"""Label of the progress bar of the workers."""


def children_of(parent: int) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are found in /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_workers_of_an_evaluation_end_with_it(number, code, tmp_path):
    tiny_model(size=(64, 64)).save_pretrained(tmp_path / "tiny")
    command = [sys.executable, "-m", "mosaic_gym.cli", "evaluate", "revisit", "--checkpoint", str(tmp_path / "tiny")]
    with open(tmp_path / "log", "w+") as log:
        run = subprocess.Popen([*command, "--paths", "2", "--workers", "2"], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 200
            while MEASURING not in (tmp_path / "log").read_text() or len(children_of(run.pid)) < 3:
                assert run.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.1)
            children = children_of(run.pid)  # two workers, the queue's process and Python's tracker of resources
            run.send_signal(number)
            assert run.wait(30) == code
            assert not wait_for_end(children, 10)
        finally:
            run.kill()
            for child in filter(is_alive, children_of(run.pid)):
                os.kill(child, signal.SIGKILL)
