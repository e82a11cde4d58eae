"""`mosaic-gym record` that is interrupted: every process ends, nothing is half-written, the same command resumes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mosaic_gym.data.episodes import EpisodeStore
from tests.test_processes import wait_for_end


def descendants(process_id: int) -> set[int]:
    """The ids of all processes below one, by /proc."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, front = set(), [process_id]
    while front:
        front = [child for parent in front for child in children.get(parent, [])]
        found |= set(front)
    return found


def command(out: Path, episodes: int, workers: int) -> list[str]:
    options = {"out": out, "episodes": episodes, "steps-per-episode": 20, "height": 48, "width": 64, "workers": workers}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "mosaic_gym.cli", "record", *words]


@pytest.mark.parametrize(
    ("number", "workers", "code"),
    [
        (signal.SIGTERM, 2, 143),
        pytest.param(signal.SIGTERM, 1, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 2, 129, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 2, 130, marks=pytest.mark.slow),
        (signal.SIGKILL, 2, -9),
        pytest.param(signal.SIGKILL, 1, -9, marks=pytest.mark.slow),
    ],
)
def test_all_processes_end_and_the_same_command_resumes(number, workers, code, tmp_path):
    parent = subprocess.Popen(command(tmp_path, 400, workers), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while len(list(tmp_path.glob("*/*/episode.json"))) < 2 * workers and time.monotonic() < deadline:
        time.sleep(0.05)
    below = descendants(parent.pid)
    assert len(below) >= 2 * workers, "workers, their simulators and the guards of these"
    parent.send_signal(number)
    assert not wait_for_end([parent.pid, *below])
    assert parent.wait() == code
    error = parent.stderr.read()
    if code > 0:
        assert error.splitlines()[-1].startswith("mosaic-gym: error: ") and "the same command goes on" in error
        assert "Traceback" not in error
    written = sorted(tmp_path.glob("*/*/episode.json"))
    for split in {path.parent.parent.name for path in written}:
        store = EpisodeStore(tmp_path, split)
        assert all(len(store.load(index)) == 20 for index in range(len(store)))
    if number == signal.SIGTERM:
        stamps = [path.stat().st_mtime_ns for path in written]
        subprocess.run(command(tmp_path, len(written) + 2, workers), check=True, capture_output=True)
        assert [path.stat().st_mtime_ns for path in written] == stamps
        assert len(list(tmp_path.glob("*/*/episode.json"))) >= len(written) + 1
        assert not [path for path in tmp_path.glob("*/*.partial") if (path / "episode.json").exists()]


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_all_processes_and_is_one_line(tmp_path):
    parent = subprocess.Popen(command(tmp_path, 400, 2), stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob("*/*/episode.json")):
        time.sleep(0.05)
    below = descendants(parent.pid)

    os.killpg(parent.pid, signal.SIGINT)
    assert not wait_for_end([parent.pid, *below])
    assert parent.wait() == 130 and "Traceback" not in (error := parent.stderr.read()), error


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_that_cannot_be_written_is_one_line(workers, tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(command(tmp_path / "file" / "out", 3, workers), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("mosaic-gym: error: ") and "Traceback" not in done.stderr


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    program = """
import resource, sys
import numpy as np
from pathlib import Path
from mosaic_gym.data.episodes import write_episode
from mosaic_gym.worlds.protocol import View
view = View(np.zeros((4, 64, 64, 3), np.uint8), np.ones((64, 64)), np.zeros((4, 4, 4)), np.eye(3),
            all_depth_m=np.ones((4, 64, 64)))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # writing more fails as on a full disk
try:
    write_episode(Path(sys.argv[1]), 0, "none", [view] * 5, np.zeros((5, 3)), ["", "", "", "", ""])
except OSError as error:
    print("OSError", error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("OSError"), done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
