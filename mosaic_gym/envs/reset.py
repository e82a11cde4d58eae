"""Resets: episodes from a seed and options, or from a snapshot."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding

from mosaic_gym.envs.episode import Episode
from mosaic_gym.envs.snapshot import Snapshot, fork_snapshot, generator_of
from mosaic_gym.envs.tasks import Task
from mosaic_gym.validation import as_whole
from mosaic_gym.worlds.protocol import Start, World

Reset = tuple[list[Episode], list[np.random.Generator]]
"""Episodes, and for each the generator that the seeds of later episodes come from."""


def start_episodes(
    world: World,
    task: Task,
    options: Sequence[Mapping[str, Any]],
    seeds: Sequence[int | None],
    generators: Sequence[np.random.Generator | None],
    prompt: str | None = None,
) -> Reset:
    """New episodes. The arguments are not changed, so that a reset that fails changes nothing.

    Args:
        options: reset options as `check_options` returns them, one dict for each episode. Episodes from the same
            snapshot object are forks of it: their later episodes have seeds of their own.
        seeds: one each; None draws from a copy of that episode's generator.
        generators: one each, None where nothing was drawn yet.
        prompt: for episodes whose options have none.

    Raises:
        ValueError: not a seed, or a seed beside a snapshot.
    """
    seeds = [None if seed is None else check_seed(seed) for seed in seeds]
    snapshots = {i: row["snapshot"] for i, row in enumerate(options) if "snapshot" in row}
    if any(seeds[i] is not None for i in snapshots):
        raise ValueError("a snapshot continues with the seed it was taken with: reset with a snapshot or a seed")
    fresh = [i for i in range(len(options)) if i not in snapshots]
    columns = ([column[i] for i in fresh] for column in (options, seeds, generators))
    restored = _restore(snapshots)
    restored.update(zip(fresh, zip(*_start_fresh(world, task, *columns, prompt), strict=True), strict=True))
    rows = [restored[i] for i in range(len(options))]
    return [episode for episode, _ in rows], [generator for _, generator in rows]


def _restore(snapshots: Mapping[int, Snapshot]) -> dict[int, tuple[Episode, np.random.Generator]]:
    """Episodes and generators of snapshots; those that occur several times are forked."""
    indices: dict[int, list[int]] = {}
    for i, snapshot in snapshots.items():
        indices.setdefault(id(snapshot), []).append(i)
    restored = {}
    for group in indices.values():
        for i, fork in zip(group, fork_snapshot(snapshots[group[0]], len(group)), strict=True):
            restored[i] = fork.episode, generator_of(fork)
    return restored


def _start_fresh(
    world: World,
    task: Task,
    options: Sequence[Mapping[str, Any]],
    seeds: Sequence[int | None],
    generators: Sequence[np.random.Generator | None],
    prompt: str | None,
) -> Reset:
    """Episodes that the world and the task start."""
    if not options:
        return [], []
    generators = [
        seeding.np_random(seed)[0] if seed is not None or generator is None else copy.deepcopy(generator)
        for seed, generator in zip(seeds, generators, strict=True)
    ]
    starts = [
        Start(
            seed=int(generator.integers(2**31)) if seed is None else seed,
            image=row.get("image"),
            world_from_camera=row.get("pose"),
            prompt=row.get("prompt", prompt),
            memory=row.get("memory"),
            map_seed=row.get("map_seed"),
        )
        for row, seed, generator in zip(options, seeds, generators, strict=True)
    ]
    samples = task.sample_start_and_goal(world, starts)
    episodes = [
        Episode(
            sample.state,
            sample.view,
            row.get("goal", sample.goal),
            task.initial_task_state(sample),
            # A place to reach is not reached yet. For other kinds of success, the first step decides.
            success=None if sample.goal_m is None else False,
            past_views=sample.past_views,
        )
        for sample, row in zip(samples, options, strict=True)
    ]
    return episodes, generators


def check_seed(seed: Any) -> int:
    """A seed as Python's number, from NumPy's and from tensors too; ValueError if it is none."""
    number = as_whole(seed)
    if number is None or number < 0:
        raise ValueError(f"a seed is a whole number from 0, or None; got {seed!r}")
    return number
