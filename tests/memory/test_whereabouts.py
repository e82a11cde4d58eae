"""Where an episode is on the map: level motions, all true frames together, and what says nothing."""

import dataclasses
import math

import pytest
import torch

from mosaic_gym.geometry.camera import carried, place_of
from mosaic_gym.geometry.control import pose_at
from mosaic_gym.memory.keyframe import ASSUMED as SUPPOSED
from mosaic_gym.memory.keyframe import Keyframe
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.memory.whereabouts import is_supposed, recognise, recognise_walk, recognised
from mosaic_gym.model.atlas import Atlas
from mosaic_gym.model.codec import LinearCodec
from tests import room
from tests.tiny import lifted

pytestmark = pytest.mark.slow  # an atlas is trained first

K = torch.tensor([[32.0, 0.0, 16.0], [0.0, 32.0, 16.0], [0.0, 0.0, 1.0]])
ORIGIN, ON_MAP = torch.tensor([1.0, -2.0, 0.4]), torch.tensor([7.0, 5.0, 2.1])
"""A place of the episode, and where on the map it is."""


def camera(x: float, z: float, heading: float) -> torch.Tensor:
    return torch.tensor(pose_at(float(x), 0.3, float(z), float(heading)).world_from_camera, dtype=torch.float32)


def keyframe(at: tuple[float, float, float], place: torch.Tensor | None, trust: float = 1.0) -> Keyframe:
    told = None if place is None else torch.cat([place, torch.tensor([trust])])
    depth_m, latent = torch.full((32, 32), 2.0), torch.zeros(4, 4, 4)
    return lifted(latent, depth_m, camera(*at).expand(4, 4, 4), K, torch.zeros(4, 4), 0, told)


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
    (places,) = recognised([[known]], torch.stack([camera(*at), camera(*other)])[None])
    assert torch.allclose(places[:, :2], torch.stack([on_map(at), on_map(other)])[:, :2], atol=1e-5)
    assert torch.allclose(places[0, 2].cos(), on_map(at)[2].cos(), atol=1e-5)


def test_the_most_trusted_view_speaks_for_all():
    truly = [(0.0, 0.0, 0.0), (1.0, 0.5, 0.7)]
    sure = keyframe(truly[0], on_map(truly[0]), 0.9)
    mistaken = keyframe(truly[1], on_map(truly[1]) + torch.tensor([9.0, 0.0, 0.0]), 0.5)
    ((place,),) = recognised([[mistaken, sure]], camera(1.0, 1.0, 0.0)[None, None])
    assert torch.allclose(place, on_map((1.0, 1.0, 0.0)), atol=1e-5)
    louder = dataclasses.replace(mistaken, place=mistaken.place * torch.tensor([1, 1, 1, 2.0]))
    ((other,),) = recognised([[louder, sure]], camera(1.0, 1.0, 0.0)[None, None])
    assert float(other[0] - place[0]) == pytest.approx(9.0, abs=0.1)


def test_views_that_were_not_recognised_or_were_moved_say_nothing():
    at = (0.5, 0.1, -0.3)
    moved = keyframe(at, on_map(at)).transformed(camera(1.0, 0.0, 0.0))
    silent = [[], [keyframe(at, None)], [moved]]
    assert recognised(silent, camera(*at).expand(3, 1, 4, 4)) == [None] * 3
    # Beside them another episode speaks for itself.
    *others, (place,) = recognised([*silent, [keyframe(at, on_map(at))]], camera(*at).expand(4, 1, 4, 4))
    assert others == [None] * 3 and torch.allclose(place, on_map(at), atol=1e-5)
    memory = MosaicMemory((keyframe(at, on_map(at)), keyframe((0.0, 0.0, 0.0), on_map((0.0, 0.0, 0.0)))))
    chosen = torch.zeros(4, 4, dtype=torch.bool)
    chosen[1, 2] = True
    assert recognised([memory.edit({0: chosen}, None).keyframes], camera(*at)[None, None]) == [None]


