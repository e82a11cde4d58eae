"""The learned world behind an environment: its arguments, checked, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mosaic_gym.envs.arguments import Resolution, check_env_arguments
from mosaic_gym.envs.episode import Rules
from mosaic_gym.envs.options import LEARNED_OPTIONS
from mosaic_gym.envs.tasks import Task, make_task
from mosaic_gym.validation import Flag, Number, Text, Whole, validate
from mosaic_gym.worlds.protocol import World
from mosaic_gym.worlds.registry import make_world


@dataclass(frozen=True)
class CheckpointName:
    """The constraint of a checkpoint's name."""

    @property
    def expected(self) -> str:
        return "a name, a folder or a hub id"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str | Path)

    def normalized(self, value: Any) -> str | Path:
        return value


@dataclass(frozen=True)
class LearnedEnvArguments:
    """The arguments of `make_learned_env`, which documents them, after their checks. Nothing is loaded here.

    Raises:
        ValueError: an argument of the wrong type or range. TypeError: a task that is not one.
        RuntimeError: `render_mode="human"` without a display.
    """

    checkpoint: Annotated[str | Path, CheckpointName()]
    device: Any
    resolution: Annotated[tuple[int, int] | None, Resolution()]
    denoising_steps: Annotated[int | None, Whole(1, 100)]
    action_space: str
    observation: str
    memory: Annotated[bool, Flag()]
    prompt: Annotated[str | None, Text()]
    task: Task
    collision: Annotated[bool, Flag()]
    temperature: Annotated[float, Number(0.0)]
    min_coverage: Annotated[float | None, Number(above=0.0, most=1.0)]
    min_coverage_patience: Annotated[int, Whole(1)]
    loading: Mapping[str, Any] | None
    render_mode: str | None

    def __post_init__(self) -> None:
        validate(self)
        object.__setattr__(self, "task", make_task(self.task))
        if self.min_coverage is not None and not self.memory:
            raise ValueError("without memory nothing is covered: min_coverage needs memory=True, or is left out")
        check_env_arguments(self.action_space, self.observation, self.render_mode, self.task)


def open_learned_world(arguments: LearnedEnvArguments, max_steps: int | None = None) -> tuple[World, dict[str, Any]]:
    """Loads the learned world, and returns with it the arguments that `WorldEnv` and `Members` take beside a world.

    Args:
        arguments: of `make_learned_env`.
        max_steps: of an episode; None for no limit.

    Raises:
        ValueError: an unknown device or checkpoint, a resolution that the checkpoint was not trained at, or damaged
            weights. Checks that need the weights, such as whether a prompt is too long, follow after loading.
            MemoryError: the weights do not fit into the device's memory.
    """
    rules = Rules(max_steps, arguments.min_coverage, arguments.min_coverage_patience)
    names = ("checkpoint", "device", "denoising_steps", "memory", "collision", "temperature", "loading")
    world = make_world("mosaic", size=arguments.resolution, **{name: getattr(arguments, name) for name in names})
    if arguments.prompt is not None:
        try:
            world.model.check_prompt(arguments.prompt)  # or every reset would fail
        except ValueError:
            world.close()
            raise
    return world, {
        "action_space": arguments.action_space,
        "observation": arguments.observation,
        "task": arguments.task,
        "rules": rules,
        "options": [key for key in LEARNED_OPTIONS if arguments.memory or key != "memory"],
        "prompt": arguments.prompt,
    }
