"""Captions of views: how far ahead the nearest wall is, the mean color, and the names of the objects in view."""

from __future__ import annotations

import re

import numpy as np

from mosaic_gym.worlds.protocol import View

MAX_BYTES = 96
COLORS = {
    "dark": (25, 20, 15), "brown": (80, 55, 30), "grey": (110, 110, 110), "white": (190, 190, 190),
    "green": (50, 110, 40), "red": (150, 20, 10), "blue": (30, 30, 150), "tan": (150, 120, 80),
}  # fmt: skip


def caption(view: View) -> str:
    """A short English description of a view's last frame, at most `MAX_BYTES` bytes of UTF-8."""
    height, width = view.depth_m.shape
    horizon = view.depth_m[height * 7 // 16 : height * 9 // 16, width // 3 : width - width // 3]
    ahead_m = float(np.median(horizon))
    place = "a wall close ahead" if ahead_m < 2.0 else "a room" if ahead_m < 6.0 else "a long hall"
    mean = view.frames[-1].reshape(-1, 3).mean(0)
    color = min(COLORS, key=lambda name: float(np.abs(mean - COLORS[name]).sum()))
    words = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).lower() for label in view.labels]
    objects = f" with {' and '.join(words[:3])}" if words else ""
    return f"{place}, {color}{objects}".encode()[:MAX_BYTES].decode(errors="ignore")
