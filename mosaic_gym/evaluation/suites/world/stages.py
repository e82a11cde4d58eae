"""The stages of the evaluation, each resumable: true scenes, training frames, and the roll-outs of each world.

Every map's arrays are a file of their own in the output folder. What is there is not made again, if it was made by the
same world; a file that an interruption cut short is never left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_gym.evaluation.suites.world.changes import Change, ChangeRollout, find_change, roll_out_changes
from mosaic_gym.evaluation.suites.world.known_worlds import CannedWorld, Playback, Regression, frozen, wall
from mosaic_gym.evaluation.suites.world.rollouts import Rollout, WorldUnderTest, roll_out
from mosaic_gym.evaluation.suites.world.scenes import (
    STILL,
    WALK_STEPS,
    Scene,
    load_arrays,
    open_simulator,
    save_arrays,
    walk_scene,
)
from mosaic_gym.evaluation.suites.world.subjects import LearnedWorld
from mosaic_gym.evaluation.true_frames import TrueFrames, draw_frames
from mosaic_gym.geometry.control import Control, control_from_settings
from mosaic_gym.processes import end_with_parent, workers_end_on_error
from mosaic_gym.worlds.doom import DoomWorld

OTHER_MAPS = 1_000_000
"""Index from which the maps of the ceiling are counted, in the same split."""
SCENE_VERSION = 3
"""Version of the rules by which true walks are made; roll-outs of another version raise an error."""
CHUNK = 6
"""Maps of a task: they are rolled out as one batch."""
MOST_CHANGES = 100
"""Maps whose pickups, and whose doors, are tried at most."""
CANNED = ("one frame", "wall", "playback", "regression")


@dataclass(frozen=True)
class Simulation:
    """The parameters of the true scenes.

    Attributes:
        split: of the maps.
        size: (height, width) of the frames.
        control: the kinematics.
    """

    split: str
    size: tuple[int, int]
    control: Control


@dataclass(frozen=True)
class Subject:
    """A world under test, by what makes it.

    Attributes:
        name: of its row, and of its folder.
        kind: `learned`, `warp`, or one of `CANNED`.
        checkpoint: of a learned world, and of the warp alone.
        denoising_steps: None for the shipped number.
        out: the output folder, which holds the training frames that canned worlds show.
        control: the kinematics of canned worlds.
    """

    name: str
    kind: str
    checkpoint: str
    denoising_steps: int | None
    out: Path
    control: Control


def simulation_of(checkpoint: str, split: str) -> Simulation:
    """The simulation that fits a checkpoint's frames; the default sizes for `simulator`.

    Raises:
        ValueError: there is no such checkpoint.
    """
    from mosaic_gym.model.checkpoints import WorldModel

    if checkpoint == "simulator":
        return Simulation(split, (64, 64), Control())
    settings = WorldModel.from_pretrained(checkpoint).settings
    return Simulation(split, (settings.height, settings.width), control_from_settings(settings.control))


def make_scenes(simulation: Simulation, out: Path, first: int, count: int, workers: int) -> list[Scene]:
    """The first `count` scenes whose maps have an index from `first` on; maps without a scene are left out."""
    folder = out / "scenes"
    check_folder(folder, {"simulation": repr(simulation), "version": SCENE_VERSION})
    tried = count
    while True:
        indices = range(first, first + tried)
        missing = [index for index in indices if not any(_scene_file(folder, index, ok).exists() for ok in (1, 0))]
        tasks = [(simulation, folder, missing[i : i + CHUNK]) for i in range(0, len(missing), CHUNK)]
        run_tasks(_walk_scenes, tasks, workers, "true walks")
        found = [_scene_file(folder, index, True) for index in indices]
        found = [file for file in found if file.exists()]
        if len(found) >= count:
            return [load_arrays(Scene, file) for file in found[:count]]
        tried += count - len(found)


def _scene_file(folder: Path, index: int, found: bool) -> Path:
    return folder / f"{index:07d}.{'npz' if found else 'none'}"


def _walk_scenes(simulation: Simulation, folder: Path, indices: Sequence[int]) -> int:
    still, lively = _simulators(simulation)
    for index in indices:
        scene = walk_scene(still, lively, simulation.split, index)
        if scene is None:
            _scene_file(folder, index, False).touch()
        else:
            save_arrays(_scene_file(folder, index, True), scene)
    return len(indices)


@lru_cache(maxsize=2)
def _simulators(simulation: Simulation) -> tuple[DoomWorld, DoomWorld]:
    """The simulators of a process, which live as long as it does."""
    parts = simulation.size, simulation.control
    return open_simulator(simulation.split, STILL, *parts), open_simulator(simulation.split, None, *parts)


def make_training_frames(simulation: Simulation, out: Path, maps: int, workers: int) -> list[TrueFrames]:
    """An explorer's views of the first maps of the split `train`."""
    folder = out / "train"
    train = Simulation("train", simulation.size, simulation.control)
    check_folder(folder, {"simulation": repr(train), "steps": WALK_STEPS})
    files = [folder / f"{index:07d}.npz" for index in range(maps)]
    missing = [index for index, file in enumerate(files) if not file.exists()]
    tasks = [(train, folder, missing[i : i + CHUNK]) for i in range(0, len(missing), CHUNK)]
    run_tasks(_draw_training_frames, tasks, workers, "training maps")
    return [load_arrays(TrueFrames, file) for file in files]


