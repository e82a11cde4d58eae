"""Selection of keyframes and patches for a new view.

Works on patch centres only, so that thousands of keyframes cost little. The selected keyframes are then warped
(`warp.py`), and the selected patches become tokens with Warped-RoPE coordinates. MosaicMem (arXiv 2603.17117) leaves
the rule open. Ours takes, for every cell of the view, the patches on the nearest surface (within `OCCLUSION_RATIO`),
and ranks them by the cost that the warp uses too (`source_cost`: parallax, scale, view angle, generations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mosaic_gym.geometry.camera import cell_centres, in_view, invert_pose, transform_and_project
from mosaic_gym.memory.keyframe import Keyframe, pad_members, stack_geometry
from mosaic_gym.memory.zbuffer import LAST_RESORT_COST, OCCLUSION_RATIO, source_cost

UNCOVERED_COST = LAST_RESORT_COST + 1.0
"""The cost of a cell that no selected keyframe covers, in the unit of `source_cost`."""


@dataclass(frozen=True)
class Selection:
    """The keyframes and patches selected for each view of a batch.

    Attributes:
        sources: `[b, s]`, indices of the keyframes to warp, best first; -1 where there are no more.
        patches: `[b, m, 2]` (keyframe, cell), at most one patch for each cell of the view.
        patch_exists: bool `[b, m]`, false for padding.
        patch_uv: `[b, m, 2]`, where each patch projects to in the view's last frame: Warped RoPE's (u', v'), in cells
            of the patch grid, never rounded; 0 for padding.
    """

    sources: Tensor
    patches: Tensor
    patch_exists: Tensor
    patch_uv: Tensor


@dataclass(frozen=True)
class _Projection:
    """Every patch in every queried camera: `k` keyframes of `n` patches each.

    Attributes:
        uv: `[b, f, 2, k * n]`, in cells.
        cell: `[b, f, k * n]`, index of the cell that it projects to; an arbitrary one where it is not visible.
        cost: `[b, f, k * n]`, the cost of showing that cell by it; inf where it is not visible.
    """

    uv: Tensor
    cell: Tensor
    cost: Tensor


@torch.no_grad()
def select(
    memories: Sequence[Sequence[Keyframe]],
    world_from_camera: Tensor,
    image_from_camera: Tensor,
    grid: tuple[int, int],
    max_sources: int,
    max_patches: int,
    use_distant: Sequence[bool] | None = None,
) -> Selection:
    """Selects keyframes greedily by what they add, and the best patch of every cell.

    Deterministic: surfaces compete by depth, patches by cost, and ties go to the lower index. All members go at once,
    without synchronizing with an accelerator.

    Args:
        memories: for each member of the batch, its keyframes (possibly none).
        world_from_camera: `[b, f, 4, 4]`, the queried cameras; patches are placed in the last.
        image_from_camera: `[3, 3]`, K in cells of the patch grid.
        grid: (height, width) of the patch grid.
        max_sources, max_patches: budgets.
        use_distant: for each member, whether distant keyframes (`LAST_RESORT_COST`) may become sources where no nearer
            one covers the view; None: for all. It does not restrict patches.
    """
    b, k, n = len(memories), max(map(len, memories)), grid[0] * grid[1]
    if k == 0:
        return _empty_selection(world_from_camera, max_sources, max_patches)
    tensors = stack_geometry(pad_members(memories), n)
    geometry = (tensor.unflatten(0, (b, k)) for tensor in tensors)
    return select_stacked(*geometry, world_from_camera, image_from_camera, grid, max_sources, max_patches, use_distant)


@torch.no_grad()
def select_stacked(
    points: Tensor,
    generation: Tensor,
    alive: Tensor,
    world_from_source: Tensor,
    world_from_camera: Tensor,
    image_from_camera: Tensor,
    grid: tuple[int, int],
    max_sources: int,
    max_patches: int,
    use_distant: Sequence[bool] | None = None,
) -> Selection:
    """As `select`, for keyframes whose geometry is stacked already: `k` for each member, at least one.

    Args:
        points: `[b, k, 3, n]`, patch centres in the world, metres; generation, alive: `[b, k, n]`.
        world_from_source: `[b, k, 4, 4]`, the keyframe images' cameras.
    """
    k, n = points.shape[1], points.shape[3]
    projection = _project(points, generation, alive, world_from_source, world_from_camera, image_from_camera, grid)
    patches, exists, uv = _select_patches(projection, n, max_patches)
    return Selection(
        sources=_pad_rows(_select_sources(projection, k, n, max_sources, use_distant), max_sources, -1),
        patches=_pad_rows(torch.stack([patches // n, patches % n], 2), max_patches, 0),
        patch_exists=_pad_rows(exists, max_patches, False),
        patch_uv=_pad_rows(uv.where(exists[..., None], 0.0), max_patches, 0.0),
    )


def _project(
    points: Tensor,
    generation: Tensor,
    alive: Tensor,
    world_from_source: Tensor,
    world_from_camera: Tensor,
    image_from_camera: Tensor,
    grid: tuple[int, int],
) -> _Projection:
    """Projects all patches, resolves occlusion with a z-buffer on the grid, and computes the cost of the visible ones.

    Args:
        points: `[b, k, 3, n]`, patch centres in the world, metres; generation, alive: `[b, k, n]`.
        world_from_source: `[b, k, 4, 4]`; world_from_camera: `[b, f, 4, 4]`.
    """
    (height, width), f = grid, world_from_camera.shape[1]
    b, k, n = alive.shape

    # 1. The position of every patch in every queried camera, and its depth in its own.
    camera_from_world = invert_pose(world_from_camera)
    flat = points.transpose(1, 2).reshape(b, 1, 3, k * n)
    uv, z = transform_and_project(flat, camera_from_world, image_from_camera)  # [b, f, 2, k * n], [b, f, k * n]
    source_m = ((points - world_from_source[..., :3, 3:]) * world_from_source[..., :3, 2:3]).sum(2)  # [b, k, n]
    inside = in_view(uv, z, grid) & alive.view(b, 1, k * n)
    # Patches out of view write inf into their own cell: with one cell for all, an accelerator would queue for it.
    own = cell_centres(height, width, z).flatten(0, 1).T.repeat(1, k)
    column, row = uv.where(inside[:, :, None], own).long().unbind(2)
    cell = row * width + column

    # 2. The nearest surface in every cell; what is clearly behind it is occluded.
    nearest = z.new_full((b, f, n), torch.inf)
    nearest.scatter_reduce_(2, cell, z.where(inside, torch.inf), "amin")
    visible = inside & (z <= nearest.gather(2, cell) * OCCLUSION_RATIO)

    # 3. The cost of each patch, with a little for its distance from the cell's centre.
    target_from_source = camera_from_world[:, :, None] @ world_from_source[:, None]  # [b, f, k, 4, 4]
    cost = source_cost(z.view(b, f, k, n), source_m[:, None], generation[:, None], target_from_source).flatten(2)
    offset_u, offset_v = (uv.frac() - 0.5).abs().unbind(2)
    return _Projection(uv, cell, torch.where(visible, cost + 0.1 * (offset_u + offset_v), torch.inf))


def _select_sources(
    projection: _Projection, k: int, n: int, max_sources: int, use_distant: Sequence[bool] | None
) -> Tensor:
    """Selects keyframes greedily, `[b, s]`: each next one lowers the views' total cost the most.

    A keyframe's gain never grows as others are selected, so keyframes that add next to nothing come last, as -1.
    """
    cost, cell = projection.cost, projection.cell
    b, f = cost.shape[:2]
    table = cost.new_full((b, f, k, n), torch.inf)  # the best of each keyframe for each cell
    table.scatter_reduce_(3, cell.view(b, f, k, n), cost.view(b, f, k, n), "amin")
    if use_distant is None or all(use_distant):
        table = _saturate(table)
    else:
        distant = torch.tensor(use_distant, dtype=torch.bool, device=cost.device).view(b, 1, 1, 1)
        table = torch.where(distant, _saturate(table), table.clamp_max(UNCOVERED_COST))
    per_keyframe = table.transpose(1, 2).reshape(b, k, f * n)
    current = cost.new_full((b, 1, f * n), UNCOVERED_COST)
    gains, found = [], []
    for index in range(min(max_sources, k)):
        if index:
            covered = per_keyframe.gather(1, found[-1][:, None, None].expand(-1, 1, f * n))
            current = torch.minimum(current, covered)
        gain, best = (current - per_keyframe).clamp_min(0.0).sum(-1).max(1)
        gains.append(gain)
        found.append(best)
    if not found:
        return torch.zeros(b, 0, dtype=torch.long, device=cost.device)
    return torch.stack(found, 1).where(torch.stack(gains, 1) > 1e-3 * f * n, -1)


def _saturate(cost: Tensor) -> Tensor:
    """Costs up to `LAST_RESORT_COST` unchanged, and higher ones compressed to values below `UNCOVERED_COST`.

    So any keyframe that covers a cell is better than none, however distant, and lower costs are still better. But a
    keyframe gains little from cells that it covers at a high cost.
    """
    return torch.where(cost > LAST_RESORT_COST, UNCOVERED_COST - LAST_RESORT_COST / cost, cost)


def _select_patches(projection: _Projection, n: int, max_patches: int) -> tuple[Tensor, Tensor, Tensor]:
    """Selects the cheapest patch of each cell of the last camera, cheapest cells first, within the budget.

    Returns:
        Patch indices `[b, m]` into `k * n`, whether each exists, bool `[b, m]`, and their uv `[b, m, 2]`.
    """
    cost, cell = projection.cost[:, -1], projection.cell[:, -1]
    b, count = cost.shape
    cheapest = cost.new_full((b, n), torch.inf).scatter_reduce_(1, cell, cost, "amin")
    wins = (cost < torch.inf) & (cost == cheapest.gather(1, cell))
    index = torch.arange(count, device=cost.device).expand(b, -1)
    first = torch.full((b, n), count, device=cost.device)
    first.scatter_reduce_(1, cell, index.where(wins, count), "amin")
    order = cheapest.where(first < count, torch.inf).argsort(dim=1, stable=True)[:, :max_patches]
    chosen = first.gather(1, order)
    exists = chosen < count
    chosen = chosen.where(exists, 0)
    uv = projection.uv[:, -1].gather(2, chosen[:, None].expand(-1, 2, -1)).transpose(1, 2)
    return chosen, exists, uv


def _pad_rows(values: Tensor, count: int, value: float) -> Tensor:
    """`[b, count, ...]` of `[b, fewer, ...]`."""
    b, fewer, *rest = values.shape
    if fewer == count:
        return values
    return torch.cat([values, values.new_full((b, count - fewer, *rest), value)], 1)


def _empty_selection(world_from_camera: Tensor, max_sources: int, max_patches: int) -> Selection:
    b = len(world_from_camera)
    patches = torch.zeros(b, max_patches, 2, dtype=torch.long, device=world_from_camera.device)
    return Selection(
        sources=patches.new_full((b, max_sources), -1),
        patches=patches,
        patch_exists=torch.zeros_like(patches[..., 0], dtype=torch.bool),
        patch_uv=world_from_camera.new_zeros(b, max_patches, 2),
    )
