"""Figures of faithfulness: to what was truly seen, and to what the world itself invented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mosaic_gym.evaluation.metrics.image import decibels, squared_error
from mosaic_gym.evaluation.metrics.intervals import bootstrap_maps, bootstrap_maps_ratio
from mosaic_gym.evaluation.metrics.revisit import (
    Pairs,
    find_pairs,
    mirror_psnr,
    normalized_memory_ratio,
    revisit_margin,
)
from mosaic_gym.evaluation.suites.world.rollouts import Rollout
from mosaic_gym.evaluation.suites.world.scenes import AWAY_STEPS, HISTORY, Scene

LEAST_SHARE = 0.05
"""A frame of the way back counts if at least this share of its pixels shows a place of the true history."""
SEEN_SHARE, INVENTED_SHARE = 0.8, 0.2
"""A frame is of places seen from the first share of its pixels on, and of places invented up to the second."""
SEEN_GAP, INVENTED_GAP = 10, 8
"""Least steps between the two frames of a revisit, on places seen and on places invented."""
MOST_PAIRS = 12
"""Most pairs of each kind from one walk."""


@dataclass(frozen=True, eq=False)
class TrueWalks:
    """True scenes, and what is computed of them once for all worlds that are driven along them."""

    scenes: Sequence[Scene]

    @cached_property
    def maps(self) -> np.ndarray:
        """The map of every scene."""
        return np.array([scene.index for scene in self.scenes])

    @cached_property
    def seen_pairs(self) -> list[Pairs]:
        """Pairs of frames of `seen_walk` that show places of the look around."""
        pairs = []
        for scene in self.scenes:
            cameras = np.concatenate([scene.history_cameras[:, -1], scene.path_cameras[:, -1]])
            shares = np.concatenate([np.ones(HISTORY), scene.seen.mean((1, 2))])
            found = find_pairs(cameras, SEEN_GAP, away=AWAY_STEPS)
            # The later frame is generated, and both show what was seen.
            keep = (found.revisits[:, 1] >= HISTORY) & (shares[found.revisits] >= SEEN_SHARE).all(1)
            pairs.append(_chosen(found, keep, HISTORY, len(cameras)))
        return pairs

    @cached_property
    def invented_pairs(self) -> list[Pairs]:
        """Pairs of frames of the path that do not show the start's view."""
        pairs = []
        for scene in self.scenes:
            shares = scene.seen_at_start.mean((1, 2))
            found = find_pairs(scene.path_cameras[:, -1], INVENTED_GAP)
            keep = (shares[found.revisits] <= INVENTED_SHARE).all(1)
            pairs.append(_chosen(found, keep, 0, len(shares)))
        return pairs

    @cached_property
    def seen_margin(self) -> np.ndarray:
        """`revisit_margin` of the truth at `seen_pairs`."""
        walks = (seen_walk(scene, scene.path_frames, scene.path_before) for scene in self.scenes)
        return revisit_margin(list(walks), self.seen_pairs)

    @cached_property
    def invented_margin(self) -> np.ndarray:
        """`revisit_margin` of the truth at `invented_pairs`."""
        walks = [_interleaved(scene.path_before, scene.path_frames) for scene in self.scenes]
        return revisit_margin(walks, self.invented_pairs)


def faithfulness_figures(truth: TrueWalks, rollouts: Sequence[Rollout]) -> dict[str, dict[str, Any]]:
    """`return_psnr_seen`, `return_gain_seen`, `nmr_*`, `nmr_*_of_truth` and `mirror_psnr`."""
    scenes, maps = truth.scenes, truth.maps
    on = np.array([return_psnr(scene, rollout.seen) for scene, rollout in zip(scenes, rollouts, strict=True)])
    figures = {"return_psnr_seen": {**bootstrap_maps(on, maps), "reason": None}}
    if rollouts[0].off is None:
        gain = {"value": None, "low": None, "high": None, "reason": "not applicable: no memory to switch off"}
    else:
        off = np.array([return_psnr(scene, rollout.off) for scene, rollout in zip(scenes, rollouts, strict=True)])
        gain = {**bootstrap_maps(on - off, maps), "memory_off": float(off.mean()), "reason": None}
    figures["return_gain_seen"] = gain
    seen = [seen_walk(scene, row.seen, row.seen_before) for scene, row in zip(scenes, rollouts, strict=True)]
    figures |= _nmr("nmr_seen", seen, truth.seen_pairs, truth.seen_margin, maps)
    invented = [_interleaved(row.invented_before, row.invented) for row in rollouts]
    figures |= _nmr("nmr_invented", invented, truth.invented_pairs, truth.invented_margin, maps)
    # The way back passes every camera of the way out in reverse; the last step is at the start, which was given.
    figures["mirror_psnr"] = {**mirror_psnr([rollout.invented[:-1] for rollout in rollouts], maps), "reason": None}
    return figures


def return_psnr(scene: Scene, frames: np.ndarray) -> float:
    """PSNR of the way back against the truth, dB, over pixels whose place the true look around saw.

    Args:
        frames: of the way out and back, uint8 `[p, H, W, 3]`.
    """
    mask, back = scene.seen[scene.out :], slice(scene.out, None)
    counted = mask.mean((1, 2)) >= LEAST_SHARE
    error = squared_error(frames[back][counted], scene.path_frames[back][counted])
    return decibels(float(error[mask[counted]].mean()))


def seen_walk(scene: Scene, frames: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Two video frames of every step of the true look around and then of a path, `[2 (h + p), H, W, 3]`."""
    last = np.concatenate([scene.history_frames[:, -1], frames])
    return _interleaved(np.concatenate([scene.history_frames[:, -2], before]), last)


def _interleaved(before: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Two successive video frames of every step, `[2 n, H, W, 3]`: step i has the frames 2 i and 2 i + 1."""
    return np.stack([before, last], axis=1).reshape(-1, *last.shape[1:])


def _chosen(pairs: Pairs, keep: np.ndarray, first: int, steps: int) -> Pairs:
    """At most `MOST_PAIRS` of each kind, as frames of an interleaved walk.

    Neighbors in time are successive video frames of the generated steps, from `first` on: at the pace of steps even a
    true view differs much from the next one.
    """
    rows = np.flatnonzero(keep)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, MOST_PAIRS).round().astype(int))] if len(rows) else rows
    neighbors = np.unique(np.linspace(first, steps - 1, MOST_PAIRS).round().astype(int)) if len(rows) else rows
    neighbors = 2 * neighbors[:, None] + np.arange(2)
    return Pairs(2 * pairs.revisits[rows] + 1, 2 * pairs.controls[rows] + 1, neighbors)


def _nmr(
    name: str, walks: list[np.ndarray], pairs: list[Pairs], true_margin: np.ndarray, maps: np.ndarray
) -> dict[str, dict[str, Any]]:
    """The normalized memory ratio, and R - B over the truth's."""
    margin, found = revisit_margin(walks, pairs), np.isfinite(true_margin).all(1)
    try:
        ratio = normalized_memory_ratio(walks, pairs, maps, margin)
        r, b = margin[found].T
        true_r, true_b = true_margin[found].T
        of_truth = bootstrap_maps_ratio(r - b, maps[found], true_r - true_b, maps[found])
    except ValueError as error:
        ratio = of_truth = {"value": None, "low": None, "high": None, "reason": f"undefined: {error}"}
    return {name: ratio, f"{name}_of_truth": of_truth}
