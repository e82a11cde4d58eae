"""Obstacles for a walking body, from the geometry that memory has lifted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mosaic_gym.memory.keyframe import Keyframe, stack_geometry

EYE_M = 41 / 32
"""Height of the eye over the floor, metres: Doom's 41 map units."""
STEP_M = 24 / 32
"""The body walks over obstacles up to this height over the floor, metres."""
CROWN_M = (56 - 41) / 32
"""Height of the body over its eye, metres."""


def obstacles_near(
    memories: Sequence[Sequence[Keyframe]], eyes_m: np.ndarray, reach_m: Sequence[float]
) -> list[np.ndarray]:
    """Places (x, z) `[n, 2]`, metres, of the patches that block a body of Doom's size, for every member of a batch.

    Args:
        memories: for each member, its keyframes (possibly none).
        eyes_m: `[b, 3]`, where the bodies' eyes are, metres, y down.
        reach_m: how far around each body to search, see `Control.reach_m`.
    """
    counts = [len(keyframes) for keyframes in memories]
    if not sum(counts):
        return [np.zeros((0, 2))] * len(memories)
    keyframes = [keyframe for member in memories for keyframe in member]
    points_m, _, alive, _ = stack_geometry(keyframes, keyframes[0].alive.numel())
    x, y, z = points_m.unbind(1)  # [k, v * u] each
    member = torch.as_tensor(np.repeat(np.arange(len(memories)), counts), device=x.device)[:, None]
    bodies = torch.as_tensor(np.column_stack([eyes_m, reach_m]), dtype=x.dtype, device=x.device)
    eye_x, eye_y, eye_z, reach = bodies[member].unbind(-1)  # [k, 1] each
    below_m = y - eye_y
    blocks = alive & (below_m > -CROWN_M) & (below_m < EYE_M - STEP_M)
    blocks &= torch.hypot(x - eye_x, z - eye_z) < reach
    # One transfer for all members: each waits for an accelerator.
    found = torch.stack([member.expand_as(x).to(x.dtype), x, z], -1)[blocks].cpu().double().numpy()
    return [found[found[:, 0] == index, 1:] for index in range(len(memories))]
