"""Surfaces in depth images: lifted points, and planes fitted around every pixel."""

from __future__ import annotations

import numpy as np

RADIUS_PX = 2
"""Planes are fitted to 5 x 5 pixels."""
NEAREST_M = 0.05
"""Smaller depths count as this, metres."""
SIDEWAYS_COST = 1e-3
"""A window beside a pixel must fit better than the one around it by so much, as a share of inverse depth."""


def check_depth(name: str, depth_m: np.ndarray) -> np.ndarray:
    """The depth `[n, H, W]` as float64, at least `NEAREST_M`.

    Raises:
        ValueError: another shape, or values that are not finite. The message starts with `name`.
    """
    depth = np.asarray(depth_m, dtype=np.float64)
    if depth.ndim != 3 or len(depth) == 0:
        raise ValueError(f"{name} must have shape [n, H, W] with n >= 1, got {depth.shape}")
    if not np.isfinite(depth).all():
        raise ValueError(f"{name} holds values that are not finite: replace or leave out those frames")
    return np.maximum(depth, NEAREST_M)


def rays(image_from_camera: np.ndarray, height: int, width: int) -> np.ndarray:
    """Points at depth 1 of every pixel centre, `[H, W, 3]`, camera axes.

    Args:
        image_from_camera: K `[3, 3]`, pixels.
    """
    k = np.asarray(image_from_camera, dtype=np.float64)
    right = (np.arange(width) + 0.5 - k[0, 2]) / k[0, 0]
    down = (np.arange(height) + 0.5 - k[1, 2]) / k[1, 1]
    return np.stack(np.broadcast_arrays(right[None], down[:, None], 1.0), -1)


def lift(depth_m: np.ndarray, image_from_camera: np.ndarray) -> np.ndarray:
    """Points `[n, H, W, 3]` in the axes of their cameras, metres, of depth `[n, H, W]`."""
    return rays(image_from_camera, *depth_m.shape[-2:]) * depth_m[..., None]


def fit_planes(depth_m: np.ndarray, image_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The plane around every pixel, fitted to 5 x 5 inverse depths.

    The inverse depth of a plane is linear in the image, so a linear least-squares fit is exact for planes, whatever
    their slope. Each pixel takes the best of nine windows that contain it, around it or beside it, so that no plane is
    fitted across a depth edge where one side of it is flat.

    Args:
        depth_m: `[n, H, W]`, metres; H and W at least 5.
        image_from_camera: K `[3, 3]`, pixels.

    Returns:
        Unit normals `[n, H, W, 3]` in camera axes, towards the camera, and the root mean square residual of the fit as
        a share of the inverse depth, `[n, H, W]`.
    """
    height, width = depth_m.shape[-2:]
    r = RADIUS_PX
    inverse = 1.0 / depth_m
    offsets = np.arange(-r, r + 1, dtype=np.float64)
    count, spread = (2 * r + 1) ** 2, (2 * r + 1) * (offsets**2).sum()
    flat = np.ones(2 * r + 1)
    mean = _windows(inverse, flat, flat) / count
    right = _windows(inverse, flat, offsets) / spread
    down = _windows(inverse, offsets, flat) / spread
    squares = _windows(inverse**2, flat, flat) - count * mean**2 - spread * (right**2 + down**2)
    residual = np.sqrt(np.maximum(squares, 0) / count) / mean
    # The window of every pixel, by its centre in the arrays above, which lack a border of r.
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    best = np.full(depth_m.shape, np.inf)
    chosen = np.zeros(depth_m.shape, dtype=np.int64)
    for dy in (0, -r, r):
        for dx in (0, -r, r):
            row = np.clip(rows + dy, r, height - 1 - r) - r
            column = np.clip(columns + dx, r, width - 1 - r) - r
            cell = row * (width - 2 * r) + column
            cost = residual[:, row, column] + (SIDEWAYS_COST if dx or dy else 0.0)
            better = cost < best
            best, chosen = np.where(better, cost, best), np.where(better, cell, chosen)

    def gather(values: np.ndarray) -> np.ndarray:
        flat_values = values.reshape(len(values), -1)
        return np.take_along_axis(flat_values, chosen.reshape(len(values), -1), 1).reshape(depth_m.shape)

    mean, right, down, residual = (gather(values) for values in (mean, right, down, residual))
    k = np.asarray(image_from_camera, dtype=np.float64)
    center_row, center_column = np.divmod(chosen, width - 2 * r)
    ahead = mean + right * (k[0, 2] - center_column - r - 0.5) + down * (k[1, 2] - center_row - r - 0.5)
    normal = -np.stack([right * k[0, 0], down * k[1, 1], ahead], -1)
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12), residual


def _windows(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sums over 5 x 5 windows `[n, H - 4, W - 4]` of an image `[n, H, W]`, weighted by `rows` times `columns`."""
    height, width = image.shape[-2:]
    size = len(rows)
    partial = sum(rows[i] * image[:, i : height - size + 1 + i] for i in range(size))
    return sum(columns[i] * partial[:, :, i : width - size + 1 + i] for i in range(size))
