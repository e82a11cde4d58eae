"""The environment: any world behind Gymnasium's interface.

`make_learned_env` and `make_simulator_env` are the entry points of `MosaicWorld-v0` and `MosaicWorldReal-v0`:
the same environment, over the learned world and over the simulator.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from mosaic_gym.deprecation import renamed_arguments
from mosaic_gym.envs.arguments import (
    RENDER_MODES,
    Resolution,
    check_env_arguments,
    check_has_rewards,
    check_takes_prompt,
    supported_options,
)
from mosaic_gym.envs.episode import Episode, Rules, step_episodes
from mosaic_gym.envs.learned_world import LearnedEnvArguments, open_learned_world
from mosaic_gym.envs.options import LEARNED_OPTIONS, check_options, check_prompt
from mosaic_gym.envs.reset import check_seed, start_episodes
from mosaic_gym.envs.snapshot import (
    Snapshot,
    check_snapshot,
    fork_snapshot,
    generator_of,
    load_snapshots,
    save_snapshots,
    take_snapshot,
)
from mosaic_gym.envs.spaces import (
    action_vector_of,
    keys_to_actions,
    make_action_space,
    make_observation_space,
    observe,
)
from mosaic_gym.envs.tasks import Task, make_task
from mosaic_gym.envs.window import Window
from mosaic_gym.geometry.control import FRAMES_PER_STEP
from mosaic_gym.validation import check
from mosaic_gym.worlds.maps.rooms import MapOptions
from mosaic_gym.worlds.protocol import State, View, World
from mosaic_gym.worlds.registry import make_world

FRAMES_PER_SECOND = 35.0
"""Doom's tics: the rate at which the four frames of a step are meant to be shown."""
SIMULATOR_SIZE = (64, 64)
"""Height and width of the simulator's frames unless `resolution` sets them, pixels."""
RENAMED_ARGUMENTS = {"least_coverage": "min_coverage", "patience": "min_coverage_patience"}  # old spelling
"""New names by old names of `make_learned_env`'s arguments."""


