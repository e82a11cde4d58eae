"""The atlas: what it learns of a room, that it finds where it stands by looking, and what it knows nothing of."""

import math

import pytest
import torch

from mosaic_gym.geometry.camera import carried
from mosaic_gym.model.atlas import Atlas
from mosaic_gym.model.atlas.drawing import GAIN, GRAIN_M, WALL_RAYS
from mosaic_gym.training.atlas import Sights, report
from tests.room import HALF_M, SIZE, K, draw_places, learnt_atlas, rendered

pytestmark = pytest.mark.slow  # an atlas is trained first


@pytest.fixture(scope="module")
def learnt() -> Atlas:
    return learnt_atlas()


def test_it_draws_a_room_from_places_it_was_never_at(learnt):
    places = draw_places(40, torch.Generator().manual_seed(2))
    frames, log_depth = rendered(places)
    pictures, believed = learnt.picture(places, K)
    assert pictures.shape == (40, 3, *SIZE) and believed.shape == (40, SIZE[1])
    error = (pictures - frames).square().mean()
    assert error < 0.2 * (frames - frames.mean((2, 3), keepdim=True)).square().mean()
    assert (believed - log_depth).abs().median() < 0.15


def test_walls_stand_all_around_a_place_where_the_rooms_do(learnt):
    places = draw_places(20, torch.Generator().manual_seed(5))
    right, ahead = learnt.walls(places, K).unbind(-1)
    assert right.shape == (20, 4 * WALL_RAYS)  # views of 90 degrees
    sine, cosine = places[:, 2:].sin(), places[:, 2:].cos()
    x = places[:, :1] + right * cosine + ahead * sine
    z = places[:, 1:2] - right * sine + ahead * cosine
    off_m = (torch.maximum(x.abs(), z.abs()) - HALF_M).abs()
    assert off_m.median() < 0.4, "as far off as the pictures' depths of an atlas that learnt for seconds"
    turned = torch.atan2(right, ahead).sort(1).values
    assert torch.allclose(turned.diff(dim=1), torch.tensor(2 * math.pi / right.shape[1]), atol=1e-4)


def test_a_strip_lies_on_its_wall_from_ceiling_to_floor():
    atlas = Atlas(*SIZE, strip=16, floor_m=1.0, ceiling_m=3.0)
    heights = torch.linspace(-3.0, 1.0, 17).unfold(0, 2, 1).mean(1)  # the middles of the strip's colours, metres down
    painted = heights.repeat(3).expand(1, 2, -1)
    wall, seen = atlas._wall(painted, torch.tensor([[1.0, 6.0]]), K)
    down = (torch.arange(SIZE[0]) + 0.5 - K[1, 2]) / K[1, 1]
    for column, depth_m in enumerate((1.0, 6.0)):
        inside = (down * depth_m > -2.9) & (down * depth_m < 0.9)
        whole = inside & (seen[0, column] > 0.999)
        assert whole.any() and seen[0, column].le(1.0 + 1e-5).all()
        # Near, one colour fills some pixels; far away, a pixel is the mean of what it shows.
        assert torch.allclose(wall[0, column, :, whole], (down * depth_m)[whole].expand(3, -1), atol=0.13)
    assert torch.allclose(wall[0, 1, 0], down * 6.0 * (seen[0, 1] > 0.999), atol=0.3)
    beyond = (down * 6.0 < -3.2) | (down * 6.0 > 1.2)
    assert beyond.any() and wall[0, 1, :, beyond].abs().max() < 1e-5 and seen[0, 1, beyond].abs().max() < 1e-5


