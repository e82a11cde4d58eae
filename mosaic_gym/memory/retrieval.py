"""Recall, first half: which keyframes and which patches a new view should be shown.

Works on patch centres only, so that thousands of keyframes cost little. The chosen keyframes then go to
`warp.py`, the chosen patches become tokens with a Warped RoPE coordinate. The paper leaves the rule open;
ours takes, per cell of the view, the patches on the nearest surface (`warp.OCCLUDES` says what still is), and ranks
them by the same cost as the warp does (parallax, scale, view angle, generations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mosaic_gym.geometry.camera import cell_centres, in_view, invert_pose, land
from mosaic_gym.memory.keyframe import Keyframe, gathered, padded
from mosaic_gym.memory.warp import LAST_RESORT, OCCLUDES, source_cost

UNCOVERED_COST = LAST_RESORT + 1.0
"""What a cell costs while no chosen keyframe covers it; the unit is that of `source_cost`."""


@dataclass(frozen=True)
class Selection:
    """What some views recall.

    Attributes:
        sources: `[b, s]`, indices of the keyframes that serve each view, best first; -1 where there are no more.
        patches: `[b, m, 2]` (keyframe, cell) of at most one patch a cell of the view; patch_exists: bool `[b, m]`.
        patch_uv: `[b, m, 2]` where each lands in the view's last frame, in latent cells, never rounded; 0 where none.
    """

    sources: Tensor
    patches: Tensor
    patch_exists: Tensor
    patch_uv: Tensor


def saturated(cost: Tensor) -> Tensor:
    """Costs as they are up to `LAST_RESORT`, and from there ever more slowly up to `UNCOVERED_COST`.

    Any keyframe that sees a cell is better than none, however far away it was taken, and which of them is better still
    counts; but to cover cells so is worth less than to cover others well.
    """
    return torch.where(cost > LAST_RESORT, UNCOVERED_COST - LAST_RESORT / cost, cost)


@torch.no_grad()
def select(
    memories: Sequence[Sequence[Keyframe]],
    world_from_camera: Tensor,
    image_from_camera: Tensor,
    grid: tuple[int, int],
    max_sources: int,
    max_patches: int,
    afar: Sequence[bool] | None = None,
) -> Selection:
    """Chooses sources greedily by what they add, and the best patch of every cell.

    Deterministic: surfaces compete by depth, patches by cost, and ties go to the lower index. All members at once, and
    nothing is waited for: an accelerator has its answers when they are asked for.

    Args:
        memories: for each member of the batch, its keyframes (possibly none).
        world_from_camera: `[b, f, 4, 4]`, the cameras asked about; patches are placed in the last.
        image_from_camera: `[3, 3]`, K in latent cells.
        grid: (h, w), the latent grid.
        max_sources, max_patches: budgets.
        afar: whether a keyframe may serve a member as a source by what it saw from afar, where nothing nearer does;
            None: all may. One whose view is known by heart does without. Patches compete wherever they were seen from.
    """
    (height, width), f = grid, world_from_camera.shape[1]
    b, k, n = len(memories), max(map(len, memories)), height * width
    if k == 0:
        return _nothing(world_from_camera, max_sources, max_patches)
    everything = gathered(padded(memories), n)
    points, generation, alive, world_from_source = (each.unflatten(0, (b, k)) for each in everything)

    # 1. Where every patch lands in every queried camera, and how deep it lay in its own.
    camera_from_world = invert_pose(world_from_camera)
    flat = points.transpose(1, 2).reshape(b, 1, 3, k * n)
    uv, z = land(flat, camera_from_world, image_from_camera)  # [b, f, 2, k * n], [b, f, k * n]
    source_m = ((points - world_from_source[..., :3, 3:]) * world_from_source[..., :3, 2:3]).sum(2)  # [b, k, n]
    inside = in_view(uv, z, grid) & alive.view(b, 1, k * n)
    # Patches that are not seen say nothing, and each of its own cell: an accelerator would have them queue for one.
    own = cell_centres(height, width, z).flatten(0, 1).T.repeat(1, k)
    column, row = uv.where(inside[:, :, None], own).long().unbind(2)
    cell = row * width + column

    # 2. The nearest surface in every cell; what lies behind it is occluded.
    nearest = z.new_full((b, f, n), torch.inf)
    nearest.scatter_reduce_(2, cell, z.where(inside, torch.inf), "amin")
    visible = inside & (z <= nearest.gather(2, cell) * OCCLUDES)

    # 3. What each patch would cost there, gathered as the best of each keyframe for each cell.
    target_from_source = camera_from_world[:, :, None] @ world_from_source[:, None]  # [b, f, k, 4, 4]
    ages = generation[:, None]
    cost = source_cost(z.view(b, f, k, n), source_m[:, None], ages, target_from_source).flatten(2)
    aside, above = (uv.frac() - 0.5).abs().unbind(2)
    cost = torch.where(visible, cost + 0.1 * (aside + above), torch.inf)
    table = z.new_full((b, f, k, n), torch.inf)
    table.scatter_reduce_(3, cell.view(b, f, k, n), cost.view(b, f, k, n), "amin")
    if afar is None or all(afar):
        table = saturated(table)
    else:
        serves = torch.tensor(afar, device=z.device).view(b, 1, 1, 1)
        table = torch.where(serves, saturated(table), table.clamp_max(UNCOVERED_COST))

    # 4. Sources, greedily: each next keyframe is the one that lowers the view's total cost the most. What the next can
    # add never grows, so those that add next to nothing come last.
    per_keyframe = table.transpose(1, 2).reshape(b, k, f * n)
    current = z.new_full((b, 1, f * n), UNCOVERED_COST)
    gains, found = [], []
    for index in range(min(max_sources, k)):
        if index:
            served = per_keyframe.gather(1, found[-1][:, None, None].expand(-1, 1, f * n))
            current = torch.minimum(current, served)
        gain, best = (current - per_keyframe).clamp_min(0.0).sum(-1).max(1)
        gains.append(gain)
        found.append(best)
    sources = torch.zeros(b, 0, dtype=torch.long, device=z.device)
    if found:
        sources = torch.stack(found, 1).where(torch.stack(gains, 1) > 1e-3 * f * n, -1)

    # 5. Patches: the cheapest of each cell of the last camera, cheapest cells first within the budget.
    last_cost, last_cell = cost[:, -1], cell[:, -1]
    cheapest = z.new_full((b, n), torch.inf).scatter_reduce_(1, last_cell, last_cost, "amin")
    wins = (last_cost < torch.inf) & (last_cost == cheapest.gather(1, last_cell))
    index = torch.arange(k * n, device=z.device).expand(b, -1)
    first = torch.full((b, n), k * n, device=z.device)
    first.scatter_reduce_(1, last_cell, index.where(wins, k * n), "amin")
    order = cheapest.where(first < k * n, torch.inf).argsort(dim=1, stable=True)[:, :max_patches]
    chosen = first.gather(1, order)
    exists = chosen < k * n
    chosen = chosen.where(exists, 0)
    landing = uv[:, -1].gather(2, chosen[:, None].expand(-1, 2, -1)).transpose(1, 2)
    return Selection(
        sources=_filled(sources, max_sources, -1),
        patches=_filled(torch.stack([chosen // n, chosen % n], 2), max_patches, 0),
        patch_exists=_filled(exists, max_patches, False),
        patch_uv=_filled(landing.where(exists[..., None], 0.0), max_patches, 0.0),
    )


def _filled(values: Tensor, count: int, value: float) -> Tensor:
    """`[b, count, ...]` of `[b, fewer, ...]`."""
    b, fewer, *rest = values.shape
    if fewer == count:
        return values
    return torch.cat([values, values.new_full((b, count - fewer, *rest), value)], 1)


def _nothing(world_from_camera: Tensor, max_sources: int, max_patches: int) -> Selection:
    b = len(world_from_camera)
    patches = torch.zeros(b, max_patches, 2, dtype=torch.long, device=world_from_camera.device)
    return Selection(
        sources=patches.new_full((b, max_sources), -1),
        patches=patches,
        patch_exists=torch.zeros_like(patches[..., 0], dtype=torch.bool),
        patch_uv=world_from_camera.new_zeros(b, max_patches, 2),
    )
