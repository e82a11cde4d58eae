"""Several episodes of one world, side by side: what both vector faces are made of."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding

from mosaic_gym.envs import snapshot as snapshots
from mosaic_gym.envs.episode import Episode, Rules, advance, begin
from mosaic_gym.envs.mosaic_env import check_faces, check_pays, honoured, start_of
from mosaic_gym.envs.options import OPTIONS, check_options
from mosaic_gym.envs.snapshot import Snapshot
from mosaic_gym.envs.spaces import make_action_space, make_observation_space, observe, thrust_of
from mosaic_gym.envs.tasks import Task, make_task
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
        if count < 1:
            raise ValueError(f"there is at least 1 member; got {count}")
        self.task = make_task(task)
        check_faces(action_space, observation, None, self.task)
        if not world.forkable:
            raise RuntimeError(
                f"{type(world).__name__} has one body, and cannot be many members: use gymnasium.make_vec(..., "
                "vectorization_mode='sync'), which opens an engine for each"
            )
        check_pays(world, self.task)
        self.world, self.rules, self.prompt = world, rules, prompt
        self.action_space = make_action_space(action_space)
        self.observation_space = make_observation_space(observation, world.height, world.width)
        self.options = honoured(options, observation, self.task)
        self.episodes: list[Episode | None] = [None] * count
        self._generators: list[np.random.Generator | None] = [None] * count

    def __len__(self) -> int:
        return len(self.episodes)

    def reset(
        self,
        indices: Sequence[int],
        seeds: Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Begins new episodes for some members; seeds are for them, one each, None draws from their own generators.

        Raises:
            ValueError: a wrong option; nothing has changed then.
        """
        asked = check_options(options or {}, self.options, self.world.height, self.world.width)
        seeds = [None] * len(indices) if seeds is None else seeds
        starts, generators = [], []
        for i, seed in zip(indices, seeds, strict=True):
            fresh = seed is not None or self._generators[i] is None
            generators.append(seeding.np_random(seed)[0] if fresh else copy.deepcopy(self._generators[i]))
            starts.append(start_of(asked, seed, generators[-1], self.prompt))
        begun = begin(self.world, self.task, starts, [asked.get("goal")] * len(starts))
        for i, episode, generator in zip(indices, begun, generators, strict=True):
            self.episodes[i], self._generators[i] = episode, generator

    def thrusts(self, actions: Iterable[Any]) -> np.ndarray:
        """`[n, 3]` of one action a member.

        Raises:
            ValueError: another number of actions, or one that is none.
        """
        actions = list(actions)
        if len(actions) != len(self):
            raise ValueError(f"{len(self)} members take {len(self)} actions; got {len(actions)}")
        return np.stack([thrust_of(self.action_space, action) for action in actions])

    def step(self, indices: Sequence[int], thrusts: np.ndarray) -> None:
        """Moves some members, in one call of the world; thrusts `[len(indices), 3]`.

        Raises:
            ResetNeeded: one of them has not begun, or has ended; nothing has moved then.
        """
        for i in indices:
            if self.episodes[i] is None or self.episodes[i].ended:
                why = "has ended" if self.episodes[i] else "has not begun"
                raise ResetNeeded(f"cannot step, the episode of member {i} {why}: reset it first")
        if not len(indices):
            return
        present = [self.episodes[i] for i in indices]
        for i, episode in zip(indices, advance(self.world, self.task, self.rules, present, thrusts), strict=True):
            self.episodes[i] = episode

    def observe(self, i: int) -> Any:
        """The observation of a member."""
        return observe(self.observation_space, self.episodes[i].view, self.episodes[i].goal)

    def snapshot(self) -> list[Snapshot]:
        """One for each member.

        Raises:
            ResetNeeded: one of them has not begun.
        """
        if any(episode is None for episode in self.episodes):
            raise ResetNeeded("there is nothing to keep, a member has not begun: call reset() first")
        kept = zip(self.episodes, self._generators, strict=True)
        return [snapshots.take(self.world, self.task, episode, generator) for episode, generator in kept]

    def restore(self, kept: Sequence[Snapshot]) -> None:
        """Goes (back) to snapshots, one for each member, in any order and from any environment of this world and task.

        Raises:
            TypeError, ValueError: not so many, not snapshots, or of another checkpoint or task; nothing has changed.
        """
        if len(kept) != len(self):
            raise ValueError(f"{len(self)} members take {len(self)} snapshots; got {len(kept)}")
        for snapshot in kept:
            snapshots.check_snapshot(snapshot, self.world, self.task)
        for i, snapshot in enumerate(kept):
            self.episodes[i] = snapshot.episode
            generator, _ = seeding.np_random(0)
            generator.bit_generator.state = snapshot.generator
            self._generators[i] = generator
