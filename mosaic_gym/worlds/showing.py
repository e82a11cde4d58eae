"""What comes out of the learned world: frames, and the game's own reward and end as its heads believe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.memory.whereabouts import is_known
from mosaic_gym.model.codec import frames_to_uint8
from mosaic_gym.worlds.protocol import View
from mosaic_gym.worlds.state import WorldState


class Showing:
    """The part of `MosaicWorld` that shows what was made."""

    @torch.no_grad()
    def look(self, state: WorldState) -> np.ndarray:
        """The present frame of a state, uint8 `[H, W, 3]`."""
        return frames_to_uint8(self.model.codec.present(state.history[-1], state.stream)).cpu().numpy()

    def _outcomes(self, states: Sequence[WorldState], frames: Tensor) -> list[list[tuple[float, bool]]]:
        """The game's own rewards and ends, as the heads believe, drawn from (seed, step); none without heads."""
        b, t = frames.shape[:2]
        if self.model.reward_heads is None:
            return [[(0.0, False)] * t] * b
        seeds = [state.seed for state in states for _ in range(t)]
        steps = [state.step_index + k for state in states for k in range(t)]
        last = frames[:, :, -1].flatten(0, 1).clamp(-1, 1)
        drawn = list(zip(*self.model.reward_heads.draw(last, seeds, steps, self.temperature), strict=True))
        return [drawn[i * t : i * t + t] for i in range(b)]

    def _shown(
        self,
        memories: Sequence[Sequence[MosaicMemory]],
        poses: Sequence[Sequence[Pose]],
        frames: Tensor,
        depth_m: Tensor,
        coverage: Tensor,
        outcomes: Sequence[Sequence[tuple[float, bool]]],
    ) -> list[list[View]]:
        """What each body sees of each step; frames `[b, t, 4, 3, H, W]`, depth `[b, t, H, W]`, coverage `[b * t]`."""
        # Each is fetched once for all, for an accelerator is waited for every time.
        pictures, depths_m = frames_to_uint8(frames).cpu().numpy(), depth_m.float().cpu().numpy()
        *covered, bright = torch.cat([coverage, frames.mean(dtype=coverage.dtype).view(1)]).tolist()
        if not np.isfinite(bright):
            raise ValueError(
                "the network drew what is no number, and nothing has moved: its weights are damaged, or too large for "
                "their precision (loading={'dtype': 'bfloat16'} holds what float16 does not)"
            )
        covered = np.reshape(covered, depth_m.shape[:2])
        views: list[list[View]] = [[] for _ in memories]
        for i, k in np.ndindex(*depth_m.shape[:2]):
            here = poses[i][FRAMES_PER_STEP * k : FRAMES_PER_STEP * (k + 1)]
            view = self._view(memories[i][k], here, pictures[i, k], depths_m[i, k], covered[i][k])
            reward, terminated = outcomes[i][k]
            views[i].append(replace(view, reward=reward, terminated=terminated))
        return views

    def _view(
        self, memory: MosaicMemory, poses: Sequence[Pose], frames: np.ndarray, depth_m: np.ndarray, coverage: float
    ) -> View:
        return View(
            # Copied: a view that is kept holds no others of its batch.
            frames=frames.copy(),
            depth_m=depth_m.copy(),
            world_from_camera=np.array([pose.world_from_camera for pose in poses]),
            image_from_camera=self.image_from_camera,
            coverage=float(coverage),
            on_map=self._is_on_map(memory),
            keyframes=len(memory),
        )

    def _is_on_map(self, memory: MosaicMemory) -> bool:
        """Whether the place of a memory's newest keyframe is known, and the map reaches there."""
        if self.atlas is None or not is_known(memory.keyframes):
            return False
        return self.atlas.holds(torch.tensor([memory.keyframes[-1].place_values]))
