"""Work on the members of a batch: all at once, or side by side in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import cache
from threading import Barrier
from typing import Any

import torch
from torch import Tensor


def map_members(work: Callable[..., Any], cameras: Tensor, *inputs: Sequence[Any]) -> Any:
    """Calls `work` with every member's cameras and inputs, and returns its dataclass of tensors `[b, ...]`.

    On an accelerator all members go in one call. On a CPU, whose cache is small, they go one by one and side by side in
    threads: one member's tensors are too small for several threads to share.

    Args:
        work: takes cameras `[n, ...]` and sequences of length n, and returns a dataclass of tensors `[n, ...]`.
        cameras: `[b, ...]`.
        inputs: sequences of length b.
    """
    if len(cameras) == 1 or cameras.device.type != "cpu":
        return work(cameras, *inputs)

    def work_one(i: int) -> Any:
        return work(cameras[i : i + 1], *(values[i : i + 1] for values in inputs))

    threads, members = torch.get_num_threads(), range(len(cameras))
    parts = list(map(work_one, members) if threads == 1 else _workers(threads).map(torch.no_grad()(work_one), members))
    names = [field.name for field in fields(parts[0])]
    return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    # Torch fixes a thread's own number of threads when that thread first reads it, at the value last set anywhere. So
    # all workers read it while it is 1, waiting for each other, and afterwards it is set back for later threads.
    all_started = Barrier(threads)

    def settle(_: int) -> None:
        all_started.wait()
        torch.get_num_threads()

    pool = ThreadPoolExecutor(threads, "retrieve", initializer=torch.set_num_threads, initargs=(1,))
    list(pool.map(settle, range(threads)))
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_workers.cache_clear)
