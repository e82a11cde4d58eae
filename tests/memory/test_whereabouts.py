"""Where an episode is on the map: level motions, the largest party, and what says nothing."""

import dataclasses
import math

import pytest
import torch

from mosaic_gym.geometry.camera import carried, place_of
from mosaic_gym.geometry.control import pose_at
from mosaic_gym.memory.keyframe import Keyframe, lift
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.memory.whereabouts import recognised

K = torch.tensor([[32.0, 0.0, 16.0], [0.0, 32.0, 16.0], [0.0, 0.0, 1.0]])
ORIGIN, ON_MAP = torch.tensor([1.0, -2.0, 0.4]), torch.tensor([7.0, 5.0, 2.1])
"""A place of the episode, and where on the map it is."""


def camera(x: float, z: float, heading: float) -> torch.Tensor:
    return torch.tensor(pose_at(float(x), 0.3, float(z), float(heading)).world_from_camera, dtype=torch.float32)


def keyframe(at: tuple[float, float, float], place: torch.Tensor | None, trust: float = 1.0) -> Keyframe:
    told = None if place is None else torch.cat([place, torch.tensor([trust])])
    depth_m, latent = torch.full((32, 32), 2.0), torch.zeros(4, 4, 4)
    return lift(latent, depth_m, camera(*at).expand(4, 4, 4), K, torch.zeros(4, 4), 0, told)


def on_map(at: tuple[float, float, float]) -> torch.Tensor:
    return carried(torch.tensor(at), ORIGIN, ON_MAP)


def test_places_are_carried_as_their_cameras_are():
    here, there, other = camera(*ORIGIN), camera(*ON_MAP), camera(3.0, 1.0, -1.0)
    moved = there @ torch.linalg.inv(here) @ other
    assert torch.allclose(place_of(other), torch.tensor([3.0, 1.0, -1.0]), atol=1e-6)
    told, expected = carried(place_of(other), place_of(here), place_of(there)), place_of(moved)
    assert torch.allclose(told[:2], expected[:2], atol=1e-5)
    assert math.cos(told[2] - expected[2]) > 1 - 1e-6


def test_one_true_view_tells_where_every_other_camera_stands():
    at = (2.0, 3.0, 1.2)
    other = (-1.0, 2.0, 3.0)
    known = keyframe((0.5, 0.1, -0.3), on_map((0.5, 0.1, -0.3)))
    places = recognised((known,), torch.stack([camera(*at), camera(*other)]))
    assert torch.allclose(places[:, :2], torch.stack([on_map(at), on_map(other)])[:, :2], atol=1e-5)
    assert torch.allclose(places[0, 2].cos(), on_map(at)[2].cos(), atol=1e-5)


def test_the_most_trusted_party_is_believed_and_averaged():
    truly = [(0.0, 0.0, 0.0), (1.0, 0.5, 0.7), (0.2, 2.0, -2.0)]
    shifts = torch.tensor([[0.1, 0.0, 0.0], [-0.1, 0.0, 0.0], [0.0, 0.0, 0.0]])
    honest = tuple(keyframe(at, on_map(at) + shift, 0.4) for at, shift in zip(truly, shifts, strict=True))
    mistaken = tuple(keyframe(at, on_map(at) + torch.tensor([9.0, 0.0, 0.0]), 0.5) for at in truly[:2])
    (place,) = recognised(honest + mistaken, camera(1.0, 1.0, 0.0)[None])
    assert torch.allclose(place, on_map((1.0, 1.0, 0.0)), atol=0.02)
    louder = tuple(dataclasses.replace(each, place=each.place * torch.tensor([1, 1, 1, 3.0])) for each in mistaken)
    (other,) = recognised(honest + louder, camera(1.0, 1.0, 0.0)[None])
    assert float(other[0] - place[0]) == pytest.approx(9.0, abs=0.1)


def test_views_that_were_not_recognised_or_were_moved_say_nothing():
    at = (0.5, 0.1, -0.3)
    assert recognised((), camera(*at)[None]) is None
    assert recognised((keyframe(at, None),), camera(*at)[None]) is None
    moved = keyframe(at, on_map(at)).moved(camera(1.0, 0.0, 0.0))
    assert recognised((moved,), camera(*at)[None]) is None
    memory = MosaicMemory((keyframe(at, on_map(at)), keyframe((0.0, 0.0, 0.0), on_map((0.0, 0.0, 0.0)))))
    chosen = torch.zeros(4, 4, dtype=torch.bool)
    chosen[1, 2] = True
    assert recognised(memory.edited({0: chosen}, None).keyframes, camera(*at)[None]) is None


def test_a_saved_memory_keeps_its_places(tmp_path):
    memory = MosaicMemory((keyframe((0.0, 0.0, 0.0), on_map((0.0, 0.0, 0.0)), 0.7),))
    memory.save(tmp_path / "memory.safetensors")
    again = MosaicMemory.load(tmp_path / "memory.safetensors")
    assert torch.equal(again.keyframes[0].place, memory.keyframes[0].place)
