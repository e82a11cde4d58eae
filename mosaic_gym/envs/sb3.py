"""Stable-Baselines3's face: it takes no `gymnasium.vector` environment, and its DummyVecEnv runs N models in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.util import dict_to_obs, obs_space_info

from mosaic_gym.envs.episode import Episode
from mosaic_gym.envs.members import Member, Members
from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.envs.vector_env import check_render_mode, make_members

EPISODE_STEPS = 256
"""Steps of an episode unless `max_episode_steps` says otherwise, as registered with Gymnasium."""

SETTABLE: dict[str, Callable[[Members, Any], None]] = {"rules": Members.set_rules, "task": Members.set_task}
"""Attributes that may be set, for all members at once, and what checks and sets them."""
SHARED = ("action_space", "observation_space", "options", "prompt", "world", *SETTABLE)
"""Attributes that all members share."""
OWN = ("ended", *(field.name for field in fields(Episode)))
"""Attributes that each member has of its own, once it has begun: those of its episode."""
METHODS = tuple(sorted(name for name in vars(Member) if not name.startswith("_")))
"""What each member can be asked to do."""
OF_THE_FACE = ("metadata", "render_mode")
"""Attributes of this face, which recorders ask its members for."""


class MosaicVecEnv(VecEnv):
    """`Members` as a `VecEnv`: an ended member begins anew in the same step, and `info` keeps the end.

    Args:
        members: what is stepped.
        render_mode: `rgb_array` or None.
    """

    def __init__(self, members: Members, render_mode: str | None = None) -> None:
        check_render_mode(render_mode)
        self.members = members
        self.render_mode = render_mode
        self._action_vectors: np.ndarray | None = None
        super().__init__(len(members), members.observation_space, members.action_space)
        self.metadata = WorldEnv.metadata  # by which recorders know how fast a video is to be played

    def reset(self) -> Any:
        """Begins all episodes, with the seeds that `seed` set and the options that `set_options` did, used once.

        Actions that `step_async` took are forgotten.

        Raises:
            ValueError: a wrong seed or option, or a list of another length than members; nothing has changed then.
        """
        self.members.reset(range(self.num_envs), self._seeds, self._options)
        self._action_vectors = None
        self.reset_infos = [episode.info() for episode in self.members.episodes]
        self._reset_seeds()
        self._reset_options()
        return self._observations()

    def step_async(self, actions: np.ndarray) -> None:
        """Takes the actions; ValueError if one is none, and nothing has moved then, nor will by actions of before."""
        self._action_vectors = None
        self._action_vectors = self.members.action_vectors(actions, range(self.num_envs))

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Moves all members at once, by the actions that `step_async` took; RuntimeError without them."""
        if self._action_vectors is None:
            raise RuntimeError("no actions to step by: call step_async(actions) first, or step(actions)")
        episodes = self.members.advanced(range(self.num_envs), self._action_vectors)
        infos = []
        for episode in episodes:
            info = {**episode.info(), "TimeLimit.truncated": episode.truncated and not episode.terminated}
            if episode.ended:
                info["terminal_observation"] = self.members.observation_of(episode)
            infos.append(info)
        ended = [i for i, episode in enumerate(episodes) if episode.ended]
        # All that can fail comes before anything is put in place.
        begun = self.members.anew(ended) if ended else ([], [])
        self.members.keep(range(self.num_envs), episodes)
        self.members.keep(ended, *begun)
        self._action_vectors = None
        for i in ended:
            self.reset_infos[i] = self.members.episodes[i].info()
        rewards = np.array([episode.reward for episode in episodes], dtype=np.float32)
        return self._observations(), rewards, np.array([episode.ended for episode in episodes]), infos

    def close(self) -> None:
        """Closes the world."""
        self.members.world.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The last frame of every member; ResetNeeded if one has not begun."""
        return [episode.view.frames[-1].copy() for episode in self.members.begun()]

    def get_attr(self, attr_name: str, indices: None | int | Iterable[int] = None) -> list[Any]:
        """An attribute of each member: its own (those of `Episode`), or one that all share.

        Raises:
            AttributeError: there is no such attribute. ResetNeeded: a member's own, before it has begun.
        """
        if not self.has_attr(attr_name):
            known = ", ".join(sorted((*OWN, *SHARED, *OF_THE_FACE)))
            raise AttributeError(f"members have no attribute {attr_name!r}; they have {known}")
        return [getattr(self._holder(i, attr_name), attr_name) for i in self._get_indices(indices)]

    def has_attr(self, attr_name: str) -> bool:
        """Whether `get_attr` knows such an attribute."""
        return attr_name in (*OWN, *SHARED, *METHODS, *OF_THE_FACE)

    def set_attr(self, attr_name: str, value: Any, indices: None | int | Iterable[int] = None) -> None:
        """Sets an attribute that all members share.

        Raises:
            AttributeError: there is no such attribute to set. ValueError: only some members were meant.
            ValueError, TypeError: as `Members.set_rules` and `Members.set_task`; nothing has changed then.
        """
        if attr_name not in SETTABLE:
            raise AttributeError(f"members have no attribute {attr_name!r} to set; they have {', '.join(SETTABLE)}")
        if list(self._get_indices(indices)) != list(range(self.num_envs)):
            raise ValueError(f"members share {attr_name!r}: it can be set for all of them only")
        SETTABLE[attr_name](self.members, value)

    def env_method(
        self, method_name: str, *args: Any, indices: None | int | Iterable[int] = None, **kwargs: Any
    ) -> list[Any]:
        """Calls a method of each member, as if it were an environment of its own: see `Member`.

        Raises:
            AttributeError: members have no such method; those they have are listed.
        """
        if method_name not in METHODS:
            raise AttributeError(f"members have no method {method_name!r}; they have {', '.join(METHODS)}")
        indices = self._get_indices(indices)
        return [getattr(Member(self.members, i), method_name)(*args, **kwargs) for i in indices]

    def env_is_wrapped(self, wrapper_class: type, indices: None | int | Iterable[int] = None) -> list[bool]:
        """No member is wrapped; a wrapper goes round all of them."""
        return [False for _ in self._get_indices(indices)]

    def _holder(self, i: int, name: str) -> Any:
        if name in OWN:
            (episode,) = self.members.begun([i])
            return episode
        return Member(self.members, i) if name in METHODS else self.members if name in SHARED else self

    def _observations(self) -> Any:
        each = [self.members.observe(i) for i in range(self.num_envs)]
        keys, _, _ = obs_space_info(self.observation_space)
        stacked = {key: np.stack([one if key is None else one[key] for one in each]) for key in keys}
        return dict_to_obs(self.observation_space, stacked)


def make_sb3(
    num_envs: int, max_episode_steps: int | None = EPISODE_STEPS, render_mode: str | None = None, **kwargs: Any
) -> MosaicVecEnv:
    """`num_envs` members of the learned world for Stable-Baselines3.

    Args:
        num_envs: members, stepped by one network call.
        max_episode_steps: after which an episode is truncated; None, or -1, never.
        render_mode: `rgb_array` or None.
        kwargs: as `make_learned_env` takes them.
    """
    check_render_mode(render_mode)  # before a world is built, as `check_faces`
    return MosaicVecEnv(make_members(num_envs, max_episode_steps=max_episode_steps, **kwargs), render_mode)
