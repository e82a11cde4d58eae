"""Which pixels show a place that earlier views showed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mosaic_gym.geometry.camera import invert_pose, transform, unproject

if TYPE_CHECKING:
    from mosaic_gym.worlds.protocol import View

NEAREST_M = 0.05
"""Points nearer to a camera than this are not in its view, metres."""
SAME_SHARE, SAME_M = 0.08, 0.25
"""Two depths are of the same surface if they differ by less than this share plus this distance in metres. The
simulator's depth buffer has steps of 0.22 m."""


class Covisibility:
    """Visibility of places in some reference views, by true depth. Only the last frame of each view counts.

    Args:
        views: at least one, all with the same intrinsics.
    """

    def __init__(self, views: Sequence[View]):
        self.depth_m = torch.tensor(np.stack([view.all_depth_m[-1] for view in views]))
        cameras = np.stack([view.world_from_camera[-1] for view in views])
        camera_from_world = invert_pose(torch.tensor(cameras, dtype=torch.float32))
        # One product of all axes with all points: a batch of products of 3 by 3 takes several times as long.
        self.axes = camera_from_world[:, :3, :3].transpose(0, 1).reshape(-1, 3)  # all x axes, all y axes, all z axes
        self.shifts = camera_from_world[:, :3, 3].T.reshape(-1, 1)
        self.k = torch.tensor(views[0].image_from_camera, dtype=torch.float32)

    def mask(self, view: View, instants: tuple[int, ...] = (0, 1, 2, 3)) -> np.ndarray:
        """Pixels of a view whose place is visible in a reference view.

        Args:
            instants: which of the view's four frames.

        Returns:
            bool `[len(instants), H, W]`.
        """
        depth_m = torch.tensor(view.all_depth_m[list(instants)], dtype=torch.float32)
        cameras = torch.tensor(view.world_from_camera[list(instants)], dtype=torch.float32)
        height, width = depth_m.shape[-2:]
        points = transform(cameras, unproject(depth_m, self.k).flatten(1, 2)).flatten(0, 1)
        x, y, z = torch.addmm(self.shifts, self.axes, points.T).view(3, len(self.depth_m), -1)
        safe = z.clamp_min(1e-6)
        column = (x / safe * self.k[0, 0] + self.k[0, 2]).floor()
        row = (y / safe * self.k[1, 1] + self.k[1, 2]).floor()
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (z > NEAREST_M)
        cell = torch.where(inside, row * width + column, 0.0).long()
        reference_m = self.depth_m.flatten(1).gather(1, cell)
        same = (z - reference_m).abs() < SAME_SHARE * reference_m + SAME_M
        return (inside & same).any(0).view(len(instants), height, width).numpy()
