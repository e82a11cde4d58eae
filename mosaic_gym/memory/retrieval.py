"""Retrieval: what the keyframes of memory show in a new view.

`retrieve` follows MosaicMem (arXiv 2603.17117): it selects patches and source keyframes by geometry (`selection.py`),
warps the sources' images into the view (`warp.py`), and returns both alignments for the network: patches at their
projected coordinates (Warped RoPE), and a latent on the view's own grid (Warped Latent).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from mosaic_gym.geometry.camera import rescale_intrinsics
from mosaic_gym.memory.batching import map_members
from mosaic_gym.memory.keyframe import Keyframe, pad_members
from mosaic_gym.memory.selection import Selection, select
from mosaic_gym.memory.warp import WarpedViews, empty_views, fill_holes, overlay, warp_frames

EQUAL_ERROR_COST = 0.3
"""The `source_cost` at which memory and the atlas's map are about equally wrong. Two estimates with independent errors
are best blended with shares of 1 / (1 + cost / this). Measured on 210 held-out steps, from 0.1 to 5; flat from 0.1 to
0.4."""


@runtime_checkable
class KeyframeCodec(Protocol):
    """The methods of a codec that memory uses: see `model/codec.py`."""

    channels: int
    stride: int
    image_stride: int
    instants: slice

    def keyframe_image(self, latents: Tensor) -> Tensor: ...

    def from_keyframe_images(self, warped_frames: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Retrieved:
    """The result of retrieval for the views of a batch: the network's input, and figures to report.

    `H W` is the grid of the codec's keyframe images, `h w` that of latents.

    Attributes:
        warped_latent: `[b, c, h, w]`, the Warped Latent.
        latent_coverage: `[b, h, w]`, covered share of each latent cell, over the frames that a latent shows.
        coverage_mask: `[b, m, h, w]`: covered share of every quarter of a cell in each of the four frames, then the
            number of generations, up to 4, as a share of 4.
        patches: `[b, n, c * p * p]`, p cells wide and high.
        patch_uv: `[b, n, 2]`, Warped RoPE's coordinates in the last frame, in latent cells, never rounded.
        patch_cameras: `[b, n, 4, 4, 4]`, those of the patches' keyframes.
        patch_exists: bool `[b, n]`, false for padding.
        coverage: `[b]`, share of the views' pixels that memory covers.
        generation: `[b, v, u]`, of the last frame: how often its patches were generated from generated ones; 0 where
            observed, or not covered.
        depth_m: `[b, H, W]`, depth of memory's surface in the last camera, metres; inf where there is none.
        pixels_covered: bool `[b, 4, H, W]`.
        warped_frames: `[b, 4, c, H, W]`, the warped keyframe images that the Warped Latent is made of, holes filled.
        warp_uncertainty: `[b, 4, H, W]`: 0 where a pixel is an unmoved cell of a keyframe image; 1 where it moved by a
            cell or more, or is not covered.
        memory_weight: `[b, 4, H, W]`, weight of memory beside the map, from 1 to 0 where nothing is covered.
        pictures: `[b, 4, c, H, W]`, the views as the map shows them; without a map, `warped_frames`.
        conditioning_latent: `[b, c, h, w]`, of memory and map blended by weight; without a map, the Warped Latent.
    """

    warped_latent: Tensor
    latent_coverage: Tensor
    coverage_mask: Tensor
    patches: Tensor
    patch_uv: Tensor
    patch_cameras: Tensor
    patch_exists: Tensor
    coverage: Tensor
    generation: Tensor
    depth_m: Tensor
    pixels_covered: Tensor
    warped_frames: Tensor
    warp_uncertainty: Tensor
    memory_weight: Tensor
    pictures: Tensor
    conditioning_latent: Tensor

    def views(self, index: slice) -> Retrieved:
        """The part of some of the views."""
        return Retrieved(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


@torch.no_grad()
def retrieve(
    memories: Sequence[Sequence[Keyframe]],
    world_from_camera: Tensor,
    image_from_camera: Tensor,
    codec: KeyframeCodec,
    latent_shape: tuple[int, int, int],
    max_sources: int = 4,
    max_patches: int = 32,
    patch: int = 1,
    pictures: Sequence[Tensor | None] | None = None,
    assumed: Sequence[bool] | None = None,
) -> Retrieved:
    """Retrieves what every memory shows in its next view (MosaicMem, arXiv 2603.17117, Sec. 3).

    Holes in what memory covers are filled by the map's picture, and covered pixels are blended with it by
    `memory_weight` into the conditioning latent. Without a picture, holes are filled from their edges.

    Args:
        memories: for each member of the batch, its keyframes (possibly none).
        world_from_camera: `[b, 4, 4, 4]`, the views' cameras, metres.
        image_from_camera: `[3, 3]`, K in pixels of the frames.
        codec: decodes latents to keyframe images, and encodes such images.
        latent_shape: (c, h, w).
        max_sources: keyframes that are warped; max_patches: patches that become tokens.
        patch: width and height of a patch in latent cells.
        pictures: what the map shows of every view, `[4, c, H, W]` in [-1, 1] on the grid of keyframe images, or None.
        assumed: whether the place of a picture is only assumed. Such a picture fills holes, and is not blended.
    """
    # 1. The grids: frames in pixels, keyframe images, latents, patches.
    c, h, w = latent_shape
    b = len(world_from_camera)
    frame_size = (h * codec.stride, w * codec.stride)
    image_size = (frame_size[0] // codec.image_stride, frame_size[1] // codec.image_stride)
    patch_grid = (h // patch, w // patch)
    patch_k = rescale_intrinsics(image_from_camera, frame_size, patch_grid)
    image_k = rescale_intrinsics(image_from_camera, frame_size, image_size)

    # 2. Selection, by patch centres. Distant sources are used only for views without a picture, because a picture shows
    # the same places better.
    pictures, assumed = pictures or [None] * b, assumed or [False] * b
    use_distant = [picture is None or guess for picture, guess in zip(pictures, assumed, strict=True)]

    def select_members(
        cameras: Tensor, keyframes: Sequence[Sequence[Keyframe]], use_distant: Sequence[bool]
    ) -> Selection:
        return select(keyframes, cameras[:, [0, -1]], patch_k, patch_grid, max_sources, max_patches, use_distant)

    selection = map_members(select_members, world_from_camera, memories, use_distant)
    sources = [
        [keyframes[index] for index in indices if index >= 0]
        for keyframes, indices in zip(memories, selection.sources.tolist(), strict=True)
    ]

    # 3. Warping of the sources' images, with those that edits put somewhere in front.
    def warp_members(cameras: Tensor, sources: Sequence[Sequence[Keyframe]]) -> WarpedViews:
        return _warp_sources(sources, cameras, image_k, codec, image_size)

    edits = [[keyframe for keyframe in keyframes if keyframe.edited] for keyframes in memories]
    if any(edits):
        sources = [[keyframe for keyframe in row if not keyframe.edited] for row in sources]
        chosen = map_members(select_members, world_from_camera, edits, [True] * b).sources.tolist()
        edits = [[keyframes[i] for i in row if i >= 0] for keyframes, row in zip(edits, chosen, strict=True)]
    warped = map_members(warp_members, world_from_camera, sources)
    if any(edits):
        warped, _ = overlay(warped, map_members(warp_members, world_from_camera, edits))

    # 4. Fusion with what lies behind: the map's pictures, or filled holes.
    memory_weight = (1.0 + warped.cost / EQUAL_ERROR_COST).reciprocal()
    background = _background(warped, pictures, assumed)
    warped_frames = torch.where(warped.covered[:, :, None], warped.warped_frames, background)
    warped_latent = conditioning_latent = codec.from_keyframe_images(warped_frames)
    if any(picture is not None for picture in pictures):
        blended = torch.lerp(background, warped_frames, memory_weight[:, :, None])
        conditioning_latent = codec.from_keyframe_images(blended)

    # 5. The network's masks, and the result.
    covered = warped.covered.to(warped_frames.dtype)
    quarters, generation = _per_latent_cell(covered, warped.generation, h, w)
    mean_generation = generation.mean(1, keepdim=True)
    last_generation = F.avg_pool2d(generation[:, -1], patch) if patch > 1 else generation[:, -1]
    return Retrieved(
        warped_latent=warped_latent,
        latent_coverage=quarters.unflatten(1, (covered.shape[1], -1))[:, codec.instants].mean((1, 2)),
        coverage_mask=torch.cat([quarters, mean_generation.clamp_max(4.0) / 4.0], dim=1),
        **gather_patches(memories, selection, c, patch, world_from_camera),
        coverage=covered.mean((1, 2, 3)),
        generation=last_generation,
        depth_m=warped.depth_m[:, -1],
        pixels_covered=warped.covered,
        warped_frames=warped_frames,
        warp_uncertainty=torch.where(warped.covered, warped.displacement_px.clamp_max(1.0), 1.0),
        memory_weight=memory_weight,
        pictures=background,
        conditioning_latent=conditioning_latent,
    )


def _warp_sources(
    sources: Sequence[Sequence[Keyframe]],
    world_from_camera: Tensor,
    image_k: Tensor,
    codec: KeyframeCodec,
    image_size: tuple[int, int],
) -> WarpedViews:
    """Warps each member's source keyframes into its cameras `[b, f, 4, 4]`. Members without keyframes cover nothing."""
    b, f = world_from_camera.shape[:2]
    s = max(map(len, sources))
    if s == 0:
        channels = codec.keyframe_image(world_from_camera.new_zeros(1, codec.channels, 1, 1)).shape[1]
        return empty_views(b, f, channels, image_size, world_from_camera)
    keyframes = pad_members(sources)
    images = codec.keyframe_image(torch.stack([keyframe.latent for keyframe in keyframes]))
    magnification = images.shape[-1] // keyframes[0].alive.shape[-1]

    def magnify(per_patch: Tensor) -> Tensor:
        rows = per_patch.repeat_interleave(magnification, -1).repeat_interleave(magnification, -2)
        return rows.unflatten(0, (b, s))

    return warp_frames(
        images.unflatten(0, (b, s)),
        torch.stack([keyframe.depth_m for keyframe in keyframes]).unflatten(0, (b, s)),
        magnify(torch.stack([keyframe.generation for keyframe in keyframes])),
        magnify(torch.stack([keyframe.alive for keyframe in keyframes])),
        torch.stack([keyframe.world_from_keyframe for keyframe in keyframes]).unflatten(0, (b, s)),
        world_from_camera,
        image_k.expand(b, 3, 3),
    )


