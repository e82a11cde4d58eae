"""The environment: any world behind Gymnasium's face.

`make_dream` and `make_real` are the entry points of `MosaicWorld-v0` and `MosaicWorldReal-v0`:
the same environment, over the learned world and over the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from mosaic_gym.envs.options import OPTIONS, check_options
from mosaic_gym.envs.spaces import make_action_space, make_observation_space, observe, one_of, thrust_of
from mosaic_gym.envs.tasks import TASKS, Task
from mosaic_gym.envs.window import Window
from mosaic_gym.geometry.control import FRAMES_PER_STEP
from mosaic_gym.worlds.protocol import Start, State, View, World
from mosaic_gym.worlds.registry import make_world

FRAMES_PER_SECOND = 35.0
"""Doom's tics: the pace at which the four frames of a step are meant to be seen."""
DENOISING_STEPS = range(1, 5)
ENGINE_SIZE = (64, 64)
"""Height and width of the engine's frames when no resolution is asked for, pixels."""


class WorldEnv(gym.Env):
    """A world, stepped one body at a time.

    Args:
        world: learned or true; closed by `close()`.
        action_space: `discrete` or `continuous`, see `make_action_space`.
        observation: `image` or `dict`, see `make_observation_space`.
        task: reward and termination; None explores.
        options: the reset options this world can honour.
        prompt: text that conditions every episode which `options["prompt"]` does not.
        render_mode: `rgb_array` (the last frame), `human` (a window, all four frames) or None.

    Attributes:
        state: the world's state, None before the first reset.
        view: all four frames, depth and cameras of the last step, None before the first reset.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["human", "rgb_array"],
        "render_fps": FRAMES_PER_SECOND / FRAMES_PER_STEP,
    }

    def __init__(
        self,
        world: World,
        *,
        action_space: str = "discrete",
        observation: str = "image",
        task: Task | None = None,
        options: Collection[str] = OPTIONS,
        prompt: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        _check_faces(action_space, observation, render_mode)
        self.world = world
        self.action_space = make_action_space(action_space)
        self.observation_space = make_observation_space(observation, world.height, world.width)
        self.task = TASKS["explore"]() if task is None else task
        # A goal that no observation shows would be an option without effect.
        self.options = tuple(key for key in options if key != "goal" or observation == "dict")
        self.prompt = prompt
        self.render_mode = render_mode
        self.state: State | None = None
        self.view: View | None = None
        self._progress: Any = None
        self._goal: np.ndarray | None = None
        self._ended = False
        self._window: Window | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; what `options` leaves open is drawn from the seed.

        Args:
            seed: of the episode and of those after it; None draws on from the last one.
            options: `image` and `goal` uint8 `[H, W, 3]`, `pose` `[4, 4]` metres, `prompt` text,
                `memory` a path or a memory.
        """
        asked = check_options(options or {}, self.options, self.world.height, self.world.width)
        super().reset(seed=seed)
        start = Start(
            seed=int(self.np_random.integers(2**31)) if seed is None else int(seed),
            image=asked.get("image"),
            world_from_camera=asked.get("pose"),
            prompt=asked.get("prompt", self.prompt),
            memory=asked.get("memory"),
        )
        self.state, self.view = self.world.start(start)
        self._goal = asked.get("goal", self.view.frames[-1].copy())
        self._progress = self.task.begin(self.view)
        self._ended = False
        self._show()
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Four video frames further. A bad action raises ValueError and leaves everything as it was."""
        if self.state is None or self._ended:
            why = "the episode has ended" if self._ended else "no episode has begun"
            raise ResetNeeded(f"cannot step, {why}: call reset() first")
        thrust = thrust_of(self.action_space, action)
        (self.state,), (self.view,) = self.world.step([self.state], thrust[None])
        judgement = self.task.judge(self._progress, self.view)
        self._progress = judgement.progress
        self._ended = bool(judgement.terminated or self.view.terminated)
        self._show()
        observation, info = self._observe()
        return observation, float(judgement.reward), self._ended, False, info

    def render(self) -> np.ndarray | None:
        """The last frame, uint8 `[H, W, 3]`, in mode `rgb_array`; a window in mode `human`."""
        if self.view is None:
            raise ResetNeeded("cannot render, no episode has begun: call reset() first")
        if self.render_mode == "rgb_array":
            return self.view.frames[-1].copy()
        self._show()
        return None

    def close(self) -> None:
        """Closes the window and the world; safe to call twice."""
        if self._window is not None:
            self._window.close()
            self._window = None
        self.world.close()

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        view = self.view
        info = {
            "pose": view.world_from_camera[-1].tolist(),
            "intrinsics": view.image_from_camera.tolist(),
            "coverage": float(view.coverage),
            "memory_keyframes": int(view.keyframes),
            "step_index": int(self.state.step_index),
            "labels": tuple(view.labels),
            "world_reward": float(view.reward),
        }
        return observe(self.observation_space, view, self._goal), info

    def _show(self) -> None:
        if self.render_mode != "human":
            return
        if self._window is None:
            self._window = Window(self.world.height, self.world.width, "Mosaic Gym")
        for frame in self.view.frames:
            self._window.show(frame, FRAMES_PER_SECOND)


def make_dream(
    checkpoint: str = "doom-tiny",
    device: str = "cpu",
    resolution: int | Sequence[int] | None = None,
    denoising_steps: int | None = None,
    action_space: str = "discrete",
    observation: str = "image",
    memory: bool = True,
    prompt: str | None = None,
    task: str = "explore",
    render_mode: str | None = None,
) -> WorldEnv:
    """The learned world as an environment. Every argument is JSON-able.

    Args:
        checkpoint: the name of a shipped checkpoint, or a folder.
        device: where the networks run.
        resolution: None for what the checkpoint was trained at; that (height, width), or one side
            of its square, is accepted too.
        denoising_steps: 1 to 4; None for what the checkpoint ships with.
        action_space: `discrete` or `continuous`.
        observation: `image` or `dict`.
        memory: whether views are recalled from what the episode has seen.
        prompt: text that conditions every episode.
        task: `explore`.
        render_mode: `human`, `rgb_array` or None.
    """
    _check_faces(action_space, observation, render_mode)
    one_of("task of a learned world", task, ("explore",))
    if denoising_steps is not None and (type(denoising_steps) is not int or denoising_steps not in DENOISING_STEPS):
        raise ValueError(f"denoising_steps is a whole number from 1 to 4, or None; got {denoising_steps!r}")
    size = _check_resolution(resolution)
    world = make_world("mosaic", checkpoint=checkpoint, device=device, denoising_steps=denoising_steps, memory=memory)
    if size not in (None, (world.height, world.width)):
        supported = f"[{world.height}, {world.width}]"
        world.close()
        raise ValueError(f"checkpoint {checkpoint!r} was trained at resolution {supported}; got {resolution!r}")
    return WorldEnv(
        world,
        action_space=action_space,
        observation=observation,
        task=TASKS[task](),
        options=OPTIONS if memory else [key for key in OPTIONS if key != "memory"],
        prompt=prompt,
        render_mode=render_mode,
    )


def make_real(
    scenario: str = "my_way_home",
    resolution: int | Sequence[int] | None = None,
    action_space: str = "discrete",
    observation: str = "image",
    task: str = "explore",
    render_mode: str | None = None,
) -> WorldEnv:
    """The engine as the same environment. Every argument is JSON-able.

    Args:
        scenario: the name of a Doom scenario or map.
        resolution: (height, width) or one side of a square, pixels; None for 64 x 64.
        action_space: `discrete` or `continuous`.
        observation: `image` or `dict`.
        task: `explore`, or `engine` for the game's own reward.
        render_mode: `human`, `rgb_array` or None.
    """
    _check_faces(action_space, observation, render_mode)
    one_of("task", task, tuple(TASKS))
    height, width = _check_resolution(resolution) or ENGINE_SIZE
    return WorldEnv(
        make_world("doom", scenario=scenario, height=height, width=width),
        action_space=action_space,
        observation=observation,
        task=TASKS[task](),
        options=("goal", "pose"),
        render_mode=render_mode,
    )


# Gymnasium reads the render modes from the entry point, before an environment exists.
make_dream.metadata = make_real.metadata = WorldEnv.metadata


def _check_faces(action_space: str, observation: str, render_mode: str | None) -> None:
    # Before a world is built: loading one to find a misspelt word would waste seconds.
    make_action_space(action_space)
    make_observation_space(observation, 1, 1)
    if render_mode is not None:
        one_of("render_mode", render_mode, tuple(WorldEnv.metadata["render_modes"]))


def _check_resolution(resolution: int | Sequence[int] | None) -> tuple[int, int] | None:
    if resolution is None:
        return None
    sides = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"resolution is [height, width] or one side in pixels; got {resolution!r}")
    return sides
