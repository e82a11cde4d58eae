"""The state of the learned world, as a value: everything that the next step depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose
from mosaic_gym.memory.mosaic import MosaicMemory


@dataclass(frozen=True)
class WorldState:
    """One episode of the learned world at one step. Stepping returns a new state; forks share what is equal.

    Attributes:
        pose: camera pose and velocity of the body.
        history: `[t, c, h, w]`, the latest latent frames, oldest first.
        history_cameras: float32 `[t, 4, 4, 4]`, world_from_camera of their video frames, metres.
        memory: the keyframes of the episode.
        prompt: the text that conditions generation.
        text: `[l, d]`, the text encoder's output for `prompt`.
        seed: the noise of step i is drawn from (seed, i); there is no hidden generator.
        step_index: steps since the start.
        stream: the decoder's position in the current clip. Empty for a codec that decodes every latent frame by
            itself; one latent where every step starts a clip of its own.
    """

    pose: Pose
    history: Tensor
    history_cameras: Tensor
    memory: MosaicMemory
    prompt: str
    text: Tensor
    seed: int
    step_index: int
    stream: tuple[Any, ...] = ()


@dataclass(frozen=True)
class LatentObservation:
    """The result of a step that stays in latent space.

    Attributes:
        latent: `[c, h, w]`.
        coverage: share of the view that memory covers, 0 to 1.
    """

    latent: Tensor
    coverage: float


def advance_state(
    state: WorldState,
    poses: Sequence[Pose],
    latents: Tensor,
    cameras: Tensor,
    stream: tuple[Any, ...],
    history_length: int,
) -> WorldState:
    """The state after new latent frames, with its memory unchanged.

    Args:
        state: before them.
        poses: four for each step, in order.
        latents: `[t, c, h, w]`, the frames that the next step is conditioned on.
        cameras: `[t, 4, 4, 4]`, theirs, metres.
        stream: the decoder's position after them.
        history_length: latent frames that a history holds.
    """
    return replace(
        state,
        pose=poses[-1],
        history=_latest(state.history, latents, history_length),
        history_cameras=_latest(state.history_cameras, cameras, history_length),
        step_index=state.step_index + len(poses) // FRAMES_PER_STEP,
        stream=stream,
    )


def _latest(before: Tensor, new: Tensor, length: int) -> Tensor:
    """The last `length` rows of both, in a tensor of their own: a view would keep the others in memory."""
    new = new[-length:]
    left = length - len(new)
    return torch.cat([before[max(len(before) - left, 0) :], new])
