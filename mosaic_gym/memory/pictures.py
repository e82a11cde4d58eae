"""Memory of pictures with depth: what keyframes show in a view, written once, and released where it is no longer so.

For a codec that holds color and depth together (`model/rgbd_codec.py`). A keyframe keeps the picture itself, so a place
is resampled from what was first seen or generated, never from a resampled copy of it:

- `retrieve_pictures` selects keyframes and patches (`selection.py`) and warps the pictures (`warp.py`);
- `lift_pictures` lifts a new picture; only pixels that did not come from memory are written;
- `release` removes what a new view shows to be no longer so (a pickup that was taken, a door that opened).

A picture `[4, H, W]` has colors in [-1, 1] and the depth channel of `depth_channel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mosaic_gym.geometry.camera import in_view, invert_pose, rescale_intrinsics, transform_and_project
from mosaic_gym.memory.keyframe import Keyframe, lift, pad_members
from mosaic_gym.memory.retrieval import EQUAL_ERROR_COST, gather_patches
from mosaic_gym.memory.selection import select
from mosaic_gym.memory.warp import WarpedViews, empty_views, fill_holes, overlay, warp_frames
from mosaic_gym.memory.zbuffer import DEPTH_TOLERANCE, MAX_GAP, unit_depth_rays

LOG_DEPTH_MEAN = 1.0
LOG_DEPTH_SCALE = 0.8
"""The depth channel of a picture is (log(depth in metres) - mean) / scale, which is about [-1, 1] as colors are."""
NEAREST_M = 0.1
FARTHEST_M = 60.0
"""Depth is limited to this range, metres."""
COARSE = 2.0
"""Memory that is enlarged by this factor or more is too coarse to be shown as it is: such a pixel is generated from it,
and written again."""
LEAST_WRITTEN = 0.003
"""A keyframe of fewer new pixels than this share of the picture is not stored."""
COVERAGE_CHANNELS = 6
"""Channels of `memory_coverage`."""


@runtime_checkable
class PictureCodec(Protocol):
    """The methods of a codec that this memory uses."""

    channels: int
    stride: int

    def encode_pictures(self, pictures: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class MemoryInputs:
    """What memory shows of a view, as inputs of a network.

    Attributes:
        warped_latent: `[b, c, h, w]`, the Warped Latent of the view's last frame (MosaicMem, arXiv 2603.17117).
        coverage: `[b, 6, h, w]`, see `memory_coverage`.
        patches: `[b, n, c * p * p]`, retrieved patches of p x p cells.
        patch_uv: `[b, n, 2]`, where they land in the last frame, in latent cells, never rounded (Warped RoPE).
        patch_cameras: `[b, n, 4, 4, 4]`, world_from_camera of their keyframes, metres.
        patch_exists: bool `[b, n]`, false for padding.
    """

    warped_latent: Tensor
    coverage: Tensor
    patches: Tensor
    patch_uv: Tensor
    patch_cameras: Tensor
    patch_exists: Tensor


@dataclass(frozen=True)
class RetrievedPictures:
    """What memory shows in the last frame of each view.

    Attributes:
        inputs: of the network.
        picture: `[b, 4, H, W]`, warped, with holes filled from their edges.
        covered: bool `[b, H, W]`.
        magnification: `[b, H, W]`, by how much memory's pictures are enlarged; 0 where nothing is covered.
        edited: bool `[b, H, W]`, pixels that show what an edit put there.
        sources: for each member, the indices of the keyframes that were warped.
    """

    inputs: MemoryInputs
    picture: Tensor
    covered: Tensor
    magnification: Tensor
    edited: Tensor
    sources: list[list[int]]

    @property
    def coverage(self) -> Tensor:
        """`[b]`, share of the pixels that memory covers."""
        return self.covered.float().mean((1, 2))


def depth_channel(depth_m: Tensor) -> Tensor:
    """The depth channel of a picture, from depth in metres; any shape."""
    return (depth_m.float().clamp(NEAREST_M, FARTHEST_M).log() - LOG_DEPTH_MEAN) / LOG_DEPTH_SCALE


def depth_of_channel(channel: Tensor) -> Tensor:
    """Depth in metres, from the depth channel of a picture; any shape."""
    return (channel.float() * LOG_DEPTH_SCALE + LOG_DEPTH_MEAN).exp().clamp(NEAREST_M, FARTHEST_M)


@torch.no_grad()
def retrieve_pictures(
    memories: Sequence[Sequence[Keyframe]],
    world_from_camera: Float[Tensor, "b 4 4 4"],
    image_from_camera: Float[Tensor, "3 3"],
    codec: PictureCodec,
    frame_size: tuple[int, int],
    patch: int,
    max_sources: int,
    max_patches: int,
) -> RetrievedPictures:
    """Retrieves what every memory shows in its next view (MosaicMem, arXiv 2603.17117, Sec. 3).

    Args:
        memories: for each member of the batch, its keyframes (possibly none).
        world_from_camera: the views' cameras, metres.
        image_from_camera: K in pixels of frames of `frame_size` (height, width).
        codec: encodes the warped picture into the Warped Latent.
        patch: width and height of a patch in latent cells.
        max_sources: keyframes that are warped; max_patches: patches that become tokens.
    """
    latent_grid = (frame_size[0] // codec.stride, frame_size[1] // codec.stride)
    grid = (latent_grid[0] // patch, latent_grid[1] // patch)
    patch_k = rescale_intrinsics(image_from_camera, frame_size, grid)
    ends = world_from_camera[:, [0, -1]]
    selection = select(memories, ends, patch_k, grid, max_sources, max_patches)
    sources = [[index for index in row if index >= 0] for row in selection.sources.tolist()]
    chosen = [[keyframes[index] for index in row] for keyframes, row in zip(memories, sources, strict=True)]
    view = world_from_camera[:, -1:], image_from_camera, frame_size
    edits = [[keyframe for keyframe in keyframes if keyframe.edited] for keyframes in memories]
    if any(edits):
        seen = [[keyframe for keyframe in keyframes if not keyframe.edited] for keyframes in chosen]
        moved = select(edits, ends, patch_k, grid, max_sources, max_patches).sources.tolist()
        placed = [[keyframes[i] for i in row if i >= 0] for keyframes, row in zip(edits, moved, strict=True)]
        warped, edited = overlay(_warp_pictures(seen, *view), _warp_pictures(placed, *view))
    else:
        warped = _warp_pictures(chosen, *view)
        edited = torch.zeros_like(warped.covered)
    covered, picture = warped.covered[:, 0], warped_picture(warped)
    generation = warped.generation[:, 0] * covered
    inputs = MemoryInputs(
        warped_latent=codec.encode_pictures(picture),
        coverage=memory_coverage(covered, warped.cost[:, 0], generation, latent_grid),
        **gather_patches(memories, selection, codec.channels, patch, world_from_camera),
    )
    return RetrievedPictures(inputs, picture, covered, warped.magnification[:, 0], edited[:, 0], sources)


def _warp_pictures(
    sources: Sequence[Sequence[Keyframe]], cameras: Tensor, image_from_camera: Tensor, size: tuple[int, int]
) -> WarpedViews:
    """The pictures of each member's source keyframes, warped into its cameras `[b, f, 4, 4]`."""
    b, f = cameras.shape[:2]
    s = max(map(len, sources))
    if s == 0:
        return empty_views(b, f, 3, size, cameras)
    keyframes = pad_members(sources)

    def stack(name: str) -> Tensor:
        return torch.stack([getattr(keyframe, name) for keyframe in keyframes]).unflatten(0, (b, s))

    written = stack("written") & _magnify(stack("alive"), size)
    return warp_frames(
        stack("image").float(),
        stack("depth_m"),
        _magnify(stack("generation"), size),
        written,
        stack("world_from_keyframe"),
        cameras,
        image_from_camera.expand(b, 3, 3),
        MAX_GAP,
    )