def _draw_training_frames(simulation: Simulation, folder: Path, indices: Sequence[int]) -> int:
    with closing(open_simulator("train", None, simulation.size, simulation.control)) as world:
        for index in indices:
            save_arrays(folder / f"{index:07d}.npz", draw_frames(world, index, "train", WALK_STEPS))
    return len(indices)


def make_rollouts(subject: Subject, scenes: Sequence[Scene], workers: int) -> list[Rollout]:
    """The roll-outs of a world on scenes that `make_scenes` wrote; of canned worlds, which take no time, no files.

    Raises:
        ValueError: the folder holds roll-outs of another world.
    """
    if subject.kind in CANNED:
        return [roll_out(_open(subject), [scene])[0] for scene in scenes]
    folder = subject.out / "rollouts" / subject.name
    check_folder(folder, {"world": fingerprint_of(subject), "version": SCENE_VERSION})
    files = [folder / f"{scene.index:07d}.npz" for scene in scenes]
    missing = [scene.index for scene, file in zip(scenes, files, strict=True) if not file.exists()]
    tasks = [(subject, folder, missing[i : i + CHUNK]) for i in range(0, len(missing), CHUNK)]
    run_tasks(_roll_out, tasks, workers, subject.name)
    return [load_arrays(Rollout, file) for file in files]


def make_changes(simulation: Simulation, out: Path, kind: str, maps: int, workers: int) -> list[Change]:
    """The changes of a kind on the first maps of the split, at most `MOST_CHANGES`; maps without one are left out."""
    folder = out / "changes" / kind
    check_folder(folder, {"simulation": repr(simulation), "version": SCENE_VERSION})
    indices = range(min(maps, MOST_CHANGES))
    missing = [index for index in indices if not any(_scene_file(folder, index, ok).exists() for ok in (1, 0))]
    tasks = [(simulation, folder, kind, missing[i : i + CHUNK]) for i in range(0, len(missing), CHUNK)]
    run_tasks(_find_changes, tasks, workers, f"true changes: {kind}")
    files = [_scene_file(folder, index, True) for index in indices]
    return [load_arrays(Change, file) for file in files if file.exists()]


def _find_changes(simulation: Simulation, folder: Path, kind: str, indices: Sequence[int]) -> int:
    _, lively = _simulators(simulation)
    for index in indices:
        change = find_change(lively, simulation.split, index, kind)
        if change is None:
            _scene_file(folder, index, False).touch()
        else:
            save_arrays(_scene_file(folder, index, True), change)
    return len(indices)


