"""Memory of pictures: what it shows is what was lifted, each place is written once, and it lets go."""

from __future__ import annotations

import torch

from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.memory.pictures import (
    depth_channel,
    depth_of_channel,
    lift_pictures,
    memory_coverage,
    release,
    retrieve_pictures,
)
from tests.tiny_pictures import SIZE, tiny_codec
from tests.tiny_pictures import K as K_ROWS

K = torch.tensor(K_ROWS)
PATCH = 2


def cameras(x: float = 0.0, z: float = 0.0) -> torch.Tensor:
    """Four equal cameras `[1, 4, 4, 4]` that look along z."""
    camera = torch.eye(4)
    camera[0, 3], camera[2, 3] = x, z
    return camera.expand(1, 4, 4, 4)


def wall(depth_m: float, seed: int = 0) -> torch.Tensor:
    """A smooth picture `[1, 4, H, W]` at one depth."""
    colors = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    colors = torch.nn.functional.interpolate(colors, size=SIZE, mode="bicubic", align_corners=False).clamp(-1, 1)
    return torch.cat([colors, depth_channel(torch.full((1, 1, *SIZE), depth_m))], 1)


def lifted(picture, at, codec, written=None, step=0):
    written = torch.ones(1, *SIZE, dtype=torch.bool) if written is None else written
    return lift_pictures(picture, codec.encode_pictures(picture), written, at, K, PATCH, 1.0, [step])[0]


def shown(memory, at, codec, sources=4):
    with torch.no_grad():
        return retrieve_pictures([memory.keyframes], at, K, codec, SIZE, PATCH, sources, 8)


def test_the_depth_channel_is_undone_and_limits_depth():
    depth_m = torch.tensor([0.1, 0.5, 3.0, 60.0])
    assert torch.allclose(depth_of_channel(depth_channel(depth_m)), depth_m, rtol=1e-5)
    assert float(depth_of_channel(depth_channel(torch.tensor(1000.0)))) <= 60.001


@torch.no_grad()
def test_a_picture_is_shown_from_its_own_camera_as_it_was_lifted():
    codec, picture = tiny_codec(), wall(2.0)
    memory = MosaicMemory().update(lifted(picture, cameras(), codec))
    found = shown(memory, cameras(), codec)
    assert bool(found.covered.all()) and float(found.coverage) == 1.0
    assert torch.allclose(found.picture, picture, atol=2e-3)  # colors are stored in half precision
    assert torch.allclose(found.inputs.warped_latent, codec.encode_pictures(found.picture))
    assert bool(found.inputs.patch_exists.all()), "eight patches of the wall are tokens"


@torch.no_grad()
def test_a_picture_follows_the_camera():
    codec, picture = tiny_codec(), wall(2.0)
    memory = MosaicMemory().update(lifted(picture, cameras(), codec))
    moved = 0.25  # metres to the right, at 2 m: 4 pixels to the left
    found = shown(memory, cameras(x=moved), codec)
    shift = round(moved * K_ROWS[0][0] / 2.0)
    assert not bool(found.covered[0, :, -shift + 1 :].any()), "what comes into view was not seen"
    inner = found.picture[0, :3, 2:-2, 2 : -shift - 2]
    assert torch.allclose(inner, picture[0, :3, 2:-2, 2 + shift : -2], atol=0.03)


@torch.no_grad()
def test_a_nearer_view_enlarges_what_memory_has():
    codec = tiny_codec()
    memory = MosaicMemory().update(lifted(wall(2.0), cameras(), codec))
    assert torch.allclose(shown(memory, cameras(), codec).magnification, torch.ones(1, *SIZE), atol=1e-3)
    near = shown(memory, cameras(z=1.2), codec)  # the wall is at 0.8 m
    assert float(near.coverage) == 1.0, "gaps between enlarged points are closed at the border too"
    assert torch.allclose(near.magnification[near.covered], torch.tensor(2.5), atol=0.02)
    side = shown(memory, cameras(x=0.5), codec)
    assert torch.allclose(side.magnification[side.covered], torch.tensor(1.0), atol=0.02), "parallax enlarges nothing"


@torch.no_grad()
def test_only_written_pixels_are_shown_and_a_keyframe_without_any_is_not_stored():
    codec, picture = tiny_codec(), wall(2.0)
    left = torch.zeros(1, *SIZE, dtype=torch.bool)
    left[..., : SIZE[1] // 2] = True
    memory = MosaicMemory().update(lifted(picture, cameras(), codec, left))
    found = shown(memory, cameras(), codec)
    assert torch.equal(found.covered, left)
    assert lifted(picture, cameras(), codec, torch.zeros_like(left)) is None


@torch.no_grad()
def test_release_removes_what_is_outdated_and_nothing_behind_it():
    codec = tiny_codec()
    near, far = wall(2.0), wall(6.0, seed=1)
    keyframes = [lifted(near, cameras(), codec), lifted(far, cameras(), codec, step=1)]
    outdated = torch.zeros(SIZE, dtype=torch.bool)
    outdated[8:16, 8:16] = True
    changed, same = release(keyframes, outdated, torch.full(SIZE, 2.0), cameras()[0, -1], K)
    assert torch.equal(changed.written, ~outdated)
    assert same is keyframes[1], "the wall behind is not what the view contradicts"
    assert not bool(changed.alive[1, 1]), "a patch without pixels is gone"
    nothing = release(keyframes, torch.zeros_like(outdated), torch.full(SIZE, 2.0), cameras()[0, -1], K)
    assert all(new is old for new, old in zip(nothing, keyframes, strict=True))


@torch.no_grad()
def test_an_empty_memory_covers_nothing():
    codec = tiny_codec()
    found = shown(MosaicMemory(), cameras(), codec)
    assert float(found.coverage) == 0.0 and not bool(found.inputs.patch_exists.any())
    assert found.inputs.warped_latent.shape == (1, 6, SIZE[0] // 4, SIZE[1] // 4)
    assert found.inputs.patches.shape == (1, 8, 6 * PATCH**2)


def test_the_coverage_maps_are_shares_of_cells():
    covered = torch.zeros(1, 8, 8, dtype=torch.bool)
    covered[:, :2, :2] = True  # a quarter of the first cell
    cost = torch.where(covered, 0.0, torch.inf)
    maps = memory_coverage(covered, cost, covered * 2.0, (2, 2))
    assert maps.shape == (1, 6, 2, 2)
    assert maps[0, :4, 0, 0].tolist() == [1.0, 0.0, 0.0, 0.0] and float(maps[0, :4, 1:].sum()) == 0.0
    assert float(maps[0, 4, 0, 0]) == 0.25, "a memory of no cost has the weight one"
    assert float(maps[0, 5, 0, 0]) == 0.125, "two generations are half of four"


@torch.no_grad()
def test_pictures_are_saved_exactly(tmp_path):
    codec = tiny_codec()
    memory = MosaicMemory().update(lifted(wall(2.0), cameras(), codec))
    memory.save(tmp_path / "memory.safetensors")
    (one,), (other,) = memory.keyframes, MosaicMemory.load(tmp_path / "memory.safetensors").keyframes
    assert one.tensors.keys() == other.tensors.keys() and {"image", "written"} <= one.tensors.keys()
    assert all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())