def _magnify(per_patch: Tensor, size: tuple[int, int]) -> Tensor:
    """Values of patches `[..., v, u]` for each of their pixels."""
    rows, columns = size[0] // per_patch.shape[-2], size[1] // per_patch.shape[-1]
    return per_patch.repeat_interleave(rows, -2).repeat_interleave(columns, -1)


def warped_picture(warped: WarpedViews) -> Tensor:
    """The warped picture `[b, 4, H, W]` of one view each: colors and depth channel, holes filled from their edges."""
    covered = warped.covered[:, 0]
    depth_m = torch.where(covered, warped.depth_m[:, 0], 1.0)
    picture = torch.cat([warped.warped_frames[:, 0], depth_channel(depth_m)[:, None]], 1)
    return fill_holes(picture, covered)


def memory_coverage(
    covered: Bool[Tensor, "b H W"],
    cost: Float[Tensor, "b H W"],
    generation: Float[Tensor, "b H W"],
    grid: tuple[int, int],
) -> Float[Tensor, "b 6 h w"]:
    """What describes a warp to the network: covered share of each quarter of a cell, the memory's weight
    1 / (1 + cost / `EQUAL_ERROR_COST`), and the number of generations, up to 4, as a share of 4.

    Args:
        cost: of the best source, inf where nothing is covered.
        grid: (rows, columns) of latent cells.
    """
    h, w = grid
    mask = covered[:, None].to(cost.dtype)
    quarters = F.pixel_unshuffle(F.interpolate(mask, size=(2 * h, 2 * w), mode="area"), 2)
    weight = (1.0 + cost / EQUAL_ERROR_COST).reciprocal()
    maps = torch.stack([weight, generation.clamp_max(4.0) / 4.0], 1)
    return torch.cat([quarters, F.interpolate(maps, size=(h, w), mode="area")], 1)


