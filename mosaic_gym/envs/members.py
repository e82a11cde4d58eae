"""The sub-environments of a vector environment: several episodes of one world, stepped by one network call."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded

from mosaic_gym.envs.arguments import check_env_arguments, check_has_rewards, check_takes_prompt, supported_options
from mosaic_gym.envs.episode import Episode, Rules, step_episodes
from mosaic_gym.envs.options import LEARNED_OPTIONS, check_options, check_prompt
from mosaic_gym.envs.reset import Reset, start_episodes
from mosaic_gym.envs.snapshot import (
    Snapshot,
    check_snapshot,
    fork_snapshot,
    generator_of,
    load_snapshots,
    save_snapshots,
    take_snapshot,
)
from mosaic_gym.envs.spaces import action_vector_of, make_action_space, make_observation_space, observe
from mosaic_gym.envs.tasks import Task, make_task
from mosaic_gym.validation import Whole, check
from mosaic_gym.worlds.protocol import World


class Members:
    """Sub-environments that share a world and one network call a step, and nothing else.

    Each has its own memory, clock, and generator of seeds; no member changes another's frames.

    Args:
        world: one that can step many states; whoever opened it closes it.
        count: of members.
        action_space, observation, task, rules, options, prompt: as `WorldEnv` takes them.

    Raises:
        ValueError: count below 1, an unknown space or task. RuntimeError: a world that is not forkable.
        TypeError: a task or rules of another type.
    """

    def __init__(
        self,
        world: World,
        count: int,
        *,
        action_space: str = "discrete",
        observation: str = "image",
        task: str | Task = "explore",
        rules: Rules = Rules(),
        options: Collection[str] = LEARNED_OPTIONS,
        prompt: str | None = None,
    ) -> None:
        count = check("num_envs", count, Whole(1))
        if not world.forkable:
            raise RuntimeError(
                f"{type(world).__name__} has one body, and cannot be several sub-environments: use "
                "gymnasium.make_vec(..., vectorization_mode='sync'), which opens a simulator for each"
            )
        self.world, self.prompt = world, prompt
        self._spaces, self._all_options = (action_space, observation), tuple(options)
        self.episodes: list[Episode | None] = [None] * count
        self._generators: list[np.random.Generator | None] = [None] * count
        self.set_task(task)
        self.set_rules(rules)
        self.action_space = make_action_space(action_space)
        self.observation_space = make_observation_space(observation, world.height, world.width)

    def __len__(self) -> int:
        return len(self.episodes)

    def set_task(self, task: str | Task) -> None:
        """Another task. Running episodes are dropped, because their task states are of the previous task: reset them.

        Raises:
            ValueError, TypeError: not a task, or one that does not fit world and observation; nothing has changed then.
        """
        task = make_task(task)
        check_env_arguments(*self._spaces, None, task)
        check_has_rewards(self.world, task)
        self.task, self.options = task, supported_options(self._all_options, self._spaces[1], task)
        self.episodes = [None] * len(self)

    def set_rules(self, rules: Rules) -> None:
        """When episodes are truncated, running ones included; TypeError if that is not a `Rules`."""
        if not isinstance(rules, Rules):
            raise TypeError(f"rules are a mosaic_gym.Rules; got {rules!r}")
        self.rules = rules

    def reset(
        self,
        indices: Sequence[int],
        seeds: Sequence[int | None] | None = None,
        options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Starts new episodes for some members.

        Args:
            seeds: one each; None draws from the member's own generator.
            options: for all of them, or one dict each.

        Raises:
            ValueError, TypeError: a wrong option, or another number of them; nothing has changed then.
        """
        self.set_episodes(indices, *self.start_episodes(indices, seeds, options))

    def start_episodes(
        self,
        indices: Sequence[int],
        seeds: Sequence[int | None] | None = None,
        options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> Reset:
        """New episodes for some members, and their generators: arguments of `reset`, and then of `set_episodes`."""
        count = len(indices)
        rows = [options] * count if options is None or isinstance(options, Mapping) else list(options)
        if len(rows) != count:
            raise ValueError(f"{count} members take one dict of options, or {count}; got {len(rows)}")
        # What is the same for all is checked once, and a snapshot loaded once, which start_episodes then forks.
        checked = {id(row): check_options(row, self.options, self.world, self.task) for row in rows}
        rows = [checked[id(row)] for row in rows]
        seeds = [None] * count if seeds is None else seeds
        generators = [self._generators[i] for i in indices]
        return start_episodes(self.world, self.task, rows, seeds, generators, self.prompt)

    def set_episodes(
        self,
        indices: Sequence[int],
        episodes: Sequence[Episode],
        generators: Sequence[np.random.Generator] | None = None,
    ) -> None:
        """Sets the episodes of some members, and their generators if there are any."""
        for i, episode in zip(indices, episodes, strict=True):
            self.episodes[i] = episode
        for i, generator in zip(indices, generators, strict=True) if generators is not None else ():
            self._generators[i] = generator

    def active_episodes(self, indices: Iterable[int] | None = None) -> list[Episode]:
        """The episodes of some members, None for all.

        Raises:
            ResetNeeded: a member has not been reset yet.
        """
        indices = range(len(self)) if indices is None else indices
        missing = [int(i) for i in indices if self.episodes[i] is None]
        if missing:
            raise ResetNeeded(f"the episodes of members {missing} have not started: reset them first")
        return [self.episodes[i] for i in indices]

    def action_vectors(self, actions: Iterable[Any], indices: Sequence[int]) -> np.ndarray:
        """Action vectors `[len(indices), 3]` of some members, from one action for every member. Others are ignored.

        Raises:
            ValueError: another number of actions than of all members, or an invalid one.
        """
        try:
            actions = list(actions)
        except TypeError as error:
            raise ValueError(f"{len(self)} members take {len(self)} actions, one each; got {actions!r}") from error
        if len(actions) != len(self):
            raise ValueError(f"{len(self)} members take {len(self)} actions; got {len(actions)}")
        return np.array([action_vector_of(self.action_space, actions[i]) for i in indices]).reshape(-1, 3)

    def step_episodes(self, indices: Sequence[int], action_vectors: np.ndarray) -> list[Episode]:
        """The episodes of some members after one step, by one call of the world; action vectors `[len(indices), 3]`.

        The members do not change until `set_episodes` sets the result: starting other episodes in the same step may
        still fail, and then no member may have moved.

        Raises:
            ResetNeeded: an episode has not started, or has ended.
        """
        episodes = self.active_episodes(indices)
        for i, episode in zip(indices, episodes, strict=True):
            if episode.ended:
                raise ResetNeeded(f"cannot step, the episode of member {i} has ended: reset it first")
        return step_episodes(self.world, self.task, self.rules, episodes, action_vectors) if episodes else []

    def observe(self, i: int) -> Any:
        """The observation of a member."""
        return self.observation_of(self.episodes[i])

    def observation_of(self, episode: Episode) -> Any:
        """The observation of an episode."""
        return observe(self.observation_space, episode.view, episode.goal)

    def prompt_now(self, prompts: str | Sequence[str], indices: Iterable[int] | None = None) -> None:
        """Conditions the rest of some members' episodes, None for all, on other prompts: one for all, or one each.

        Raises:
            RuntimeError: a world that takes no prompt. ResetNeeded: a member has not been reset yet.
            ValueError: another number of prompts, or one that is too long; nothing has changed then.
        """
        check_takes_prompt(self.options)
        indices = list(range(len(self)) if indices is None else indices)
        prompts = [prompts] * len(indices) if isinstance(prompts, str) else list(prompts)
        if len(prompts) != len(indices):
            raise ValueError(f"{len(indices)} members take one prompt, or {len(indices)}; got {len(prompts)}")
        for prompt in prompts:
            check_prompt(prompt)
        episodes = self.active_episodes(indices)
        states = [self.world.with_prompt(row.state, prompt) for row, prompt in zip(episodes, prompts, strict=True)]
        self.set_episodes(indices, [replace(row, state=state) for row, state in zip(episodes, states, strict=True)])

    def snapshot(self, indices: Iterable[int] | None = None) -> list[Snapshot]:
        """One snapshot for each of some members, None for all.

        Raises:
            ResetNeeded: a member has not been reset yet.
        """
        indices = list(range(len(self)) if indices is None else indices)
        return [
            take_snapshot(self.world, self.task, episode, self._generators[i])
            for i, episode in zip(indices, self.active_episodes(indices), strict=True)
        ]

    def fork(self, n: int, indices: Iterable[int] | None = None) -> list[list[Snapshot]]:
        """`n` snapshots of each of some members' episodes, None for all.

        Raises:
            ValueError: n below 1. ResetNeeded: a member has not been reset yet.
        """
        indices = list(range(len(self)) if indices is None else indices)
        forks = [fork_snapshot(snapshot, n) for snapshot in self.snapshot(indices)]
        self.set_episodes(indices, [first.episode for first, *_ in forks])  # the first one counts its forks
        return forks

    def restore(
        self, snapshots: Sequence[Snapshot], indices: Iterable[int] | None = None, *, refuse_ended: bool = False
    ) -> None:
        """Restores snapshots, one for each of some members, None for all.

        They may be in any order, and from any environment of this world and task.

        Args:
            refuse_ended: refuses episodes that have ended, for an environment that would never reset them by itself.

        Raises:
            TypeError, ValueError: another number, not snapshots, or of another checkpoint or task; nothing has changed.
        """
        indices = list(range(len(self)) if indices is None else indices)
        if not isinstance(snapshots, Sequence):
            raise TypeError(f"restore takes a list of {len(indices)} snapshots; got {type(snapshots).__name__}")
        if len(snapshots) != len(indices):
            raise ValueError(f"{len(indices)} members take {len(indices)} snapshots; got {len(snapshots)}")
        for snapshot in snapshots:
            check_snapshot(snapshot, self.world, self.task)
        ended = [i for i, snapshot in zip(indices, snapshots, strict=True) if snapshot.episode.ended]
        if refuse_ended and ended:
            raise ValueError(
                f"the snapshots for members {ended} are of episodes that have ended, and members are reset in the step "
                "that ends one: restore them in a single environment, or take snapshots before the end"
            )
        self.set_episodes(indices, [row.episode for row in snapshots], [generator_of(row) for row in snapshots])


class Member:
    """One of `Members`, with the methods of a single environment (see `WorldEnv`) other than `step`."""

    def __init__(self, members: Members, index: int) -> None:
        self._members, self._index = members, index

    def info(self) -> dict[str, Any]:
        """Gymnasium's `info` of the episode."""
        (episode,) = self._members.active_episodes([self._index])
        return episode.info()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        self._members.reset([self._index], [seed], options)
        return self._observation_and_info()

    def prompt_now(self, prompt: str) -> None:
        """Conditions the rest of the episode on another prompt, as `WorldEnv.prompt_now` does."""
        self._members.prompt_now(prompt, [self._index])

    def snapshot(self) -> Snapshot:
        """A snapshot of the episode."""
        (snapshot,) = self._members.snapshot([self._index])
        return snapshot

    def restore(self, snapshot: Snapshot) -> tuple[Any, dict[str, Any]]:
        """Restores a snapshot; returns its observation and info. ValueError if its episode has ended."""
        self._members.restore([snapshot], [self._index], refuse_ended=True)
        return self._observation_and_info()

    def fork(self, n: int) -> list[Snapshot]:
        """`n` snapshots of the episode."""
        (forks,) = self._members.fork(n, [self._index])
        return forks

    def save(self, path: Path | str) -> None:
        """Writes the episode into one file, as `WorldEnv.save` does."""
        save_snapshots([self.snapshot()], self._members.world, path)

    def load(self, path: Path | str) -> tuple[Any, dict[str, Any]]:
        """Restores a file of `save`, from here or from a single environment."""
        (snapshot,) = load_snapshots(self._members.world, path)
        return self.restore(snapshot)

    def _observation_and_info(self) -> tuple[Any, dict[str, Any]]:
        return self._members.observe(self._index), self.info()
