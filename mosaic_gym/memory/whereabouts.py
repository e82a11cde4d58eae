"""Where an episode is on the map that its model knows: what true frames were recognised as, agreed upon.

An episode has a frame of its own; the map has another. Every keyframe of a true frame may hold where in the map it was
taken, and so holds what leads from one frame to the other. A view may be mistaken (rooms look alike), so the many are
asked and the largest party is believed.

A place is (x, z, heading), see `geometry.camera.place_of`. A fourth number is how much it is to be trusted, 0 for none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mosaic_gym.geometry.camera import carried, place_of
from mosaic_gym.memory.keyframe import Keyframe

AGREE_M, AGREE_RAD = 0.5, 0.15
"""Two keyframes agree if by them a camera stands at places no further apart, and looks no more differently."""


def recognised(keyframes: Sequence[Keyframe], cameras: Float[Tensor, "n 4 4"]) -> Float[Tensor, "n 3"] | None:
    """Where on the map cameras of the episode stand, `[n, 3]`, by what its keyframes were recognised as.

    The first stands where the most trusted party of keyframes agrees that it does, averaged over the party; the others
    where they are from there.

    Args:
        keyframes: of the episode's memory.
        cameras: `[n, 4, 4]`, world_from_camera, metres.

    Returns:
        (x, z, heading) of each; None if no keyframe was recognised.
    """
    if not keyframes:
        return None
    there = torch.stack([keyframe.place for keyframe in keyframes])
    known = (there[:, 3] > 0).nonzero()[:, 0].tolist()
    if not known:
        return None
    places, trust = there[known, :3], there[known, 3]
    here = place_of(torch.stack([keyframes[index].world_from_still for index in known]))
    asked = place_of(cameras)
    said = carried(asked[:1], here, places)  # [k, 3]
    apart_m = torch.cdist(said[:, :2], said[:, :2])
    turned = (said[:, None, 2] - said[None, :, 2]).cos()
    party = (apart_m < AGREE_M) & (turned > math.cos(AGREE_RAD))
    share = party[int((party * trust).sum(1).argmax())] * trust
    share = share / share.sum()
    heading = torch.atan2((share * said[:, 2].sin()).sum(), (share * said[:, 2].cos()).sum())
    first = torch.cat([(share[:, None] * said[:, :2]).sum(0), heading[None]])
    return carried(asked, asked[:1], first[None])
