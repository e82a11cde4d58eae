"""Figures of motion: does what is generated move as the camera does, and does a closed loop close?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mosaic_gym.evaluation.metrics.motion import Motion, align, motion_between
from mosaic_gym.evaluation.suites.world.rollouts import Rollout
from mosaic_gym.evaluation.suites.world.scenes import Scene

LARGEST_TURN_DEG, LARGEST_SHIFT_M = 12.0, 0.5
"""Pairs of successive steps further apart than this have too little overlap to be aligned."""
LEAST_TURN_DEG, LEAST_SHIFT_M = 0.5, 0.02
"""Pairs nearer than both are at rest and do not count."""
PAIRS_OF_A_MAP = 10
LEAST_CONVERGED = 0.2
"""With a smaller share of alignments that succeed there is nothing to measure."""
DRAWS = 300


def motion_figures(scenes: Sequence[Scene], rollouts: Sequence[Rollout]) -> dict[str, dict[str, Any]]:
    """`rot_err_deg`, `trans_err_m` (successive steps of the free walk) and `loop_err_m`; medians.

    Beside each: `failed_share`, of the alignments that failed.
    """
    frames, depth, cameras, maps = [[], []], [[], []], [[], []], []
    for scene, rollout in zip(scenes, rollouts, strict=True):
        chosen = _moving_pairs(rollout.walk_cameras)
        for side in (0, 1):
            frames[side].append(rollout.walk[chosen + side])
            depth[side].append(rollout.walk_depth[chosen + side])
            cameras[side].append(rollout.walk_cameras[chosen + side])
        maps += [scene.index] * len(chosen)
    (one, other), (near, far), poses = (
        [np.concatenate(part) for part in parts] for parts in (frames, depth, cameras)
    )  # fmt: skip
    motion = align(one, near, other, far, scenes[0].k)
    yaw, shift = motion_between(*poses)
    rotation_deg = np.degrees(np.abs((motion.yaw_rad - yaw + np.pi) % (2 * np.pi) - np.pi))
    shift_m = np.hypot(motion.right_m - shift[:, 0], motion.ahead_m - shift[:, 1])
    names = np.array(maps)
    return {
        "rot_err_deg": _median(rotation_deg, motion, names),
        "trans_err_m": _median(shift_m, motion, names),
        "loop_err_m": _loop_error(scenes, rollouts),
    }


def _moving_pairs(cameras: np.ndarray) -> np.ndarray:
    """Indices of steps after which the camera moves, and not too far, spread over the walk."""
    yaw, shift = motion_between(cameras[:-1], cameras[1:])
    turn_deg, shift_m = np.degrees(np.abs(yaw)), np.hypot(*shift.T)
    near = (turn_deg <= LARGEST_TURN_DEG) & (shift_m <= LARGEST_SHIFT_M)
    found = np.flatnonzero(near & ((turn_deg >= LEAST_TURN_DEG) | (shift_m >= LEAST_SHIFT_M)))
    if len(found) <= PAIRS_OF_A_MAP:
        return found
    return found[np.linspace(0, len(found) - 1, PAIRS_OF_A_MAP).round().astype(int)]


def _loop_error(scenes: Sequence[Scene], rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """How far the last frame of the way back is from the start's picture, by alignment, metres.

    Both have the world's own depth, so that a constant error of its scale does not count as a shift.
    """
    depth = [row.start_depth for row in rollouts]
    starts = np.stack([scene.start_frame for scene in scenes]), np.stack(depth)
    ends = np.stack([row.invented[-1] for row in rollouts]), np.stack([row.invented_depth[-1] for row in rollouts])
    motion = align(*starts, *ends, scenes[0].k)
    return _median(np.hypot(motion.right_m, motion.ahead_m), motion, np.array([scene.index for scene in scenes]))


def _median(errors: np.ndarray, motion: Motion, maps: np.ndarray) -> dict[str, Any]:
    """Median error of converged pairs and its 95 % interval by bootstrap over maps."""
    ok = motion.converged
    failed = float(1 - ok.mean())
    if ok.mean() < LEAST_CONVERGED:
        reason = f"undefined: {100 * failed:.0f} % of the alignments fail, so there is no motion to measure"
        return {"value": None, "low": None, "high": None, "failed_share": failed, "reason": reason}
    by_map = [errors[ok & (maps == name)] for name in np.unique(maps)]
    rng = np.random.default_rng(0)
    draws = [
        np.median(np.concatenate([by_map[i] for i in rng.integers(len(by_map), size=len(by_map))] + [errors[ok][:1]]))
        for _ in range(DRAWS)
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    value = float(np.median(errors[ok]))
    return {"value": value, "low": float(low), "high": float(high), "failed_share": failed, "reason": None}
