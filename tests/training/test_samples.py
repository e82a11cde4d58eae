"""Training samples: memory that ends somewhere across the view, or some steps ago."""

from dataclasses import replace

import numpy as np
import torch

from mosaic_gym.geometry.control import Pose
from mosaic_gym.memory.keyframe import lift
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.training.samples import MemoryMix, Remembered, choose_past, draw_state, forget_a_wedge, gone_astray
from mosaic_gym.worlds.state import WorldState


def test_a_wedge_is_forgotten_on_one_side_only():
    k = torch.tensor([[32.0, 0.0, 32.0], [0.0, 32.0, 32.0], [0.0, 0.0, 1.0]])
    camera = torch.eye(4)
    wall = lift(torch.zeros(8, 8, 8), torch.full((64, 64), 4.0), camera.expand(4, 4, 4), k, torch.zeros(8, 8), 0)
    memory, cameras = MosaicMemory((wall,)), camera.expand(1, 4, 4, 4)
    state = WorldState(Pose(np.eye(4)), torch.zeros(1, 8, 8, 8), cameras, memory, "", torch.zeros(1, 8), 0, 0)
    shares = []
    for seed in range(12):
        (cut,) = forget_a_wedge(state, camera, np.random.default_rng(seed)).memory.keyframes
        assert torch.equal(cut.latent, wall.latent)
        columns = cut.alive.float().mean(0)
        assert set(columns.tolist()) <= {0.0, 1.0}, "the wall is cut from top to bottom"
        assert (columns.diff() != 0).sum() <= 1, "along one line"
        shares.append(float(columns.mean()))
    assert min(shares) < 0.5 < max(shares)
    assert wall.alive.all()


def test_who_is_away_remembers_nothing_of_the_last_steps():
    past = list(range(30))
    mix = MemoryMix(forget=0.0, away=1.0, longest_away=5)
    latest = {choose_past(past, mix, np.random.default_rng(seed))[-1] for seed in range(200)}
    assert max(latest) == 28 and latest >= set(range(24, 29))
    assert [choose_past(past[:1], mix, np.random.default_rng(seed)) for seed in range(3)] == [past[:1]] * 3
    there = MemoryMix(forget=0.0, away=0.0)
    assert max(choose_past(past, there, np.random.default_rng(seed))[-1] for seed in range(50)) == 29


def recognised_episode() -> Remembered:
    """Four keyframes, of which the second was not recognised."""
    k, camera = torch.tensor([[8.0, 0.0, 8.0], [0.0, 8.0, 8.0], [0.0, 0.0, 1.0]]), torch.eye(4).expand(4, 4, 4)
    places = [torch.tensor([1.0, 2.0, 0.5, trust]) for trust in (0.3, 0.0, 0.4, 0.2)]
    depth_m, latent, true = torch.full((16, 16), 4.0), torch.zeros(8, 2, 2), torch.zeros(2, 2)
    keyframes = [lift(latent, depth_m, camera, k, true, step, place) for step, place in enumerate(places)]
    return Remembered(keyframes, ["a room"] * 4)


def test_places_go_astray_together_and_what_was_not_recognised_stays_so():
    keyframes = recognised_episode().keyframes
    offs = []
    for seed in range(100):
        moved = gone_astray(keyframes, 0.05, np.random.default_rng(seed))
        off = torch.stack([new.place - old.place for new, old in zip(moved, keyframes, strict=True)])
        assert torch.equal(off[1], torch.zeros(4)) and not off[:, 3].any()
        assert torch.allclose(off[0], off[2]) and torch.allclose(off[0], off[3])
        offs.append(off[0])
    off_m = torch.stack(offs)[:, :2].norm(dim=-1)
    assert 0.0 < off_m.median() < 0.03 < off_m.max() < 0.2
    still = gone_astray(keyframes, 0.0, np.random.default_rng(0))
    assert torch.equal(still[0].place, keyframes[0].place)


def test_some_samples_know_no_place():
    episode, text = recognised_episode(), torch.zeros(1, 8)
    mix = MemoryMix(forget=0.0, last_only=0.0, worn=0.0, away=0.0)

    def known(unplaced: float, seed: int) -> bool:
        mixed = replace(mix, unplaced=unplaced)
        state = draw_state(episode, 3, mixed, text, 0, np.random.default_rng(seed))
        return any(keyframe.trust > 0 for keyframe in state.memory.keyframes)

    assert all(known(0.0, seed) for seed in range(10)) and not any(known(1.0, seed) for seed in range(10))
    assert 5 < sum(known(0.5, seed) for seed in range(40)) < 35
