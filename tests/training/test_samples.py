"""Training samples: memory that ends somewhere across the view, or some steps ago."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from mosaic_gym.geometry.control import Pose
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.memory.retrieval import Retrieved
from mosaic_gym.training.samples import (
    WARPS,
    LiftedEpisode,
    MemoryAugmentation,
    add_place_noise,
    choose_keyframes,
    crop_memory,
    draw_state,
    draw_warp,
    retrieve_mixed,
    select_warps,
)
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.protocol import Start
from mosaic_gym.worlds.state import WorldState
from tests.tiny import lifted, tiny_model


def test_a_wedge_is_forgotten_on_one_side_only():
    k = torch.tensor([[32.0, 0.0, 32.0], [0.0, 32.0, 32.0], [0.0, 0.0, 1.0]])
    camera = torch.eye(4)
    wall = lifted(torch.zeros(8, 8, 8), torch.full((64, 64), 4.0), camera.expand(4, 4, 4), k, torch.zeros(8, 8), 0)
    memory, cameras = MosaicMemory((wall,)), camera.expand(1, 4, 4, 4)
    state = WorldState(Pose(np.eye(4)), torch.zeros(1, 8, 8, 8), cameras, memory, "", torch.zeros(1, 8), 0, 0)
    shares = []
    for seed in range(12):
        (cut,) = crop_memory(state, camera, np.random.default_rng(seed)).memory.keyframes
        assert torch.equal(cut.latent, wall.latent)
        columns = cut.alive.float().mean(0)
        assert set(columns.tolist()) <= {0.0, 1.0}, "the wall is cut from top to bottom"
        assert (columns.diff() != 0).sum() <= 1, "along one line"
        shares.append(float(columns.mean()))
    assert min(shares) < 0.5 < max(shares)
    assert wall.alive.all()


def test_who_is_away_remembers_nothing_of_the_last_steps():
    past = list(range(30))
    mix = MemoryAugmentation(no_memory=0.0, no_recent=1.0, max_recent_steps=5)
    latest = {choose_keyframes(past, mix, np.random.default_rng(seed))[-1] for seed in range(200)}
    assert max(latest) == 28 and latest >= set(range(24, 29))
    assert [choose_keyframes(past[:1], mix, np.random.default_rng(seed)) for seed in range(3)] == [past[:1]] * 3
    there = MemoryAugmentation(no_memory=0.0, no_recent=0.0)
    assert max(choose_keyframes(past, there, np.random.default_rng(seed))[-1] for seed in range(50)) == 29


def recognised_episode() -> LiftedEpisode:
    """Four keyframes, of which the second was not recognised."""
    k, camera = torch.tensor([[8.0, 0.0, 8.0], [0.0, 8.0, 8.0], [0.0, 0.0, 1.0]]), torch.eye(4).expand(4, 4, 4)
    places = [torch.tensor([1.0, 2.0, 0.5, trust]) for trust in (0.3, 0.0, 0.4, 0.2)]
    depth_m, latent, true = torch.full((16, 16), 4.0), torch.zeros(8, 2, 2), torch.zeros(2, 2)
    keyframes = [lifted(latent, depth_m, camera, k, true, step, place) for step, place in enumerate(places)]
    return LiftedEpisode(keyframes, ["a room"] * 4)


def test_places_go_astray_together_and_what_was_not_recognised_stays_so():
    keyframes = recognised_episode().keyframes
    offs = []
    for seed in range(100):
        moved = add_place_noise(keyframes, 0.05, np.random.default_rng(seed))
        off = torch.stack([new.place - old.place for new, old in zip(moved, keyframes, strict=True)])
        assert torch.equal(off[1], torch.zeros(4)) and not off[:, 3].any()
        assert torch.allclose(off[0], off[2]) and torch.allclose(off[0], off[3])
        offs.append(off[0])
    off_m = torch.stack(offs)[:, :2].norm(dim=-1)
    assert 0.0 < off_m.median() < 0.03 < off_m.max() < 0.2
    unchanged = add_place_noise(keyframes, 0.0, np.random.default_rng(0))
    assert torch.equal(unchanged[0].place, keyframes[0].place)


def test_some_samples_know_no_place():
    episode, text = recognised_episode(), torch.zeros(1, 8)
    mix = MemoryAugmentation(no_memory=0.0, last_only=0.0, degraded=0.0, no_recent=0.0)

    def known(no_place: float, seed: int) -> bool:
        mixed = replace(mix, no_place=no_place)
        state = draw_state(episode, 3, mixed, text, 0, np.random.default_rng(seed))
        return any(keyframe.trust > 0 for keyframe in state.memory.keyframes)

    assert all(known(0.0, seed) for seed in range(10)) and not any(known(1.0, seed) for seed in range(10))
    assert 5 < sum(known(0.5, seed) for seed in range(40)) < 35


def test_every_view_is_told_by_its_own_warp():
    world = MosaicWorld(tiny_model(), atlas=False)
    states = [world.start(Start(seed=seed))[0] for seed in (1, 2, 3)]
    cameras = torch.stack([state.history_cameras for state in states])
    retrieved = world.retrieve(states, cameras)
    nothing = world.retrieve([replace(state, memory=MosaicMemory()) for state in states], cameras)
    told = select_warps(retrieved, nothing, ["both", "rope", "latent"])
    assert retrieved.patch_exists.any(1).all() and retrieved.pixels_covered.flatten(1).any(1).all()
    for name in (field.name for field in fields(Retrieved)):
        assert torch.equal(getattr(told, name)[0], getattr(retrieved, name)[0]), f"both: {name}"
        rope = retrieved if name.startswith("patch") else nothing
        assert torch.equal(getattr(told, name)[1], getattr(rope, name)[1]), f"rope: {name}"
        if name != "patch_exists":
            assert torch.equal(getattr(told, name)[2], getattr(retrieved, name)[2]), f"latent: {name}"
    assert not told.patch_exists[2].any() and not told.coverage_mask[1, :-1].any() and told.coverage[1] == 0
    with pytest.raises(ValueError, match="3 views take as many warps; got 1"):
        select_warps(retrieved, nothing, ["both"])
    with pytest.raises(ValueError, match=r"unknown warps .'bent'.; the known ones are both, rope, latent"):
        select_warps(retrieved, nothing, ["both", "bent", "rope"])


def test_warps_are_drawn_as_often_as_the_mixture_says():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert {draw_warp(MemoryAugmentation(), rng) for _ in range(20)} == {"both"}
    assert rng.bit_generator.state == before, "the recipe without a mixture draws what it always drew"
    drawn = [draw_warp(MemoryAugmentation(single_warp=0.5), rng) for _ in range(2000)]
    shares = [drawn.count(warp) / 2000 for warp in WARPS]
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.04)


def test_a_mixture_tells_clips_whole():
    world = MosaicWorld(tiny_model(), atlas=False)
    states = [world.start(Start(seed=seed))[0] for seed in range(12)]
    cameras = torch.stack([state.history_cameras.expand(2, 4, 4, 4) for state in states])  # clips of two steps
    told = retrieve_mixed(world, states, cameras, None, MemoryAugmentation(single_warp=1.0), np.random.default_rng(0))
    kinds = torch.stack([told.patch_exists.any(1), told.pixels_covered.flatten(1).any(1)], dim=1).view(12, 2, 2)
    assert torch.equal(kinds[:, 0], kinds[:, 1]), "both steps of a clip alike"
    assert {tuple(kind) for kind in kinds[:, 0].tolist()} == {(True, False), (False, True)}
