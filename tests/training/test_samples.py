"""Training samples: memory that ends somewhere across the view, or some steps ago."""

import numpy as np
import torch

from mosaic_gym.geometry.control import Pose
from mosaic_gym.memory.keyframe import lift
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.training.samples import MemoryMix, choose_past, forget_a_wedge
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
