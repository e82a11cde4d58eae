"""Steering by depth: a scripted walker that walks towards the deepest part of the view and turns in front of walls."""

from __future__ import annotations

import numpy as np

NEAR_M = 1.2
"""A walker turns when what is in front of it is nearer than this, metres."""
OPEN_M, LEAST_M = 1.0, 0.9
"""It turns on to the same side until everything in front of it is farther away than the limit above plus the first,
metres. What it asks for falls by every step of the turn, and is the second after a full circle."""
TURN_STEPS = 36
"""A full circle of the default kinematics, steps."""
NOISE = 0.25
"""Standard deviation of the noise in the heading, as a turn action."""
GLANCE_STEPS = (9, 13)
"""A glance to a side takes so many steps, the second excluded: a quarter to a third of a circle."""


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
    and fro in a corner, because the deeper side changes with the view.) The longer it turns, the less room it asks for,
    so it does not turn for ever where no way is open.

    Args:
        rng: of the noise in its heading, and of its glances. It draws as many numbers at every step, so that glances do
            not depend on what is in view.
        pace: the forward action of a walking step, up to 1.
        near_m: it turns when what is in front of it is nearer than this.
        glance: chance, at every step, that it looks to a side, a quarter to a third of a circle.
    """

    def __init__(self, rng: np.random.Generator, pace: float = 1.0, near_m: float = NEAR_M, glance: float = 0.0):
        self.rng = rng
        self.pace, self.near_m, self.glance = pace, near_m, glance
        self._side, self._turned, self._glancing = 0.0, 0, 0

    def act(self, depth_m: np.ndarray) -> np.ndarray:
        """The next action `[3]`: forward, strafe right, turn right, each in [-1, 1].

        Args:
            depth_m: `[H, W]`, the depth image, metres.
        """
        chance, steps, side = self.rng.random(), int(self.rng.integers(*GLANCE_STEPS)), self.rng.choice([-1.0, 1.0])
        noise = self.rng.normal(0.0, NOISE)
        if chance < self.glance and not self._glancing and not self._turned:
            self._glancing, self._side = steps, float(side)
        if self._glancing:
            self._glancing -= 1
            return np.array([0.0, 0.0, self._side])
        columns = depth_at_eye_height(depth_m)
        if clearance_m(columns) < self._enough_m():
            self._side = self._side if self._turned else _deeper_side(columns)
            self._turned += 1
            return np.array([0.0, 0.0, self._side])
        self._turned = 0
        return np.array([self.pace, 0.0, np.clip(_deepest_column(columns) + noise, -1.0, 1.0)])

    def _enough_m(self) -> float:
        """The clearance with which it walks on, metres."""
        if not self._turned:
            return self.near_m
        open_m = self.near_m + OPEN_M
        return open_m - (open_m - LEAST_M) * min(self._turned / TURN_STEPS, 1.0)


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
    if clearance_m(columns) < NEAR_M:
        return np.array([0.0, 0.0, _deeper_side(columns)])
    return np.array([1.0, 0.0, np.clip(_deepest_column(columns) + rng.normal(0.0, NOISE), -1.0, 1.0)])


def _deeper_side(columns: np.ndarray) -> float:
    """-1 where the left half is deeper on average, else 1."""
    width = len(columns)
    return -1.0 if columns[: width // 2].mean() > columns[width // 2 :].mean() else 1.0


def _deepest_column(columns: np.ndarray) -> float:
    """Where the deepest column is, from -1 at the left to 1 at the right."""
    return float(np.argmax(columns)) / len(columns) * 2 - 1
