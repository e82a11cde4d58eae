"""Warping: keyframe images, resampled onto the grid of a new view.

The correspondence is MosaicMem's (arXiv 2603.17117, Warped Latent), (u', v') = Pi(K_t T_t E T_s^-1 K_s^-1 (u, v, D)),
applied backwards: the sources' depth is splatted into the target and z-buffered (`zbuffer.py`); then the point of every
target cell is projected into every source, which is sampled at a fractional coordinate. Sampling, unlike scattering
values, rounds nothing to a grid, and so keeps textures sharp.

The values are keyframe images: what the codec decodes of a latent at one instant (see `model/codec.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mosaic_gym.geometry.camera import cell_centres, extent, in_view, invert_pose, transform_and_project
from mosaic_gym.memory.zbuffer import (
    DEPTH_TOLERANCE,
    choose_surface,
    competing_sources,
    same_surface,
    source_cost,
    splat_depth,
    unit_depth_rays,
)

BLEND_SHARPNESS = 10.0
"""How fast a source's blending weight falls with its cost."""


@dataclass(frozen=True)
class WarpedViews:
    """The sources' values on the grid of the targets.

    Attributes:
        warped_frames: `[b, f, c, H, W]`; zero in uncovered cells until `fill_holes`.
        covered: bool `[b, f, H, W]`.
        generation: `[b, f, H, W]`, how many times the sampled values were generated from generated ones.
        depth_m: `[b, f, H, W]`, the depth of the surface in memory, metres; inf where there is none.
        displacement_px: `[b, f, H, W]`, distance between a cell and its sampling position in the source, in cells.
        cost: `[b, f, H, W]`, `source_cost` of the best source; inf where there is none.
        magnification: `[b, f, H, W]`, the depth in the sources over the depth here, that is by how much their pictures
            are enlarged; 0 where there is none.
    """

    warped_frames: Tensor
    covered: Tensor
    generation: Tensor
    depth_m: Tensor
    displacement_px: Tensor
    cost: Tensor
    magnification: Tensor


def empty_views(b: int, f: int, channels: int, size: tuple[int, int], like: Tensor) -> WarpedViews:
    """What is warped from no source, for `f` views of `b` members with `size` (height, width), as `like` in type."""
    zeros = like.new_zeros(b, f, *size)
    frames, far = zeros[:, :, None].expand(-1, -1, channels, -1, -1), zeros + torch.inf
    return WarpedViews(frames, zeros.bool(), zeros, far, zeros, far, zeros)


