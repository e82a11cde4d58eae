"""The environment: any world behind Gymnasium's face.

`make_learned_env` and `make_simulator_env` are the entry points of `MosaicWorld-v0` and `MosaicWorldReal-v0`:
the same environment, over the learned world and over the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from mosaic_gym.envs import snapshot as snapshots
from mosaic_gym.envs.episode import Episode, Rules, advance, begin
from mosaic_gym.envs.options import OPTIONS, check_options, check_prompt
from mosaic_gym.envs.snapshot import Snapshot
from mosaic_gym.envs.spaces import action_vector_of, make_action_space, make_observation_space, observe, one_of
from mosaic_gym.envs.tasks import SimulatorTask, Task, make_task, unwrap_task
from mosaic_gym.envs.window import Window
from mosaic_gym.geometry.control import FRAMES_PER_STEP
from mosaic_gym.worlds.protocol import State, View, World, check_temperature
from mosaic_gym.worlds.registry import make_world

FRAMES_PER_SECOND = 35.0
"""Doom's tics: the pace at which the four frames of a step are meant to be seen."""
DENOISING_STEPS = range(1, 101)
SIMULATOR_SIZE = (64, 64)
"""Height and width of the engine's frames when no resolution is asked for, pixels."""


class WorldEnv(gym.Env):
    """A world, stepped one body at a time.

    Args:
        world: learned or true; closed by `close()`.
        action_space: `discrete` or `continuous`, see `make_action_space`.
        observation: `image` or `dict`, see `make_observation_space`.
        task: scene, reward and termination, by name or as an object.
        rules: when an episode is truncated; None never (Gymnasium's TimeLimit may still).
        options: the reset options this world can honour.
        prompt: text that conditions every episode which `options["prompt"]` does not.
        render_mode: `rgb_array` (the last frame), `human` (a window, all four frames) or None.

    Attributes:
        episode: the present, a value; None before the first reset.
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
        task: str | Task = "explore",
        rules: Rules = Rules(),
        options: Collection[str] = OPTIONS,
        prompt: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.task = make_task(task)
        check_faces(action_space, observation, render_mode, self.task)
        check_has_rewards(world, self.task)
        self.world = world
        self.rules = rules
        self.action_space = make_action_space(action_space)
        self.observation_space = make_observation_space(observation, world.height, world.width)
        self.options = honoured(options, observation, self.task)
        self.prompt = prompt
        self.render_mode = render_mode
        self.episode: Episode | None = None
        self._window: Window | None = None

    @property
    def state(self) -> State | None:
        """The world's state, None before the first reset."""
        return self.episode and self.episode.state

    @property
    def view(self) -> View | None:
        """All four frames, depth and cameras of the last step, None before the first reset."""
        return self.episode and self.episode.view

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; what `options` leaves open is drawn from the seed.

        Args:
            seed: of the episode and of those after it; None draws on from the last one.
            options: `image` and `goal` uint8 `[H, W, 3]`, `pose` `[4, 4]` metres, `prompt` text,
                `memory` a path or a memory.

        In the engine, `goal` and `return` walk the one body to set their scene: a reset that fails there (RuntimeError)
        has ended the episode before it.
        """
        asked = check_options(options or {}, self.options, self.world.height, self.world.width)
        (episode,), (generator,) = begin(self.world, self.task, [asked], [seed], [self.np_random], self.prompt)
        super().reset(seed=seed)
        self.np_random.bit_generator.state, self.episode = generator.bit_generator.state, episode
        self._show()
        return observe(self.observation_space, self.view, self.episode.goal), self.episode.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Four video frames further. A bad action raises ValueError and leaves everything as it was."""
        if self.episode is None or self.episode.ended:
            why = "the episode has ended" if self.episode else "no episode has begun"
            raise ResetNeeded(f"cannot step, {why}: call reset() first")
        action_vector = action_vector_of(self.action_space, action)
        (self.episode,) = advance(self.world, self.task, self.rules, [self.episode], action_vector[None])
        self._show()
        now = self.episode
        observation = observe(self.observation_space, now.view, now.goal)
        return observation, now.reward, now.terminated, now.truncated, now.info()

    def prompt_now(self, prompt: str) -> None:
        """Conditions the rest of the episode on another prompt.

        Raises:
            ResetNeeded: no episode has begun. RuntimeError: a world that takes no prompt.
            ValueError: a prompt that is too long.
        """
        check_takes_prompt(self.options)
        check_prompt(prompt)
        present = self._present()
        self.episode = replace(present, state=self.world.prompted(present.state, prompt))

    def snapshot(self) -> Snapshot:
        """The present, to go back to; costs nothing and copies nothing.

        Raises:
            ResetNeeded: no episode has begun. RuntimeError: the engine, which has one true present.
        """
        return snapshots.take(self.world, self.task, self._present(), self.np_random)

    def restore(self, snapshot: Snapshot) -> tuple[Any, dict[str, Any]]:
        """Goes (back) to a snapshot, whose future repeats bit for bit; returns its observation and info.

        Raises:
            TypeError, ValueError: not a snapshot, or one of another checkpoint or task; nothing has changed then.
        """
        snapshots.check_snapshot(snapshot, self.world, self.task)
        self.np_random = snapshots.generator_of(snapshot)
        self.episode = snapshot.episode
        self._show()
        return observe(self.observation_space, self.view, self.episode.goal), self.episode.info()

    def fork(self, n: int) -> list[Snapshot]:
        """`n` snapshots of the present. They share what is equal, so memory grows with what diverges only.

        Restore them one after the other here, or all at once in a vector environment of `n` members.

        Raises:
            ValueError: n below 1. ResetNeeded, RuntimeError: as `snapshot`.
        """
        forks = snapshots.fork(self.snapshot(), n)
        self.episode = forks[0].episode  # which knows how often it was forked
        return forks

    def save(self, path: Path | str) -> None:
        """Writes the present into one file, from which `load` goes on bit for bit, in another process too."""
        snapshots.save([self.snapshot()], self.world, path)

    def load(self, path: Path | str) -> tuple[Any, dict[str, Any]]:
        """Goes on from what `save` wrote; returns the observation and info there.

        Raises:
            FileNotFoundError: no such file. ValueError: damaged, or of another checkpoint or task.
        """
        (kept,) = snapshots.load(self.world, path)
        return self.restore(kept)

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

    def _present(self) -> Episode:
        if self.episode is None:
            raise ResetNeeded("no episode has begun: call reset() first")
        return self.episode

    def _show(self) -> None:
        if self.render_mode != "human":
            return
        if self._window is None:
            self._window = Window(self.world.height, self.world.width, "Mosaic Gym")
        for frame in self.view.frames:
            self._window.show(frame, FRAMES_PER_SECOND)