def test_a_pixel_of_the_floor_shows_the_floor_where_its_ray_meets_it():
    atlas = Atlas(*SIZE, corner_m=(-8.0, -8.0), side_m=16.0, ground=64, floor_m=1.0)
    axis = (torch.arange(64) + 0.5) / 4 - 8.0
    plane = torch.stack([axis.expand(64, 64), axis[:, None].expand(64, 64), *torch.zeros(4, 64, 64)])[None]
    atlas.ground_plane.data = plane / GAIN  # the floor says where it is; the ceiling is black
    place = torch.tensor([[0.5, -1.0, 0.0]])
    straight_on = torch.tensor([[[0.25, 1.0]]])
    shown = atlas._ground(place, straight_on, K)[0, 0]
    down = (torch.arange(SIZE[0]) + 0.5 - K[1, 2]) / K[1, 1]
    near = (down > 0) & (1.0 / down < GRAIN_M)
    depth_m = 1.0 / down[near]
    assert near.any() and not shown[:, ~near].any()
    expected = torch.stack([0.5 + 0.25 * depth_m, depth_m - 1.0]) * (1 - depth_m / GRAIN_M)
    assert torch.allclose(shown[:2, near], expected, atol=1e-4)
    level = K.clone()
    level[1, 2] = SIZE[0] / 2 - 0.5  # a row of pixels looks straight ahead
    assert atlas._ground(place, straight_on, level).isfinite().all()


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


def test_several_frames_settle_where_they_are_far_more_finely_than_one(learnt):
    generator = torch.Generator().manual_seed(8)
    alone, together = [], []
    for _ in range(6):
        there = draw_places(6, generator)
        frames = rendered(there)[0]
        # The walk as its own frame tells it, and a guess that is off as `locate` is.
        here = carried(there, torch.tensor([0.3, -1.0, 0.5]), torch.tensor([5.0, 2.0, 2.1]))
        found = learnt.settle(frames, here, there[-1:] + torch.tensor([[0.25, -0.2, 0.08]]), K)
        together.append((found[:2] - there[-1, :2]).norm())
        alone.append((learnt.find(frames[-1:], K)[0, :2] - there[-1, :2]).norm())
        assert float((found[2] - there[-1, 2]).cos()) > 0.999
        assert float(found[3]) > float(learnt.find(frames[-1:], K)[0, 3])
    assert torch.stack(together).mean() < 0.5 * torch.stack(alone).mean()
    assert max(together) < 0.15


def test_where_pictures_are_exact_settling_is_too(learnt):
    there = draw_places(5, torch.Generator().manual_seed(9))
    frames = learnt.picture(there, K)[0].clamp(-1, 1)
    guesses = there[-1] + torch.tensor([[2.0, 1.0, 1.0], [0.2, 0.2, -0.06]])
    found = learnt.settle(frames, there, guesses, K)
    assert torch.allclose(found[:3], there[-1], atol=2e-3)


def test_a_frame_of_something_else_is_outvoted(learnt):
    there = draw_places(6, torch.Generator().manual_seed(10))
    frames = rendered(there)[0]
    frames[2] = rendered(there[2:3] + torch.tensor([[0.0, 0.0, 2.5]]))[0][0]
    found = learnt.settle(frames, there, there[-1:] + torch.tensor([[0.2, 0.1, -0.05]]), K)
    assert torch.allclose(found[:2], there[-1, :2], atol=0.15)


def test_what_is_not_of_the_map_is_not_trusted(learnt):
    noise = torch.rand(6, 3, *SIZE, generator=torch.Generator().manual_seed(5)) * 2 - 1
    blank = torch.full((1, 3, *SIZE), 0.3)
    assert float(learnt.find(torch.cat([noise, blank]), K)[:, 3].max()) == 0.0


def test_a_frame_is_compared_with_what_a_place_would_show(learnt):
    there = draw_places(8, torch.Generator().manual_seed(11))
    frames = learnt.picture(there, K)[0].clamp(-1, 1)
    trust, error = learnt.compare(frames, there, K)
    assert error.max() < 1e-6 and torch.allclose(trust, learnt.find(frames, K, there[:, None], rounds=0)[:, 3])
    less, more = learnt.compare(frames, there + torch.tensor([0.0, 0.0, 1.5]), K)
    assert more.min() > 0.01 and (less < trust).all()


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
