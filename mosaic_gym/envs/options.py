"""What `reset(options=...)` may ask for, checked before anything moves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_gym.envs.spaces import WORLD_LIMIT_M
from mosaic_gym.geometry.control import check_pose

OPTIONS = ("goal", "image", "memory", "pose", "prompt")
"""All the keys. Which of them a world can honour, its environment says."""


def check_options(options: Mapping[str, Any], allowed: Collection[str], height: int, width: int) -> dict[str, Any]:
    """The options, checked and copied; raises ValueError naming what is wrong and what is expected.

    Args:
        options: as given to `reset`; `image` and `goal` are uint8 `[H, W, 3]`, `pose` is a level
            `world_from_camera` `[4, 4]` in metres, within `WORLD_LIMIT_M` of the origin, `prompt` text, `memory` a path
            or a memory.
        allowed: the keys this environment honours.
        height: of its frames, pixels.
        width: of its frames, pixels.
    """
    for key in options:
        if key not in allowed:
            reason = "this environment cannot honour the option" if key in OPTIONS else "unknown reset option"
            raise ValueError(f"{reason} {key!r}; it takes {', '.join(sorted(allowed))}")
    checked = dict(options)
    for key in ("image", "goal"):
        if key in checked:
            checked[key] = _check_image(key, checked[key], height, width)
    if "pose" in checked:
        checked["pose"] = _check_place(check_pose(checked["pose"]).world_from_camera)
    if "prompt" in checked:
        check_prompt(checked["prompt"], "options['prompt']")
    if "memory" in checked and isinstance(checked["memory"], str | Path):
        checked["memory"] = _load_memory(Path(checked["memory"]))
    return checked


def check_prompt(prompt: Any, name: str = "a prompt") -> None:
    """Raises ValueError unless a prompt is text."""
    if not isinstance(prompt, str):
        raise ValueError(f"{name} is text; got {type(prompt).__name__}")


def _check_place(world_from_camera: np.ndarray) -> np.ndarray:
    """The camera `[4, 4]`; ValueError if it stands where no observation could tell it."""
    place_m = world_from_camera[:3, 3]
    if np.abs(place_m).max() > WORLD_LIMIT_M:
        raise ValueError(
            f"options['pose'] stands at most {WORLD_LIMIT_M:g} m from the origin along each axis (beyond it, float32 "
            f"would lose a body's steps); got x, y, z = {place_m.tolist()}: move the world's origin nearer"
        )
    return world_from_camera


def _check_image(key: str, image: Any, height: int, width: int) -> np.ndarray:
    shape = (height, width, 3)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != shape:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"options[{key!r}] is a uint8 array of shape {shape}; got {got}")
    return image.copy()


def _load_memory(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"options['memory'] names {str(path)!r}, which is no file")
    from mosaic_gym.memory.mosaic import MosaicMemory

    return MosaicMemory.load(path)
