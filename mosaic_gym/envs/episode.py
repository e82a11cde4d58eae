"""An episode as a value, and the rules of its step.

Every environment (single, vectorized, Stable-Baselines3's) holds episodes and steps them here. So the rules are
written once, and copying an episode is copying a reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np

from mosaic_gym.deprecation import renamed_arguments
from mosaic_gym.envs.tasks import Task
from mosaic_gym.validation import Number, Whole, validate
from mosaic_gym.worlds.protocol import State, View, World


@renamed_arguments(least_coverage="min_coverage", patience="min_coverage_patience")  # old spelling
@dataclass(frozen=True)
class Rules:
    """When an episode is truncated.

    Raises:
        ValueError: a value out of range.
    """

    max_steps: Annotated[int | None, Whole(1)] = None
    """Steps of an episode; None for no limit."""
    min_coverage: Annotated[float | None, Number(above=0.0, most=1.0)] = None
    """Least share of a view that memory has to cover (see `View.coverage`). An episode is truncated after
    `min_coverage_patience` consecutive steps below it whose place is on no map (`View.on_map`): there, a policy would
    learn from places that the model invents. None for no limit."""
    min_coverage_patience: Annotated[int, Whole(1)] = 8
    """Consecutive steps."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Episode:
    """Everything an episode's future depends on.

    Attributes:
        state: of the world.
        view: the world's latest view.
        goal: uint8 `[H, W, 3]`.
        task_state: what the task carries from step to step.
        steps: made since the start.
        unsure_steps: consecutive latest steps with too little coverage, see `Rules.min_coverage`.
        reward: of the last step.
        terminated, truncated: how the episode ended, if it did.
        success: whether the last step did what the task asks for; None where the task has no notion of success, and
            before the first step of a task that has no place to reach. (A world may end an episode that its task did
            not end.)
        forks: made of this episode so far, so that later ones take other seeds.
        past_views: views of the walk that the task made before the episode, oldest first. (The future does not depend
            on them: a learned world has them in memory, and an agent with a memory of its own may want them. Files do
            not hold them.)
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
    past_views: tuple[View, ...] = ()

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated

    def info(self) -> dict[str, Any]:
        """Gymnasium's `info`. A vector environment stacks all of it but the labels into numeric arrays.

        Keys: pose float64 `[4, 4]` (world_from_camera of the last frame, metres), intrinsics float64 `[3, 3]` (pixels),
        coverage, memory_keyframes, step_index, labels (a tuple of names), world_reward, and is_success where the task
        has a notion of success. (Without one the key is left out, because Stable-Baselines3 would report a success
        rate of 0.)
        """
        view = self.view
        info = {
            "pose": view.world_from_camera[-1].astype(np.float64),
            "intrinsics": view.image_from_camera.astype(np.float64),
            "coverage": float(view.coverage),
            "memory_keyframes": int(view.keyframes),
            "step_index": int(self.state.step_index),
            "labels": tuple(view.labels),
            "world_reward": float(view.reward),
        }
        return info if self.success is None else {**info, "is_success": self.success}


def step_episodes(
    world: World, task: Task, rules: Rules, episodes: Sequence[Episode], action_vectors: np.ndarray
) -> list[Episode]:
    """The episodes after one step, by one call of the world; action vectors `[n, 3]`."""
    states, views = world.step([episode.state for episode in episodes], action_vectors)
    rows = zip(episodes, states, views, strict=True)
    return [_next_episode(task, rules, episode, state, view) for episode, state, view in rows]


def _next_episode(task: Task, rules: Rules, episode: Episode, state: State, view: View) -> Episode:
    """The episode after a step that led to a state and its view."""
    task_step = task.evaluate(episode.task_state, view)
    steps = episode.steps + 1
    unsure = rules.min_coverage is not None and view.coverage < rules.min_coverage and not view.on_map
    unsure_steps = episode.unsure_steps + 1 if unsure else 0
    out_of_time = rules.max_steps is not None and steps >= rules.max_steps
    return replace(
        episode,
        state=state,
        view=view,
        task_state=task_step.task_state,
        steps=steps,
        unsure_steps=unsure_steps,
        reward=float(task_step.reward),
        terminated=bool(task_step.terminated or view.terminated),
        success=None if task_step.success is None else bool(task_step.success),
        truncated=out_of_time or unsure_steps >= rules.min_coverage_patience,
    )
