"""Figures of faithfulness: to what was truly seen, and to what the world itself invented."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mosaic_gym.evaluation.metrics.image import decibels, squared_error
from mosaic_gym.evaluation.metrics.intervals import bootstrap_maps
from mosaic_gym.evaluation.metrics.revisit import Pairs, find_pairs, mirror_psnr, normalized_memory_ratio
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


def faithfulness_figures(scenes: Sequence[Scene], rollouts: Sequence[Rollout]) -> dict[str, dict[str, Any]]:
    """`return_psnr_seen`, `return_gain_seen`, `nmr_seen`, `nmr_invented` and `mirror_psnr`."""
    maps = np.array([scene.index for scene in scenes])
    on = np.array([return_psnr(scene, rollout.seen) for scene, rollout in zip(scenes, rollouts, strict=True)])
    figures = {"return_psnr_seen": {**bootstrap_maps(on, maps), "reason": None}}
    if rollouts[0].off is None:
        gain = {"value": None, "low": None, "high": None, "reason": "not applicable: no memory to switch off"}
    else:
        off = np.array([return_psnr(scene, rollout.off) for scene, rollout in zip(scenes, rollouts, strict=True)])
        gain = {**bootstrap_maps(on - off, maps), "memory_off": float(off.mean()), "reason": None}
    figures["return_gain_seen"] = gain
    figures["nmr_seen"] = _nmr(*_seen_walks(scenes, rollouts), maps)
    figures["nmr_invented"] = _nmr(*_invented_walks(scenes, rollouts), maps)
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


def _seen_walks(scenes: Sequence[Scene], rollouts: Sequence[Rollout]) -> tuple[list[np.ndarray], list[Pairs]]:
    """The true look around and the generated path, with pairs of frames that show places of the look around."""
    walks, pairs = [], []
    for scene, rollout in zip(scenes, rollouts, strict=True):
        last = np.concatenate([scene.history_frames[:, -1], rollout.seen])
        before = np.concatenate([scene.history_frames[:, -2], rollout.seen_before])
        walks.append(_interleaved(before, last))
        cameras = np.concatenate([scene.history_cameras[:, -1], scene.path_cameras[:, -1]])
        shares = np.concatenate([np.ones(HISTORY), scene.seen.mean((1, 2))])
        found = find_pairs(cameras, SEEN_GAP, away=AWAY_STEPS)
        # The later frame is generated, and both show what was seen.
        keep = (found.revisits[:, 1] >= HISTORY) & (shares[found.revisits] >= SEEN_SHARE).all(1)
        pairs.append(_chosen(found, keep, HISTORY, len(last)))
    return walks, pairs


def _invented_walks(scenes: Sequence[Scene], rollouts: Sequence[Rollout]) -> tuple[list[np.ndarray], list[Pairs]]:
    """The generated path after the start alone, with pairs of frames that do not show the start's view."""
    walks, pairs = [], []
    for scene, rollout in zip(scenes, rollouts, strict=True):
        walks.append(_interleaved(rollout.invented_before, rollout.invented))
        shares = scene.seen_at_start.mean((1, 2))
        found = find_pairs(scene.path_cameras[:, -1], INVENTED_GAP)
        keep = (shares[found.revisits] <= INVENTED_SHARE).all(1)
        pairs.append(_chosen(found, keep, 0, len(rollout.invented)))
    return walks, pairs


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


def _nmr(walks: list[np.ndarray], pairs: list[Pairs], maps: np.ndarray) -> dict[str, Any]:
    try:
        return normalized_memory_ratio(walks, pairs, maps)
    except ValueError as error:
        return {"value": None, "low": None, "high": None, "reason": f"undefined: {error}"}