def make_learned_env(
    checkpoint: str = "doom-tiny",
    device: str = "cpu",
    resolution: int | Sequence[int] | None = None,
    denoising_steps: int | None = None,
    action_space: str = "discrete",
    observation: str = "image",
    memory: bool = True,
    prompt: str | None = None,
    task: str | Task = "explore",
    collision: bool = True,
    temperature: float = 1.0,
    min_coverage: float | None = None,
    min_coverage_patience: int = 8,
    loading: Mapping[str, Any] | None = None,
    render_mode: str | None = None,
) -> WorldEnv:
    """The learned world as an environment. Every argument is JSON-able (a task may also be an object).

    Args:
        checkpoint: the name of a shipped checkpoint, a folder, or the folder or hub id of a Wan pipeline.
        device: where the networks run.
        resolution: None for what the checkpoint was trained at; that (height, width), or one side
            of its square, is accepted too. Of a Wan pipeline any multiple of its tokens; None for 352 x 640.
        denoising_steps: 1 to 100; None for what the checkpoint ships with.
        action_space: `discrete` or `continuous`.
        observation: `image` or `dict`.
        memory: whether views are recalled from what the episode has seen.
        prompt: text that conditions every episode.
        task: `explore`; `goal` or `return` (which show a goal: observation `dict`); `engine`, the game's own reward and
            end as the heads predict them; or an object.
        collision: whether the body stops at lifted geometry, and at the map's walls, and slides along them.
        temperature: of the draw of the game's own reward and end; 0 takes the likelier.
        min_coverage, patience: truncate an episode whose views memory has covered less than this share of for so
            many steps on end, where its place is on no map that the checkpoint knows; None never does.
        loading: how a Wan pipeline is loaded: the fields of `mosaic_gym.model.wan.pipeline.WanOptions`.
        render_mode: `human`, `rgb_array` or None.

    Raises:
        ValueError, TypeError: as `open_learned_world`.
    """
    world, faces = open_learned_world(locals())
    return WorldEnv(world, render_mode=render_mode, **faces)