class WorldEnv(gym.Env):
    """A world as an environment of one episode at a time.

    Args:
        world: learned or simulated; closed by `close()`.
        action_space: `discrete` or `continuous`, see `make_action_space`.
        observation: `image` or `dict`, see `make_observation_space`.
        task: start, goal, reward and termination, by name or as an object.
        rules: when an episode is truncated; by default never (Gymnasium's TimeLimit may still truncate it).
        options: the reset options that this world supports.
        prompt: text that conditions every episode without `options["prompt"]`.
        render_mode: `rgb_array` (the last frame), `human` (a window, all four frames) or None.

    Attributes:
        episode: the present one, a value; None before the first reset.
        metadata: `render_fps` is the whole number of steps a second nearest to `exact_render_fps`, because
            `gymnasium.utils.play` requires a whole number.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": list(RENDER_MODES),
        "render_fps": round(FRAMES_PER_SECOND / FRAMES_PER_STEP),
        "exact_render_fps": FRAMES_PER_SECOND / FRAMES_PER_STEP,
    }

    def __init__(
        self,
        world: World,
        *,
        action_space: str = "discrete",
        observation: str = "image",
        task: str | Task = "explore",
        rules: Rules = Rules(),
        options: Collection[str] = LEARNED_OPTIONS,
        prompt: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.task = make_task(task)
        check_env_arguments(action_space, observation, render_mode, self.task)
        check_has_rewards(world, self.task)
        self.world = world
        self.rules = rules
        self.action_space = make_action_space(action_space)
        self.observation_space = make_observation_space(observation, world.height, world.width)
        self.options = supported_options(options, observation, self.task)
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
        """Starts an episode. The seed decides what `options` do not set.

        Args:
            seed: of this episode and of later ones; None continues the previous seed's sequence.
            options: `image` and `goal` uint8 `[H, W, 3]`, `pose` `[4, 4]` metres, `prompt` text, `memory` a path or a
                memory. Or, in a learned world, `snapshot`: a path or a `Snapshot` to continue from, without a seed.
                Wrappers such as TimeLimit and RecordEpisodeStatistics then count from there.

        Raises:
            ValueError, TypeError, FileNotFoundError: a wrong seed or option; the running episode continues.
            RuntimeError: in the simulator, the walk that samples `goal` and `return` found no way. The walk needs the
                only body, so the running episode is over.
        """
        checked = check_options(options, self.options, self.world, self.task)
        seed = None if seed is None else check_seed(seed)
        generators = [self.np_random]
        (episode,), (generator,) = start_episodes(self.world, self.task, [checked], [seed], generators, self.prompt)
        super().reset(seed=seed)
        self.np_random.bit_generator.state = generator.bit_generator.state
        self.episode = episode
        self._show()
        return self._observation(), episode.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Advances by four video frames. An invalid action raises ValueError and changes nothing."""
        if self.episode is None or self.episode.ended:
            reason = "the episode has ended" if self.episode else "no episode has started"
            raise ResetNeeded(f"cannot step, {reason}: call reset() first")
        action_vector = action_vector_of(self.action_space, action)
        (episode,) = step_episodes(self.world, self.task, self.rules, [self.episode], action_vector[None])
        self.episode = episode
        self._show()
        return self._observation(), episode.reward, episode.terminated, episode.truncated, episode.info()

    def prompt_now(self, prompt: str) -> None:
        """Conditions the rest of the episode on another prompt.

        Raises:
            ResetNeeded: no episode has started. RuntimeError: a world that takes no prompt.
            ValueError: a prompt that is too long.
        """
        check_takes_prompt(self.options)
        check_prompt(prompt)
        episode = self._active_episode()
        self.episode = replace(episode, state=self.world.with_prompt(episode.state, prompt))

    @property
    def memory(self) -> Any:
        """The `MosaicMemory` of the running episode, a value; assign an edited one (`memory.editing`) to go on with it.

        Raises:
            ResetNeeded: no episode has started. RuntimeError: a world without a memory.
            TypeError, ValueError: what is assigned is no memory, or one of another checkpoint; nothing has changed.
        """
        state = self._active_episode().state
        if not hasattr(state, "memory"):
            raise RuntimeError(f"{type(self.world).__name__} has no memory; a learned world has one")
        return state.memory

    @memory.setter
    def memory(self, memory: Any) -> None:
        _ = self.memory  # raises without an episode, or without a memory
        self.episode = replace(self.episode, state=self.world.with_memory(self.episode.state, memory))

    def snapshot(self) -> Snapshot:
        """The episode, to return to later; takes no time and copies nothing.

        Raises:
            ResetNeeded: no episode has started. RuntimeError: the simulator, which cannot return.
        """
        return take_snapshot(self.world, self.task, self._active_episode(), self.np_random)

    def restore(self, snapshot: Snapshot) -> tuple[Any, dict[str, Any]]:
        """Returns to a snapshot, whose future repeats bit for bit; returns its observation and info.

        Wrappers do not notice this call: behind those of `gymnasium.make`, use
        `reset(options={"snapshot": snapshot})`.

        Raises:
            TypeError, ValueError: not a snapshot, or of another checkpoint or task; nothing has changed then.
        """
        check_snapshot(snapshot, self.world, self.task)
        self.np_random = generator_of(snapshot)
        self.episode = snapshot.episode
        self._show()
        return self._observation(), self.episode.info()

    def fork(self, n: int) -> list[Snapshot]:
        """`n` snapshots of the present. They share what is equal, so memory grows only with what differs later.

        Restore them one after the other here, or all at once in a vector environment of `n` members.

        Raises:
            ValueError: n below 1. ResetNeeded, RuntimeError: as `snapshot`.
        """
        forks = fork_snapshot(self.snapshot(), n)
        self.episode = forks[0].episode  # it counts its forks
        return forks

    def save(self, path: Path | str) -> None:
        """Writes the episode into one file, from which `load` continues bit for bit, in another process too."""
        save_snapshots([self.snapshot()], self.world, path)

    def load(self, path: Path | str) -> tuple[Any, dict[str, Any]]:
        """Restores a file of `save`; returns its observation and info.

        Wrappers do not notice this call: behind those of `gymnasium.make`, use `reset(options={"snapshot": path})`.

        Raises:
            FileNotFoundError: no such file. ValueError: damaged, or of another checkpoint or task.
        """
        (snapshot,) = load_snapshots(self.world, path)
        return self.restore(snapshot)

    def render(self) -> np.ndarray | None:
        """The last frame, uint8 `[H, W, 3]`, in mode `rgb_array`; a window in mode `human`."""
        if self.view is None:
            raise ResetNeeded("cannot render, no episode has started: call reset() first")
        if self.render_mode == "rgb_array":
            return self.view.frames[-1].copy()
        self._show()
        return None

    def get_keys_to_action(self) -> dict[tuple[int, ...], int | np.ndarray]:
        """The key map of `gymnasium.utils.play.play`, see `keys_to_actions`."""
        return keys_to_actions(self.action_space)

    def close(self) -> None:
        """Closes the window and the world; safe to call twice."""
        if self._window is not None:
            self._window.close()
            self._window = None
        self.world.close()

    def _active_episode(self) -> Episode:
        if self.episode is None:
            raise ResetNeeded("no episode has started: call reset() first")
        return self.episode

    def _observation(self) -> Any:
        return observe(self.observation_space, self.view, self.episode.goal)

    def _show(self) -> None:
        if self.render_mode != "human":
            return
        if self._window is None:
            self._window = Window(self.world.height, self.world.width, "Mosaic Gym")
        for frame in self.view.frames:
            self._window.show(frame, FRAMES_PER_SECOND)


