"""What the atlas adds to memory: pictures by heart, which fill holes, and weigh where memory is in doubt."""

import dataclasses

import numpy as np
import pytest
import torch

from mosaic_gym.geometry.camera import carried, place_of
from mosaic_gym.memory.keyframe import ASSUMED as SUPPOSED
from mosaic_gym.model.codec import LinearCodec
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.protocol import Start
from mosaic_gym.worlds.state import WorldState
from tests.tiny import SIZE, tiny_model

ON_MAP = torch.tensor([7.0, 5.0, 2.1, 1.0])
RIGHT = np.array([0, 0, 1.0])


@pytest.fixture(scope="module")
def world() -> MosaicWorld:
    model = tiny_model()
    # A contrast that a map would have; fresh weights draw next to one colour.
    torch.nn.init.normal_(model.atlas.draw[-1].weight, std=0.5)
    return MosaicWorld(model)


def recognised_state(world: MosaicWorld, seed: int, place: torch.Tensor = ON_MAP) -> WorldState:
    """A start whose one keyframe was recognised at `place`."""
    state, _ = world.start(Start(seed=seed))
    (keyframe,) = state.memory.keyframes
    memory = dataclasses.replace(state.memory, keyframes=(dataclasses.replace(keyframe, place=place),))
    return dataclasses.replace(state, memory=memory)


def asked(world: MosaicWorld, state: WorldState, turns: int = 1) -> torch.Tensor:
    pose = state.pose
    for _ in range(turns):
        *before, pose = world.control.advance(pose, RIGHT)
    cameras = np.array([each.world_from_camera for each in (*before, pose)])
    return torch.tensor(cameras, dtype=torch.float32)[None, None]


def by_heart(world: MosaicWorld, state: WorldState, cameras: torch.Tensor) -> torch.Tensor:
    """The atlas's pictures `[4, 3, H, W]` of a view `[1, 1, 4, 4, 4]` of a state that was recognised at `ON_MAP`."""
    places = carried(place_of(cameras[0, 0]), place_of(state.history_cameras[-1, -1]), ON_MAP[:3])
    return world.model.atlas.picture(places, world.layout.intrinsics)[0].clamp(-1, 1)


def test_holes_are_filled_from_the_place_and_what_memory_covers_stays(world):
    state = recognised_state(world, 1)
    cameras = asked(world, state, turns=2)
    plain = world.retrieve([state], cameras)
    beside = world.retrieve([state], cameras, world.map_views([state], cameras))
    covered = plain.pixels_covered[:, :, None].expand_as(plain.warped_frames)
    assert 0.2 < covered.float().mean() < 1.0
    pictures = by_heart(world, state, cameras)[None]
    assert torch.allclose(beside.pictures, pictures, atol=1e-5)
    assert torch.equal(beside.warped_frames, torch.where(covered, plain.warped_frames, beside.pictures))
    assert torch.equal(beside.warped_latent, world.model.codec.from_keyframe_images(beside.warped_frames))
    for name in ("coverage_mask", "warp_uncertainty", "memory_weight", "coverage", "depth_m", "patches"):
        assert torch.equal(getattr(beside, name), getattr(plain, name))


def test_what_is_expected_lies_between_memory_and_map_by_what_memory_costs_there(world):
    world = MosaicWorld(dataclasses.replace(world.model, codec=complete_codec()))
    state = recognised_state(world, 1)
    # A turn shows memory as it was seen; a step aside shows it from elsewhere, where depth must be believed.
    turned, aside = asked(world, state), asked(world, state, turns=2)
    aside[..., :3, 3] += torch.tensor([0.3, 0.0, 0.0])
    for cameras, least, most in ((turned, 0.8, 1.0), (aside, 0.01, 0.3)):
        beside = world.retrieve([state], cameras, world.map_views([state], cameras))
        covered, reliance = beside.pixels_covered, beside.memory_weight
        assert not reliance[~covered].any()
        assert least < float(reliance[covered].mean()) <= most
        expected = world.model.codec.decode(beside.conditioning_latent)
        between = beside.pictures + reliance[:, :, None] * (beside.warped_frames - beside.pictures)
        assert torch.allclose(expected, between, atol=1e-3)


