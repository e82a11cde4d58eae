"""A room that is known by plain geometry, and an atlas that has learnt it in some seconds."""

from __future__ import annotations

import math
from functools import cache

import torch

from mosaic_gym.model.atlas import Atlas
from mosaic_gym.training.atlas import LOCATING, Learner, locating_loss

SIZE = (32, 48)
K = torch.tensor([[24.0, 0.0, 24.0], [0.0, 24.0, 16.0], [0.0, 0.0, 1.0]])
HALF_M = 4.0
"""Of the side of a square room around the map's middle; a wall a colour."""
COLOURS = torch.tensor([[0.8, -0.6, -0.6], [-0.6, 0.8, -0.6], [-0.6, -0.6, 0.8], [0.8, 0.8, -0.6]])


def rendered(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The room from places: frames and the log depth of their columns, by plain geometry."""
    height, width = SIZE
    aside = (torch.arange(width) + 0.5 - K[0, 2]) / K[0, 0]
    sine, cosine = places[:, 2].sin(), places[:, 2].cos()
    x = sine[:, None] + aside * cosine[:, None]
    z = cosine[:, None] - aside * sine[:, None]
    reach = torch.stack([(HALF_M - places[:, :1]) / x, (-HALF_M - places[:, :1]) / x,
                         (HALF_M - places[:, 1:2]) / z, (-HALF_M - places[:, 1:2]) / z])  # fmt: skip
    depth_m, wall = torch.where(reach > 1e-3, reach, torch.inf).min(0)
    rows = (torch.arange(height) + 0.5 - K[1, 2])[:, None] / K[1, 1] * depth_m[:, None]  # metres below the eye
    frames = torch.where((rows.abs() < 1.0)[:, None], COLOURS[wall].permute(0, 2, 1)[:, :, None], -0.2)
    return frames, depth_m.log()


def draw_places(count: int, generator: torch.Generator) -> torch.Tensor:
    """Places anywhere in it, [count, 3]."""
    drawn = torch.rand(count, 3, generator=generator)
    return torch.cat([(drawn[:, :2] - 0.5) * 5.0, drawn[:, 2:] * 2 * math.pi], -1)


@cache
def learnt_atlas() -> Atlas:
    """An atlas of the room after some seconds of training."""
    torch.manual_seed(0)
    atlas = Atlas(*SIZE, corner_m=(-5.0, -5.0), side_m=10.0, coarse=12, fine=24, features=8, samples=10, hidden=64,
                  cells=5, headings=8, strip=32, ground=32)  # fmt: skip
    learner, generator = Learner(atlas, K), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    for _ in range(450):
        places = draw_places(16, generator)
        frames, log_depth = rendered(places)
        pictures, believed, said = learner(frames, places, torch.zeros(16, dtype=torch.bool))
        drawing = ((pictures - frames).square().mean((1, 2, 3)) + 1e-4).sqrt().mean()
        loss = drawing + 0.2 * (believed - log_depth).abs().mean() + LOCATING * locating_loss(atlas, said, places)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return atlas.eval().requires_grad_(False)
