"""Faithfulness at revisits: the normalized memory ratio of R2M-Bench, MIND's mirror test, PSNR over masked pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mosaic_gym.evaluation.metrics.image import check_frames, decibels, squared_error, ssim_map
from mosaic_gym.evaluation.metrics.intervals import bootstrap_maps, bootstrap_maps_ratio

REVISIT_M, REVISIT_DEG = 0.1, 3.0
"""Two cameras have the same view if distance (metres) and angle (degrees) between them are within these limits."""
APART_M, APART_DEG = 1.0, 30.0
"""Two cameras have different views if the distance or the angle between them exceeds these. Other pairs are not
used."""
CHUNK = 256


@dataclass(frozen=True)
class Pairs:
    """Pairs of steps (earlier, later) of one walk, `[p, 2]` each.

    Attributes:
        revisits: the later camera has the pose of the earlier one again.
        controls: one for each revisit, of different views and as far apart in time, or as near to that as the walk has.
        neighbors: successive steps.
    """

    revisits: np.ndarray
    controls: np.ndarray
    neighbors: np.ndarray


def find_pairs(
    cameras: np.ndarray, min_gap: int, most: int = 64, seed: int = 0, away: int = 0, first: int = 0
) -> Pairs:
    """The pairs of a walk that the normalized memory ratio compares.

    Args:
        cameras: `[t, 4, 4]`, world from camera, one for each step.
        min_gap: least number of steps between the two of a revisit, at least 2.
        most: at most so many revisits, and so many neighbors; of more, some are drawn.
        away: in between, so many successive steps must lie apart from the earlier view.
        first: earlier steps are in no pair: give the length of the true history to measure invented places alone.

    Returns:
        A revisit without a control whose time gap is its own within a quarter is left out. All three are empty where
        there are no revisits.

    Raises:
        ValueError: `min_gap` below 2, or cameras of another shape.
    """
    poses = np.asarray(cameras, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4):
        raise ValueError(f"cameras must have shape [t, 4, 4], got {poses.shape}")
    if min_gap < 2:
        raise ValueError(f"min_gap is {min_gap}: neighbors in time are no revisit, use at least 2")
    distance_m, angle_deg = _differences(poses)
    same = (distance_m <= REVISIT_M) & (angle_deg <= REVISIT_DEG)
    apart = (distance_m > APART_M) | (angle_deg > APART_DEG)
    steps = np.arange(len(poses))
    late = (steps[None] - steps[:, None] >= min_gap) & (steps[:, None] >= first)
    revisits = [(i, j) for i, j in np.argwhere(same & late) if _longest_run(apart[i, i:j]) >= away]
    rng = np.random.default_rng(seed)
    revisits = _drawn(revisits, most, rng)
    found, controls = [], []
    for i, j in revisits:
        for gap in sorted(range(j - i - (j - i) // 4, j - i + (j - i) // 4 + 1), key=lambda gap: abs(gap - (j - i))):
            starts = steps[first : max(len(poses) - gap, first)]
            starts = starts[apart[starts, starts + gap]]
            if len(starts):
                start = int(rng.choice(starts))
                found.append((i, j))
                controls.append((start, start + gap))
                break
    neighbors = _drawn([(i, i + 1) for i in range(first, len(poses) - 1)] if found else [], most, rng)
    return Pairs(*(np.array(pairs, dtype=np.int64).reshape(-1, 2) for pairs in (found, controls, neighbors)))


def pair_ssim(frames: np.ndarray, pairs: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Mean SSIM of every pair of frames `[p]`.

    Args:
        frames: uint8 `[t, H, W, 3]`.
        pairs: `[p, 2]`, indices.
        mask: bool `[p, H, W]`: only these pixels count; a pair without any is NaN.
    """
    check_frames("frames", frames)
    values = np.empty(len(pairs))
    for start in range(0, len(pairs), CHUNK):
        rows = pairs[start : start + CHUNK]
        similarity = ssim_map(frames[rows[:, 0]], frames[rows[:, 1]])
        chosen = np.ones(similarity.shape, bool) if mask is None else mask[start : start + CHUNK]
        count = chosen.sum((1, 2))
        total = np.where(chosen, similarity, 0).sum((1, 2))
        values[start : start + CHUNK] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return values