def complete_codec() -> LinearCodec:
    """One that loses nothing."""
    codec = LinearCodec(channels=768)
    codec.fit(torch.rand(30, 4, 3, *SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    return codec


def test_a_place_that_is_not_recognised_is_not_filled(world):
    state = recognised_state(world, 2, torch.zeros(4))
    cameras = asked(world, state, turns=2)
    assert world.map_views([state], cameras) == [None]
    plain = world.retrieve([state], cameras, [None])
    assert torch.equal(plain.pictures, plain.warped_frames)
    assert plain.conditioning_latent is plain.warped_latent
    without = MosaicWorld(world.model, atlas=False)
    assert without.map_views([recognised_state(world, 2)], cameras) == [None]


def test_from_a_place_that_is_only_supposed_holes_are_filled_and_nothing_else(world):
    world = MosaicWorld(dataclasses.replace(world.model, codec=complete_codec()))
    known, supposed = recognised_state(world, 1), recognised_state(world, 1, ON_MAP * torch.tensor([1, 1, 1, SUPPOSED]))
    cameras = asked(world, known, turns=2)
    cameras[..., :3, 3] += torch.tensor([0.3, 0.0, 0.0])  # from aside, where memory is not to be relied on much
    pictures = world.map_views([supposed], cameras)
    plain, beside = world.retrieve([supposed], cameras), world.retrieve([supposed], cameras, pictures)
    covered = plain.pixels_covered[:, :, None].expand_as(plain.warped_frames)
    drawn = by_heart(world, supposed, cameras)[None]
    assert torch.allclose(beside.pictures, torch.where(covered, plain.warped_frames, drawn), atol=1e-5)
    assert torch.equal(beside.warped_frames, beside.pictures)
    expected = world.model.codec.decode(beside.conditioning_latent)
    assert torch.allclose(expected[covered], plain.warped_frames[covered], atol=1e-3)
    both = world.retrieve([known, supposed], cameras.expand(2, -1, -1, -1, -1), pictures * 2)
    assert torch.equal(both.pictures[0], world.retrieve([known], cameras, pictures).pictures[0])
    assert torch.equal(both.pictures[1], beside.pictures[0])
    # Walls that are only supposed stop nobody: they could stand in what was seen.
    around, lifted = world.obstacles([known, supposed])
    (alone,) = MosaicWorld(world.model, atlas=False).obstacles([supposed])
    assert np.array_equal(lifted, alone) and len(around) > len(lifted)


def test_what_the_map_does_not_know_begins_where_it_is_likest(world):
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    state, _ = world.start(Start(seed=1, image=noise))
    (first,) = state.memory.keyframes
    assert first.trust == SUPPOSED
    (after,), (supposed,) = world.step([state], RIGHT[None])
    assert after.memory.keyframes[-1].is_from_atlas, "what is dreamt there is drawn anew, like anything by heart"
    _, (known,) = world.step([recognised_state(world, 1)], RIGHT[None])
    assert known.on_map and not supposed.on_map
    _, (without,) = MosaicWorld(world.model, atlas=False).step([recognised_state(world, 1)], RIGHT[None])
    assert not without.on_map


def test_whoever_walks_off_the_edge_of_the_map_is_no_longer_on_it(world):
    side_m = world.atlas.config.side_m
    state = recognised_state(world, 1)
    far = state.pose.world_from_camera.copy()
    far[0, 3] += 1.5 * side_m
    _, views = world.generate(
        [state] * 2, [[state.pose] * 4, [dataclasses.replace(state.pose, world_from_camera=far)] * 4]
    )
    assert [view.on_map for view in views] == [True, False]


def test_one_whose_place_is_known_does_not_change_another(world):
    states = [recognised_state(world, 1), recognised_state(world, 2, torch.zeros(4))]
    cameras = torch.cat([asked(world, state, turns=2) for state in states])
    pictures = world.map_views(states, cameras)
    assert pictures[0] is not None and pictures[1] is None
    together, plain = world.retrieve(states, cameras, pictures), world.retrieve(states, cameras)
    assert not torch.equal(together.warped_frames[0], plain.warped_frames[0])
    for name in ("warped_frames", "pictures"):
        assert torch.equal(getattr(together, name)[1], getattr(plain, name)[1])
    assert torch.allclose(together.conditioning_latent[1], plain.warped_latent[1], atol=1e-5)


def test_the_atlas_changes_what_is_dreamt_and_each_member_has_its_own_place(world):
    states = [recognised_state(world, 1), recognised_state(world, 2, torch.tensor([3.0, 9.0, 0.3, 1.0]))]
    _, together = world.step(states, np.stack([RIGHT, -RIGHT]))
    for state, action, view in zip(states, (RIGHT, -RIGHT), together, strict=True):
        _, (alone,) = world.step([state], action[None])
        assert np.abs(alone.frames.astype(int) - view.frames).max() <= 1
        _, (blind,) = MosaicWorld(world.model, atlas=False).step([state], action[None])
        assert not np.array_equal(blind.frames, alone.frames)


def test_a_clip_and_a_kept_state_know_their_place(world):
    states = [recognised_state(world, 1), recognised_state(world, 2, torch.tensor([3.0, 9.0, 0.3, 1.0]))]
    clips = [torch.cat([asked(world, state, turns=turns)[0] for turns in (2, 3)]) for state in states]
    cameras = torch.stack(clips)  # [2, 2, 4, 4, 4]
    together = world.retrieve(states, cameras, world.map_views(states, cameras))
    for i, state in enumerate(states):
        for k in range(2):
            one = cameras[i : i + 1, k : k + 1]
            alone = world.retrieve([state], one, world.map_views([state], one))
            for name in ("warped_frames", "pictures"):
                assert torch.allclose(getattr(together, name)[2 * i + k], getattr(alone, name)[0], atol=1e-5)
    again = world.unpack(*world.pack(states[0]))
    (_,), (first,) = world.step([states[0]], RIGHT[None])
    (_,), (second,) = world.step([again], RIGHT[None])
    assert np.array_equal(first.frames, second.frames)


def test_a_world_that_forgets_does_not_know_its_place(world):
    forgetful = MosaicWorld(world.model, capacity=0)
    state, _ = forgetful.start(Start(seed=1))
    cameras = asked(forgetful, state)
    assert forgetful.map_views([state], cameras) == [None]


def test_dreamt_frames_are_not_believed_about_where_they_are(world):
    state = recognised_state(world, 1)
    poses = [world.control.advance(state.pose, RIGHT)]
    poses.append(world.control.advance(poses[0][-1], RIGHT))
    (after,), _ = world.generate_clip([state], [[*poses[0], *poses[1]]])
    first, *dreamt = after.memory.keyframes
    assert first.trust == 1.0 and [keyframe.is_from_atlas for keyframe in dreamt] == [True, True]
    for keyframe in dreamt:
        place = carried(place_of(keyframe.world_from_keyframe), place_of(first.world_from_keyframe), ON_MAP[:3])
        assert torch.allclose(keyframe.place[:3], place, atol=1e-5)
    lost, _ = world.step([recognised_state(world, 1, torch.zeros(4))], RIGHT[None])
    assert not lost[0].memory.keyframes[-1].place.any()


def recalled_from(world: MosaicWorld, state: WorldState, *indices: int) -> torch.Tensor:
    """The stills that some of a state's keyframes give, without any regard to what they are."""
    chosen = tuple(state.memory.keyframes[index] for index in indices)
    some = dataclasses.replace(state, memory=dataclasses.replace(state.memory, keyframes=chosen))
    return MosaicWorld(world.model, atlas=False).retrieve([some], asked(world, some)).warped_frames[0]


def test_what_was_dreamt_by_heart_is_drawn_anew_and_nothing_else_is_lost(world):
    known, lost = recognised_state(world, 1), recognised_state(world, 2, torch.zeros(4))
    states, _ = world.step([known, lost], np.stack([RIGHT, -RIGHT]))
    cameras = torch.cat([asked(world, state) for state in states])
    stills = world.retrieve(states, cameras).warped_frames
    assert torch.equal(stills[0], recalled_from(world, states[0], 0))
    assert torch.equal(stills[1], recalled_from(world, states[1], 0, 1))
    assert not torch.equal(stills[0], recalled_from(world, states[0], 0, 1))
    assert not torch.equal(stills[1], recalled_from(world, states[1], 0))
    # Recognised only now, or edited: nothing can draw again what was dreamt before.
    first, dreamt = states[1].memory.keyframes
    memory = dataclasses.replace(states[1].memory, keyframes=(dataclasses.replace(first, place=ON_MAP), dreamt))
    found = dataclasses.replace(states[1], memory=memory)
    assert torch.equal(world.retrieve([found], cameras[1:]).warped_frames[0], stills[1])
    edited = dataclasses.replace(states[0], memory=states[0].memory.edit({}, None))
    assert torch.equal(world.retrieve([edited], cameras[:1]).warped_frames[0], recalled_from(world, states[0], 0, 1))


def test_the_last_frame_alone_is_recalled_though_it_was_drawn_by_heart(world):
    forgetful = MosaicWorld(world.model, capacity=1)
    state = recognised_state(world, 1)
    memory = dataclasses.replace(state.memory, capacity=1)
    state = dataclasses.replace(state, memory=memory)
    still = np.zeros((1, 3))
    (after,), _ = forgetful.step([state], still)
    (only,) = after.memory.keyframes
    assert only.is_from_atlas and forgetful.map_views([after], asked(forgetful, after)) == [None]
    _, (view,) = forgetful.step([after], still)
    assert view.coverage > 0.5


def test_a_full_memory_lets_go_of_what_can_be_drawn_again(world):
    state = recognised_state(world, 1)
    memory = dataclasses.replace(state.memory, capacity=3)
    (first,) = memory.keyframes
    heart = dataclasses.replace(first, place=torch.tensor([0.0, 0.0, 0.0, -1.0]), step=1)
    far = first.transformed(torch.eye(4).index_put((torch.tensor(0), torch.tensor(3)), torch.tensor(50.0)))
    for keyframe in (first.transformed(torch.eye(4)), heart, far):
        memory = memory.update(keyframe)
    assert [keyframe.step for keyframe in memory.keyframes] == [0, 0, 0]
