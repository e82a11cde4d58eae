"""The vector environments: of the learned world, many sub-environments with one network call a step."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Env
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from gymnasium.wrappers import TimeLimit

from mosaic_gym.deprecation import current_arguments
from mosaic_gym.envs.arguments import check_vector_render_mode
from mosaic_gym.envs.learned_world import LearnedEnvArguments, open_learned_world
from mosaic_gym.envs.members import Members
from mosaic_gym.envs.mosaic_env import RENAMED_ARGUMENTS, WorldEnv, make_learned_env, make_simulator_env
from mosaic_gym.envs.reset import check_seed
from mosaic_gym.envs.snapshot import Snapshot, load_snapshots, save_snapshots
from mosaic_gym.validation import Whole, check


class WorldVectorEnv(VectorEnv):
    """`Members` behind Gymnasium's vector interface.

    Args:
        members: the sub-environments.
        autoreset_mode: what happens to a member whose episode ended: it is reset by the next step (which ignores its
            action), in the same step (`final_obs` and `final_info` hold the end), or not before
            `reset(options={"reset_mask": ...})`.
        render_mode: `rgb_array` or None.

    Attributes:
        members: the sub-environments, with their episodes.
    """

    def __init__(
        self,
        members: Members,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        check_vector_render_mode(render_mode)
        self.members = members
        self.num_envs = len(members)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**WorldEnv.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.single_action_space, self.single_observation_space = members.action_space, members.observation_space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._ended = np.zeros(self.num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts new episodes: of all members, or of those that `options["reset_mask"]` (bool `[n]`) names.

        Args:
            seed: one number, which is incremented from member to member; one each; or None.
            options: as `WorldEnv.reset` takes them, for every member that is reset. One `snapshot` is forked for all.

        Raises:
            ValueError, TypeError: a wrong mask, seed, number of seeds or option; nothing has changed then.
        """
        if isinstance(options, Mapping) and "reset_mask" in options:
            mask = self._check_mask(options["reset_mask"])
            options = {key: value for key, value in options.items() if key != "reset_mask"}
        else:
            mask = np.ones(self.num_envs, bool)
        seeds = self._seeds_per_member(seed)
        indices = np.flatnonzero(mask)
        missing = [i for i, episode in enumerate(self.members.episodes) if episode is None and not mask[i]]
        if missing:
            raise ValueError(f"members {missing} have never been reset: the first reset is of all members")
        rows = None if options is None else [options] * len(indices)
        self.members.reset(indices, [seeds[i] for i in indices], rows)
        if seeds[0] is not None:  # this environment's own generator draws nothing, but np_random_seed reports the seed
            super().reset(seed=seeds[0])
        self._ended[indices] = False
        return self._observations(), self._infos(indices)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advances all members by four video frames. An invalid action raises ValueError and changes nothing.

        The action of a member that is reset instead (see `autoreset_mode`) may be anything.
        """
        next_step = self.autoreset_mode is AutoresetMode.NEXT_STEP
        to_reset = np.flatnonzero(self._ended) if next_step else np.arange(0)
        active = np.setdiff1d(np.arange(self.num_envs), to_reset)
        # All that can fail comes before any member is changed.
        stepped = self.members.step_episodes(active, self.members.action_vectors(actions, active))
        started, generators = self.members.start_episodes(to_reset) if len(to_reset) else ([], [])
        episodes = list(self.members.episodes)
        for i, episode in zip((*active, *to_reset), (*stepped, *started), strict=True):
            episodes[i] = episode
        rewards = np.array([episode.reward for episode in episodes])
        terminated = np.array([episode.terminated for episode in episodes])
        truncated = np.array([episode.truncated for episode in episodes])
        infos: dict[str, Any] = {}
        ended = np.flatnonzero(terminated | truncated)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and len(ended):
            to_reset, (started, generators) = ended, self.members.start_episodes(ended)
            for i in ended:
                final = {"final_obs": self.members.observation_of(episodes[i]), "final_info": episodes[i].info()}
                infos = self._add_info(infos, final, i)
        self.members.set_episodes(active, stepped)
        self.members.set_episodes(to_reset, started, generators)
        self._ended = np.array([episode.ended for episode in self.members.episodes])
        return self._observations(), rewards, terminated, truncated, self._infos(range(self.num_envs), infos)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The last frame of every member, uint8 `[H, W, 3]`, in mode `rgb_array`."""
        if self.render_mode is None:
            return None
        return tuple(episode.view.frames[-1].copy() for episode in self.members.active_episodes())

    def prompt_now(self, prompts: str | Sequence[str]) -> None:
        """Conditions the rest of the members' episodes on another prompt, one for all or one each.

        Raises:
            RuntimeError: a world that takes no prompt. ResetNeeded: a member has not been reset yet.
            ValueError: another number of prompts, or one that is too long; nothing has changed then.
        """
        self.members.prompt_now(prompts)

    def snapshot(self) -> list[Snapshot]:
        """One snapshot a member; copies nothing."""
        return self.members.snapshot()

    def restore(self, snapshots: Sequence[Snapshot]) -> tuple[Any, dict[str, Any]]:
        """Restores snapshots, one for each member: these members' own, or the forks of one environment.

        Raises:
            TypeError, ValueError: another number, not snapshots, of another checkpoint or task, or (where members are
            reset in the same step) of an episode that has ended; nothing has changed.
        """
        self.members.restore(snapshots, refuse_ended=self.autoreset_mode is AutoresetMode.SAME_STEP)
        self._ended = np.array([snapshot.episode.ended for snapshot in snapshots])
        return self._observations(), self._infos(range(self.num_envs))

    def fork(self, n: int) -> list[list[Snapshot]]:
        """`n` snapshots of every member's present, member by member; they share what is equal.

        Raises:
            ValueError: n below 1. ResetNeeded: a member has not been reset yet.
        """
        return self.members.fork(n)

    def save(self, path: Path | str) -> None:
        """Writes all members' episodes into one file, from which `load` continues bit for bit.

        A single environment can load a file of one member too.

        Raises:
            ResetNeeded: a member has not been reset yet.
        """
        save_snapshots(self.snapshot(), self.members.world, path)

    def load(self, path: Path | str) -> tuple[Any, dict[str, Any]]:
        """Restores a file of `save`; returns the observations and infos.

        Raises:
            FileNotFoundError: no such file. ValueError: damaged, of another number of members, or of another checkpoint
            or task; nothing has changed then.
        """
        return self.restore(load_snapshots(self.members.world, path, self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the world."""
        self.members.world.close()

    def _seeds_per_member(self, seed: Any) -> list[int | None]:
        if isinstance(seed, Sequence) or np.ndim(seed):
            seeds = [None if value is None else check_seed(value) for value in seed]
        else:
            seeds = [None if seed is None else check_seed(seed) + i for i in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"{self.num_envs} members take {self.num_envs} seeds; got {len(seeds)}")
        return seeds

    def _check_mask(self, mask: Any) -> np.ndarray:
        expected = f"options['reset_mask'] is a bool array of shape ({self.num_envs},) with at least one True"
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"{expected}; got {mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__}")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"{expected}; got shape {mask.shape} with {int(mask.sum())} True")
        return mask

    def _observations(self) -> Any:
        space = self.single_observation_space
        rows = [self.members.observe(i) for i in range(self.num_envs)]
        return concatenate(space, rows, create_empty_array(space, self.num_envs))

    def _infos(self, indices: Sequence[int], infos: dict[str, Any] | None = None) -> dict[str, Any]:
        infos = {} if infos is None else infos
        for i in indices:
            infos = self._add_info(infos, self.members.episodes[i].info(), i)
        return infos


def make_members(num_envs: int, max_episode_steps: int | None = None, **kwargs: Any) -> Members:
    """`num_envs` members of the learned world.

    Args:
        max_episode_steps: after which an episode is truncated; None, or -1 as in Gymnasium, for no limit. (To
            `gym.make`, None means the registered 256. `gym.make_vec` passes those on unless the argument is given; it
            passes a None on as it is.)
        kwargs: as `make_learned_env` takes them.
    """
    bound = inspect.signature(make_learned_env).bind(**current_arguments(kwargs, RENAMED_ARGUMENTS))
    bound.apply_defaults()
    arguments = LearnedEnvArguments(**bound.arguments)
    world, env_arguments = open_learned_world(arguments, _limit(max_episode_steps))
    return Members(world, num_envs, **env_arguments)


def make_learned_vector_env(
    num_envs: int = 1,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    render_mode: str | None = None,
    **kwargs: Any,
) -> WorldVectorEnv:
    """`num_envs` members of the learned world as a vector environment; kwargs as `make_members` takes them.

    `gym.make_vec("MosaicWorld-v0", ...)` calls this, with the registered `max_episode_steps=256` unless it is given.
    Members are no `gymnasium.Env` of their own, so wrappers go around all of them (`gymnasium.wrappers.vector`). For
    `wrappers=[...]` around each, add `vectorization_mode="sync"`, which loads a world for each.
    """
    check_vector_render_mode(render_mode)
    autoreset_mode = AutoresetMode(autoreset_mode)
    return WorldVectorEnv(make_members(num_envs, **kwargs), autoreset_mode, render_mode)


def make_simulator_vector_env(
    num_envs: int = 1,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    max_episode_steps: int | None = None,
    **kwargs: Any,
) -> SyncVectorEnv:
    """`num_envs` simulators as Gymnasium's `SyncVectorEnv`; kwargs as `make_simulator_env` takes them.

    `gym.make_vec("MosaicWorldReal-v0", ...)` calls this, with the registered `max_episode_steps=256` unless it is
    given. For `wrappers=[...]` around each, or for processes, add `vectorization_mode="sync"` or `"async"`; the
    autoreset mode then goes into `vector_kwargs={"autoreset_mode": ...}`.
    """
    num_envs = check("num_envs", num_envs, Whole(1))
    autoreset_mode = AutoresetMode(autoreset_mode)
    limit = _limit(max_episode_steps)

    def make() -> Env:
        env = make_simulator_env(**kwargs)
        return env if limit is None else TimeLimit(env, limit)

    return SyncVectorEnv([make] * num_envs, autoreset_mode=autoreset_mode)


def _limit(max_episode_steps: int | None) -> int | None:
    return None if max_episode_steps == -1 else max_episode_steps
