"""Processes end together: signals end a command in order, and workers and simulators end with their parent.

A command with workers needs three things:

    with orderly_exit():                                   # in the main process; `mosaic_gym.cli.main` does it
        with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
            with workers_end_on_error():                   # innermost: leaving the pool waits for its workers
                pool.map(work, parts)

and a worker that is a plain `multiprocessing.Process` calls `end_with_parent()` first.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType

GRACE_S = 2.0
"""How long a worker has to end after SIGTERM before it is killed, seconds."""
EXIT_S = 10.0
"""How long a process whose workers were ended by a signal has to end itself, seconds."""


class Terminated(SystemExit):
    """Raised in the main thread when the process receives SIGTERM or SIGHUP.

    Attributes:
        code: the exit code, 128 plus the signal's number (143 for SIGTERM, 129 for SIGHUP).
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __reduce__(self) -> tuple[type[Terminated], tuple[int]]:
        """Exceptions are pickled as their class and `args`, which here are the exit code."""
        return type(self), (self.number,)


@contextmanager
def orderly_exit() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into `Terminated`, so that `finally` blocks run; restores the handlers afterwards.

    A signal that the process ignores (SIGHUP under `nohup`) stays ignored. A repeated signal is ignored too: `timeout`
    and service managers send SIGTERM to the process and to its group. Outside the main thread nothing is installed,
    because Python runs signal handlers in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    previous = {number: signal.getsignal(number) for number in numbers}
    installed = [number for number in numbers if previous[number] not in (signal.SIG_IGN, None)]

    def end(number: int, frame: FrameType | None) -> None:
        for repeated in installed:
            # Not SIG_IGN: programs that are started while `finally` blocks run would inherit that.
            signal.signal(repeated, lambda *_: None)
        raise Terminated(number)

    for number in installed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in installed:
            signal.signal(number, previous[number])


def end_with_parent() -> None:
    """Makes a worker process of `multiprocessing` end at once when its parent ends, however that happens.

    Call it first in the worker (`initializer=` of an executor, `worker_init_fn` of a DataLoader). A thread waits for
    the parent's end, so it also works when the parent is killed by SIGKILL. Ctrl-C ends the worker without a traceback,
    because the parent reports it. In a process without a parent of `multiprocessing` it does nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked worker inherits the handler of `orderly_exit`

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


@contextmanager
def workers_end_on_error() -> Iterator[None]:
    """Ends the worker processes started inside when the block is left by an exception, signals included.

    After a signal the process itself ends within `EXIT_S`: a thread of an executor may wait for ever for a pipe that no
    worker reads any more, and leaving the executor waits for that thread.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    except BaseException as error:
        end_workers(set(multiprocessing.active_children()) - before)
        if isinstance(error, Terminated):
            timer = threading.Timer(EXIT_S, os._exit, (error.code,))
            timer.daemon = True
            timer.start()
        raise


def end_workers(workers: Iterable[BaseProcess]) -> None:
    """Terminates processes and waits for them; kills those that are still alive after `GRACE_S`."""
    workers = list(workers)
    for worker in workers:
        worker.terminate()
    deadline_s = time.monotonic() + GRACE_S
    for worker in workers:
        worker.join(max(0.0, deadline_s - time.monotonic()))
        if worker.is_alive():
            worker.kill()
            worker.join()


_KILL_AT_END = """
read released && exit
while [ $# -gt 0 ]; do
    process=$1 started=$2 now=
    shift 2
    if [ -n "$started" ]; then
        read -r stat < "/proc/$process/stat" || continue
        now=$(set -- ${stat##*) }; shift 19; echo "$1")  # the name in brackets is field 2; field 22 follows
    fi
    [ "$started" != "$now" ] || kill -KILL "$process"
done
"""
"""A shell's program: waits for the end of its input, then kills processes, given as pairs of an id and a start time."""
_KILL_MARKED_AT_END = """
read -r mark
read released && exit
for _ in 1 2 3 4; do
    for file in $(grep -l -- "$mark" /proc/[0-9]*/cmdline 2>/dev/null); do
        process=${file#/proc/}
        kill -KILL "${process%/cmdline}"
    done
    sleep 0.25
done
"""
"""The same for processes whose command line holds a mark. It looks for a second, because one may be starting."""
_GUARDS: weakref.WeakSet[Guard] = weakref.WeakSet()
"""The guards that hold a pipe."""


class Guard:
    """Kills processes when this one ends in any way, unless it is released before.

    For programs that a library starts and that do not notice the end of their parent. A small shell process reads
    from a pipe whose other end is held here alone (forked children close it): the operating system closes it when this
    process ends. Where `/proc` has the time at which a process started, a later process with the same id is left alone.
    On Windows, which has no such shell, it does nothing.

    Args:
        process_ids: what to kill.
        mark: text in the command line of what to kill, unique to it. Such a guard can be made before the process
            starts, so that no moment is unguarded. It needs `/proc`.
    """

    def __init__(self, process_ids: Iterable[int] = (), mark: str = "") -> None:
        started = {process_id: _start_time(process_id) for process_id in process_ids}
        if os.path.isdir("/proc/self"):
            started = {process_id: ticks for process_id, ticks in started.items() if ticks}  # the others have ended
        processes = [text for row in started.items() for text in map(str, row)]
        self._shell: subprocess.Popen[bytes] | None = None
        if (processes or mark) and os.name == "posix":
            program = [_KILL_MARKED_AT_END] if mark else [_KILL_AT_END, "sh", *processes]
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", *program],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # signals to the process group must not end it
            )
            _GUARDS.add(self)
            if mark:  # not as an argument, by which the shell would find itself
                self._shell.stdin.write(f"{mark}\n".encode())
                self._shell.stdin.flush()
        self._owner = os.getpid()

    def release(self) -> None:
        """Ends the guard without killing anything; safe to call twice."""
        shell, self._shell = self._shell, None
        if shell is None or os.getpid() != self._owner:  # a forked copy leaves it to the original
            return
        _GUARDS.discard(self)
        with suppress(OSError):
            shell.stdin.write(b"\n")
            shell.stdin.close()
        shell.wait()

    def __del__(self) -> None:
        self.release()

    def _close_in_child(self) -> None:
        """Closes this process's copy of the pipe, in a forked child: otherwise the pipe stays open while it lives."""
        with suppress(OSError):
            self._shell.stdin.close()


def _close_guards() -> None:
    for guard in list(_GUARDS):
        guard._close_in_child()
    _GUARDS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_guards)


def child_ids(program: str = "") -> set[int]:
    """The ids of this process's direct children; empty where they cannot be listed.

    Args:
        program: only children whose program's name contains this text.
    """
    me = str(os.getpid())
    return {int(row[0]) for row in _processes() if row[1] == me and program in row[2]}


def _start_time(process_id: int) -> str:
    """When a process started, in ticks since the system did (field 22 of `/proc/PID/stat`); empty if unknown."""
    with suppress(OSError, IndexError), open(f"/proc/{process_id}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]
    return ""


def _processes() -> Iterator[tuple[str, str, str]]:
    """The id, the parent's id and the program's name of all processes."""
    if not os.path.isdir("/proc/self"):
        with suppress(OSError):
            listing = subprocess.run(
                ["ps", "-A", "-o", "pid=,ppid=,comm="], capture_output=True, text=True, check=False
            )
            yield from (tuple(row) for line in listing.stdout.splitlines() if len(row := line.split(None, 2)) == 3)
        return
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat") as file:  # the process may have ended meanwhile
            program, _, rest = file.read().partition("(")[2].rpartition(")")  # the name may hold brackets itself
            yield name, rest.split()[1], program
