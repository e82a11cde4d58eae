"""The spaces at the environment's face, and the way through them in both directions."""

from __future__ import annotations

import operator

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from mosaic_gym.geometry.control import ACTIONS, check_action
from mosaic_gym.worlds.protocol import View

ACTION_SPACES = ("continuous", "discrete")
OBSERVATIONS = ("dict", "image")
FAR_M = 1000.0
"""Depths beyond this are told as this: learners want spaces with finite bounds."""
WORLD_LIMIT_M = 10_000.0
"""No camera of any world stands further than this from the origin along an axis."""

_ACTION_VECTORS = np.array(list(ACTIONS.values()))


def one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raises ValueError, listing what is known, unless `value` is in `known`."""
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; the known ones are {', '.join(known)}")


def make_action_space(kind: str) -> gym.Space:
    """`discrete`: the index of a name in `ACTIONS`. `continuous`: `[3]` forward, strafe right, turn right."""
    one_of("action_space", kind, ACTION_SPACES)
    if kind == "discrete":
        return spaces.Discrete(len(ACTIONS))
    return spaces.Box(-1.0, 1.0, (3,), np.float32)


def action_vector_of(space: gym.Space, action: object) -> np.ndarray:
    """The `[3]` float64 thrust a member of `space` stands for; ValueError if it is no member."""
    if isinstance(space, spaces.Box):
        try:
            numbers = np.asarray(action, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"a continuous action is 3 numbers, forward, strafe, turn; got {action!r}") from error
        return check_action(numbers)
    known = f"an integer from 0 to {space.n - 1} ({', '.join(ACTIONS)})"
    try:
        index = operator.index(action.item() if isinstance(action, np.ndarray) and action.ndim == 0 else action)
    except TypeError as error:
        raise ValueError(f"a discrete action is {known}; got {action!r}") from error
    if isinstance(action, bool) or not 0 <= index < space.n:
        raise ValueError(f"a discrete action is {known}; got {action!r}")
    return _ACTION_VECTORS[index].copy()


def make_observation_space(kind: str, height: int, width: int) -> gym.Space:
    """`image`: uint8 `[H, W, 3]`. `dict`: that, depth `[H, W]` metres, pose `[4, 4]` and goal `[H, W, 3]`."""
    one_of("observation", kind, OBSERVATIONS)
    image = spaces.Box(0, 255, (height, width, 3), np.uint8)
    if kind == "image":
        return image
    return spaces.Dict(
        image=image,
        depth=spaces.Box(0.0, FAR_M, (height, width), np.float32),
        pose=spaces.Box(-WORLD_LIMIT_M, WORLD_LIMIT_M, (4, 4), np.float32),
        goal=spaces.Box(0, 255, (height, width, 3), np.uint8),
    )


def observe(space: gym.Space, view: View, goal: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
    """The observation of a view: its last frame, or the dict around it. Shares no array with the view.

    Args:
        space: made by `make_observation_space`.
        view: what the step showed.
        goal: uint8 `[H, W, 3]`.
    """
    image = view.frames[-1].copy()
    if isinstance(space, spaces.Box):
        return image
    return {
        "image": image,
        "depth": np.clip(view.depth_m, 0.0, FAR_M).astype(np.float32),
        "pose": view.world_from_camera[-1].astype(np.float32),
        "goal": goal.copy(),
    }
