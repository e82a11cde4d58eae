"""Steering by depth: a scripted walker that walks towards the deepest part of the view and turns in front of walls."""

from __future__ import annotations

import numpy as np

from mosaic_gym.geometry.control import ACTIONS

NEAR_M = 1.2
"""A walker turns when what is in front of it is nearer than this, metres."""
OPEN_M = 2.0
"""It turns on to the same side until everything in front of it is farther away than this, metres."""
TURN_STEPS = 40
"""After so many steps of turning, a full circle of the default kinematics, `NEAR_M` is enough."""


def depth_at_eye_height(depth_m: np.ndarray) -> np.ndarray:
    """Mean depth `[W]` of every column of a depth image `[H, W]` at the height of the eyes, metres."""
    height = depth_m.shape[0]
    return depth_m[height * 15 // 32 : height * 17 // 32].mean(0)


def clearance_m(column_depth_m: np.ndarray, share: int = 4) -> float:
    """The least depth in the middle columns, one part in `share` of all, metres.

    Args:
        column_depth_m: `[W]`, from `depth_at_eye_height`.
    """
    width = len(column_depth_m)
    return column_depth_m[(share - 1) * width // (2 * share) : (share + 1) * width // (2 * share)].min()


class DepthWalker:
    """A scripted walker that uses depth only: it walks towards the deepest column, and turns in front of walls.

    A turn keeps its direction until the way is open. (A walker that chose the deeper side at every step would turn to
    and fro in a corner, because the deeper side changes with the view.)

    Args:
        rng: of the noise in its heading.
    """

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self._side, self._turned = 0.0, 0

    def act(self, depth_m: np.ndarray) -> np.ndarray:
        """The next action `[3]`: forward, strafe right, turn right, each in [-1, 1].

        Args:
            depth_m: `[H, W]`, the depth image, metres.
        """
        ahead_m = clearance_m(depth_at_eye_height(depth_m))
        enough_m = OPEN_M if self._side and self._turned < TURN_STEPS else NEAR_M
        action = steer_towards_depth(depth_m, self.rng)
        if ahead_m >= enough_m:
            self._side, self._turned = 0.0, 0
            return action
        self._side, self._turned = self._side or float(action[2]), self._turned + 1
        return np.array([0.0, 0.0, self._side])


def steer_towards_depth(depth_m: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The next action of a walker: forward, towards the deepest column; in front of a wall, a turn to the deeper side.

    The walker has no state, so that in a corner it turns to and fro. `DepthWalker` does not.

    Args:
        depth_m: `[H, W]`, the depth image, metres.
        rng: of the noise in the walker's heading.

    Returns:
        `[3]`: forward, strafe right, turn right, each in [-1, 1].
    """
    columns = depth_at_eye_height(depth_m)
    width = len(columns)
    if clearance_m(columns) < NEAR_M:
        deeper = "turn_left" if columns[: width // 2].mean() > columns[width // 2 :].mean() else "turn_right"
        return np.array(ACTIONS[deeper])
    noise = rng.normal(0.0, 0.25)
    side = float(np.argmax(columns)) / width * 2 - 1
    return np.array([1.0, 0.0, np.clip(side + noise, -1.0, 1.0)])
