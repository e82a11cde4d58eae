"""The learned world's state, as a value, and as what a file holds of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mosaic_gym.geometry.control import Pose
from mosaic_gym.memory.mosaic import MosaicMemory

ALIGNMENT = 64
"""Bytes, at a multiple of which torch's own tensors begin."""
_MEMORY = "memory."
_STREAM = "stream."


@dataclass(frozen=True)
class WorldState:
    """Everything a future depends on, as a value; stepping returns a new one, and forks share what is equal.

    Attributes:
        pose: of the body.
        history: `[t, c, h, w]`, the most recent latent frames, oldest first.
        history_cameras: float32 `[t, 4, 4, 4]`, world_from_camera, metres.
        memory: the keyframes of the episode.
        prompt: the text, and `text` `[l, d]` what the encoder made of it.
        seed: noise of step i is drawn from (seed, i); there is no hidden generator.
        step_index: steps made since the start.
        stream: where the decoding of the present clip stands; () for a codec whose latents stand alone, and one latent
            where every step begins a clip of its own.
    """

    pose: Pose
    history: Tensor
    history_cameras: Tensor
    memory: MosaicMemory
    prompt: str
    text: Tensor
    seed: int
    step_index: int
    stream: tuple[Any, ...] = ()


@dataclass(frozen=True)
class LatentObservation:
    """What a step in latents alone shows.

    Attributes:
        latent: `[c, h, w]`.
        coverage: share of the view that memory covers, 0 to 1.
    """

    latent: Tensor
    coverage: float


def aligned(value: Tensor) -> Tensor:
    """The tensor, copied if it begins where no tensor of torch's own does.

    What is mapped from a file begins at any byte, and by that some CPUs' kernels round differently.
    """
    return value if value.data_ptr() % ALIGNMENT == 0 else value.clone()


class Keeping:
    """The part of `MosaicWorld` that puts states away and fetches them."""

    def pack(self, state: WorldState) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a file must hold of a state: tensors by name, and what JSON can say."""
        memory, about_memory = state.memory.tensors()
        tensors = {_MEMORY + name: value for name, value in memory.items()}
        for name in ("history", "history_cameras", "text"):
            tensors[name] = getattr(state, name).contiguous()
        tensors["world_from_camera"] = torch.from_numpy(state.pose.world_from_camera.copy())
        tensors["velocity_m"] = torch.from_numpy(np.asarray(state.pose.velocity_m).copy())
        for index, part in enumerate(state.stream):
            if isinstance(part, Tensor):
                tensors[f"{_STREAM}{index}"] = part.contiguous()
        kept = [None if isinstance(part, Tensor) else [part] for part in state.stream]
        told = {"prompt": state.prompt, "seed": state.seed, "step_index": state.step_index, "stream": kept}
        return tensors, {"memory": about_memory, **told}

    def unpack(self, tensors: Mapping[str, Tensor], about: dict[str, Any]) -> WorldState:
        """The state that `pack` described, bit for bit."""
        moved = {name: aligned(value.to(self.device)) for name, value in tensors.items()}
        memory = {name.removeprefix(_MEMORY): value for name, value in moved.items() if name.startswith(_MEMORY)}
        return WorldState(
            pose=Pose(tensors["world_from_camera"].cpu().numpy(), tensors["velocity_m"].cpu().numpy()),
            history=moved["history"],
            history_cameras=moved["history_cameras"],
            memory=MosaicMemory.from_tensors(memory, about["memory"]),
            prompt=about["prompt"],
            text=moved["text"],
            seed=about["seed"],
            step_index=about["step_index"],
            stream=tuple(
                moved[f"{_STREAM}{index}"] if kept is None else kept[0] for index, kept in enumerate(about["stream"])
            ),
        )
