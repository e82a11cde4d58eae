"""The policy of the free walk: it steers by the depth of the world that it walks in."""

from __future__ import annotations

import numpy as np

from mosaic_gym.geometry.steering import clearance_m, depth_at_eye_height

NEAR_M, FREE_M = 2.2, 4.0
"""The walker turns if something ahead is nearer than the first, until nothing is nearer than the second, metres."""
TURNS = 20
"""After so many turns in a row the walker walks on, whatever is ahead."""
PACE = 0.6
"""The forward action of a walking step, which is then at most 0.63 m long."""
GLANCE = 0.06
"""Chance, at every step, of a turn by a quarter to a third of a circle."""


class Walker:
    """Walks towards the deepest part of the view, turns before walls, and now and then looks to a side.

    Args:
        seed: of its choices, which do not depend on the world.
    """

    def __init__(self, seed: int):
        self.rng = np.random.default_rng([seed, 7])
        self.side, self.turns, self.glance = 0.0, 0, 0

    def act(self, depth_m: np.ndarray) -> np.ndarray:
        """The next action `[3]` for a depth image `[H, W]`, metres."""
        columns = depth_at_eye_height(depth_m)
        width = len(columns)
        chance, steps, side, noise = self.rng.random(), self.rng.integers(9, 13), self.rng.random(), self.rng.normal()
        if self.glance == 0 and chance < GLANCE:
            self.glance, self.side = int(steps), 1.0 if side < 0.5 else -1.0
        if self.glance > 0:
            self.glance -= 1
            return np.array([0.0, 0.0, self.side])
        ahead_m = clearance_m(columns)
        if ahead_m < (FREE_M if self.turns else NEAR_M) and self.turns < TURNS:
            if self.turns == 0:
                self.side = -1.0 if columns[: width // 2].mean() > columns[width // 2 :].mean() else 1.0
            self.turns += 1
            return np.array([0.0, 0.0, self.side])
        self.turns = 0
        deepest = (float(np.argmax(columns)) + 0.5) / width * 2 - 1
        return np.array([PACE, 0.0, np.clip(0.8 * deepest + 0.15 * noise, -0.6, 0.6)])
