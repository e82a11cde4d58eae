"""The vector environment: many members, one network call a step."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from mosaic_gym.envs import snapshot as snapshots
from mosaic_gym.envs.episode import check_seed
from mosaic_gym.envs.members import Members
from mosaic_gym.envs.mosaic_env import WorldEnv, make_learned_env, open_learned_world
from mosaic_gym.envs.snapshot import Snapshot


def check_render_mode(render_mode: str | None) -> None:
    """Raises ValueError for a render mode that many members at once do not have."""
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode of many members is rgb_array or None; got {render_mode!r}")


class WorldVectorEnv(VectorEnv):
    """`Members` behind Gymnasium's vector face.

    Args:
        members: what is stepped.
        autoreset_mode: what happens to a member whose episode ended: a new one at the next step (whose action is
            ignored), in the same step (`final_obs` and `final_info` keep the end), or nothing until
            `reset(options={"reset_mask": ...})`.
        render_mode: `rgb_array` or None.

    Attributes:
        members: their episodes.
    """

    def __init__(
        self,
        members: Members,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode)
        self.members = members
        self.num_envs = len(members)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**WorldEnv.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.single_action_space, self.single_observation_space = members.action_space, members.observation_space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._over = np.zeros(self.num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins new episodes: of all members, or of those that `options["reset_mask"]` (bool `[n]`) names.

        Args:
            seed: one number, counted up member by member; one each; or None.
            options: as `WorldEnv.reset` takes them, for every member that is reset.

        Raises:
            ValueError, TypeError: a wrong mask, seed, number of seeds or option; nothing has changed then.
        """
        if not isinstance(options, Mapping | None):
            raise TypeError(f"options are a dict, of what `WorldEnv.reset` takes by name; got {options!r}")
        options = dict(options or {})
        mask = self._check_mask(options.pop("reset_mask")) if "reset_mask" in options else np.ones(self.num_envs, bool)
        if isinstance(seed, Sequence | np.ndarray):
            seeds = [None if one is None else check_seed(one) for one in seed]
        else:
            seeds = [None if seed is None else check_seed(seed) + i for i in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"{self.num_envs} members take {self.num_envs} seeds; got {len(seeds)}")
        indices = np.flatnonzero(mask)
        missing = [i for i, episode in enumerate(self.members.episodes) if episode is None and not mask[i]]
        if missing:
            raise ValueError(f"members {missing} have never begun: the first reset is of all of them")
        self.members.reset(indices, [seeds[i] for i in indices], options)
        if seeds[0] is not None:  # the face's own generator, which draws nothing, says how it was seeded
            super().reset(seed=seeds[0])
        self._over[indices] = False
        return self._observations(), self._infos(indices)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Four video frames further, for all. A bad action raises ValueError and leaves everything as it was.

        The action of a member that begins anew instead (see `autoreset_mode`) may be anything.
        """
        next_step = self.autoreset_mode is AutoresetMode.NEXT_STEP
        over = np.flatnonzero(self._over) if next_step else np.arange(0)
        going = np.setdiff1d(np.arange(self.num_envs), over)
        # All that can fail comes before anything is put in place.
        moved = self.members.advanced(going, self.members.action_vectors(actions, going))
        begun = self.members.anew(over) if len(over) else ([], [])
        episodes = list(self.members.episodes)
        for i, episode in zip((*going, *over), (*moved, *begun[0]), strict=True):
            episodes[i] = episode
        rewards = np.array([episode.reward for episode in episodes])
        terminated = np.array([episode.terminated for episode in episodes])
        truncated = np.array([episode.truncated for episode in episodes])
        infos: dict[str, Any] = {}
        ended = np.flatnonzero(terminated | truncated)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and len(ended):
            over, begun = ended, self.members.anew(ended)
            for i in ended:
                final = {"final_obs": self.members.observation_of(episodes[i]), "final_info": episodes[i].info()}
                infos = self._add_info(infos, final, i)
        self.members.keep(going, moved)
        self.members.keep(over, *begun)
        self._over = np.array([episode.ended for episode in self.members.episodes])
        return self._observations(), rewards, terminated, truncated, self._infos(range(self.num_envs), infos)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The last frame of every member, uint8 `[H, W, 3]`, in mode `rgb_array`."""
        if self.render_mode is None:
            return None
        return tuple(episode.view.frames[-1].copy() for episode in self.members.begun())

    def prompt_now(self, prompts: str | Sequence[str]) -> None:
        """Conditions the rest of the members' episodes on another prompt, one for all or one each.

        Raises:
            RuntimeError: a world that takes no prompt. ResetNeeded: a member has not begun.
            ValueError: not so many prompts, or one that is too long; nothing has changed then.
        """
        self.members.prompt_now(prompts)

    def snapshot(self) -> list[Snapshot]:
        """One snapshot a member; copies nothing."""
        return self.members.snapshot()

    def restore(self, kept: Sequence[Snapshot]) -> tuple[Any, dict[str, Any]]:
        """Goes (back) to snapshots, one for each member: these members' own, or the forks of one environment.

        Raises:
            TypeError, ValueError: not so many, not snapshots, of another checkpoint or task, or (where members begin
            anew in the same step) of an episode that is over; nothing has changed.
        """
        self.members.restore(kept, going_on=self.autoreset_mode is AutoresetMode.SAME_STEP)
        self._over = np.array([snapshot.episode.ended for snapshot in kept])
        return self._observations(), self._infos(range(self.num_envs))

    def fork(self, n: int) -> list[list[Snapshot]]:
        """`n` snapshots of every member's present, member by member; they share what is equal.

        Raises:
            ValueError: n below 1. ResetNeeded: a member has not begun.
        """
        return self.members.fork(n)

    def save(self, path: Path | str) -> None:
        """Writes the present of all members into one file, from which `load` goes on bit for bit.

        A file of one member is one that a single environment loads too.

        Raises:
            ResetNeeded: a member has not begun.
        """
        snapshots.save(self.snapshot(), self.members.world, path)

    def load(self, path: Path | str) -> tuple[Any, dict[str, Any]]:
        """Goes on from what `save` wrote; returns the observations and infos there.

        Raises:
            FileNotFoundError: no such file. ValueError: damaged, of another number of members, or of another checkpoint
            or task; nothing has changed then.
        """
        return self.restore(snapshots.load(self.members.world, path, self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the world."""
        self.members.world.close()

    def _check_mask(self, mask: Any) -> np.ndarray:
        expected = f"options['reset_mask'] is a bool array of shape ({self.num_envs},) with at least one True"
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"{expected}; got {mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__}")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"{expected}; got shape {mask.shape} with {int(mask.sum())} True")
        return mask

    def _observations(self) -> Any:
        space = self.single_observation_space
        each = [self.members.observe(i) for i in range(self.num_envs)]
        return concatenate(space, each, create_empty_array(space, self.num_envs))

    def _infos(self, indices: Sequence[int], infos: dict[str, Any] | None = None) -> dict[str, Any]:
        infos = {} if infos is None else infos
        for i in indices:
            infos = self._add_info(infos, self.members.episodes[i].info(), i)
        return infos


def make_members(num_envs: int, max_episode_steps: int | None = None, **kwargs: Any) -> Members:
    """`num_envs` members of the learned world.

    Args:
        max_episode_steps: after which an episode is truncated; None, or -1 as Gymnasium has it, never. (To `gym.make`
            None means the registered 256. `gym.make_vec` takes those where it is told nothing, but hands a None on.)
        kwargs: as `make_learned_env` takes them.
    """
    asked = inspect.signature(make_learned_env).bind(**kwargs)
    asked.apply_defaults()
    world, faces = open_learned_world(asked.arguments, None if max_episode_steps == -1 else max_episode_steps)
    return Members(world, num_envs, **faces)


def make_learned_vector_env(
    num_envs: int = 1,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    render_mode: str | None = None,
    **kwargs: Any,
) -> WorldVectorEnv:
    """`num_envs` members of the learned world as a vector environment; kwargs as `make_members` takes them.

    `gym.make_vec("MosaicWorld-v0", ...)` calls this, with the registered `max_episode_steps=256` unless told otherwise.
    """
    check_render_mode(render_mode)  # before a world is built, as `check_faces`
    autoreset_mode = AutoresetMode(autoreset_mode)
    return WorldVectorEnv(make_members(num_envs, **kwargs), autoreset_mode, render_mode)
