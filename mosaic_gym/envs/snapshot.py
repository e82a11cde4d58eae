"""Snapshots of an episode: in memory, to return to it; or in a file, to continue it in another process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_gym.envs.episode import Episode
from mosaic_gym.envs.tasks import Task, unwrap_task
from mosaic_gym.validation import Whole, check
from mosaic_gym.worlds.protocol import View, World, check_fingerprint

FORMAT = "mosaic-snapshots-4"
"""Format name of a file with a list of snapshots; a single snapshot is a list of one."""
_STATE, _VIEW = "state.", "view."
_ARRAYS = ("frames", "depth_m", "world_from_camera", "image_from_camera", "all_depth_m")
_PLAIN = ("steps", "unsure_steps", "reward", "terminated", "truncated", "success", "forks")
"""Fields of an episode that JSON can hold as they are."""
_TASK_STATE = "progress"  # name in files
_OLD_TASKS = {"EngineTask(": "SimulatorTask("}  # name in files
"""How descriptions of tasks began in older files, and how they begin now."""


@dataclass(frozen=True)
class Snapshot:
    """An episode, and where the seeds of the next ones come from. Taking one copies nothing.

    Attributes:
        episode: a value.
        generator: the state of the environment's random generator.
        fingerprint: of the world it belongs to.
        task: the `task_description` of the environment's task.
        branch: which fork of the episode it is, see `generator_of`.
        device: where its tensors are.
    """

    episode: Episode
    generator: dict[str, Any]
    fingerprint: str
    task: str
    branch: tuple[int, ...] = ()
    device: str = "cpu"


def generator_of(snapshot: Snapshot) -> np.random.Generator:
    """Where the seeds of later episodes come from: a fork has another stream than its origin."""
    if snapshot.branch:
        seeds = np.random.SeedSequence([snapshot.generator["state"]["state"], *snapshot.branch])
        return np.random.Generator(np.random.PCG64(seeds))
    bits = np.random.PCG64()
    bits.state = snapshot.generator
    return np.random.Generator(bits)


def take_snapshot(world: World, task: Task, episode: Episode, rng: np.random.Generator) -> Snapshot:
    """A snapshot of an episode.

    Raises:
        RuntimeError: the world is not forkable.
    """
    check_forkable(world)
    return Snapshot(
        episode, rng.bit_generator.state, world.fingerprint, task_description(task), device=_device_of(world)
    )


def _device_of(world: World) -> str:
    return str(getattr(world, "device", "cpu"))


def task_description(task: Task) -> str:
    """A task's class and its plain parameters: a task state is valid for a task with the same ones only."""
    task = unwrap_task(task)
    plain = {name: value for name, value in sorted(vars(task).items()) if _is_plain(value)}
    return f"{type(task).__qualname__}({', '.join(f'{name}={value!r}' for name, value in plain.items())})"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def check_forkable(world: World) -> None:
    """Raises RuntimeError if the world cannot go back to an earlier state."""
    if not world.forkable:
        raise RuntimeError(
            f"{type(world).__name__} cannot go back to an earlier state, so it cannot be forked, saved or restored. "
            "Reset with the same seed and repeat the actions, or fork the learned world, MosaicWorld-v0"
        )


def check_snapshot(snapshot: Snapshot, world: World, task: Task) -> None:
    """Raises TypeError or ValueError unless `snapshot` can continue in this world, with this task."""
    check_forkable(world)
    if not isinstance(snapshot, Snapshot):
        raise TypeError(f"restore takes what snapshot() returned; got {type(snapshot).__name__}")
    check_fingerprint("the snapshot", snapshot.fingerprint, world.fingerprint)
    if snapshot.device != _device_of(world):
        raise ValueError(
            f"the snapshot is on {snapshot.device}, this world on {_device_of(world)}: save it to a file, and load that"
        )
    if snapshot.task != task_description(task):
        raise ValueError(
            f"the snapshot is of the task {snapshot.task}, this environment has {task_description(task)}; restore it "
            "where the task is the same"
        )


def fork_snapshot(snapshot: Snapshot, n: int) -> list[Snapshot]:
    """`n` snapshots of the same episode, which share what is equal.

    The first is the snapshot itself, and counts the forks made of it. The seeds of later episodes differ between forks,
    or all forks would go on to the same episodes. That holds for forks of forks and for forks made at another time too.

    Raises:
        ValueError: n below 1.
    """
    n = check("the number of forks", n, Whole(1))
    episode = snapshot.episode
    fresh = replace(episode, forks=0)
    branches = range(episode.forks + 1, episode.forks + n)
    forks = [replace(snapshot, episode=fresh, branch=(*snapshot.branch, episode.steps, i)) for i in branches]
    return [replace(snapshot, episode=replace(episode, forks=episode.forks + n - 1)), *forks]


