"""Where a step of a learned world goes: its stages, by time and by operations."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mosaic_gym.worlds.mosaic import MosaicWorld

STAGES = {
    "retrieve": "retrieve", "denoised": "denoise", "read": "read", "_decode": "decode", "_carried_on": "decode",
    "_estimate_depth": "depth", "_remember": "lift",
}  # fmt: skip
"""Methods of the world, and one of its transformer, by the stage that their own time counts as."""
REST = "bookkeeping"
GROUPS = {
    "memory": ("retrieve", "lift"), "network": ("read", "denoise"), "codec": ("decode",), "depth": ("depth",),
    REST: (REST,),
}  # fmt: skip
"""What the stages are parts of."""
WORKLESS = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty, torch.ops.aten._unsafe_view}
"""Operations that are no views, and compute nothing either."""


@contextmanager
def staged(world: MosaicWorld, enter: Callable[[str], Any]) -> Iterator[None]:
    """Goes into the context `enter(stage)` around every stage; stages may lie within others."""

    def within(method: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            with enter(stage):
                return method(*args, **kwargs)

        return run

    transformer = world.model.transformer
    changed = [(transformer if hasattr(transformer, name) else world, name) for name in STAGES]
    for owner, name in changed:
        setattr(owner, name, within(getattr(owner, name), STAGES[name]))
    try:
        yield
    finally:
        for owner, name in changed:
            delattr(owner, name)


class Stopwatch:
    """Seconds of every stage, without those of the stages within it; what lies in none is `REST`."""

    def __init__(self, device: torch.device):
        self.device = device
        self.spent: dict[str, float] = dict.fromkeys((*STAGES.values(), REST), 0.0)
        self._stage, self._since = REST, now(device)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        around = self._turn_to(stage)
        try:
            yield
        finally:
            self._turn_to(around)

    def _turn_to(self, stage: str) -> str:
        before, moment = self._stage, now(self.device)
        self.spent[before] += moment - self._since
        self._stage, self._since = stage, moment
        return before

    def stop(self) -> dict[str, float]:
        """All until now."""
        self._turn_to(REST)
        return self.spent


def now(device: torch.device) -> float:
    """Seconds, with everything on the device done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Operations(TorchDispatchMode):
    """How many operations every stage asks for that are no views, each of them a kernel or more on an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter(dict.fromkeys((*STAGES.values(), REST), 0))
        self._stage = REST

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        around, self._stage = self._stage, stage
        try:
            yield
        finally:
            self._stage = around

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view and function.overloadpacket not in WORKLESS:
            self.counts[self._stage] += 1
        return function(*args, **(kwargs or {}))
