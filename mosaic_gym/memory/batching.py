"""The members of a batch, all in one go or side by side."""

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


def for_all(work: Callable[..., Any], cameras: Tensor, *given: Sequence[Any]) -> Any:
    """`work` of every member's cameras `[b, ...]` and what else is given, one each: a dataclass of tensors `[b, ...]`.

    On an accelerator all in one go; on a CPU, whose cache is small, one by one, and side by side, for one member's
    tensors are too small to share out.
    """
    if len(cameras) == 1 or cameras.device.type != "cpu":
        return work(cameras, *given)

    def one(i: int) -> Any:
        return work(cameras[i : i + 1], *(each[i : i + 1] for each in given))

    threads, members = torch.get_num_threads(), range(len(cameras))
    parts = list(map(one, members) if threads == 1 else _workers(threads).map(torch.no_grad()(one), members))
    names = [each.name for each in fields(parts[0])]
    return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    # How many threads an operation takes is each thread's own, and is settled when the thread first asks: for what was
    # said last, by any. So all of these ask now, held until the last has, and then it is said again for later ones.
    all_there = Barrier(threads)

    def settle(_: int) -> None:
        all_there.wait()
        torch.get_num_threads()

    pool = ThreadPoolExecutor(threads, "recall", initializer=torch.set_num_threads, initargs=(1,))
    list(pool.map(settle, range(threads)))
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_workers.cache_clear)