def normalized_memory_ratio(
    walks: Sequence[np.ndarray], pairs: Sequence[Pairs], maps: np.ndarray, margin: np.ndarray | None = None
) -> dict[str, float | int | str | None]:
    """The normalized memory ratio (NMR) of R2M-Bench: mean(R - B) / mean(S - B).

    R is the mean SSIM of revisits, B that of pairs as far apart in time without a revisit, S that of neighbors in time.
    1 means that a place looks the same after a long way as after one step; 0 that it looks like any other place. Where
    views change little anyway, S - B is near zero and the ratio is undefined. It is also undefined for a frozen
    picture, and for a world that draws the same everywhere.

    The ratio depends on how far the camera moves between neighbors: the faster, the lower S, and the truth's own ratio
    exceeds 1. Texture that changes from frame to frame lowers S too, and raises the ratio. `revisit_margin` has neither
    fault.

    Args:
        walks: uint8 frames `[t, H, W, 3]` of every walk.
        pairs: of every walk, from `find_pairs` over its cameras.
        maps: `[walks]`, the map of each.
        margin: the `revisit_margin` of the walks where it is known.

    Returns:
        value, low, high (95 %, bootstrap over maps); `revisit`, `control` and `neighbor`: R, B and S; `walks`: how many
        had revisits; reason: None, or why value, low and high are None.

    Raises:
        ValueError: walks with revisits come from too few maps.
    """
    rows = revisit_margin(walks, pairs) if margin is None else margin
    found = np.isfinite(rows).all(1)
    if not found.any():
        raise ValueError("no walk has a revisit with a control: use longer walks, or a smaller min_gap")
    s = np.array([
        pair_ssim(frames, part.neighbors).mean() for frames, part, has in zip(walks, pairs, found, strict=True) if has
    ])  # fmt: skip
    (r, b), names = rows[found].T, np.asarray(maps)[found]
    ratio = bootstrap_maps_ratio(r - b, names, s - b, names)
    means = {"revisit": float(r.mean()), "control": float(b.mean()), "neighbor": float(s.mean())}
    return {**ratio, **means, "walks": len(names)}


def revisit_margin(walks: Sequence[np.ndarray], pairs: Sequence[Pairs]) -> np.ndarray:
    """R and B of every walk, see `normalized_memory_ratio`, `[walks, 2]`; NaN for a walk without revisits.

    R - B over that of the truth along the same cameras needs no neighbors in time: 1 is as good as the truth, 0 is a
    place that looks like any other, as that of a frozen picture does.
    """
    rows = [
        [pair_ssim(frames, part).mean() if len(part) else np.nan for part in (found.revisits, found.controls)]
        for frames, found in zip(walks, pairs, strict=True)
    ]
    return np.array(rows).reshape(-1, 2)


def masked_psnr(frames: np.ndarray, true: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """PSNR in dB over some pixels of every frame, `[n]`; NaN for a frame without such pixels.

    Args:
        frames, true: uint8 `[n, H, W, 3]`.
        mask: bool `[n, H, W]`.
    """
    error = squared_error(check_frames("frames", frames), check_frames("true", true))
    count = mask.sum((1, 2))
    mean = np.where(mask, error, 0).sum((1, 2)) / np.maximum(count, 1)
    return np.array([decibels(value) if n else np.nan for value, n in zip(mean, count, strict=True)])


def mirror_psnr(walks: Sequence[np.ndarray], maps: np.ndarray) -> dict[str, float]:
    """MIND's mirror test: the reversed second half of a walk against its first half.

    A walk goes out and comes back through the same cameras in reverse order, so frame t and frame T - 1 - t show the
    same. Squared errors are averaged over a walk; the mean of the walks' PSNR is returned, dB. The middle pair, two
    successive frames, counts like any other. A frozen picture has the highest value of all: read it beside
    `sharpness` and the motion's errors.

    Args:
        walks: uint8 `[T, H, W, 3]` each, T at least 4; the middle frame of an odd T is left out.
        maps: `[walks]`.

    Returns:
        value, low, high (95 %, bootstrap over maps), dB.

    Raises:
        ValueError: a walk of fewer than 4 frames, or too few maps.
    """
    values = []
    for frames in walks:
        half = len(frames) // 2
        if half < 2:
            raise ValueError(f"a walk of {len(frames)} frames has no mirror: use at least 4 frames")
        values.append(decibels(squared_error(frames[:half], frames[::-1][:half]).mean()))
    return bootstrap_maps(np.array(values), maps)


def _differences(cameras: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances in metres and angles in degrees between all cameras `[t, 4, 4]`, `[t, t]` each."""
    places, rotations = cameras[:, :3, 3], cameras[:, :3, :3]
    distance_m = np.linalg.norm(places[:, None] - places[None], axis=-1)
    traces = np.einsum("aij,bij->ab", rotations, rotations)
    return distance_m, np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))


def _drawn(pairs: list, most: int, rng: np.random.Generator) -> list:
    """At most so many of the pairs, in their order."""
    if len(pairs) <= most:
        return pairs
    return [pairs[k] for k in np.sort(rng.choice(len(pairs), most, replace=False))]


def _longest_run(flags: np.ndarray) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest
