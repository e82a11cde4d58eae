"""Splits a step of a learned world into stages, by time and by operations."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mosaic_gym.worlds import generation, spatial_memory
from mosaic_gym.worlds.mosaic import MosaicWorld

STAGES = ("retrieve", "denoise", "read", "decode", "depth", "lift")
REST = "bookkeeping"
"""The time of a step outside all stages."""
GROUPS = {
    "memory": ("retrieve", "lift"), "network": ("read", "denoise"), "codec": ("decode",), "depth": ("depth",),
    REST: (REST,),
}  # fmt: skip
"""The stages of each group in a report."""
FREE_OPERATIONS = {
    torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty, torch.ops.aten._unsafe_view,
}  # fmt: skip
"""Operations that are not views and compute nothing either."""


def _calls(world: MosaicWorld) -> list[tuple[Any, str, str]]:
    """The calls of a step that are stages: the owner of each function, its name, and its stage."""
    return [
        (world, "retrieve", "retrieve"),
        (world, "sample", "denoise"),
        (world.model.transformer, "read", "read"),
        (generation, "decode_frames", "decode"),
        (generation, "condition_next_step", "decode"),
        (spatial_memory, "estimate_depth", "depth"),
        (spatial_memory, "update_memories", "lift"),
    ]


@contextmanager
def staged(world: MosaicWorld, enter: Callable[[str], Any]) -> Iterator[None]:
    """Inside the block, every stage of a step runs in the context `enter(stage)`; stages may be nested."""
    with ExitStack() as stack:
        for owner, name, stage in _calls(world):
            _replace(stack, owner, name, _in_context(getattr(owner, name), stage, enter))
        yield


def _in_context(function: Callable[..., Any], stage: str, enter: Callable[[str], Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with enter(stage):
            return function(*args, **kwargs)

    return run


def _replace(stack: ExitStack, owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Sets an attribute until the stack closes."""
    if name in vars(owner):
        stack.callback(setattr, owner, name, vars(owner)[name])
    else:  # a method, found on the class
        stack.callback(partial(delattr, owner, name))
    setattr(owner, name, function)


class Stopwatch:
    """Measures the seconds of every stage without those of nested stages; the rest counts as `REST`."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = dict.fromkeys((*STAGES, REST), 0.0)
        self._stage, self._since = REST, now(device)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        outer = self._switch(stage)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, stage: str) -> str:
        previous, moment = self._stage, now(self.device)
        self.seconds[previous] += moment - self._since
        self._stage, self._since = stage, moment
        return previous

    def stop(self) -> dict[str, float]:
        """The seconds of every stage until now."""
        self._switch(REST)
        return self.seconds


def now(device: torch.device) -> float:
    """The time in seconds, after all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Operations(TorchDispatchMode):
    """Counts the operations of every stage that are not views; each is at least one kernel on an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter(dict.fromkeys((*STAGES, REST), 0))
        self._stage = REST

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        outer, self._stage = self._stage, stage
        try:
            yield
        finally:
            self._stage = outer

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view and function.overloadpacket not in FREE_OPERATIONS:
            self.counts[self._stage] += 1
        return function(*args, **(kwargs or {}))