@dataclass(frozen=True)
class _Sources:
    """The geometry of the sources, for projecting target cells into them.

    Attributes:
        rays: `[b, 3, n]`, see `unit_depth_rays`.
        source_from_target: `[b, f, s, 4, 4]`.
        image_from_camera: `[b, 3, 3]`.
        depth_m: `[b * f * s, 1, H, W]`, metres, 0 where a source has no living patch.
    """

    rays: Tensor
    source_from_target: Tensor
    image_from_camera: Tensor
    depth_m: Tensor

    def project(self, surface_m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Projects the targets' surface `[b, f, H, W]`, metres, into every source.

        Returns:
            Sampling positions for `grid_sample` `[b * f * s, H, W, 2]`; depth in the source `[b, f, s, H, W]`, metres;
            whether the source shows that same surface there, bool `[b, f, s, H, W]`; positions uv `[b, f, s, 2, n]`.
        """
        shape = b, f, s, height, width = *self.source_from_target.shape[:3], *surface_m.shape[-2:]
        points = self.rays[:, None] * surface_m.flatten(2)[:, :, None]  # [b, f, 3, n]
        uv, z = transform_and_project(
            points[:, :, None], self.source_from_target, self.image_from_camera[:, None, None]
        )
        inside = in_view(uv, z, (height, width)).view(shape)
        per_cell = 2.0 / extent(height, width, surface_m)  # grid_sample counts from -1 to 1
        grid = (uv * per_cell - 1.0).transpose(-1, -2).reshape(b * f * s, height, width, 2)
        found_m = F.grid_sample(self.depth_m, grid, mode="nearest", padding_mode="border", align_corners=False)
        z = z.view(shape)
        return grid, z, inside & same_surface(found_m.view(shape), z), uv


def warp_frames(
    keyframe_images: Float[Tensor, "b s c H W"],
    depth_m: Float[Tensor, "b s H W"],
    generation: Float[Tensor, "b s H W"],
    alive: Bool[Tensor, "b s H W"],
    world_from_source: Float[Tensor, "b s 4 4"],
    world_from_target: Float[Tensor, "b f 4 4"],
    image_from_camera: Float[Tensor, "b 3 3"],
    margin: int = 0,
) -> WarpedViews:
    """Warps the images of `s` source keyframes into `f` target cameras (MosaicMem, arXiv 2603.17117, Warped Latent).

    Every target cell averages the sources that show its surface, weighted by exp(-`BLEND_SHARPNESS` * cost) with
    `source_cost` (parallax, scale, view angle, generation).

    Args:
        keyframe_images: `[b, s, c, H, W]`.
        depth_m: `[b, s, H, W]`, metres, on the same grid.
        generation: `[b, s, H, W]`, 0 for observed frames.
        alive: bool `[b, s, H, W]`.
        world_from_source: `[b, s, 4, 4]`; world_from_target: `[b, f, 4, 4]`.
        image_from_camera: `[b, 3, 3]`, K on this grid.
        margin: cells around the views that are splatted too, see `splat_depth`.
    """
    b, s, c, height, width = keyframe_images.shape
    f = world_from_target.shape[1]
    target_from_source = invert_pose(world_from_target)[:, :, None] @ world_from_source[:, None]
    source_from_target = invert_pose(target_from_source)  # [b, f, s, 4, 4]

    def for_every_target(layers: Tensor) -> Tensor:
        return layers[:, None].expand(b, f, *layers.shape[1:]).reshape(b * f * s, -1, height, width)

    def sample(layers: Tensor, grid: Tensor, mode: str = "bilinear") -> Tensor:
        return F.grid_sample(layers, grid, mode=mode, padding_mode="border", align_corners=False)

    # 1. The surface of every target cell, to about half a cell: splatted, and the best source's chosen.
    splatted_m = splat_depth(depth_m, alive, target_from_source, image_from_camera, margin)
    # An approximation: the source's depth is that of this same cell, not of the cell that was splatted here.
    first_cost = source_cost(splatted_m, depth_m[:, None], generation[:, None], target_from_source)
    target_m = choose_surface(splatted_m, first_cost)
    filled = target_m < torch.inf
    start_m = torch.where(filled, target_m, 1.0)

    # 2. Refined once: splatted depths belong to points up to half a cell away, so the sources' depth along this cell's
    # own ray replaces them. Inverse depth is linear across a plane's image: sampled bilinearly, it is exact on planes.
    inverse_m = for_every_target(depth_m.reciprocal())
    nearest_m = for_every_target(torch.where(alive, depth_m, 0.0))
    rays = unit_depth_rays(image_from_camera, height, width)
    sources = _Sources(rays, source_from_target, image_from_camera, nearest_m)
    grid, z, agrees, _ = sources.project(start_m)
    source_m = sample(inverse_m, grid).view(b, f, s, height, width).reciprocal()
    correction = torch.where(agrees, source_m - z, 0.0).clamp(-1.0, 1.0)
    weight = competing_sources(agrees, first_cost).float()
    refined_m = start_m + (correction * weight).sum(2) / weight.sum(2).clamp_min(1.0)
    surface_m = refined_m.clamp_min(0.05)

    # 3. The values, at fractional coordinates. Cubic: views are resampled again and again, and bilinear sampling blurs.
    grid, z, agrees, uv = sources.project(surface_m)
    values = sample(for_every_target(keyframe_images), grid, "bicubic").view(b, f, s, c, height, width)
    generations = sample(for_every_target(generation), grid).view(b, f, s, height, width)
    centres = cell_centres(height, width, depth_m).flatten(0, 1).T
    displacement_px = torch.hypot(*(uv - centres).unbind(-2)).view(b, f, s, height, width)

    # 4. Blended by cost.
    cost = source_cost(surface_m[:, :, None], z, generations, target_from_source)
    cost = torch.where(agrees & filled[:, :, None], cost, torch.inf)
    best = cost.amin(2, keepdim=True)
    covered = best < torch.inf
    weight = torch.exp(-BLEND_SHARPNESS * (cost - best.nan_to_num(posinf=0.0)))  # 0 where a cost is infinite
    weight = weight / weight.sum(2, keepdim=True).clamp_min(1e-6)
    return WarpedViews(
        warped_frames=(values * weight[:, :, :, None]).sum(2),
        covered=covered[:, :, 0],
        generation=(generations * weight).sum(2),
        depth_m=torch.where(filled, surface_m, torch.inf),
        displacement_px=(displacement_px * weight).sum(2),
        cost=best[:, :, 0],
        magnification=(z * weight).sum(2) / surface_m,
    )


def overlay(views: WarpedViews, edited: WarpedViews) -> tuple[WarpedViews, Tensor]:
    """Views of what memory has seen, with edited keyframes where those are nearer, and where that is `[b, f, H, W]`.

    The cost of a source allows for errors of its depth, so a source of low cost may show through a nearer surface. An
    edit says where a surface is, so nothing behind it shows through, and its cost is 0.
    """
    nearer = edited.covered & (edited.depth_m < views.depth_m * (1 - DEPTH_TOLERANCE))
    merged = {}
    for f in fields(WarpedViews):
        one, other = getattr(edited, f.name), getattr(views, f.name)
        merged[f.name] = torch.where(nearer[:, :, None] if one.ndim > nearer.ndim else nearer, one, other)
    return WarpedViews(**merged | {"cost": torch.where(nearer, 0.0, views.cost)}), nearer


def fill_holes(
    warped_frames: Float[Tensor, "... c H W"], covered: Bool[Tensor, "... H W"]
) -> Float[Tensor, "... c H W"]:
    """Continues covered values smoothly into the holes: push-pull over an image pyramid (The Lumigraph, 1996).

    Args:
        warped_frames: `[..., c, H, W]`; covered: bool `[..., H, W]`.

    Returns:
        `[..., c, H, W]`: covered cells unchanged; zero everywhere if nothing is covered at all.
    """
    shape = warped_frames.shape
    values = warped_frames.reshape(-1, *shape[-3:])
    weights = covered.reshape(-1, 1, *shape[-2:]).to(warped_frames.dtype)
    return _push_pull(values * weights, weights).view(shape)


def _push_pull(weighted: Tensor, weights: Tensor) -> Tensor:
    """The values where there is weight, and those of the next coarser level elsewhere."""
    height, width = weights.shape[-2:]
    known = weighted / weights.clamp_min(1e-6)
    if height == 1 or width == 1 or height % 2 or width % 2:
        total = weights.sum((-2, -1), keepdim=True)
        mean = weighted.sum((-2, -1), keepdim=True) / total.clamp_min(1e-6)
        return torch.where(weights > 0, known, mean)
    coarse = _push_pull(F.avg_pool2d(weighted, 2), F.avg_pool2d(weights, 2))
    pulled = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return torch.where(weights > 0, known, pulled)
