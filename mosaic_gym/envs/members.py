"""Several episodes of one world, side by side: what both vector faces are made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded

from mosaic_gym.envs import snapshot as snapshots
from mosaic_gym.envs.episode import Episode, Rules, advance, begin
from mosaic_gym.envs.mosaic_env import check_faces, check_has_rewards, check_takes_prompt, honoured
from mosaic_gym.envs.options import OPTIONS, check_options, check_prompt
from mosaic_gym.envs.snapshot import Snapshot
from mosaic_gym.envs.spaces import action_vector_of, make_action_space, make_observation_space, observe
from mosaic_gym.envs.tasks import Task, make_task
from mosaic_gym.validation import is_whole
from mosaic_gym.worlds.protocol import World


class Members:
    """Episodes that share one world and one network call a step, and nothing else.

    Each has its own memory, clock, and generator of seeds; what happens to one changes no other's frames.

    Args:
        world: one that can step many states; closed by whoever opened it.
        count: of members.
        action_space, observation, task, rules, options, prompt: as `WorldEnv` takes them.

    Raises:
        ValueError: count below 1, a face there is not. RuntimeError: a world with one true present.
        TypeError: a task or rules that are none.
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
        options: Collection[str] = OPTIONS,
        prompt: str | None = None,
    ) -> None:
        if not (is_whole(count) and count >= 1):
            raise ValueError(f"there is at least 1 member; got {count!r}")
        if not world.forkable:
            raise RuntimeError(
                f"{type(world).__name__} has one body, and cannot be many members: use gymnasium.make_vec(..., "
                "vectorization_mode='sync'), which opens an engine for each"
            )
        self.world, self.prompt = world, prompt
        self._faces, self._options = (action_space, observation), tuple(options)
        self.episodes: list[Episode | None] = [None] * count
        self._generators: list[np.random.Generator | None] = [None] * count
        self.set_task(task)
        self.set_rules(rules)
        self.action_space = make_action_space(action_space)
        self.observation_space = make_observation_space(observation, world.height, world.width)

    def __len__(self) -> int:
        return len(self.episodes)

    def set_task(self, task: str | Task) -> None:
        """Another task. Episodes under way are given up, for what they remember is of the task before: reset them.

        Raises:
            ValueError, TypeError: no task, or one that does not fit world and observation; nothing has changed then.
        """
        task = make_task(task)
        check_faces(*self._faces, None, task)
        check_has_rewards(self.world, task)
        self.task, self.options = task, honoured(self._options, self._faces[1], task)
        self.episodes = [None] * len(self)

    def set_rules(self, rules: Rules) -> None:
        """When episodes are truncated, those under way too; TypeError if that is no `Rules`."""
        if not isinstance(rules, Rules):
            raise TypeError(f"rules are a mosaic_gym.envs.episode.Rules; got {rules!r}")
        self.rules = rules

    def reset(
        self,
        indices: Sequence[int],
        seeds: Sequence[int | None] | None = None,
        options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Begins new episodes for some members; seeds are for them, one each, None draws from their own generators.

        Args:
            options: for all of them, or one each.

        Raises:
            ValueError: a wrong option, or not one for each; nothing has changed then.
        """
        self.keep(indices, *self.anew(indices, seeds, options))

    def anew(
        self,
        indices: Sequence[int],
        seeds: Sequence[int | None] | None = None,
        options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[list[Episode], list[np.random.Generator]]:
        """New episodes for some members, and their generators, as `reset` takes and `keep` puts in place."""
        each = [options or {}] * len(indices) if options is None or isinstance(options, Mapping) else list(options)
        if len(each) != len(indices):
            raise ValueError(f"{len(indices)} members take one dict of options, or {len(indices)}; got {len(each)}")
        asked = [check_options(one, self.options, self.world.height, self.world.width) for one in each]
        seeds = [None] * len(indices) if seeds is None else seeds
        generators = [self._generators[i] for i in indices]
        return begin(self.world, self.task, asked, seeds, generators, self.prompt)

    def keep(
        self,
        indices: Sequence[int],
        episodes: Sequence[Episode],
        generators: Sequence[np.random.Generator] | None = None,
    ) -> None:
        """Puts episodes of some members in place, and where given their generators."""
        for i, episode in zip(indices, episodes, strict=True):
            self.episodes[i] = episode
        for i, generator in zip(indices, generators, strict=True) if generators is not None else ():
            self._generators[i] = generator

    def begun(self, indices: Iterable[int] | None = None) -> list[Episode]:
        """The episodes of some members, None for all.

        Raises:
            ResetNeeded: one of them has not begun.
        """
        indices = range(len(self)) if indices is None else indices
        missing = [int(i) for i in indices if self.episodes[i] is None]
        if missing:
            raise ResetNeeded(f"the episodes of members {missing} have not begun: reset them first")
        return [self.episodes[i] for i in indices]

    def action_vectors(self, actions: Iterable[Any], indices: Sequence[int]) -> np.ndarray:
        """`[len(indices), 3]`, of one action a member: what some of them are to do. The others' are not looked at.

        Raises:
            ValueError: another number of actions than of all members, or one that is none.
        """
        try:
            actions = list(actions)
        except TypeError as error:
            raise ValueError(f"{len(self)} members take {len(self)} actions, one each; got {actions!r}") from error
        if len(actions) != len(self):
            raise ValueError(f"{len(self)} members take {len(self)} actions; got {len(actions)}")
        return np.array([action_vector_of(self.action_space, actions[i]) for i in indices]).reshape(-1, 3)

    def advanced(self, indices: Sequence[int], action_vectors: np.ndarray) -> list[Episode]:
        """The episodes of some members one step on, in one call of the world; thrusts `[len(indices), 3]`.

        Members stay where they are until `keep` puts these in place: a step may still fail when it begins others anew,
        and must then have moved nobody.

        Raises:
            ResetNeeded: one of them has not begun, or has ended.
        """
        present = self.begun(indices)
        for i, episode in zip(indices, present, strict=True):
            if episode.ended:
                raise ResetNeeded(f"cannot step, the episode of member {i} has ended: reset it first")
        return advance(self.world, self.task, self.rules, present, action_vectors) if present else []

    def observe(self, i: int) -> Any:
        """The observation of a member."""
        return self.observation_of(self.episodes[i])

    def observation_of(self, episode: Episode) -> Any:
        """What an episode shows now."""
        return observe(self.observation_space, episode.view, episode.goal)

    def prompt_now(self, prompts: str | Sequence[str], indices: Iterable[int] | None = None) -> None:
        """Conditions the rest of some members' episodes, None for all, on other prompts: one for all, or one each.

        Raises:
            RuntimeError: a world that takes no prompt. ResetNeeded: one of them has not begun.
            ValueError: not so many prompts, or one that is too long; nothing has changed then.
        """
        check_takes_prompt(self.options)
        indices = list(range(len(self)) if indices is None else indices)
        prompts = [prompts] * len(indices) if isinstance(prompts, str) else list(prompts)
        if len(prompts) != len(indices):
            raise ValueError(f"{len(indices)} members take one prompt, or {len(indices)}; got {len(prompts)}")
        for prompt in prompts:
            check_prompt(prompt)
        present = self.begun(indices)
        states = [self.world.prompted(each.state, prompt) for each, prompt in zip(present, prompts, strict=True)]
        for i, episode, state in zip(indices, present, states, strict=True):
            self.episodes[i] = replace(episode, state=state)

    def snapshot(self, indices: Iterable[int] | None = None) -> list[Snapshot]:
        """One for each of some members, None for all.

        Raises:
            ResetNeeded: one of them has not begun.
        """
        indices = list(range(len(self)) if indices is None else indices)
        return [
            snapshots.take(self.world, self.task, episode, self._generators[i])
            for i, episode in zip(indices, self.begun(indices), strict=True)
        ]

    def fork(self, n: int, indices: Iterable[int] | None = None) -> list[list[Snapshot]]:
        """`n` snapshots of the present of each of some members, None for all.

        Raises:
            ValueError: n below 1. ResetNeeded: one of them has not begun.
        """
        indices = list(range(len(self)) if indices is None else indices)
        forks = [snapshots.fork(snapshot, n) for snapshot in self.snapshot(indices)]
        self.keep(indices, [first.episode for first, *_ in forks])  # which knows how often it was forked
        return forks

    def restore(
        self, kept: Sequence[Snapshot], indices: Iterable[int] | None = None, *, going_on: bool = False
    ) -> None:
        """Goes (back) to snapshots, one for each of some members, None for all.

        They may be in any order, and from any environment of this world and task.

        Args:
            going_on: refuses an episode that is over: members are stepped, and this face would never begin it anew.

        Raises:
            TypeError, ValueError: not so many, not snapshots, or of another checkpoint or task; nothing has changed.
        """
        indices = list(range(len(self)) if indices is None else indices)
        if not isinstance(kept, Sequence):
            raise TypeError(f"restore takes a list of {len(indices)} snapshots; got {type(kept).__name__}")
        if len(kept) != len(indices):
            raise ValueError(f"{len(indices)} members take {len(indices)} snapshots; got {len(kept)}")
        for snapshot in kept:
            snapshots.check_snapshot(snapshot, self.world, self.task)
        over = [i for i, snapshot in zip(indices, kept, strict=True) if snapshot.episode.ended]
        if going_on and over:
            raise ValueError(
                f"the snapshots for members {over} are of episodes that are over, and members begin anew in the step "
                "that ends one: restore them in a single environment, or take snapshots before the end"
            )
        self.keep(indices, [each.episode for each in kept], [snapshots.generator_of(each) for each in kept])


class Member:
    """One of `Members`, with the verbs of a single environment (see `WorldEnv`); it has no step of its own."""

    def __init__(self, members: Members, index: int) -> None:
        self._members, self._index = members, index

    def info(self) -> dict[str, Any]:
        """What `info` says of the present."""
        (episode,) = self._members.begun([self._index])
        return episode.info()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode."""
        self._members.reset([self._index], [seed], options)
        return self._shown()

    def prompt_now(self, prompt: str) -> None:
        """Conditions the rest of the episode on another prompt, as `WorldEnv.prompt_now` does."""
        self._members.prompt_now(prompt, [self._index])

    def snapshot(self) -> Snapshot:
        """The present, to go back to."""
        (kept,) = self._members.snapshot([self._index])
        return kept

    def restore(self, snapshot: Snapshot) -> tuple[Any, dict[str, Any]]:
        """Goes (back) to a snapshot; returns its observation and info. ValueError if its episode is over."""
        self._members.restore([snapshot], [self._index], going_on=True)
        return self._shown()

    def fork(self, n: int) -> list[Snapshot]:
        """`n` snapshots of the present."""
        (forks,) = self._members.fork(n, [self._index])
        return forks

    def save(self, path: Path | str) -> None:
        """Writes the present into one file, as `WorldEnv.save` does."""
        snapshots.save([self.snapshot()], self._members.world, path)

    def load(self, path: Path | str) -> tuple[Any, dict[str, Any]]:
        """Goes on from what `save` wrote, here or in a single environment."""
        (kept,) = snapshots.load(self._members.world, path)
        return self.restore(kept)

    def _shown(self) -> tuple[Any, dict[str, Any]]:
        return self._members.observe(self._index), self.info()