def test_a_saved_memory_keeps_its_places(tmp_path):
    memory = MosaicMemory((keyframe((0.0, 0.0, 0.0), on_map((0.0, 0.0, 0.0)), 0.7),))
    memory.save(tmp_path / "memory.safetensors")
    again = MosaicMemory.load(tmp_path / "memory.safetensors")
    assert torch.equal(again.keyframes[0].place, memory.keyframes[0].place)


@pytest.fixture(scope="module")
def codec() -> LinearCodec:
    """One that loses nothing."""
    codec = LinearCodec(channels=4 * 3 * 8 * 8, stride=8)
    codec.fit(torch.rand(60, 4, 3, *room.SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    return codec


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return room.learnt_atlas()


LEVEL = torch.tensor([0.4, -1.0, 0.7]), torch.tensor([0.0, 0.0, 0.0])
"""A place of a walk's own frame, and where in the room it is."""


def walked(there: torch.Tensor) -> torch.Tensor:
    """Cameras of a walk, in its own frame, whose places in the room are `[n, 3]`."""
    return torch.stack([camera(*place) for place in carried(there, LEVEL[1], LEVEL[0]).tolist()])


def seen(codec: LinearCodec, frame: torch.Tensor, at: torch.Tensor, place: torch.Tensor) -> Keyframe:
    """A true keyframe of a frame of the room."""
    latent = codec.encode(frame.expand(1, 4, -1, -1, -1))[0]
    true = torch.zeros(latent.shape[-2:])
    return lifted(latent, torch.full(room.SIZE, 2.0), at.expand(4, 4, 4), room.K, true, 0, place)


def places_in_the_room(atlas: Atlas, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Five places, what is seen there as the atlas would have it (how well it knows the room is no matter), cameras."""
    there = room.draw_places(5, torch.Generator().manual_seed(seed))
    return there, atlas.picture(there, room.K)[0].clamp(-1, 1), walked(there)


def off_m(place: torch.Tensor, there: torch.Tensor) -> float:
    return float((place[:2] - there[:2]).norm())


def test_true_frames_are_recognised_one_after_the_other_and_trusted_more_and_more(atlas, codec):
    for seed in range(4):
        there, frames, cameras = places_in_the_room(atlas, seed)
        keyframes, trust = [], []
        for frame, at, truly in zip(frames, cameras, there, strict=True):
            place = recognise(atlas, codec, keyframes, frame, at, room.K)
            keyframes.append(seen(codec, frame, at, place))
            trust.append(float(place[3]))
            assert off_m(place, truly) < 0.02
        assert trust == sorted(trust) and trust[-1] > 2 * trust[0]


class Searching:
    """An atlas that notes what it is asked."""

    def __init__(self, atlas: Atlas):
        self.atlas, self.asked = atlas, []

    def find(self, *told):
        self.asked.append("find")
        return self.atlas.find(*told)

    def compare(self, *told):
        self.asked.append("compare")
        return self.atlas.compare(*told)

    def settle(self, *told):
        self.asked.append("settle")
        return self.atlas.settle(*told)


def test_what_looks_as_expected_is_not_searched_for_and_in_the_end_not_even_settled(atlas, codec):
    generator = torch.Generator().manual_seed(9)
    there = room.draw_places(12, generator)
    frames, cameras = atlas.picture(there, room.K)[0].clamp(-1, 1), walked(there)
    keyframes, asked = [], []
    for frame, at, truly in zip(frames, cameras, there, strict=True):
        searching = Searching(atlas)
        place = recognise(searching, codec, keyframes, frame, at, room.K)
        asked.append(searching.asked)
        assert off_m(place, truly) < 0.02
        keyframes.append(seen(codec, frame, at, place))
    assert asked[0] == ["find", "settle"]
    assert asked[1:7] == [["compare", "settle"]] * 6
    assert asked[7:] == [["compare"], ["compare", "settle"], ["compare"], ["compare"], ["compare"]]
    # A frame that does not look so is searched for.
    searching = Searching(atlas)
    recognise(searching, codec, keyframes, frames[3].roll(1, 0), cameras[3], room.K)
    assert "find" in searching.asked


def test_what_looks_like_nothing_stands_where_those_before_it_say(atlas, codec):
    there, frames, cameras = places_in_the_room(atlas, 5)
    sure = [float(trust) for trust in atlas.find(frames[:4], room.K)[:, 3]]
    keyframes = [
        seen(codec, frame, at, torch.cat([place, torch.tensor([trust])]))
        for frame, at, place, trust in zip(frames, cameras, there, sure, strict=False)
    ]
    blank = torch.full_like(frames[-1], 0.3)
    assert recognise(atlas, codec, [], blank, cameras[-1], room.K)[3] == SUPPOSED
    place = recognise(atlas, codec, keyframes, blank, cameras[-1], room.K)
    assert place[3] > 0 and off_m(place, there[-1]) < 0.02


def test_an_episode_is_supposed_to_be_where_the_map_is_likest_until_something_is_recognised(atlas, codec):
    there, frames, cameras = places_in_the_room(atlas, 7)
    foreign = torch.rand(3, *room.SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    supposed = recognise(atlas, codec, [], foreign, cameras[0], room.K)
    assert torch.equal(supposed[:3], atlas.find(foreign[None], room.K)[0, :3]) and supposed[3] == SUPPOSED
    keyframes = [seen(codec, foreign, cameras[0], supposed)]
    assert is_supposed(keyframes) and not is_supposed([])
    ((place,),) = recognised([keyframes], cameras[None, :1])
    assert torch.allclose(place, supposed[:3], atol=1e-5)
    # A second frame of nothing supposes nothing else; a true one settles it.
    again = recognise(atlas, codec, keyframes, foreign.roll(7, 1), cameras[1], room.K)
    keyframes.append(seen(codec, foreign, cameras[1], again))
    ((place,),) = recognised([keyframes], cameras[None, :1])
    assert again[3] == 0 and is_supposed(keyframes) and torch.allclose(place, supposed[:3], atol=1e-5)
    for frame, at in zip(frames[2:], cameras[2:], strict=True):
        keyframes.append(seen(codec, frame, at, recognise(atlas, codec, keyframes, frame, at, room.K)))
    assert not is_supposed(keyframes)
    ((place,),) = recognised([keyframes], cameras[None, 3:4])
    assert off_m(place, there[3]) < 0.02


def test_one_mistaken_keyframe_is_corrected_by_the_next_true_frames(atlas, codec):
    there, frames, cameras = places_in_the_room(atlas, 6)
    mistaken = torch.cat([there[0] + torch.tensor([2.0, -2.0, 1.0]), torch.tensor([0.01])])
    keyframes = [seen(codec, frames[0], cameras[0], mistaken)]
    for frame, at in zip(frames[1:], cameras[1:], strict=True):
        keyframes.append(seen(codec, frame, at, recognise(atlas, codec, keyframes, frame, at, room.K)))
    ((place,),) = recognised([keyframes], cameras[None, :1])
    assert off_m(place, there[0]) < 0.02


def test_a_whole_walk_is_recognised_at_once_its_blank_views_too(atlas):
    there, frames, cameras = places_in_the_room(atlas, 7)
    frames[1] = 0.3
    assert not atlas.find(frames[1:2], room.K)[0, 3] > 0
    places = recognise_walk(atlas, frames, cameras, room.K)
    assert max(off_m(place, at) for place, at in zip(places, there, strict=True)) < 0.02
    assert bool((places[:, 3] > 0).all())
    nowhere = recognise_walk(atlas, torch.full_like(frames, 0.3), cameras, room.K)
    assert not bool((nowhere[:, 3] > 0).any())


def test_a_frame_that_is_surer_alone_is_not_held_by_mistaken_ones(atlas, codec):
    there, frames, cameras = places_in_the_room(atlas, 8)
    wrong = carried(there, torch.zeros(3), torch.tensor([1.5, -1.5, 2.0]))
    keyframes = [
        seen(codec, torch.full_like(frame, 0.3), at, torch.cat([place, torch.tensor([0.01])]))
        for frame, at, place in zip(frames[:-1], cameras[:-1], wrong, strict=False)
    ]
    held = recognise(atlas, codec, keyframes, frames[-1], cameras[-1], room.K)
    assert torch.allclose(held, recognise(atlas, codec, [], frames[-1], cameras[-1], room.K), atol=1e-4)
    assert off_m(recognised([keyframes], cameras[None, -1:])[0][0], held) > 1.0
