"""What the learned world's memory gave a step: for pictures that explain where each pixel comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mosaic_gym.geometry.control import Pose
from mosaic_gym.model.codec import frames_to_uint8
from mosaic_gym.worlds import generation, picture_steps
from mosaic_gym.worlds.protocol import View
from mosaic_gym.worlds.state import WorldState

if TYPE_CHECKING:
    from mosaic_gym.worlds.mosaic import MosaicWorld

SAME = 24.0
"""A pixel is shown as memory has it if it differs from the warp by less than this mean of its colors, of 255."""


@dataclass(frozen=True)
class StepSources:
    """Where the last frame of a step comes from.

    Attributes:
        warped: uint8 `[H, W, 3]`, memory warped into the view, holes filled: what the sampler starts from.
        covered: bool `[H, W]`, pixels that memory covers.
        from_memory: bool `[H, W]`, pixels that are shown as memory has them; the others were generated.
        edited: bool `[H, W]`, pixels that an edit of memory put there.
    """

    warped: np.ndarray
    covered: np.ndarray
    from_memory: np.ndarray
    edited: np.ndarray


@torch.no_grad()
def step_sources(world: MosaicWorld, before: WorldState, view: View) -> StepSources:
    """The sources of a step's last frame, by retrieving again what the step retrieved.

    Args:
        before: the state that was stepped.
        view: what the step returned.

    Raises:
        RuntimeError: a codec whose keyframe images are no pictures of the frames' size.
    """
    poses = [Pose(camera) for camera in view.world_from_camera]
    cameras = generation.camera_tensor([poses], world.device)
    if world.model.codec.has_depth:
        retrieved = picture_steps.retrieve_step(world.model, world.layout, [before], cameras[:, 0])
        colors, covered, edited = retrieved.picture[0, :3], retrieved.covered[0], retrieved.edited[0]
    else:
        found = world.retrieve([before], cameras)
        colors = found.warped_frames[0, -1]
        if tuple(colors.shape) != (3, world.height, world.width):
            raise RuntimeError("memory of this world holds latents, not pictures, so there is none to show")
        covered, edited = found.pixels_covered[0, -1], torch.zeros_like(found.pixels_covered[0, -1])
    warped = frames_to_uint8(colors).cpu().numpy()
    covered, edited = covered.cpu().numpy(), edited.cpu().numpy()
    error = np.abs(warped.astype(float) - view.frames[-1]).mean(-1)
    return StepSources(warped, covered, covered & (error < SAME), edited)
