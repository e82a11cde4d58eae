"""Arguments that environments have in common, checked before a world is loaded: loading takes seconds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mosaic_gym.deprecation import warn_renamed
from mosaic_gym.envs.spaces import check_known, make_action_space, make_observation_space
from mosaic_gym.envs.tasks import SimulatorTask, Task, unwrap_task
from mosaic_gym.envs.window import check_display
from mosaic_gym.validation import is_whole
from mosaic_gym.worlds.protocol import World

RENDER_MODES = ("human", "rgb_array")


@dataclass(frozen=True)
class Resolution:
    """The constraint of a resolution: (height, width), or one side of a square; normalized to (height, width)."""

    @property
    def expected(self) -> str:
        return "[height, width] or one side, whole pixels"

    def accepts(self, value: Any) -> bool:
        sides = self._sides(value)
        return len(sides) == 2 and all(is_whole(side) and side > 0 for side in sides)

    def normalized(self, value: Any) -> tuple[int, int]:
        height, width = self._sides(value)
        return int(height), int(width)

    def _sides(self, value: Any) -> list[Any]:
        return list(value) if isinstance(value, Sequence | np.ndarray) and np.ndim(value) else [value] * 2


def check_env_arguments(action_space: str, observation: str, render_mode: str | None, task: Task) -> None:
    """Raises ValueError for unknown spaces and modes, and for an observation that lacks the task's goal.

    Raises:
        RuntimeError: `render_mode="human"` without a display.
    """
    make_action_space(action_space)
    make_observation_space(observation, 1, 1)
    if render_mode is not None:
        check_known("render_mode", render_mode, RENDER_MODES)
    if task.samples_goal and observation != "dict":
        raise ValueError(f"{type(task).__name__} puts its goal into the observation: use observation='dict'")
    if render_mode == "human":
        check_display()


def check_vector_render_mode(render_mode: str | None) -> None:
    """Raises ValueError for a render mode that sub-environments which share a world do not have."""
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"the render_mode of a vector environment is rgb_array or None; got {render_mode!r}")


def check_has_rewards(world: World, task: Task) -> None:
    """Raises ValueError if a task passes on the world's own reward, and the world has none."""
    if isinstance(unwrap_task(task), SimulatorTask) and not _has_rewards(world):
        raise ValueError(
            "task='simulator' passes on the game's own reward and end, and this checkpoint has no heads that predict "
            "them (a recorded world gets its own: mosaic-gym train reward-heads); take another task"
        )


def _has_rewards(world: World) -> bool:
    """Whether a world has rewards of its own; one without the attribute has them."""
    if not hasattr(world, "has_rewards") and hasattr(world, "pays"):  # old spelling
        warn_renamed(f"{type(world).__name__}.pays", "has_rewards")  # old spelling
        return bool(world.pays)  # old spelling
    return bool(getattr(world, "has_rewards", True))


def check_takes_prompt(options: Collection[str]) -> None:
    """Raises RuntimeError if the supported reset options (see `supported_options`) leave out the prompt."""
    if "prompt" not in options:
        raise RuntimeError("this world takes no prompt; a learned one does")


def supported_options(options: Collection[str], observation: str, task: Task) -> tuple[str, ...]:
    """The reset options that have an effect: `goal` only where the observation has one that the task does not set."""
    return tuple(key for key in options if key != "goal" or (observation == "dict" and not task.samples_goal))
