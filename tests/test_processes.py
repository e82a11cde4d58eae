"""Processes end together: signals, workers, and programs that would outlive their parent."""

import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from mosaic_gym.processes import Guard, Terminated, child_ids, orderly_exit

WORKERS = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from mosaic_gym.processes import end_with_parent, orderly_exit, workers_end_on_error

def work(_):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    context = get_context("spawn")
    with orderly_exit(), ProcessPoolExecutor(2, mp_context=context, initializer=end_with_parent) as pool:
        with workers_end_on_error():
            list(pool.map(work, range(2)))
"""


def is_alive(process_id: int) -> bool:
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(process_ids, seconds: float = 5.0) -> list[int]:
    """The processes that are still alive after so long."""
    deadline = time.monotonic() + seconds
    while (alive := [one for one in process_ids if is_alive(one)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_run_finally_blocks_and_the_handlers_are_restored(number, code):
    before, cleaned = signal.getsignal(number), []
    with pytest.raises(Terminated) as left, orderly_exit():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), number)  # a repeated signal does not interrupt this
            time.sleep(0.05)
            cleaned.append(True)
    assert cleaned and left.value.code == code and signal.getsignal(number) == before


def test_an_ignored_signal_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with orderly_exit():
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.05)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9), (signal.SIGINT, -2)])
def test_workers_of_a_pool_end_with_their_parent(number, code, tmp_path):
    (tmp_path / "program.py").write_text(WORKERS)
    parent = subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(number)
    assert not wait_for_end([parent.pid, *workers])
    assert parent.wait() == code
    parent.communicate()


def test_a_process_whose_cleaning_never_ends_is_ended():
    program = (
        "import contextlib, time, mosaic_gym.processes as processes\n"
        "processes.EXIT_S = 0.5\n"
        "with processes.orderly_exit(), contextlib.ExitStack() as stack:\n"
        "    stack.callback(time.sleep, 600)\n"
        "    with processes.workers_end_on_error():\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(600)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        run.stdout.readline()
        run.terminate()
        assert run.wait(20) == 143
    finally:
        run.kill()


@pytest.mark.parametrize("released", [True, False])
def test_a_guard_kills_what_it_guards_unless_it_is_released(released):
    program = (
        "import subprocess, sys, os\n"
        "from mosaic_gym.processes import Guard\n"
        "other = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL)\n"
        "guard = Guard([other.pid])\n"
        f"guard.release() if {released} else None\n"
        "print(other.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
    sleeper = int(done.stdout)
    alive = wait_for_end([sleeper], 0.5 if released else 5.0)
    if released:
        os.kill(sleeper, signal.SIGKILL)
    assert alive == ([sleeper] if released else [])


def test_children_are_listed():
    before = child_ids()
    child = subprocess.Popen(["sleep", "600"])
    assert child_ids() - before == {child.pid}
    child.kill()
    child.wait()
    assert child.pid not in child_ids()


def test_a_guard_of_nothing_starts_nothing():
    before = child_ids()
    Guard([]).release()
    assert child_ids() == before


def guarded(body: str) -> int:
    """The id of a sleeper that a program guards; the program then runs `body` and is killed."""
    program = (
        "import multiprocessing, os, subprocess, sys, time\n"
        "from mosaic_gym import processes\n"
        "from mosaic_gym.processes import Guard\n"
        "other = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL)\n"
        f"{body}\n"
        "print(other.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    read, write = os.pipe()
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=write)
    parent.wait()
    os.close(write)
    found = os.read(read, 100)  # not to its end: a child of the program may hold the pipe open
    os.close(read)
    return int(found)


def test_a_guard_works_while_a_forked_child_of_its_process_lives():
    sleeper = guarded(
        "guard = Guard([other.pid])\nmultiprocessing.get_context('fork').Process(target=time.sleep, args=(20,)).start()"
    )
    assert wait_for_end([sleeper]) == []


def test_a_guard_by_mark_ends_what_starts_after_it():
    """A simulator that is starting while its parent is killed is in no list of children yet."""
    late = (
        "import uuid\n"
        "mark = uuid.uuid4().hex\n"
        "guard = Guard(mark=mark)\n"
        "late = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', mark])\n"
        "other.kill(), other.wait()\n"
        "other = late"
    )
    assert wait_for_end([guarded(late)]) == []


def test_a_released_guard_by_mark_leaves_its_process_alone():
    sleeper = guarded(
        "import uuid\n"
        "mark = uuid.uuid4().hex\n"
        "late = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', mark])\n"
        "guard = Guard(mark=mark)\nguard.release()\nother.kill(), other.wait()\nother = late"
    )
    alive = wait_for_end([sleeper], 1.0)
    os.kill(sleeper, signal.SIGKILL)
    assert alive == [sleeper]


def test_a_guard_does_not_kill_another_process_of_the_same_id():
    sleeper = guarded("processes._start_time = lambda process_id: '1'\nguard = Guard([other.pid])")
    alive = wait_for_end([sleeper], 0.5)
    os.kill(sleeper, signal.SIGKILL)
    assert alive == [sleeper]


def test_a_forked_child_leaves_the_guard_to_its_parent():
    sleeper = guarded(
        "guard = Guard([other.pid])\n"
        "child = multiprocessing.get_context('fork').Process(target=guard.release)\n"
        "child.start(), child.join()\n"
        "assert child.exitcode == 0 and other.poll() is None"
    )
    assert wait_for_end([sleeper]) == []


def test_termination_is_pickled_with_its_code():
    copy = pickle.loads(pickle.dumps(Terminated(signal.SIGTERM)))
    assert type(copy) is Terminated and copy.code == 143 and copy.number == signal.SIGTERM


def test_a_program_started_while_the_command_ends_can_be_ended():
    with pytest.raises(Terminated), orderly_exit():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            child = subprocess.Popen(["sleep", "600"])
    child.terminate()
    assert child.wait(timeout=5) == -signal.SIGTERM
