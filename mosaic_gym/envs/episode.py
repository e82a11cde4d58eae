"""An episode as a value, and the two verbs on it: begin and advance, for many at once.

Every face (single environment, vector environment, Stable-Baselines3's) holds episodes and calls these. So the
rules are written once, and taking a copy of an episode is taking a reference.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium.utils import seeding

from mosaic_gym.envs.tasks import Task
from mosaic_gym.validation import is_finite, is_whole
from mosaic_gym.worlds.protocol import Start, State, View, World


@dataclass(frozen=True)
class Rules:
    """When an episode is cut off (`truncated`).

    Attributes:
        max_steps: after so many; None never.
        min_coverage: when memory (see `View.coverage`) has covered less than this share of the view for `patience`
            steps on end, and the place is on no map (`View.on_map`): the dream has left what it knows, and a policy
            paid for going on learns to live in made-up places. None never.
        patience: steps.
    """

    max_steps: int | None = None
    min_coverage: float | None = None
    min_coverage_patience: int = 8

    def __post_init__(self) -> None:
        if self.max_steps is not None and not (is_whole(self.max_steps) and self.max_steps >= 1):
            raise ValueError(f"the steps of an episode are a whole number from 1, or None; got {self.max_steps!r}")
        least = self.min_coverage
        if least is not None and not (is_finite(least) and 0.0 < least <= 1.0):
            raise ValueError(f"min_coverage is a share above 0 and up to 1, or None; got {least}")
        if not (is_whole(self.min_coverage_patience) and self.min_coverage_patience >= 1):
            raise ValueError(f"patience is a whole number of steps from 1; got {self.min_coverage_patience!r}")


@dataclass(frozen=True)
class Episode:
    """Everything an episode's future depends on.

    Attributes:
        state: of the world; `view` what it showed last.
        goal: uint8 `[H, W, 3]`.
        progress: what the task remembers.
        steps: made since the beginning.
        unsure_steps: the latest ones, on end, with too little coverage.
        reward: of the last step.
        terminated, truncated: how it ended, if it did.
        success: whether the last step did what the task asks for; None where it asks for nothing that can be done, and
            before the first step of a task that names no place to reach. (A world may end an episode that its task did
            not.)
        forks: made of it so far, so that later ones draw their episodes from elsewhere.
        seen: what the task's scene showed before the episode began, oldest first. (Not part of the future: a learned
            world remembers it, an agent with a memory of its own may want to see it. Files do not keep it.)
    """

    state: State
    view: View
    goal: np.ndarray
    task_state: Any
    steps: int = 0
    unsure_steps: int = 0
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    success: bool | None = None
    forks: int = 0
    seen: tuple[View, ...] = ()

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated

    def info(self) -> dict[str, Any]:
        """What `info` says: plain, comparable values. Without success there is no `is_success`.

        (Stable-Baselines3 takes the key for a task that can succeed, and would report that it never does.)
        """
        view = self.view
        told = {
            "pose": view.world_from_camera[-1].tolist(),
            "intrinsics": view.image_from_camera.tolist(),
            "coverage": float(view.coverage),
            "memory_keyframes": int(view.keyframes),
            "step_index": int(self.state.step_index),
            "labels": tuple(view.labels),
            "world_reward": float(view.reward),
        }
        return told if self.success is None else {**told, "is_success": self.success}


def begin(
    world: World,
    task: Task,
    asked: Sequence[Mapping[str, Any]],
    seeds: Sequence[int | None],
    generators: Sequence[np.random.Generator | None],
    prompt: str | None = None,
) -> tuple[list[Episode], list[np.random.Generator]]:
    """Fresh episodes, and the generators that the seeds of those after them will come from.

    What is given stays as it was, so that a reset which fails leaves all as it was, what is drawn next included.

    Args:
        asked: checked reset options, one for each episode.
        seeds: one each; None draws from a copy of that episode's generator.
        generators: one each, None where nothing was drawn yet.
        prompt: for episodes that ask for none.

    Raises:
        ValueError: what is no seed.
    """
    seeds = [None if seed is None else check_seed(seed) for seed in seeds]
    fresh = [seed is not None or generator is None for seed, generator in zip(seeds, generators, strict=True)]
    drawn = [
        seeding.np_random(seed)[0] if anew else copy.deepcopy(generator)
        for seed, generator, anew in zip(seeds, generators, fresh, strict=True)
    ]
    starts = [
        Start(
            seed=int(rng.integers(2**31)) if seed is None else seed,
            image=options.get("image"),
            world_from_camera=options.get("pose"),
            prompt=options.get("prompt", prompt),
            memory=options.get("memory"),
        )
        for options, seed, rng in zip(asked, seeds, drawn, strict=True)
    ]
    scenes = task.sample_start_and_goal(world, starts)
    episodes = [
        Episode(
            scene.state,
            scene.view,
            options.get("goal", scene.goal),
            task.begin(scene),
            # A place to reach is not reached yet. Of what else there is to be done the first judgement will tell.
            success=None if scene.goal_m is None else False,
            seen=scene.seen,
        )
        for scene, options in zip(scenes, asked, strict=True)
    ]
    return episodes, drawn


def check_seed(seed: Any) -> int:
    """A seed as Python's number; ValueError if it is none."""
    if not (is_whole(seed) and seed >= 0):
        raise ValueError(f"a seed is a whole number from 0, or None; got {seed!r}")
    return int(seed)


def advance(
    world: World, task: Task, rules: Rules, episodes: Sequence[Episode], action_vectors: np.ndarray
) -> list[Episode]:
    """The episodes one step on, in one call of the world; thrusts `[n, 3]`."""
    states, views = world.step([episode.state for episode in episodes], action_vectors)
    advanced = []
    for episode, state, view in zip(episodes, states, views, strict=True):
        task_step = task.evaluate(episode.task_state, view)
        steps = episode.steps + 1
        unsure = rules.min_coverage is not None and view.coverage < rules.min_coverage and not view.on_map
        unsure_steps = episode.unsure_steps + 1 if unsure else 0
        advanced.append(
            replace(
                episode,
                state=state,
                view=view,
                task_state=task_step.task_state,
                steps=steps,
                unsure_steps=unsure_steps,
                reward=float(task_step.reward),
                terminated=bool(task_step.terminated or view.terminated),
                success=None if task_step.success is None else bool(task_step.success),
                truncated=(rules.max_steps is not None and steps >= rules.max_steps)
                or unsure_steps >= rules.min_coverage_patience,
            )
        )
    return advanced