def _background(warped: WarpedViews, pictures: Sequence[Tensor | None], assumed: Sequence[bool]) -> Tensor:
    """What is blended with memory, `[b, 4, c, H, W]`.

    This is the view's picture; without a picture, the warped frames with filled holes; with a picture whose place is
    only assumed, the warped frames with the picture in their holes.
    """
    unknown = [i for i, picture in enumerate(pictures) if picture is None]
    if len(unknown) == len(pictures):
        return fill_holes(warped.warped_frames, warped.covered)
    background = warped.warped_frames.clone()
    if unknown:
        background[unknown] = fill_holes(warped.warped_frames[unknown], warped.covered[unknown])
    for i, picture in enumerate(pictures):
        if picture is not None:
            covered = warped.covered[i][:, None]
            background[i] = torch.where(covered, background[i], picture) if assumed[i] else picture
    return background


def _per_latent_cell(covered: Tensor, generation: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Coverage and generation `[b, f, H, W]` on the latent grid.

    Returns:
        Covered share of each quarter of a cell, `[b, f * 4, h, w]`, frame by frame; generation `[b, f, h, w]`.
    """
    quarters = F.pixel_unshuffle(F.interpolate(covered, size=(2 * h, 2 * w), mode="area"), 2)
    return quarters, F.avg_pool2d(generation * covered, covered.shape[-2] // h)


def gather_patches(
    memories: Sequence[Sequence[Keyframe]],
    selection: Selection,
    channels: int,
    patch: int,
    world_from_camera: Tensor,
) -> dict[str, Tensor]:
    """The selected patches as padded rows. Padding has the target's cameras, so that its numbers stay in range."""
    exists = selection.patch_exists
    keyframe_index, cell = selection.patches.unbind(-1)
    rows = keyframe_index.where(exists, -1).tolist()
    # Forks share keyframes; each is stacked once.
    used = {id(memories[i][index]): memories[i][index] for i, row in enumerate(rows) for index in row if index >= 0}
    cameras = world_from_camera[:, None].expand(-1, exists.shape[1], -1, -1, -1)
    if not used:
        patches = world_from_camera.new_zeros(*exists.shape, channels * patch * patch)
        return {"patches": patches, "patch_uv": selection.patch_uv, "patch_cameras": cameras, "patch_exists": exists}
    order = {key: position for position, key in enumerate(used)}
    position = torch.tensor(
        [[order[id(memories[i][index])] if index >= 0 else 0 for index in row] for i, row in enumerate(rows)],
        device=exists.device,
    )
    latents = torch.stack([keyframe.latent for keyframe in used.values()])
    latents = (F.pixel_unshuffle(latents, patch) if patch > 1 else latents).flatten(2)  # [k, c * p * p, v * u]
    source_cameras = torch.stack([keyframe.world_from_camera for keyframe in used.values()])[position]
    return {
        "patches": torch.where(exists[..., None], latents[position, :, cell], 0.0),
        "patch_uv": selection.patch_uv * patch,
        "patch_cameras": torch.where(exists[..., None, None, None], source_cameras, cameras),
        "patch_exists": exists,
    }
