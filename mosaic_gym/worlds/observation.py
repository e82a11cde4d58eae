"""The results of a step of the learned world: views, and predicted rewards and terminations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose
from mosaic_gym.memory import whereabouts
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.model.atlas import Atlas
from mosaic_gym.model.codec import frames_to_uint8
from mosaic_gym.model.reward_heads import RewardTerminationHeads
from mosaic_gym.worlds.protocol import View

Outcome = tuple[float, bool]
"""The predicted reward of a step, and whether the episode terminated."""


def sample_outcomes(
    heads: RewardTerminationHeads | None,
    frames: Tensor,
    seeds: Sequence[int],
    step_indices: Sequence[int],
    temperature: float,
    previous: Tensor | None = None,
) -> list[list[Outcome]]:
    """Rewards and terminations of `t` steps of `b` states, drawn from (seed, step); zeros and False without heads.

    Args:
        heads: that predict them from a step's last frame.
        frames: `[b, t, 4, 3, H, W]` in [-1, 1].
        seeds: of the states.
        step_indices: of the states before these steps.
        temperature: of the draw; 0 takes the more likely value.
        previous: `[b, 3, H, W]`, the last frames before these steps, for heads that read them too.
    """
    b, t = frames.shape[:2]
    if heads is None:
        return [[(0.0, False)] * t] * b
    last = frames[:, :, -1].clamp(-1, 1)
    if heads.config.previous:
        last = torch.cat([torch.cat([previous[:, None], last[:, :-1]], 1), last], 2)
    last = last.flatten(0, 1)
    row_seeds = [seed for seed in seeds for _ in range(t)]
    row_steps = [step + k for step in step_indices for k in range(t)]
    outcomes = list(zip(*heads.draw(last, row_seeds, row_steps, temperature), strict=True))
    return [outcomes[i * t : i * t + t] for i in range(b)]


def make_views(
    memories: Sequence[Sequence[MosaicMemory]],
    poses: Sequence[Sequence[Pose]],
    frames: Tensor,
    depth_m: Tensor,
    coverage: Tensor,
    outcomes: Sequence[Sequence[Outcome]],
    image_from_camera: np.ndarray,
    atlas: Atlas | None,
) -> list[list[View]]:
    """The views of `t` steps of `b` states.

    Args:
        memories: after each step.
        poses: `4 * t` of every state.
        frames: `[b, t, 4, 3, H, W]` in [-1, 1].
        depth_m: `[b, t, H, W]`, of the last frame of a step, metres.
        coverage: `[b * t]`.
        outcomes: reward and termination of each step.
        image_from_camera: `[3, 3]`, K in pixels.
        atlas: that locates episodes on its map.

    Raises:
        ValueError: the frames hold NaN or infinity.
    """
    # Each tensor is fetched once for all states, because each transfer waits for the accelerator.
    pixels, depths_m = frames_to_uint8(frames).cpu().numpy(), depth_m.float().cpu().numpy()
    *covered, brightness = torch.cat([coverage, frames.mean(dtype=coverage.dtype).view(1)]).tolist()
    check_finite(brightness)
    covered = np.reshape(covered, depth_m.shape[:2])
    views: list[list[View]] = [[] for _ in memories]
    for i, k in np.ndindex(*depth_m.shape[:2]):
        step_poses = poses[i][FRAMES_PER_STEP * k : FRAMES_PER_STEP * (k + 1)]
        parts = memories[i][k], step_poses, pixels[i, k], depths_m[i, k], covered[i][k], image_from_camera, atlas
        views[i].append(make_view(*parts, outcomes[i][k]))
    return views


def check_finite(brightness: float) -> None:
    """Raises ValueError if the mean of generated frames is NaN or infinite, because some pixel is."""
    if not np.isfinite(brightness):
        raise ValueError(
            "the network returned NaN or infinity, and no state has moved: its weights are damaged, or too large for "
            "their precision (loading={'dtype': 'bfloat16'} holds numbers that float16 does not)"
        )


def make_view(
    memory: MosaicMemory,
    poses: Sequence[Pose],
    frames: np.ndarray,
    depth_m: np.ndarray,
    coverage: float,
    image_from_camera: np.ndarray,
    atlas: Atlas | None,
    outcome: Outcome = (0.0, False),
) -> View:
    """One view, with arrays of its own, so that storing it does not keep the other views of its batch in memory."""
    reward, terminated = outcome
    return View(
        frames=frames.copy(),
        depth_m=depth_m.copy(),
        world_from_camera=np.array([pose.world_from_camera for pose in poses]),
        image_from_camera=image_from_camera,
        coverage=float(coverage),
        on_map=_is_on_map(memory, atlas),
        keyframes=len(memory),
        reward=reward,
        terminated=terminated,
    )


def _is_on_map(memory: MosaicMemory, atlas: Atlas | None) -> bool:
    """Whether the newest keyframe is located on the atlas's map, and inside its borders."""
    if atlas is None or not whereabouts.is_known(memory.keyframes):
        return False
    return atlas.holds(torch.tensor([memory.keyframes[-1].place_values], dtype=torch.float32))