def make_change_rollouts(subject: Subject, changes: Sequence[Change], workers: int) -> list[ChangeRollout]:
    """The last frame of a world that is driven along changes that `make_changes` wrote."""
    if not changes:
        return []
    folder = subject.out / "rollouts" / subject.name / changes[0].kind
    check_folder(folder, {"world": fingerprint_of(subject)})
    files = [folder / f"{change.index:07d}.npz" for change in changes]
    missing = [change.index for change, file in zip(changes, files, strict=True) if not file.exists()]
    tasks = [(subject, folder, missing[i : i + CHUNK]) for i in range(0, len(missing), CHUNK)]
    run_tasks(_roll_out_changes, tasks, workers, f"{subject.name}: {changes[0].kind}")
    return [load_arrays(ChangeRollout, file) for file in files]


def _roll_out_changes(subject: Subject, folder: Path, indices: Sequence[int]) -> int:
    source = subject.out / "changes" / folder.name
    changes = [load_arrays(Change, _scene_file(source, index, True)) for index in indices]
    for rollout in roll_out_changes(_open(subject), changes):
        save_arrays(folder / f"{rollout.index:07d}.npz", rollout)
    return len(indices)


def _roll_out(subject: Subject, folder: Path, indices: Sequence[int]) -> int:
    scenes = [load_arrays(Scene, _scene_file(subject.out / "scenes", index, True)) for index in indices]
    for rollout in roll_out(_open(subject), scenes):
        save_arrays(folder / f"{rollout.index:07d}.npz", rollout)
    return len(indices)


def fingerprint_of(subject: Subject) -> str:
    """What distinguishes a world from others."""
    return _open(subject).fingerprint


@lru_cache(maxsize=2)
def _open(subject: Subject) -> WorldUnderTest:
    """The world of a subject, once a process."""
    from mosaic_gym.model.checkpoints import WorldModel

    if subject.kind in CANNED:
        files = sorted((subject.out / "train").glob("*.npz"))
        train = [load_arrays(TrueFrames, file) for file in files]
        walks = np.stack([row.frames for row in train]), np.stack([row.depth_m for row in train])
        picture: Any = {"one frame": frozen, "wall": wall, "playback": Playback, "regression": Regression}[subject.kind]
        picture = picture(*walks) if isinstance(picture, type) else picture
        return CannedWorld(f"{subject.kind}:{len(train)}", picture, np.eye(3), subject.control)
    model = WorldModel.from_pretrained(subject.checkpoint)
    return LearnedWorld(model, subject.denoising_steps, network=subject.kind == "learned")


def check_folder(folder: Path, origin: dict[str, Any]) -> None:
    """Creates a folder with a description of what made its files, or compares that description.

    Raises:
        ValueError: the files were made by something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "origin.json"
    if not file.is_file():
        file.write_text(json.dumps(origin) + "\n")
    elif json.loads(file.read_text()) != origin:
        raise ValueError(f"{folder} holds roll-outs of another world or split; give another --out, or delete it")


def run_tasks(
    function: Callable[..., int], tasks: Sequence[tuple[Any, ...]], workers: int, label: str, unit: str = "map"
) -> None:
    """Runs tasks in processes of one thread each, with a progress bar; each returns how many maps it has done."""
    from tqdm import tqdm

    if not tasks:
        return
    total = sum(len(task[-1]) for task in tasks)
    with tqdm(total=total, desc=label, unit=unit, mininterval=2.0) as bar:
        if workers == 1 or len(tasks) == 1:
            _advance(bar, (function(*task) for task in tasks))
            return
        with (
            ProcessPoolExecutor(
                min(workers, len(tasks)), mp_context=get_context("spawn"), initializer=_prepare_worker
            ) as pool,
            workers_end_on_error(),
        ):
            futures = [pool.submit(function, *task) for task in tasks]
            _advance(bar, (future.result() for future in as_completed(futures)))


def _advance(bar: Any, counts: Iterable[int]) -> None:
    for count in counts:
        bar.update(count)


def _prepare_worker() -> None:
    import torch

    end_with_parent()
    torch.set_num_threads(1)
