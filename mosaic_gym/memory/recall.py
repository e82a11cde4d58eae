"""Recall, first half: which keyframes and which patches a new view should be shown.

Works on patch centres only, so that thousands of keyframes cost little. The chosen keyframes then go to
`warp.py`, the chosen patches become tokens with a Warped RoPE coordinate. The paper leaves the rule open;
ours takes, per cell of the view, the patches on the nearest surface, and ranks them by the same cost as
the warp does (scale, view angle, generations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mosaic_gym.geometry.camera import invert_pose, project, transform
from mosaic_gym.memory.keyframe import Keyframe
from mosaic_gym.memory.warp import OCCLUDES, source_cost

UNCOVERED_COST = 16.0
"""What a cell costs while no chosen keyframe covers it; the unit is that of `source_cost`."""


@dataclass(frozen=True)
class Selection:
    """What one view recalls.

    Attributes:
        sources: indices of at most `s` keyframes, best first.
        patches: `[n, 2]` (keyframe, cell) of at most one patch a cell of the view.
        patch_uv: `[n, 2]` where each lands in the view's last frame, in latent cells, never rounded.
        covered: bool `[f, h, w]`, the cells of each queried camera that some patch covers.
    """

    sources: list[int]
    patches: Tensor
    patch_uv: Tensor
    covered: Tensor

    @property
    def coverage(self) -> float:
        """The share of the view's cells that memory covers, 0 to 1."""
        return float(self.covered.float().mean())


@torch.no_grad()
def select(
    keyframes: Sequence[Keyframe],
    world_from_camera: Tensor,
    image_from_camera: Tensor,
    grid: tuple[int, int],
    max_sources: int,
    max_patches: int,
) -> Selection:
    """Chooses sources greedily by what they add, and the best patch of every cell.

    Deterministic: surfaces compete by depth, patches by cost, and ties go to the lower index.

    Args:
        keyframes: of one memory, not empty.
        world_from_camera: `[f, 4, 4]`, the cameras asked about; patches are placed in the last.
        image_from_camera: `[3, 3]`, K in latent cells.
        grid: (h, w), the latent grid.
        max_sources, max_patches: budgets.
    """
    height, width = grid
    f, k, n = len(world_from_camera), len(keyframes), height * width
    points = torch.stack([keyframe.points_m for keyframe in keyframes]).view(k * n, 3)
    generation = torch.stack([keyframe.generation for keyframe in keyframes]).view(k, n)
    alive = torch.stack([keyframe.alive for keyframe in keyframes]).view(k, n)
    world_from_source = torch.stack([keyframe.world_from_still for keyframe in keyframes])

    # 1. Where every patch lands in every queried camera, and how deep it lay in its own.
    camera_from_world = invert_pose(world_from_camera)
    uv, z = project(transform(camera_from_world, points), image_from_camera)  # [f, k * n, 2], [f, k * n]
    offset = points.view(k, n, 3) - world_from_source[:, None, :3, 3]
    source_m = (offset * world_from_source[:, None, :3, 2]).sum(-1)  # [k, n]
    inside = (uv > 0).all(-1) & (uv[..., 0] < width) & (uv[..., 1] < height) & (z > 0.05) & alive.view(-1)
    column, row = uv.floor().long().unbind(-1)
    cell = torch.where(inside, row * width + column, n)

    # 2. The nearest surface in every cell; what lies behind it is occluded.
    nearest = z.new_full((f, n + 1), torch.inf)
    nearest.scatter_reduce_(1, cell, z.where(inside, z.new_tensor(torch.inf)), "amin")
    visible = inside & (z <= nearest.gather(1, cell) * OCCLUDES)

    # 3. What each patch would cost there, gathered as the best of each keyframe for each cell.
    target_from_source = camera_from_world[:, None] @ world_from_source  # [f, k, 4, 4]
    cost = source_cost(
        z.view(1, f, k, n), source_m[None, None], generation[None, None], target_from_source[None]
    ).view(f, k * n)
    off_centre = (uv - uv.floor() - 0.5).abs().sum(-1)
    cost = torch.where(visible, cost + 0.1 * off_centre, torch.inf)
    keyframe_of = torch.arange(k, device=z.device).repeat_interleave(n).expand(f, -1)
    table = z.new_full((f, k * (n + 1)), torch.inf)
    table.scatter_reduce_(1, keyframe_of * (n + 1) + cell, cost, "amin")
    table = table.view(f, k, n + 1)[..., :n].clamp_max(UNCOVERED_COST)

    # 4. Sources, greedily: each next keyframe is the one that lowers the view's total cost the most.
    sources: list[int] = []
    current = z.new_full((f, n), UNCOVERED_COST)
    per_keyframe = table.transpose(0, 1).reshape(k, f * n)
    for _ in range(min(max_sources, k)):
        gain = (current.view(-1) - per_keyframe).clamp_min(0.0).sum(-1)
        best = int(gain.argmax())
        if float(gain[best]) <= 1e-3 * f * n:
            break
        sources.append(best)
        current = torch.minimum(current, table[:, best])

    # 5. Patches: the cheapest of each cell of the last camera, cheapest cells first within the budget.
    last_cost, last_cell = cost[-1], cell[-1]
    cheapest = z.new_full((n + 1,), torch.inf).scatter_reduce_(0, last_cell, last_cost, "amin")
    wins = torch.isfinite(last_cost) & (last_cost == cheapest[last_cell])
    index = torch.arange(k * n, device=z.device)
    first = torch.full((n + 1,), k * n, device=z.device).scatter_reduce_(0, last_cell, index.where(wins, k * n), "amin")
    chosen = first[:n][first[:n] < k * n]
    order = last_cost[chosen].argsort(stable=True)[:max_patches]
    chosen = chosen[order]
    covered = (nearest[:, :n] < torch.inf).view(f, height, width)
    return Selection(sources, torch.stack([chosen // n, chosen % n], dim=-1), uv[-1, chosen], covered)
