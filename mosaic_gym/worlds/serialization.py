"""Learned-world states as tensors and JSON, and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mosaic_gym.geometry.control import Pose
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.worlds.state import WorldState

ALIGNMENT = 64
"""Torch allocates tensors at multiples of this many bytes."""
_MEMORY = "memory."
_STREAM = "stream."


def pack_state(state: WorldState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state as contiguous tensors by name, and as metadata that JSON can hold."""
    memory, memory_metadata = state.memory.tensors()
    tensors = {_MEMORY + name: value for name, value in memory.items()}
    for name in ("history", "history_cameras", "text"):
        tensors[name] = getattr(state, name).contiguous()
    tensors["world_from_camera"] = torch.from_numpy(state.pose.world_from_camera.copy())
    tensors["velocity_m"] = torch.from_numpy(np.asarray(state.pose.velocity_m).copy())
    for index, part in enumerate(state.stream):
        if isinstance(part, Tensor):
            tensors[f"{_STREAM}{index}"] = part.contiguous()
    stream = [None if isinstance(part, Tensor) else [part] for part in state.stream]
    return tensors, {
        "memory": memory_metadata,
        "prompt": state.prompt,
        "seed": state.seed,
        "step_index": state.step_index,
        "stream": stream,
    }


def unpack_state(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], device: torch.device) -> WorldState:
    """The state that `pack_state` described, with its tensors on a device."""
    moved = {name: _aligned(value.to(device)) for name, value in tensors.items()}
    memory = {name.removeprefix(_MEMORY): value for name, value in moved.items() if name.startswith(_MEMORY)}
    return WorldState(
        pose=Pose(tensors["world_from_camera"].cpu().numpy(), tensors["velocity_m"].cpu().numpy()),
        history=moved["history"],
        history_cameras=moved["history_cameras"],
        memory=MosaicMemory.from_tensors(memory, metadata["memory"]),
        prompt=metadata["prompt"],
        text=moved["text"],
        seed=metadata["seed"],
        step_index=metadata["step_index"],
        stream=tuple(
            moved[f"{_STREAM}{index}"] if part is None else part[0] for index, part in enumerate(metadata["stream"])
        ),
    )


def _aligned(value: Tensor) -> Tensor:
    """The tensor, copied unless it begins at a multiple of `ALIGNMENT`.

    A tensor that is mapped from a file can begin at any byte, and some CPU kernels round differently there.
    """
    return value if value.data_ptr() % ALIGNMENT == 0 else value.clone()
