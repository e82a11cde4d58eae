"""A world whose frames tell their own index, so that an off-by-one shouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mosaic_gym.geometry.control import FRAMES_PER_STEP, Control, Pose, pose_at
from mosaic_gym.worlds.protocol import Start, View


@dataclass(frozen=True)
class CountingState:
    """Where the body is, how many steps it has made, and how the episode began."""

    pose: Pose
    step_index: int
    start: Start


class CountingWorld:
    """Frame `i` of an episode is filled with red `i`, green the seed, and blue the column.

    Depth is the step index in metres, the reward a tenth of it; the world ends after `last_step`.
    """

    def __init__(self, height: int = 40, width: int = 64, last_step: int = 1000) -> None:
        self.control = Control()
        self.forkable = True
        self.fingerprint = f"counting:{height}x{width}"
        self.height, self.width, self.last_step = height, width, last_step
        self.image_from_camera = np.array([[32.0, 0.0, width / 2], [0.0, 38.0, height / 2], [0.0, 0.0, 1.0]])
        self.closed = 0

    def start(self, start: Start) -> tuple[CountingState, View]:
        pose = pose_at(0.5, 0.0, 0.5, 0.0) if start.world_from_camera is None else Pose(start.world_from_camera)
        state = CountingState(pose, 0, start)
        return state, self._view(state, [pose] * FRAMES_PER_STEP)

    def step(self, states: Sequence[CountingState], actions: np.ndarray) -> tuple[list[CountingState], list[View]]:
        moved = []
        for state, action in zip(states, actions, strict=True):
            poses = self.control.advance(state.pose, action)
            after = CountingState(poses[-1], state.step_index + 1, state.start)
            moved.append((after, self._view(after, poses)))
        return [state for state, _ in moved], [view for _, view in moved]

    def pack(self, state: CountingState) -> tuple[dict, dict]:
        pose = torch.from_numpy(state.pose.world_from_camera), torch.from_numpy(state.pose.velocity_m)
        tensors = dict(zip(("camera", "velocity"), (one.contiguous() for one in pose), strict=True))
        return tensors, {"step_index": state.step_index, "seed": state.start.seed}

    def unpack(self, tensors: dict, about: dict) -> CountingState:
        pose = Pose(tensors["camera"].numpy(), tensors["velocity"].numpy())
        return CountingState(pose, about["step_index"], Start(seed=about["seed"]))

    def close(self) -> None:
        self.closed += 1

    def _view(self, state: CountingState, poses: list[Pose]) -> View:
        frames = np.zeros((FRAMES_PER_STEP, self.height, self.width, 3), np.uint8)
        frames[..., 0] = (np.arange(FRAMES_PER_STEP) + FRAMES_PER_STEP * state.step_index)[:, None, None] % 256
        frames[..., 1] = state.start.seed % 256
        frames[..., 2] = np.arange(self.width)
        if state.step_index == 0 and state.start.image is not None:
            frames[:] = state.start.image
        return View(
            frames=frames,
            depth_m=np.full((self.height, self.width), state.step_index, np.float32),
            world_from_camera=np.stack([pose.world_from_camera for pose in poses]),
            image_from_camera=self.image_from_camera.copy(),
            coverage=1.0 - 1.0 / (2.0 + state.step_index),
            keyframes=state.step_index,
            labels=("Counter",),
            reward=state.step_index / 10,
            terminated=state.step_index >= self.last_step,
        )


class UnequalWorld(CountingWorld):
    """Ends an episode after 1, 2, 3 or 4 steps, by its seed: members that began side by side end apart.

    The seed is also the label of every view, so that infos tell the episodes of a member apart.
    """

    def _view(self, state: CountingState, poses: list[Pose]) -> View:
        seed = state.start.seed
        view = super()._view(state, poses)
        return replace(view, labels=(f"seed {seed}",), terminated=state.step_index > seed % 4)


def same(one: object, other: object) -> bool:
    """Whether two observations, infos or what a step returns are equal, down to the arrays in them."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) or (isinstance(one, np.ndarray) and one.dtype == object):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other)