@renamed_arguments(**RENAMED_ARGUMENTS)
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
        checkpoint: the name of a shipped checkpoint, or the folder or hub id of a world or of a Wan pipeline.
        device: where the networks run.
        resolution: None for what the checkpoint was trained at; that (height, width), or one side
            of its square, is accepted too. Of a Wan pipeline any multiple of its tokens; None for 352 x 640.
        denoising_steps: 1 to 100; None for what the checkpoint ships with.
        action_space: `discrete` or `continuous`.
        observation: `image` or `dict`.
        memory: whether views are retrieved from the episode's keyframes.
        prompt: text that conditions every episode.
        task: `explore`; `goal` or `return` (which have a goal image: observation `dict`); `simulator`, the game's own
            reward and end as the heads predict them; or an object.
        collision: whether the body stops at lifted geometry, and at the map's walls, and slides along them.
        temperature: at which the game's own reward and end are drawn; 0 takes the likelier.
        min_coverage, min_coverage_patience: truncate an episode after `min_coverage_patience` consecutive steps in
            which memory covers less than the share `min_coverage` of the view and the place is not on the checkpoint's
            map; None for no limit.
        loading: how a Wan pipeline is loaded: the fields of `mosaic_gym.WanOptions`.
        render_mode: `human`, `rgb_array` or None.

    Raises:
        ValueError, TypeError, RuntimeError: as `LearnedEnvArguments` and `open_learned_world`.
    """
    arguments = LearnedEnvArguments(**locals())
    world, env_arguments = open_learned_world(arguments)
    return WorldEnv(world, render_mode=render_mode, **env_arguments)


def make_simulator_env(
    scenario: str = "my_way_home",
    resolution: int | Sequence[int] | None = None,
    action_space: str = "discrete",
    observation: str = "image",
    task: str | Task = "explore",
    split: str | None = None,
    pickups: int | None = None,
    doors: bool | None = None,
    monsters: int | None = None,
    lights: bool | None = None,
    render_mode: str | None = None,
) -> WorldEnv:
    """The simulator as the same environment. Every argument is JSON-able (a task may also be an object).

    Args:
        scenario: the name of a Doom scenario or map; `rooms` for a generated map in every episode, drawn from the
            reset's seed; `rooms:SEED` for one of them.
        resolution: (height, width) or one side of a square, pixels; None for 64 x 64.
        action_space: `discrete` or `continuous`.
        observation: `image` or `dict`.
        task: `explore`, `goal`, `return`, `simulator` for the game's own reward, or an object.
        split: of generated maps: `train`, `heldout` or `heldout-themes`. None for `train`.
        pickups, doors, monsters, lights: which things generated maps have, see `MapOptions`; None for its defaults.
        render_mode: `human`, `rgb_array` or None.

    Raises:
        ValueError: an argument of the wrong type or range, an unknown scenario or split (the known ones are listed), or
            arguments of generated maps for another scenario.
        TypeError: a task that is not one. RuntimeError: `render_mode="human"` without a display.
    """
    task = make_task(task)
    check_env_arguments(action_space, observation, render_mode, task)
    height, width = check("resolution", resolution, Resolution(), optional=True) or SIMULATOR_SIZE
    things = {"pickups": pickups, "doors": doors, "monsters": monsters, "lights": lights}
    things = {name: value for name, value in things.items() if value is not None}
    # The scenario's own time limit would terminate episodes. Gymnasium's truncates them.
    level = {"scenario": scenario, "split": split, "maps": MapOptions(**things) if things else None, "timeout_tics": 0}
    world = make_world("doom", height=height, width=width, **level)
    return WorldEnv(
        world,
        action_space=action_space,
        observation=observation,
        task=task,
        options=("goal", "pose", "map_seed") if world.has_generated_maps else ("goal", "pose"),
        render_mode=render_mode,
    )


# Gymnasium reads the render modes from the entry point, before an environment exists.
make_learned_env.metadata = make_simulator_env.metadata = WorldEnv.metadata
