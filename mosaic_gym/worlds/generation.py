"""From retrieved memory to frames: sampling latents, decoding them, and conditioning the next step on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose, check_poses
from mosaic_gym.memory.retrieval import Retrieved
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.device import out_of_memory_guard
from mosaic_gym.model.sampler import denoise, step_noise
from mosaic_gym.worlds.spatial_memory import FrameLayout
from mosaic_gym.worlds.state import WorldState, advance_state

Stream = tuple[Any, ...]
"""The decoder's position in a clip, see `WorldState.stream`."""


def check_paths(poses: Sequence[Sequence[Pose]], states: int) -> None:
    """Raises ValueError unless there is a list of poses for each of so many states."""
    if isinstance(poses, Pose):
        raise ValueError("every state takes a list of Pose objects, four a step; got one Pose")
    if len(poses) != states:
        raise ValueError(f"{states} states take the poses of {states} bodies; got those of {len(poses)}")


def camera_tensor(poses: Sequence[Sequence[Pose]], device: torch.device) -> Tensor:
    """Cameras float32 `[b, t, 4, 4, 4]`, world_from_camera, metres, of `4 * t` poses for each state.

    Raises:
        ValueError: no whole number of steps, or not the same for all states; or a pose that is NaN, infinite or no
            rigid transform.
    """
    for path in poses:
        check_poses(path)
    counts = [len(path) for path in poses]
    if len(set(counts)) != 1 or counts[0] % FRAMES_PER_STEP or not counts[0]:
        raise ValueError(f"every state takes {FRAMES_PER_STEP} poses a step, all as many steps; got {counts} poses")
    stacked = np.array([[pose.world_from_camera for pose in path] for path in poses])
    return torch.tensor(stacked, dtype=torch.float32, device=device).unflatten(1, (-1, FRAMES_PER_STEP))


def causal_parts(
    retrieved: Retrieved, cameras: Tensor, poses: Sequence[Sequence[Pose]], causal: bool
) -> Iterator[tuple[Retrieved, Tensor, Sequence[Sequence[Pose]]]]:
    """The parts of a clip that are sampled together, with their cameras and poses.

    That is the whole clip, or one latent frame at a time for a causal transformer, which was trained to generate one
    frame after clean ones.
    """
    t = cameras.shape[1]
    if t == 1 or not causal:
        yield retrieved, cameras, poses
        return
    for k in range(t):
        step_poses = [path[FRAMES_PER_STEP * k : FRAMES_PER_STEP * (k + 1)] for path in poses]
        yield retrieved.views(slice(k, None, t)), cameras[:, k : k + 1], step_poses


def sample_latents(
    model: WorldModel,
    layout: FrameLayout,
    states: Sequence[WorldState],
    retrieved: Retrieved,
    cameras: Tensor,
    denoising_steps: int,
    negative_text: Tensor | None = None,
) -> Tensor:
    """The latents `[b, t, c, h, w]` of the states' next views; the noise of each is drawn from (seed, step).

    Args:
        model, layout, denoising_steps, negative_text: see `denoise_latents`.
        states: `b` of them, with their history and encoded prompt.
        retrieved: from memory, for these cameras.
        cameras: `[b, t, 4, 4, 4]`, world_from_camera, metres.
    """
    t = cameras.shape[1]
    return denoise_latents(
        model,
        layout,
        torch.stack([state.history for state in states]),
        torch.stack([state.history_cameras for state in states]),
        retrieved,
        cameras,
        torch.stack([state.text for state in states]),
        [(state.seed, state.step_index + k) for state in states for k in range(t)],
        denoising_steps,
        negative_text,
    )


@out_of_memory_guard("the transformer")
def denoise_latents(
    model: WorldModel,
    layout: FrameLayout,
    history: Tensor,
    history_cameras: Tensor,
    retrieved: Retrieved,
    cameras: Tensor,
    text: Tensor,
    noise_keys: Sequence[tuple[int, int]],
    denoising_steps: int,
    negative_text: Tensor | None = None,
) -> Tensor:
    """Latents `[b, t, c, h, w]` by flow matching (`model.sampler.denoise`).

    Args:
        model: transformer, scheduler and guidance.
        layout: shapes of the world.
        history: `[b, l, c, h, w]`; history_cameras: `[b, l, 4, 4, 4]`, metres.
        retrieved: from memory, for these cameras.
        cameras: `[b, t, 4, 4, 4]`, world_from_camera, metres.
        text: `[b, n, d]`, encoded prompts.
        noise_keys: (seed, step index) of each of the `b * t` frames; its noise is drawn from them.
        denoising_steps: of the sampler.
        negative_text: `[1, n, d]`, the encoded negative prompt; None without guidance.
    """
    b, t = cameras.shape[:2]
    noise = step_noise(*zip(*noise_keys, strict=True), layout.latent_shape).to(cameras.device).unflatten(0, (b, t))
    return denoise(
        model.transformer,
        model.scheduler,
        noise,
        history,
        history_cameras,
        retrieved,
        cameras,
        layout.intrinsics.expand(b, 3, 3),
        layout.frame_size,
        text,
        denoising_steps,
        None if negative_text is None else negative_text.expand(b, -1, -1),
        model.settings.guidance,
    )


@out_of_memory_guard("decoding frames")
def decode_frames(
    model: WorldModel, latents: Tensor, retrieved: Retrieved, streams: Sequence[Stream], refine: bool = True
) -> tuple[Tensor, Tensor, list[Stream]]:
    """Latents as the frames hold them, frames `[b, t, 4, 3, H, W]`, and the decoder's positions after them.

    Args:
        latents: `[b, t, c, h, w]`.
        retrieved: inputs of the refiner.
        streams: the decoder's positions before them.
        refine: whether the refiner, if the model has one, works on the decoded frames.
    """
    decoded, streams = [], list(streams)
    for latent in latents.unbind(1):
        frames, streams = model.codec.decode_next(latent, streams)
        decoded.append(frames)
    frames = torch.stack(decoded, dim=1)
    if not refine or model.refiner is None:
        return latents, frames, streams
    inputs = retrieved.warped_frames, retrieved.pictures, retrieved.warp_uncertainty, retrieved.memory_weight
    # Values outside of [-1, 1] would grow from step to step, because memory stores them.
    refined = model.refiner(frames.flatten(0, 1), *inputs).clamp(-1.0, 1.0)
    return model.codec.encode(refined).view_as(latents), refined.view_as(frames), streams


@out_of_memory_guard("encoding the last frame")
def condition_next_step(
    model: WorldModel,
    states: Sequence[WorldState],
    poses: Sequence[Sequence[Pose]],
    latents: Tensor,
    frames: Tensor,
    cameras: Tensor,
    streams: Sequence[Stream],
) -> list[WorldState]:
    """The states after new latents `[b, t, c, h, w]` and frames `[b, t, 4, 3, H, W]`, memory unchanged.

    An image-to-video model is conditioned on the last frame alone, encoded as the start of a clip of its own.
    """
    if model.codec.restarts:
        images = model.codec.encode(frames[:, -1])
        latents, streams = images[:, None], model.codec.start_clips(images)
        cameras = cameras[:, -1:, -1:].expand(-1, -1, FRAMES_PER_STEP, -1, -1)
    rows = zip(states, poses, latents, cameras, streams, strict=True)
    return [advance_state(*row, model.settings.history) for row in rows]
