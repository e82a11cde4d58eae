"""Where an episode is on the map that its model knows: what true frames were recognised as, all together.

An episode has a frame of its own; the map has another. Every keyframe of a true frame may hold where in the map it was
taken, and so holds what leads from one frame to the other. A view may be mistaken (rooms look alike), so a new one is
recognised together with those before it, and what most was recognised by is believed.

A place is (x, z, heading), see `geometry.camera.place_of`. A fourth number is how much it is to be trusted, 0 for none.

An episode whose first frame is not recognised has to go on somewhere all the same. It is supposed to be where the map
is likest, until something is recognised: memory is believed where it covers a view, and the rest is drawn from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mosaic_gym.geometry.camera import carried, place_of
from mosaic_gym.memory.keyframe import ASSUMED as SUPPOSED
from mosaic_gym.memory.keyframe import Keyframe
from mosaic_gym.memory.retrieval import KeyframeCodec

WITNESSES = 7
"""Remembered frames that a new one is recognised together with."""
GUESSES = 24
"""Frames of a walk that are searched for, and whose own places are tried for all of it."""
FAMILIAR = 4e-3
"""A frame looks as the map does at a place if the picture's squared error is at most this: 30 dB, about what an atlas
is off by where it is right."""
AGAIN = 8
"""When there are witnesses enough, only every so-many-th frame makes the place surer."""


@runtime_checkable
class Map(Protocol):
    """What is asked of an atlas: see `model/atlas/`."""

    def find(self, frames: Tensor, image_from_camera: Tensor) -> Tensor: ...

    def compare(self, frames: Tensor, places: Tensor, image_from_camera: Tensor) -> tuple[Tensor, Tensor]: ...

    def settle(self, frames: Tensor, here: Tensor, guesses: Tensor, image_from_camera: Tensor) -> Tensor: ...


def recognised(
    memories: Sequence[Sequence[Keyframe]], cameras: Float[Tensor, "b n 4 4"]
) -> list[Float[Tensor, "n 3"] | None]:
    """Where on the map cameras of some episodes stand, by the place of the most trusted of each one's keyframes.

    Args:
        memories: for each episode, its keyframes (possibly none).
        cameras: `[b, n, 4, 4]`, world_from_camera, metres.

    Returns:
        (x, z, heading) `[n, 3]` of every episode's cameras; None where no keyframe was recognised, or supposed to be
        anywhere.
    """
    best = [_surest(keyframes) for keyframes in memories]
    known = [i for i, keyframe in enumerate(best) if keyframe is not None and keyframe.trust > 0]
    if not known:
        return [None] * len(best)
    here = place_of(torch.stack([best[i].world_from_keyframe for i in known]))[:, None]
    there = torch.stack([best[i].place[:3] for i in known])[:, None]
    asked = cameras if len(known) == len(best) else cameras[known]
    places = dict(zip(known, carried(place_of(asked), here, there).unbind(), strict=True))
    return [places.get(i) for i in range(len(best))]


def _surest(keyframes: Sequence[Keyframe]) -> Keyframe | None:
    return max(keyframes, key=lambda keyframe: keyframe.trust, default=None)


def is_supposed(keyframes: Sequence[Keyframe]) -> bool:
    """Whether an episode of these keyframes is only supposed to be where `recognised` says."""
    surest = _surest(keyframes)
    return surest is not None and surest.trust == SUPPOSED


def is_known(keyframes: Sequence[Keyframe]) -> bool:
    """Whether an episode of these keyframes was recognised on the map, and is not only supposed to be somewhere."""
    return any(keyframe.trust > SUPPOSED for keyframe in keyframes)


@torch.no_grad()
def recognise(
    atlas: Map,
    codec: KeyframeCodec,
    keyframes: Sequence[Keyframe],
    frame: Float[Tensor, "3 H W"],
    camera: Float[Tensor, "4 4"],
    image_from_camera: Float[Tensor, "3 3"],
) -> Float[Tensor, " 4"]:
    """Where on the map a true frame was taken: alone if nothing was recognised before it, else with some of what was.

    Searching is dear, and seldom needed: a frame that looks as the map does where those before it say is not searched
    for, and once there are many of them, more frames make the place no surer.

    Args:
        keyframes: of the episode's memory; those that were recognised bear witness.
        frame: `[3, H, W]` in [-1, 1]; camera: `[4, 4]`, world_from_camera, metres.
        image_from_camera: `[3, 3]`, K in pixels.

    Returns:
        (x, z, heading, trust); a trust of 0 says that it was not recognised, and one of `SUPPOSED` that neither was
        anything before it, and this is where the map is likest.
    """
    known = [keyframe for keyframe in keyframes if keyframe.trust > SUPPOSED]
    (surest,) = recognised([known], camera[None, None])
    if surest is None:
        alone = _alone(atlas, frame, camera, image_from_camera)
        if float(alone[3]) > 0 or is_supposed(keyframes):
            return alone
        return torch.cat([alone[:3], alone.new_tensor([SUPPOSED])])
    trust, error = (float(told) for told in atlas.compare(frame[None], surest, image_from_camera))
    familiar = trust > 0 and error <= FAMILIAR
    if familiar and len(known) >= WITNESSES and len(known) % AGAIN:
        return torch.cat([surest[0], surest.new_tensor([trust])])
    heard = [known[index] for index in _spread(len(known), WITNESSES)]
    here = place_of(torch.stack([*(keyframe.world_from_keyframe for keyframe in heard), camera]))
    frames = torch.cat([codec.keyframe_image(torch.stack([keyframe.latent for keyframe in heard])), frame[None]])
    said = carried(here[-1:], here[:-1], torch.stack([keyframe.place[:3] for keyframe in heard]))
    guesses = torch.cat([surest, said])
    if familiar:
        return atlas.settle(frames, here, guesses, image_from_camera)
    alone = _alone(atlas, frame, camera, image_from_camera)
    together = atlas.settle(frames, here, torch.cat([guesses, alone[None, :3]]), image_from_camera)
    # It may be those before that were mistaken, and then one frame alone explains more than all together.
    return together if float(together[3]) >= float(alone[3]) else alone


def _alone(atlas: Map, frame: Tensor, camera: Tensor, image_from_camera: Tensor) -> Tensor:
    found = atlas.find(frame[None], image_from_camera)[0]
    if not float(found[3]) > 0:
        return found
    return atlas.settle(frame[None], place_of(camera[None]), found[None, :3], image_from_camera)


@torch.no_grad()
def recognise_walk(
    atlas: Map, frames: Float[Tensor, "n 3 H W"], cameras: Float[Tensor, "n 4 4"], image_from_camera: Tensor
) -> Float[Tensor, "n 4"]:
    """Where on the map true frames in [-1, 1] of one walk were taken, found all together; as `recognise`, but at once.

    Args:
        cameras: `[n, 4, 4]`, world_from_camera, metres.
    """
    there = place_of(cameras)
    places = torch.zeros(len(frames), 4).to(there)
    asked = _spread(len(frames), GUESSES)
    places[asked] = atlas.find(frames[asked], image_from_camera)
    known = [index for index in asked if float(places[index, 3]) > 0]
    if not known:
        return places
    heard = [known[index] for index in _spread(len(known), WITNESSES + 1)]
    last = there[heard[-1]][None]
    guesses = carried(last, there[known], places[known, :3])
    found = atlas.settle(frames[heard], there[heard], guesses, image_from_camera)
    if not float(found[3]) > 0:
        return places
    return torch.cat([carried(there, last, found[None, :3]), found[3].expand(len(there), 1)], dim=1)


def _spread(count: int, most: int) -> list[int]:
    """At most so many indices, spread over the first `count`."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float32).round().long().tolist()
