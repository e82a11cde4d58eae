"""The learned world as a Stable-Baselines3 `VecEnv`.

Stable-Baselines3 takes no `gymnasium.vector` environment, and its DummyVecEnv would run a model for each environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.util import dict_to_obs, obs_space_info

from mosaic_gym.envs.arguments import check_vector_render_mode
from mosaic_gym.envs.episode import Episode
from mosaic_gym.envs.members import Member, Members
from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.envs.vector_env import make_members

EPISODE_STEPS = 256
"""Default of `max_episode_steps`, as registered with Gymnasium."""

SETTABLE: dict[str, Callable[[Members, Any], None]] = {"rules": Members.set_rules, "task": Members.set_task}
"""Attributes that can be set, for all members at once, and the function that checks and sets each."""
SHARED = ("action_space", "observation_space", "options", "prompt", "world", *SETTABLE)
"""Attributes that all members share."""
OWN = ("ended", *(field.name for field in fields(Episode)))
"""Attributes of each member, after its first reset: those of its episode."""
METHODS = tuple(sorted(name for name in vars(Member) if not name.startswith("_")))
"""Methods of each member."""
OF_VEC_ENV = ("metadata", "render_mode")
"""Attributes of the `VecEnv` itself, which video recorders request from its members."""


class MosaicVecEnv(VecEnv):
    """`Members` as a `VecEnv`: a member whose episode ends is reset in the same step, and `info` holds the end.

    Args:
        members: the sub-environments.
        render_mode: `rgb_array` or None.
    """

    def __init__(self, members: Members, render_mode: str | None = None) -> None:
        check_vector_render_mode(render_mode)
        self.members = members
        self.render_mode = render_mode
        self._action_vectors: np.ndarray | None = None
        super().__init__(len(members), members.observation_space, members.action_space)
        self.metadata = WorldEnv.metadata  # with the frame rate, for video recorders

    def reset(self) -> Any:
        """Starts all episodes, with the seeds of `seed` and the options of `set_options`, which are used once.

        Pending actions of `step_async` are dropped.

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
        """Stores the actions. An invalid one raises ValueError; no actions are pending then."""
        self._action_vectors = None
        self._action_vectors = self.members.action_vectors(actions, range(self.num_envs))

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Steps all members by the actions of `step_async`; RuntimeError without them."""
        if self._action_vectors is None:
            raise RuntimeError("no actions to step by: call step_async(actions) first, or step(actions)")
        episodes = self.members.step_episodes(range(self.num_envs), self._action_vectors)
        infos = []
        for episode in episodes:
            info = {**episode.info(), "TimeLimit.truncated": episode.truncated and not episode.terminated}
            if episode.ended:
                info["terminal_observation"] = self.members.observation_of(episode)
            infos.append(info)
        ended = [i for i, episode in enumerate(episodes) if episode.ended]
        # All that can fail comes before any member is changed.
        started, generators = self.members.start_episodes(ended) if ended else ([], [])
        self.members.set_episodes(range(self.num_envs), episodes)
        self.members.set_episodes(ended, started, generators)
        self._action_vectors = None
        for i in ended:
            self.reset_infos[i] = self.members.episodes[i].info()
        rewards = np.array([episode.reward for episode in episodes], dtype=np.float32)
        return self._observations(), rewards, np.array([episode.ended for episode in episodes]), infos

    def close(self) -> None:
        """Closes the world."""
        self.members.world.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The last frame of every member; ResetNeeded if one has not been reset yet."""
        return [episode.view.frames[-1].copy() for episode in self.members.active_episodes()]

    def get_attr(self, attr_name: str, indices: None | int | Iterable[int] = None) -> list[Any]:
        """An attribute of each member: its own (those of `Episode`), or one that all share.

        Raises:
            AttributeError: no such attribute. ResetNeeded: a member's own attribute before its first reset.
        """
        if not self.has_attr(attr_name):
            known = ", ".join(sorted((*OWN, *SHARED, *OF_VEC_ENV)))
            raise AttributeError(f"members have no attribute {attr_name!r}; they have {known}")
        return [getattr(self._holder(i, attr_name), attr_name) for i in self._get_indices(indices)]

    def has_attr(self, attr_name: str) -> bool:
        """Whether `get_attr` has such an attribute."""
        return attr_name in (*OWN, *SHARED, *METHODS, *OF_VEC_ENV)

    def set_attr(self, attr_name: str, value: Any, indices: None | int | Iterable[int] = None) -> None:
        """Sets an attribute that all members share.

        Raises:
            AttributeError: no such attribute to set. ValueError: `indices` are some members only.
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
        """Calls a method of each member: see `Member`.

        Raises:
            AttributeError: no such method; the message lists them.
        """
        if method_name not in METHODS:
            raise AttributeError(f"members have no method {method_name!r}; they have {', '.join(METHODS)}")
        indices = self._get_indices(indices)
        return [getattr(Member(self.members, i), method_name)(*args, **kwargs) for i in indices]

    def env_is_wrapped(self, wrapper_class: type, indices: None | int | Iterable[int] = None) -> list[bool]:
        """No member is wrapped; a wrapper goes around all of them."""
        return [False for _ in self._get_indices(indices)]

    def _holder(self, i: int, name: str) -> Any:
        if name in OWN:
            (episode,) = self.members.active_episodes([i])
            return episode
        return Member(self.members, i) if name in METHODS else self.members if name in SHARED else self

    def _observations(self) -> Any:
        rows = [self.members.observe(i) for i in range(self.num_envs)]
        keys, _, _ = obs_space_info(self.observation_space)
        stacked = {key: np.stack([row if key is None else row[key] for row in rows]) for key in keys}
        return dict_to_obs(self.observation_space, stacked)


def make_sb3(
    num_envs: int, max_episode_steps: int | None = EPISODE_STEPS, render_mode: str | None = None, **kwargs: Any
) -> MosaicVecEnv:
    """`num_envs` members of the learned world for Stable-Baselines3.

    Args:
        num_envs: sub-environments, stepped by one network call.
        max_episode_steps: after which an episode is truncated; None, or -1, for no limit.
        render_mode: `rgb_array` or None.
        kwargs: as `make_learned_env` takes them.
    """
    check_vector_render_mode(render_mode)  # before a world is loaded
    return MosaicVecEnv(make_members(num_envs, max_episode_steps=max_episode_steps, **kwargs), render_mode)
