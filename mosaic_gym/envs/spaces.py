"""Action and observation spaces, and the conversions between their members and a world's arrays."""

from __future__ import annotations

from itertools import product

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from mosaic_gym.geometry.control import ACTIONS, check_action
from mosaic_gym.validation import as_float64, as_whole
from mosaic_gym.worlds.protocol import View

ACTION_SPACES = ("continuous", "discrete")
OBSERVATIONS = ("dict", "image")
FAR_M = 1000.0
"""Greater depths are clipped to this, because learning libraries need spaces with finite bounds."""
WORLD_LIMIT_M = 10_000.0
"""The greatest distance of a camera from the origin along an axis, metres."""

_ACTION_VECTORS = np.array(list(ACTIONS.values()))


def check_known(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raises ValueError, which lists the known values, unless `value` is one of them."""
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; the known ones are {', '.join(known)}")


def make_action_space(kind: str) -> gym.Space:
    """`discrete`: the index of a name in `ACTIONS`. `continuous`: `[3]` forward, strafe right, turn right."""
    check_known("action_space", kind, ACTION_SPACES)
    if kind == "discrete":
        return spaces.Discrete(len(ACTIONS))
    return spaces.Box(-1.0, 1.0, (3,), np.float32)


def action_vector_of(space: gym.Space, action: object) -> np.ndarray:
    """The action vector `[3]`, float64, that a member of `space` stands for.

    Python numbers, lists, NumPy arrays and torch tensors are accepted. The integer 0 is accepted as the continuous
    action zero, because `gymnasium.utils.play.play` sends it while no key is held.

    Raises:
        ValueError: not a member of the space.
    """
    if isinstance(space, spaces.Box):
        if type(action) is int and action == 0:
            return np.zeros(3)
        try:
            numbers = as_float64(action)
        except (TypeError, ValueError) as error:
            raise ValueError(f"a continuous action is 3 numbers, forward, strafe, turn; got {action!r}") from error
        return check_action(numbers)
    index = as_whole(action)
    if index is None or not 0 <= index < space.n:
        known = f"an integer from 0 to {space.n - 1} ({', '.join(ACTIONS)})"
        raise ValueError(f"a discrete action is {known}; got {action!r}")
    return _ACTION_VECTORS[index].copy()


def keys_to_actions(space: gym.Space) -> dict[tuple[int, ...], int | np.ndarray]:
    """Actions by the keys held for them, as `gymnasium.utils.play.play` takes them.

    W and S (or up and down) walk, A and D step sideways, left and right turn, and combinations of them add up as far
    as the space has such an action. Keys are pygame's codes.
    """
    import pygame

    forward = [((), 0.0), *(((key,), 1.0) for key in (pygame.K_w, pygame.K_UP))]
    forward += [((key,), -1.0) for key in (pygame.K_s, pygame.K_DOWN)]
    strafe = [((), 0.0), ((pygame.K_d,), 1.0), ((pygame.K_a,), -1.0)]
    turn = [((), 0.0), ((pygame.K_RIGHT,), 1.0), ((pygame.K_LEFT,), -1.0)]
    indices = {vector: index for index, vector in enumerate(ACTIONS.values())}
    actions: dict[tuple[int, ...], int | np.ndarray] = {}
    for choice in product(forward, strafe, turn):
        keys = tuple(sorted(key for pressed, _ in choice for key in pressed))
        vector = tuple(value for _, value in choice)
        if isinstance(space, spaces.Box):
            actions[keys] = np.array(vector, np.float32)
        elif vector in indices:
            actions[keys] = indices[vector]
    del actions[()]  # the map holds combinations of keys; with none held, `play` sends its own `noop`
    return actions


def make_observation_space(kind: str, height: int, width: int) -> gym.Space:
    """`image`: uint8 `[H, W, 3]`. `dict`: that, depth `[H, W]` metres, pose `[4, 4]` and goal `[H, W, 3]`."""
    check_known("observation", kind, OBSERVATIONS)
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
        view: of the latest step.
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
