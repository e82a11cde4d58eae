"""Reset options, and their checks, which run before the world changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_gym.envs.snapshot import Snapshot, check_snapshot, load_snapshots
from mosaic_gym.envs.spaces import WORLD_LIMIT_M
from mosaic_gym.envs.tasks import Task
from mosaic_gym.geometry.control import check_pose
from mosaic_gym.validation import Whole, check
from mosaic_gym.worlds.protocol import World

OPTIONS = ("goal", "image", "map_seed", "memory", "pose", "prompt", "snapshot")
"""All keys. An environment lists those that its world supports."""
LEARNED_OPTIONS = tuple(key for key in OPTIONS if key != "map_seed")
"""The keys that a learned world with a memory supports."""


def check_options(
    options: Mapping[str, Any] | None, supported: Collection[str], world: World, task: Task
) -> dict[str, Any]:
    """The options, checked and copied.

    Args:
        options: as `reset` takes them; None for none. `image` and `goal` are uint8 `[H, W, 3]`, `pose` is a
            `world_from_camera` `[4, 4]` in metres, within `WORLD_LIMIT_M` of the origin, `prompt` text, `memory` a path
            or a memory, `map_seed` a whole number from 0, `snapshot` a path or a `Snapshot`, without other options.
        supported: the keys that this environment supports.
        world: whose frames have the size that images must have, and whose snapshots are taken.
        task: of the environment.

    Raises:
        TypeError: options that are not a mapping, or a snapshot that is neither a path nor a `Snapshot`.
        ValueError: an option that is unknown or wrong. The message says what is expected.
        FileNotFoundError: no file at the snapshot's path.
    """
    if not isinstance(options, Mapping | None):
        raise TypeError(f"options are a dict of {', '.join(sorted(supported))}; got {options!r}")
    checked = dict(options or {})
    for key in checked:
        if key not in supported:
            reason = "this environment does not support the option" if key in OPTIONS else "unknown reset option"
            raise ValueError(f"{reason} {key!r}; it takes {', '.join(sorted(supported))}")
    for key in ("image", "goal"):
        if key in checked:
            checked[key] = _check_image(key, checked[key], world.height, world.width)
    if "pose" in checked:
        checked["pose"] = _check_place(check_pose(checked["pose"]).world_from_camera)
    if "prompt" in checked:
        check_prompt(checked["prompt"], "options['prompt']")
    if "map_seed" in checked:
        checked["map_seed"] = check("options['map_seed']", checked["map_seed"], Whole(0))
    if "memory" in checked and isinstance(checked["memory"], str | Path):
        checked["memory"] = _load_memory(Path(checked["memory"]))
    if "snapshot" in checked:
        if len(checked) > 1:
            others = ", ".join(sorted(set(checked) - {"snapshot"}))
            raise ValueError(f"a snapshot holds the whole episode: reset with options['snapshot'], or with {others}")
        checked["snapshot"] = _check_snapshot(checked["snapshot"], world, task)
    return checked


def check_prompt(prompt: Any, name: str = "a prompt") -> None:
    """Raises ValueError unless a prompt is text."""
    if not isinstance(prompt, str):
        raise ValueError(f"{name} is text; got {type(prompt).__name__}")


def _check_place(world_from_camera: np.ndarray) -> np.ndarray:
    """The camera `[4, 4]`; ValueError if it stands further out than observations can resolve."""
    place_m = world_from_camera[:3, 3]
    if np.abs(place_m).max() > WORLD_LIMIT_M:
        raise ValueError(
            f"options['pose'] stands at most {WORLD_LIMIT_M:g} m from the origin along each axis (beyond it, float32 "
            f"cannot resolve single steps); got x, y, z = {place_m.tolist()}: move the world's origin nearer"
        )
    return world_from_camera


def _check_image(key: str, image: Any, height: int, width: int) -> np.ndarray:
    """A contiguous copy; tensors and images with negative strides, such as `bgr[..., ::-1]`, are accepted."""
    shape = (height, width, 3)
    image = image.cpu().numpy() if str(getattr(image, "dtype", None)) == "torch.uint8" else image
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != shape:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"options[{key!r}] is a uint8 array of shape {shape}; got {got}")
    return np.array(image, order="C")


def _check_snapshot(snapshot: Any, world: World, task: Task) -> Snapshot:
    if isinstance(snapshot, str | Path):
        (snapshot,) = load_snapshots(world, snapshot)
    check_snapshot(snapshot, world, task)
    if snapshot.episode.ended:
        raise ValueError("options['snapshot'] is of an episode that has ended: take it before the last step")
    return snapshot


def _load_memory(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"options['memory'] names {str(path)!r}, which is not a file")
    from mosaic_gym.memory.mosaic import MosaicMemory

    return MosaicMemory.load(path)
