"""The atlas: what it learns of a room, that it finds where it stands by looking, and what it knows nothing of."""

import math

import pytest
import torch

from mosaic_gym.model.atlas import Atlas
from mosaic_gym.training.atlas import LOCATING, Learner, Sights, locating_loss, report

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
    drawn = torch.rand(count, 3, generator=generator)
    return torch.cat([(drawn[:, :2] - 0.5) * 5.0, drawn[:, 2:] * 2 * math.pi], -1)


@pytest.fixture(scope="module")
def learnt() -> Atlas:
    """An atlas of the room after some seconds of training."""
    torch.manual_seed(0)
    atlas = Atlas(*SIZE, corner_m=(-5.0, -5.0), side_m=10.0, coarse=12, fine=24, features=8, samples=10, hidden=64,
                  cells=5, headings=8)  # fmt: skip
    learner, generator = Learner(atlas, K), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    for _ in range(350):
        places = draw_places(16, generator)
        frames, log_depth = rendered(places)
        pictures, believed, said = learner(frames, places, torch.zeros(16, dtype=torch.bool))
        drawing = ((pictures - frames).square().mean((1, 2, 3)) + 1e-4).sqrt().mean()
        loss = drawing + 0.2 * (believed - log_depth).abs().mean() + LOCATING * locating_loss(atlas, said, places)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return atlas.eval().requires_grad_(False)


def test_it_draws_a_room_from_places_it_was_never_at(learnt):
    places = draw_places(40, torch.Generator().manual_seed(2))
    frames, log_depth = rendered(places)
    pictures, believed = learnt.picture(places, K)
    assert pictures.shape == (40, 3, *SIZE) and believed.shape == (40, SIZE[1])
    error = (pictures - frames).square().mean()
    assert error < 0.2 * (frames - frames.mean((2, 3), keepdim=True)).square().mean()
    assert (believed - log_depth).abs().median() < 0.15


def test_it_finds_where_it_stands_and_looking_around_is_nearer_than_a_first_guess(learnt):
    places = draw_places(40, torch.Generator().manual_seed(3))
    frames, _ = rendered(places)
    first, found = learnt.find(frames, K, rounds=0), learnt.find(frames, K)
    off = [(each[:, :2] - places[:, :2]).norm(dim=-1).median() for each in (first, found)]
    assert off[1] < 0.3 and off[1] < 0.7 * off[0]
    turned = (found[:, 2] - places[:, 2] + math.pi).remainder(2 * math.pi) - math.pi
    assert turned.abs().median() < 0.05
    assert (found[:, 3] > 0.05).float().mean() > 0.9


def test_a_hint_is_tried_too(learnt):
    places = draw_places(8, torch.Generator().manual_seed(4))
    frames = learnt.picture(places, K)[0].clamp(-1, 1)
    found = learnt.find(frames, K, hints=places[:, None], rounds=0)
    assert torch.allclose(found[:, :3], places)


def test_what_is_not_of_the_map_is_not_trusted(learnt):
    noise = torch.rand(6, 3, *SIZE, generator=torch.Generator().manual_seed(5)) * 2 - 1
    blank = torch.full((1, 3, *SIZE), 0.3)
    assert float(learnt.find(torch.cat([noise, blank]), K)[:, 3].max()) == 0.0


def test_targets_are_what_a_perfect_guess_decodes_to(learnt):
    places = draw_places(20, torch.Generator().manual_seed(6))
    cell, offset, heading, turn = learnt.targets(places)
    side, bins = learnt.config.side_m / learnt.config.cells, learnt.config.headings
    centre = torch.stack([cell % learnt.config.cells, cell // learnt.config.cells], -1) + 0.5
    assert torch.allclose((centre + offset) * side - 5.0, places[:, :2], atol=1e-5)
    assert torch.allclose((heading + 0.5 + turn) * 2 * math.pi / bins, places[:, 2], atol=1e-5)


def test_the_report_tells_good_from_bad(learnt):
    places = draw_places(60, torch.Generator().manual_seed(7))
    frames, log_depth = rendered(places)
    sights = Sights(((frames + 1) * 127.5).byte().permute(0, 2, 3, 1), places, log_depth)
    torch.manual_seed(0)
    good, bad = report(learnt, sights, K, 60), report(Atlas(*SIZE, corner_m=(-5.0, -5.0), side_m=10.0), sights, K, 60)
    assert good["picture_db"] > bad["picture_db"] + 5 and good["off_m"] < 0.5 * bad["off_m"]
