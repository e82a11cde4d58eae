"""Depth of generated frames: its distribution, the floor, and right angles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mosaic_gym.evaluation.metrics.halves import ratio_to_true_halves
from mosaic_gym.evaluation.metrics.intervals import LEAST_MAPS, bootstrap_maps, bootstrap_maps_ratio, check_maps
from mosaic_gym.evaluation.metrics.surfaces import check_depth, fit_planes, lift

PERCENTILES = (10.0, 50.0, 90.0)
CHUNK = 128
"""Frames that are worked on at once."""
LEVELS = (np.arange(200) + 0.5) / 200
PLANAR = 0.03
"""The largest residual of a plane, as a share of inverse depth. Depth with random errors of 2 % is still planar, with
errors of 5 % it is not."""
WALL = 0.5
"""A planar surface is a wall where the vertical part of its normal is smaller: steeper than 60 degrees."""
LEVEL = 0.866
"""A surface is floor or ceiling where it is larger: within 30 degrees of level."""
LEAST_PIXELS = 32
"""A frame with fewer pixels of a kind is left out."""
LEAST_FLOOR_PIXELS = 128
"""Least floor pixels in the lowest quarter of a frame. Fewer may be the edges of walls right ahead."""
WITHIN_DEG = 10.0
"""How far a normal may be from a main direction, degrees."""


def depth_percentiles(depth_m: np.ndarray) -> np.ndarray:
    """Natural logarithm of the 10th, 50th and 90th percentile of every frame's depth in metres, `[n, 3]`.

    Args:
        depth_m: `[n, H, W]`, metres; less than 0.05 counts as 0.05.
    """
    depth = check_depth("depth_m", depth_m)
    return np.log(np.percentile(depth.reshape(len(depth), -1), PERCENTILES, axis=1).T)


def wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """Wasserstein-1 distance of two sets `[n, d]` and `[m, d]`, for each of the d values alone, mean over d.

    In one dimension it is the mean difference of the sets' quantiles, here at 200 levels.
    """
    return _mean_difference(_quantiles(one), _quantiles(other))


def _mean_difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def _quantiles(rows: np.ndarray) -> np.ndarray:
    """Quantiles `[levels, d]` of each column, linear between rows."""
    ordered, place = np.sort(rows, axis=0), LEVELS * (len(rows) - 1)
    below = place.astype(np.int64)
    share = (place - below)[:, None]
    return ordered[below] * (1 - share) + ordered[np.minimum(below + 1, len(rows) - 1)] * share


def depth_distance(
    depth_m: np.ndarray, true_depth_m: np.ndarray, maps: np.ndarray, true_maps: np.ndarray, seed: int = 0
) -> dict[str, float | str | None]:
    """Wasserstein-1 distance of depth percentiles to the true ones, over that of two true halves of disjoint maps.

    The percentiles are the 10th, 50th and 90th of every frame, as logarithms, so that 10 % too near counts alike near
    and far; the mean of their three distances is taken. It catches walls that are too near and worlds without far
    views. It cannot tell a room from any surface with the same three percentiles.

    Args:
        depth_m: `[n, H, W]`, metres; `maps`: `[n]`, the map of each frame.
        true_depth_m: `[m, H, W]`; `true_maps`: `[m]`.

    Returns:
        As `ratio_to_true_halves`, with distances in natural logarithms of depth.
    """
    return depth_distance_of_percentiles(
        depth_percentiles(depth_m), depth_percentiles(true_depth_m), maps, true_maps, seed
    )


def depth_distance_of_percentiles(
    ours: np.ndarray, true: np.ndarray, maps: np.ndarray, true_maps: np.ndarray, seed: int = 0
) -> dict[str, float | str | None]:
    """`depth_distance` of `depth_percentiles`, `[n, 3]` and `[m, 3]`."""

    def of_maps(rows: Sequence[np.ndarray]) -> np.ndarray:
        return _quantiles(np.concatenate(rows))

    return ratio_to_true_halves(np.asarray, of_maps, _mean_difference, ours, true, maps, true_maps, seed=seed)


def floor_error(
    depth_m: np.ndarray, cameras: np.ndarray, image_from_camera: np.ndarray, maps: np.ndarray, eye_height_m: float
) -> dict[str, float | str | None]:
    """Distance of the lower frame's surface from the floor over the eye height: median of a frame, mean over frames.

    Points are lifted from the lowest quarter of the frame; the floor is the level plane `eye_height_m` below the
    camera. Walls that hide the floor from nearby are left out: pixels whose fitted plane is steeper than 60 degrees. A
    frame counts if `LEAST_FLOOR_PIXELS` remain. A world whose walls are all too near has no such frame: then `share`
    falls below the true one, and the value is None.

    Args:
        depth_m: `[n, H, W]`, metres.
        cameras: `[n, 4, 4]`, world from camera, OpenCV axes, world y down.
        image_from_camera: K `[3, 3]`, pixels.
        maps: `[n]`.
        eye_height_m: of the camera over the floor.

    Returns:
        value, low, high, `share` (of frames with floor in them) and reason: None, or why value, low and high are None.
    """
    depth = check_depth("depth_m", depth_m)
    maps = check_maps(maps, len(depth))
    start = depth.shape[1] * 3 // 4
    errors = np.full(len(depth), np.nan)
    for part in _parts(len(depth)):
        points = lift(depth[part], image_from_camera)[:, start:]
        normals, residual = fit_planes(depth[part], image_from_camera)
        down = np.asarray(cameras, dtype=np.float64)[part, 1, :3]
        off_m = np.abs(np.einsum("nhwk,nk->nhw", points, down) - eye_height_m)
        upright = np.abs(np.einsum("nhwk,nk->nhw", normals[:, start:], down))
        wall = (upright < WALL) & (residual[:, start:] < PLANAR)
        enough = (~wall).sum((1, 2)) >= LEAST_FLOOR_PIXELS
        off_m[wall] = np.nan
        errors[part][enough] = np.nanmedian(off_m[enough], axis=(1, 2)) / eye_height_m
    found = np.isfinite(errors)
    share = float(found.mean())
    if len(np.unique(maps[found])) < LEAST_MAPS:
        reason = (
            f"undefined: floor is in view in {found.sum()} of {len(found)} frames, of too few maps; use more frames"
        )
        return {"value": None, "low": None, "high": None, "share": share, "reason": reason}
    return {**bootstrap_maps(errors[found], maps[found]), "share": share, "reason": None}


def upright_shares(
    depth_m: np.ndarray, cameras: np.ndarray, image_from_camera: np.ndarray, maps: np.ndarray
) -> np.ndarray:
    """Share of every frame's surface, without floor and ceiling, that faces one of a map's two main directions, `[n]`.

    The two directions are level and at right angles: the most frequent heading, modulo 90 degrees, of the wall normals
    of all frames of a map. A pixel faces one of them where its normal is within `WITHIN_DEG` of it. Floor and ceiling
    are what lies within 30 degrees of level. A pixel around which no plane fits counts as facing neither. NaN for a
    frame with fewer than `LEAST_PIXELS` pixels of surface.

    Arguments as those of `floor_error`.
    """
    depth = check_depth("depth_m", depth_m)
    maps = check_maps(maps, len(depth), 1)
    shares = np.full(len(depth), np.nan)
    for name in np.unique(maps):
        rows = np.flatnonzero(maps == name)
        normals, residual = fit_planes(depth[rows], image_from_camera)
        world = np.einsum("nij,nhwj->nhwi", np.asarray(cameras, dtype=np.float64)[rows, :3, :3], normals)
        upright, planar = np.abs(world[..., 1]), residual < PLANAR
        other = (upright < LEVEL) | ~planar
        heading = np.degrees(np.arctan2(world[..., 0], world[..., 2])) % 90
        main = _most_frequent_heading(heading[planar & (upright < np.sin(np.radians(WITHIN_DEG)))])
        off = np.radians((heading - main + 45) % 90 - 45)
        level = np.sqrt(np.maximum(1 - upright**2, 0))
        faces = planar & (np.cos(off) * level > np.cos(np.radians(WITHIN_DEG)))
        count = other.sum((1, 2))
        shares[rows] = np.where(count >= LEAST_PIXELS, (faces & other).sum((1, 2)) / np.maximum(count, 1), np.nan)
    return shares


def manhattan_share(
    depth_m: np.ndarray,
    cameras: np.ndarray,
    maps: np.ndarray,
    true_depth_m: np.ndarray,
    true_cameras: np.ndarray,
    true_maps: np.ndarray,
    image_from_camera: np.ndarray,
) -> dict[str, float | str | None]:
    """Share of the surface in two directions at right angles over the true share (Coughlan and Yuille 1999).

    See `upright_shares`. It catches walls that bend, lean or crumble; a single flat wall passes.

    Returns:
        As `bootstrap_maps_ratio`, and `share` and `true_share`: both means.

    Raises:
        ValueError: too few maps whose frames show anything but floor and ceiling.
    """
    ours = upright_shares(depth_m, cameras, image_from_camera, maps)
    true = upright_shares(true_depth_m, true_cameras, image_from_camera, true_maps)
    return share_over_true(ours, true, maps, true_maps)


def share_over_true(
    ours: np.ndarray, true: np.ndarray, maps: np.ndarray, true_maps: np.ndarray
) -> dict[str, float | str | None]:
    """`manhattan_share` of `upright_shares`, `[n]` and `[m]`; NaN counts on neither side.

    Raises:
        ValueError: too few maps whose frames show anything but floor and ceiling.
    """
    found, true_found = np.isfinite(ours), np.isfinite(true)
    both = {"share": float(np.nanmean(ours)), "true_share": float(np.nanmean(true))}
    ratio = bootstrap_maps_ratio(
        ours[found], np.asarray(maps)[found], true[true_found], np.asarray(true_maps)[true_found]
    )
    return {**ratio, **both}


def _most_frequent_heading(headings_deg: np.ndarray) -> float:
    """The mode of headings in [0, 90) degrees, a circle: of a histogram of one degree, summed over 7 neighbors."""
    counts = np.bincount(headings_deg.astype(np.int64) % 90, minlength=90)
    smooth = sum(np.roll(counts, shift) for shift in range(-3, 4))
    main = int(np.argmax(smooth)) + 0.5
    off = (headings_deg - main + 45) % 90 - 45
    near = off[np.abs(off) < 5]
    return float(main + np.median(near)) if len(near) else float(main)


def _parts(count: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
