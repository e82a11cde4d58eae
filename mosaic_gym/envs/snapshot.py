"""An episode kept: in hand, to go back to; or in a file, to go on in another process."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_gym.envs.episode import Episode
from mosaic_gym.envs.tasks import Task
from mosaic_gym.worlds.protocol import View, World

FORMAT = "mosaic-snapshot-1"
_STATE, _VIEW = "state.", "view."
_ARRAYS = ("frames", "depth_m", "world_from_camera", "image_from_camera", "all_depth_m")
_TOLD = ("steps", "unsure_steps", "reward", "terminated", "truncated", "progress")


@dataclass(frozen=True)
class Snapshot:
    """An episode, and where the seeds of the next ones will come from. Taking one copies nothing.

    Attributes:
        episode: a value.
        generator: the state of the environment's random generator.
        fingerprint: of the world it belongs to.
        task: the name of the task's class.
    """

    episode: Episode
    generator: dict[str, Any]
    fingerprint: str
    task: str


def take(world: World, task: Task, episode: Episode, rng: np.random.Generator) -> Snapshot:
    """A snapshot of the present.

    Raises:
        RuntimeError: the world cannot go back.
    """
    check_forkable(world)
    return Snapshot(episode, rng.bit_generator.state, world.fingerprint, type(task).__name__)


def check_forkable(world: World) -> None:
    """Raises RuntimeError if the world has one true present."""
    if not world.forkable:
        raise RuntimeError(
            f"{type(world).__name__} has one true present: it cannot be forked, kept or restored. "
            "Begin anew with the same seed and actions, or fork the learned world, MosaicWorld-v0"
        )


def check_snapshot(snapshot: Snapshot, world: World, task: Task) -> None:
    """Raises TypeError or ValueError unless `snapshot` can go on here."""
    check_forkable(world)
    if not isinstance(snapshot, Snapshot):
        raise TypeError(f"restore takes what snapshot() returned; got {type(snapshot).__name__}")
    if snapshot.fingerprint != world.fingerprint:
        raise ValueError("the snapshot is of another checkpoint; restore it in an environment with that one")
    if snapshot.task != type(task).__name__:
        raise ValueError(f"the snapshot is of a {snapshot.task}, this environment has a {type(task).__name__}")


def save(snapshot: Snapshot, world: World, path: Path | str) -> None:
    """Writes a snapshot into one safetensors file."""
    import torch
    from safetensors.torch import save_file

    episode, view = snapshot.episode, snapshot.episode.view
    tensors, about_state = world.pack(episode.state)
    named = {_STATE + name: value for name, value in tensors.items()}
    for name in _ARRAYS:
        if getattr(view, name) is not None:
            named[_VIEW + name] = torch.tensor(getattr(view, name)).contiguous()
    named["goal"] = torch.tensor(episode.goal).contiguous()
    about = {
        "format": FORMAT,
        "fingerprint": snapshot.fingerprint,
        "task": snapshot.task,
        "generator": snapshot.generator,
        "state": about_state,
        "view": {field.name: getattr(view, field.name) for field in fields(View) if field.name not in _ARRAYS},
        **{name: getattr(episode, name) for name in _TOLD},
    }
    save_file(named, str(path), metadata={"about": json.dumps(about, default=np.ndarray.tolist)})


def load(world: World, path: Path | str) -> Snapshot:
    """Reads what `save` wrote.

    Raises:
        FileNotFoundError: no such file. ValueError: damaged, no snapshot, or one of another checkpoint.
    """
    from mosaic_gym.memory.mosaic import load_described

    check_forkable(world)
    tensors, about = load_described(path, FORMAT, "snapshot")
    if about["fingerprint"] != world.fingerprint:
        raise ValueError(f"{path} is a snapshot of another checkpoint; load it in an environment with that one")
    state = {name.removeprefix(_STATE): value for name, value in tensors.items() if name.startswith(_STATE)}
    arrays = {name.removeprefix(_VIEW): value.numpy() for name, value in tensors.items() if name.startswith(_VIEW)}
    view = View(**arrays, **{**about["view"], "labels": tuple(about["view"]["labels"])})
    told = {name: about[name] for name in _TOLD}
    episode = Episode(world.unpack(state, about["state"]), view, tensors["goal"].numpy(), **told)
    return Snapshot(episode, about["generator"], about["fingerprint"], about["task"])
