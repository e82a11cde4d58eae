"""What stands in a body's way, by the geometry that memory has lifted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mosaic_gym.memory.keyframe import Keyframe, gathered

EYE_M = 41 / 32
"""Height of the eye over the floor, metres: Doom's 41 map units."""
CLIMBS_M = 24 / 32
"""What is no higher than this over the floor is walked over."""
CROWN_M = (56 - 41) / 32
"""Height of the body over its eye."""


def obstacles_near(
    memories: Sequence[Sequence[Keyframe]], eyes_m: np.ndarray, reach_m: Sequence[float]
) -> list[np.ndarray]:
    """Places (x, z) `[n, 2]`, metres, of the patches that each of some bodies of Doom's size cannot pass.

    Args:
        memories: for each body, its keyframes (possibly none).
        eyes_m: `[b, 3]`, where the bodies' eyes are, metres, y down.
        reach_m: how far to look for each, see `Control.reach_m`.
    """
    counts = [len(keyframes) for keyframes in memories]
    if not sum(counts):
        return [np.zeros((0, 2))] * len(memories)
    everything = [each for keyframes in memories for each in keyframes]
    points_m, _, alive, _ = gathered(everything, everything[0].alive.numel())
    x, y, z = points_m.unbind(1)  # [k, v * u] each
    body = torch.as_tensor(np.repeat(np.arange(len(memories)), counts), device=x.device)[:, None]
    asked = torch.as_tensor(np.column_stack([eyes_m, reach_m]), dtype=x.dtype, device=x.device)
    eye_x, eye_y, eye_z, reach = asked[body].unbind(-1)  # [k, 1] each
    below_m = y - eye_y
    blocks = alive & (below_m > -CROWN_M) & (below_m < EYE_M - CLIMBS_M)
    blocks &= torch.hypot(x - eye_x, z - eye_z) < reach
    # In one answer for all, for an accelerator is waited for each time.
    told = torch.stack([body.expand_as(x).to(x.dtype), x, z], -1)[blocks].cpu().double().numpy()
    return [told[told[:, 0] == index, 1:] for index in range(len(memories))]
