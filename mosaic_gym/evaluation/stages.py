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

from mosaic_gym.worlds import generation, spatial_memory
from mosaic_gym.worlds.mosaic import MosaicWorld

STAGES = {
    (spatial_memory, "retrieve_views"): "retrieve",
    (generation, "sample_latents"): "denoise",
    (generation, "decode_frames"): "decode",
    (generation, "condition_next_step"): "decode",
    (spatial_memory, "estimate_depth"): "depth",
    (spatial_memory, "update_memories"): "lift",
}
"""Functions of a step, by module and name, with the stage that their own time counts as."""
READ = "read"
"""The stage of the transformer's pass over clean tokens."""
REST = "bookkeeping"
GROUPS = {
    "memory": ("retrieve", "lift"), "network": (READ, "denoise"), "codec": ("decode",), "depth": ("depth",),
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
    originals = {(owner, name): getattr(owner, name) for owner, name in STAGES}
    for (owner, name), function in originals.items():
        setattr(owner, name, within(function, STAGES[owner, name]))
    transformer.read = within(transformer.read, READ)
    try:
        yield
    finally:
        for (owner, name), function in originals.items():
            setattr(owner, name, function)
        del transformer.read


class Stopwatch:
    """Seconds of every stage, without those of the stages within it; what lies in none is `REST`."""

    def __init__(self, device: torch.device):
        self.device = device
        self.spent: dict[str, float] = dict.fromkeys((*STAGES.values(), READ, REST), 0.0)
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
        self.counts: Counter[str] = Counter(dict.fromkeys((*STAGES.values(), READ, REST), 0))
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