def open_learned_world(asked: Mapping[str, Any], max_steps: int | None = None) -> tuple[World, dict[str, Any]]:
    """The learned world behind `make_learned_env`'s arguments, and what `WorldEnv` and `Members` are told beside it.

    Args:
        asked: all arguments of `make_learned_env` by name; checked before anything is loaded.
        max_steps: of an episode; None for no limit.

    Raises:
        ValueError: an argument of the wrong type or range, a device or checkpoint that there is not, a resolution that
            the checkpoint was not trained at, or damaged weights. Only what they alone can tell, such as a prompt that
            is too long, is said after weights are read. TypeError: a task that is none.
        MemoryError: the device has no room for the weights.
    """
    task = make_task(asked["task"])
    check_faces(asked["action_space"], asked["observation"], asked["render_mode"], task)
    for name in ("memory", "collision"):
        if not isinstance(asked[name], bool | np.bool_):
            raise ValueError(f"{name} is True or False; got {asked[name]!r}")
    if not isinstance(asked["checkpoint"], str | Path):
        raise ValueError(f"checkpoint is a name, a folder or a hub id; got {asked['checkpoint']!r}")
    if asked["prompt"] is not None:
        check_prompt(asked["prompt"], "prompt")
    rules = Rules(max_steps, asked["min_coverage"], asked["patience"])
    if rules.min_coverage is not None and not asked["memory"]:
        raise ValueError("without memory nothing is covered: min_coverage needs memory=True, or is left out")
    steps = asked["denoising_steps"]
    if steps is not None and (type(steps) is not int or steps not in DENOISING_STEPS):
        raise ValueError(f"denoising_steps is a whole number from 1 to 100, or None; got {steps!r}")
    check_temperature(asked["temperature"])
    size = _check_resolution(asked["resolution"])
    of_world = ("checkpoint", "device", "denoising_steps", "memory", "collision", "temperature", "loading")
    world = make_world("mosaic", size=size, **{name: asked[name] for name in of_world})
    if asked["prompt"] is not None:
        try:
            world.model.check_prompt(asked["prompt"])  # else every reset would fail
        except ValueError:
            world.close()
            raise
    return world, {
        "action_space": asked["action_space"],
        "observation": asked["observation"],
        "task": task,
        "rules": rules,
        "options": [key for key in OPTIONS if asked["memory"] or key != "memory"],
        "prompt": asked["prompt"],
    }


def make_simulator_env(
    scenario: str = "my_way_home",
    resolution: int | Sequence[int] | None = None,
    action_space: str = "discrete",
    observation: str = "image",
    task: str | Task = "explore",
    render_mode: str | None = None,
) -> WorldEnv:
    """The engine as the same environment. Every argument is JSON-able.

    Args:
        scenario: the name of a Doom scenario or map.
        resolution: (height, width) or one side of a square, pixels; None for 64 x 64.
        action_space: `discrete` or `continuous`.
        observation: `image` or `dict`.
        task: `explore`, `goal`, `return`, `engine` for the game's own reward, or an object.
        render_mode: `human`, `rgb_array` or None.

    Raises:
        ValueError: an argument of the wrong type or range, or an unknown scenario; the known ones are listed.
        TypeError: a task that is none.
    """
    task = make_task(task)
    check_faces(action_space, observation, render_mode, task)
    height, width = _check_resolution(resolution) or SIMULATOR_SIZE
    return WorldEnv(
        # The scenario's own clock would end episodes as if the game were decided; Gymnasium's says that it was time.
        make_world("doom", scenario=scenario, height=height, width=width, timeout_tics=0),
        action_space=action_space,
        observation=observation,
        task=task,
        options=("goal", "pose"),
        render_mode=render_mode,
    )


# Gymnasium reads the render modes from the entry point, before an environment exists.
make_learned_env.metadata = make_simulator_env.metadata = WorldEnv.metadata


def check_faces(action_space: str, observation: str, render_mode: str | None, task: Task) -> None:
    """Raises ValueError for a face that there is not, or that hides the task's goal."""
    # Before a world is built: loading one to find a misspelt word would waste seconds.
    make_action_space(action_space)
    make_observation_space(observation, 1, 1)
    if render_mode is not None:
        one_of("render_mode", render_mode, tuple(WorldEnv.metadata["render_modes"]))
    if task.samples_goal and observation != "dict":
        raise ValueError(f"{type(task).__name__} shows its goal in the observation: use observation='dict'")


def check_has_rewards(world: World, task: Task) -> None:
    """Raises ValueError if a task passes on the world's own reward, and the world has none."""
    if isinstance(unwrap_task(task), SimulatorTask) and not getattr(world, "pays", True):
        raise ValueError(
            "task='engine' passes on the game's own reward and end, and this checkpoint has no heads that predict "
            "them (a recorded world gets its own: mosaic-gym train reward-heads); take another task"
        )


def check_takes_prompt(options: Collection[str]) -> None:
    """Raises RuntimeError if the reset options that have an effect (see `honoured`) leave out the prompt."""
    if "prompt" not in options:
        raise RuntimeError("this world takes no prompt; a learned one does")


def honoured(options: Collection[str], observation: str, task: Task) -> tuple[str, ...]:
    """The reset options that have an effect: no goal that no observation shows, or that the task draws itself."""
    return tuple(key for key in options if key != "goal" or (observation == "dict" and not task.samples_goal))


def _check_resolution(resolution: int | Sequence[int] | None) -> tuple[int, int] | None:
    if resolution is None:
        return None
    whole = int | np.integer
    sides = list(resolution) if isinstance(resolution, Sequence | np.ndarray) else [resolution] * 2
    if len(sides) != 2 or not all(isinstance(side, whole) and side > 0 for side in sides):
        raise ValueError(f"resolution is [height, width] or one side, whole pixels; got {resolution!r}")
    return int(sides[0]), int(sides[1])