@torch.no_grad()
def lift_pictures(
    pictures: Float[Tensor, "b 4 H W"],
    latents: Float[Tensor, "b c h w"],
    written: Bool[Tensor, "b H W"],
    cameras: Float[Tensor, "b 4 4 4"],
    image_from_camera: Float[Tensor, "3 3"],
    patch: int,
    generation: float,
    steps: Sequence[int],
) -> list[Keyframe | None]:
    """Lifts pictures into keyframes (MosaicMem, arXiv 2603.17117, Sec. 3); None where almost nothing is written.

    Args:
        latents: of the pictures.
        written: the pixels that are new. A patch without any is not alive.
        cameras: metres.
        image_from_camera: K in pixels.
        patch: width and height of a patch in latent cells.
        generation: 0 for observed pictures, 1 for generated ones.
        steps: the environment step of each.
    """
    rows, columns = latents.shape[-2] // patch, latents.shape[-1] // patch
    generations = pictures.new_full((len(pictures), rows, columns), generation)
    depth_m = depth_of_channel(pictures[:, 3])
    keyframes = lift(latents, depth_m, cameras, image_from_camera, generations, steps)
    alive = F.adaptive_max_pool2d(written[:, None].float(), (rows, columns))[:, 0] > 0
    enough = (written.float().mean((1, 2)) >= LEAST_WRITTEN).tolist()
    images = pictures[:, :3].half()
    return [
        replace(keyframe, alive=alive[i].clone(), image=images[i].clone(), written=written[i].clone())
        if enough[i]
        else None
        for i, keyframe in enumerate(keyframes)
    ]


@torch.no_grad()
def release(
    keyframes: Sequence[Keyframe],
    outdated: Bool[Tensor, "H W"],
    depth_m: Float[Tensor, "H W"],
    world_from_camera: Float[Tensor, "4 4"],
    image_from_camera: Float[Tensor, "3 3"],
) -> list[Keyframe]:
    """The keyframes without the pixels that a view shows to be no longer so.

    Args:
        keyframes: that were warped into the view.
        outdated: pixels of the view that memory covers and that are not as memory has them.
        depth_m: of memory's surface in the view, metres.
        world_from_camera: the view's camera, metres; image_from_camera: K in pixels.
    """
    if not keyframes or not bool(outdated.any()):
        return list(keyframes)
    height, width = outdated.shape
    stacked_m = torch.stack([keyframe.depth_m for keyframe in keyframes])
    cameras = torch.stack([keyframe.world_from_keyframe for keyframe in keyframes])
    target_from_source = invert_pose(world_from_camera) @ cameras  # [s, 4, 4]
    points = unit_depth_rays(image_from_camera[None], height, width) * stacked_m.flatten(1)[:, None]  # [s, 3, n]
    uv, z = transform_and_project(points, target_from_source, image_from_camera)
    inside = in_view(uv, z, (height, width))
    column, row = uv.where(inside[:, None], 0.0).long().unbind(1)
    cell = row * width + column
    surface_m = depth_m.flatten()[cell]
    gone = inside & outdated.flatten()[cell] & ((z - surface_m).abs() < DEPTH_TOLERANCE * surface_m + 0.05)
    gone = gone.unflatten(1, (height, width))
    changed = (gone & torch.stack([keyframe.written for keyframe in keyframes])).any((1, 2)).tolist()
    return [_without(keyframe, gone[i]) if changed[i] else keyframe for i, keyframe in enumerate(keyframes)]


def _without(keyframe: Keyframe, gone: Tensor) -> Keyframe:
    """A keyframe without some of its pixels `[H, W]`, and without the patches that have none left."""
    written = keyframe.written & ~gone
    some = F.adaptive_max_pool2d(written[None].float(), keyframe.alive.shape)[0] > 0
    return replace(keyframe, written=written, alive=keyframe.alive & some)
