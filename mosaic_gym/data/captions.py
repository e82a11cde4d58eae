"""Captions made from what is in sight: how far the view goes, its colour, and the objects named in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mosaic_gym.worlds.protocol import View

MAX_BYTES = 96
COLOURS = {
    "dark": (25, 20, 15), "brown": (80, 55, 30), "grey": (110, 110, 110), "white": (190, 190, 190),
    "green": (50, 110, 40), "red": (150, 20, 10), "blue": (30, 30, 150), "tan": (150, 120, 80),
}  # fmt: skip


def caption(view: View) -> str:
    """A short English description of a view's last frame, at most 96 bytes."""
    height, width = view.depth_m.shape
    horizon = view.depth_m[height * 7 // 16 : height * 9 // 16, width // 3 : width - width // 3]
    ahead_m = float(np.median(horizon))
    place = "a wall close ahead" if ahead_m < 2.0 else "a room" if ahead_m < 6.0 else "a long hall"
    mean = view.frames[-1].reshape(-1, 3).mean(0)
    colour = min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))
    words = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).lower() for label in view.labels]
    seen = f" with {' and '.join(words[:3])}" if words else ""
    return f"{place}, {colour}{seen}".encode()[:MAX_BYTES].decode(errors="ignore")
