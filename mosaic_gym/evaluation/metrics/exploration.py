"""Figures of an explorer's walk: how deep its views are, and how often places come back into view."""

from __future__ import annotations

import numpy as np

SAMPLE_EVERY_PX = 4
"""Places are sampled from every so many pixels in both directions."""
SAME_SHARE, SAME_M = 0.03, 0.15
"""Two depths are of the same place if they differ by less than this share plus this distance, metres."""
RETURN_STEPS = 16
"""A place that returns was first in view at least so many steps before."""
AWAY_STEPS = 8
"""It was out of view for at least so many steps in a row in between."""
RETURNED_PIXELS = 0.1
"""A step shows places again if at least this share of its pixels shows places that return."""


def returned_share(depth_m: np.ndarray, world_from_camera: np.ndarray, image_from_camera: np.ndarray) -> np.ndarray:
    """For every step the share of its pixels whose place returns.

    A pixel's place returns if it was first in view at least `RETURN_STEPS` before and was then out of view for at
    least `AWAY_STEPS` in a row. A place is in a view if it lies in its frame at the depth of the surface there.

    Args:
        depth_m: `[S, H, W]`, metres.
        world_from_camera: `[S, 4, 4]`, metres.
        image_from_camera: `[3, 3]`, K in pixels.

    Returns:
        `[S]`, 0 to 1.
    """
    steps, height, width = depth_m.shape
    depth_m, k = depth_m.astype(np.float64), image_from_camera
    rows, columns = np.mgrid[
        SAMPLE_EVERY_PX // 2 : height : SAMPLE_EVERY_PX, SAMPLE_EVERY_PX // 2 : width : SAMPLE_EVERY_PX
    ]
    rows, columns = rows.ravel(), columns.ravel()
    rays = np.stack(
        [(columns + 0.5 - k[0, 2]) / k[0, 0], (rows + 0.5 - k[1, 2]) / k[1, 1], np.ones(len(rows))], axis=-1
    )
    shares = np.zeros(steps)
    for step in range(RETURN_STEPS, steps):
        camera = world_from_camera[step].astype(np.float64)
        points = (rays * depth_m[step, rows, columns][:, None]) @ camera[:3, :3].T + camera[:3, 3]
        seen = np.stack([
            _is_in_view(points, depth_m[earlier], world_from_camera[earlier].astype(np.float64), k)
            for earlier in range(step)
        ])  # fmt: skip
        shares[step] = _returns(seen).mean()
    return shares


def _returns(seen: np.ndarray) -> np.ndarray:
    """Which places `[n]` return, from whether each was in view at every earlier step `[step, n]`."""
    steps, count = seen.shape
    was_seen, away, longest = np.zeros(count, dtype=bool), np.zeros(count, dtype=int), np.zeros(count, dtype=int)
    for row in seen:
        was_seen |= row
        away = np.where(row | ~was_seen, 0, away + 1)
        longest = np.maximum(longest, away)
    return seen[: steps - RETURN_STEPS + 1].any(0) & (longest >= AWAY_STEPS)


def _is_in_view(points: np.ndarray, depth_m: np.ndarray, camera: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Which points `[n, 3]` a view shows, bool `[n]`."""
    height, width = depth_m.shape
    x, y, z = ((points - camera[:3, 3]) @ camera[:3, :3]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        column = np.nan_to_num(np.floor(k[0, 0] * x / z + k[0, 2]), nan=-1.0, posinf=-1.0, neginf=-1.0)
        row = np.nan_to_num(np.floor(k[1, 1] * y / z + k[1, 2]), nan=-1.0, posinf=-1.0, neginf=-1.0)
    inside = (z > 0.05) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    surface_m = depth_m[row.clip(0, height - 1).astype(int), column.clip(0, width - 1).astype(int)]
    return inside & (np.abs(z - surface_m) < SAME_SHARE * surface_m + SAME_M)
