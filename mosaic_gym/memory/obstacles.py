"""What stands in a body's way, by the geometry that memory has lifted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mosaic_gym.memory.keyframe import Keyframe

EYE_M = 41 / 32
"""Height of the eye over the floor, metres: Doom's 41 map units."""
CLIMBS_M = 24 / 32
"""What is no higher than this over the floor is walked over."""
CROWN_M = (56 - 41) / 32
"""Height of the body over its eye."""
REACH_M = 3.0
"""Obstacles farther than this do not matter to one step."""


def obstacles_near(keyframes: Sequence[Keyframe], eye_m: np.ndarray, reach_m: float = REACH_M) -> np.ndarray:
    """Places (x, z) `[n, 2]`, metres, of the patches that a body of Doom's size cannot pass.

    Args:
        keyframes: of one memory, not empty.
        eye_m: `[3]`, where the body's eye is, metres, y down.
        reach_m: how far to look.
    """
    points_m = torch.stack([keyframe.points_m for keyframe in keyframes]).flatten(0, 2)
    alive = torch.stack([keyframe.alive for keyframe in keyframes]).flatten()
    offset_m = points_m - torch.as_tensor(eye_m, dtype=points_m.dtype, device=points_m.device)
    below_m = offset_m[:, 1]
    blocks = alive & (below_m > -CROWN_M) & (below_m < EYE_M - CLIMBS_M)
    blocks &= offset_m[:, [0, 2]].norm(dim=-1) < reach_m
    return points_m[blocks][:, [0, 2]].double().cpu().numpy()