def save_snapshots(snapshots: Sequence[Snapshot], world: World, path: Path | str) -> None:
    """Writes snapshots into one safetensors file; tensors that they share are written once.

    Raises:
        FileNotFoundError: no such folder. TypeError: a task state that JSON cannot hold.
    """
    from mosaic_gym.memory.files import save_with_metadata

    named: dict[str, Any] = {}
    members, names = [], {}
    # All are packed first, and forks of one episode once: addresses identify shared tensors while those exist.
    packed = {id(snapshot.episode): _pack(snapshot.episode, world) for snapshot in snapshots}
    for index, snapshot in enumerate(snapshots):
        tensors, about = packed[id(snapshot.episode)]
        shared = {}
        for name, value in tensors.items():
            full = f"{index}.{name}"
            written = names.setdefault((value.device, value.data_ptr(), tuple(value.shape), value.dtype), full)
            if written != full and value.numel():
                shared[name] = written
                continue
            named[full] = value
        origin = {"fingerprint": snapshot.fingerprint, "task": snapshot.task}
        members.append({**origin, "generator": generator_of(snapshot).bit_generator.state, **about, "shared": shared})
    save_with_metadata(named, path, {"format": FORMAT, "members": members})


def _as_json(task_state: Any) -> Any:
    """A task state in JSON's types.

    Raises:
        TypeError: a value that JSON would not return as it was.
    """
    if isinstance(task_state, np.ndarray | np.generic):
        return task_state.tolist()
    if isinstance(task_state, dict) and all(isinstance(key, str) for key in task_state):
        return {key: _as_json(value) for key, value in task_state.items()}
    if isinstance(task_state, list):
        return [_as_json(value) for value in task_state]
    if task_state is None or isinstance(task_state, bool | int | float | str):
        return task_state
    raise TypeError(
        "a task state is saved as JSON: None, numbers, text, arrays, lists, and dicts with text as keys; got "
        f"{task_state!r}"
    )


def load_snapshots(world: World, path: Path | str, count: int = 1) -> list[Snapshot]:
    """Reads a file of `save_snapshots` with `count` snapshots.

    Raises:
        FileNotFoundError: no such file. ValueError: damaged, of another number of snapshots, or of another checkpoint.
    """
    check_forkable(world)
    try:
        return _read(world, path, count)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); save the snapshot again") from error


def _read(world: World, path: Path | str, count: int) -> list[Snapshot]:
    from mosaic_gym.memory.files import load_with_metadata

    tensors, about = load_with_metadata(path, (FORMAT,), "snapshot")
    members = about["members"]
    if len(members) != count:
        raise ValueError(f"{path} holds {len(members)} members, this environment has {count}: make it with as many")
    for member in members:
        check_fingerprint(f"the snapshot in {path}", member["fingerprint"], world.fingerprint)
    # Each tensor goes to the device once, so that members share it there too.
    device = _device_of(world)
    tensors = {name: value.to(device) for name, value in tensors.items()}
    states: dict[Any, Any] = {}
    snapshots = []
    for index, member in enumerate(members):
        prefix = f"{index}."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        own |= {name: tensors[written] for name, written in member["shared"].items()}
        snapshots.append(_unpack(world, own, member, states))
    return snapshots


def _pack(episode: Episode, world: World) -> tuple[dict[str, Any], dict[str, Any]]:
    """An episode as tensors by name, and as JSON."""
    import torch

    view = episode.view
    tensors, about_state = world.pack(episode.state)
    named = {_STATE + name: value for name, value in tensors.items()}
    for name in _ARRAYS:
        if getattr(view, name) is not None:
            named[_VIEW + name] = torch.from_numpy(np.array(getattr(view, name), order="C"))
    named["goal"] = torch.from_numpy(np.array(episode.goal, order="C"))
    about = {
        "state": about_state,
        "view": {field.name: getattr(view, field.name) for field in fields(View) if field.name not in _ARRAYS},
        **{name: getattr(episode, name) for name in _PLAIN},
        _TASK_STATE: _as_json(episode.task_state),
    }
    return named, about


def _unpack(world: World, tensors: dict[str, Any], about: dict[str, Any], states: dict[Any, Any]) -> Snapshot:
    """The snapshot that `_pack` described; `states` holds the states of this file that were unpacked already."""
    state = {name.removeprefix(_STATE): value for name, value in tensors.items() if name.startswith(_STATE)}
    arrays = {
        name.removeprefix(_VIEW): value.cpu().numpy() for name, value in tensors.items() if name.startswith(_VIEW)
    }
    key = tuple((name, id(value)) for name, value in state.items()), json.dumps(about["state"])
    if key not in states:
        states[key] = world.unpack(state, about["state"])
    view = View(**arrays, **{**about["view"], "labels": tuple(about["view"]["labels"])})
    plain = {name: about[name] for name in _PLAIN}
    episode = Episode(states[key], view, tensors["goal"].cpu().numpy(), task_state=about[_TASK_STATE], **plain)
    task = about["task"]
    for old, new in _OLD_TASKS.items():
        task = new + task.removeprefix(old) if task.startswith(old) else task
    return Snapshot(episode, about["generator"], about["fingerprint"], task, device=_device_of(world))
