"""Steps of a world whose codec holds color and depth together: retrieve, sample, decode, update.

What memory covers stays as it was warped, unless the network generates that it is no longer so; what it does not cover
is generated. Memory is written once: a pixel that came from memory is not lifted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.memory.pictures import (
    COARSE,
    RetrievedPictures,
    depth_channel,
    depth_of_channel,
    lift_pictures,
    release,
    retrieve_pictures,
)
from mosaic_gym.memory.warp import fill_holes, warp_frames
from mosaic_gym.memory.zbuffer import MAX_GAP
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.codec import frames_to_float
from mosaic_gym.model.device import out_of_memory_guard
from mosaic_gym.model.hourglass import HourglassTransformer, Reading
from mosaic_gym.model.sampler import sample_flow, step_noise
from mosaic_gym.worlds.generation import camera_tensor
from mosaic_gym.worlds.observation import check_finite, make_views, sample_outcomes
from mosaic_gym.worlds.protocol import View
from mosaic_gym.worlds.spatial_memory import FrameLayout
from mosaic_gym.worlds.state import WorldState, advance_state

Poses = Sequence[Sequence[Pose]]


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are generated.

    Attributes:
        denoising_steps: of the sampler; None shows what memory has, without the network.
        temperature: of the draw of predicted rewards and terminations.
        negative_text: `[1, n, d]`, the encoded negative prompt; None without guidance.
    """

    denoising_steps: int | None
    temperature: float
    negative_text: Tensor | None


@dataclass(frozen=True)
class Decoded:
    """A decoded step.

    Attributes:
        pictures: `[b, 4, H, W]`, the last frame's colors and depth channel.
        before: `[b, 4, H, W]`, the same of the frame before the step.
        frames: `[b, 4, 3, H, W]` in [-1, 1].
        from_memory: bool `[b, H, W]`, pixels of the last frame that memory shows.
        outdated: bool `[b, H, W]`, pixels that memory covers and that are no longer as memory has them.
    """

    pictures: Tensor
    before: Tensor
    frames: Tensor
    from_memory: Tensor
    outdated: Tensor


@torch.no_grad()
def generate_pictures(
    model: WorldModel,
    layout: FrameLayout,
    states: Sequence[WorldState],
    poses: Poses,
    options: PictureOptions,
) -> tuple[list[WorldState], list[list[View]]]:
    """`t` steps along known cameras, `4 * t` poses for every state; memory is read and written at every step.

    Returns:
        The states after them, and for each its `t` views.
    """
    after, clips, k = list(states), [], np.array(model.settings.image_from_camera)
    all_cameras = camera_tensor(poses, layout.intrinsics.device)  # [b, t, 4, 4, 4]
    for cameras, step_poses in zip(all_cameras.unbind(1), _clip_steps(poses), strict=True):
        before, indices = after, [state.step_index for state in after]
        retrieved = retrieve_step(model, layout, before, cameras)
        sampled = sample_step(model, layout, before, retrieved, cameras, options)
        decoded = decode_step(model, layout, before, retrieved, sampled, cameras)
        check_finite(float(decoded.pictures.mean()))
        after, latents = advance_pictures(model, before, step_poses, cameras, decoded.pictures)
        memories, steps = [state.memory for state in before], [index + 1 for index in indices]
        labels = [state.prompt for state in before]
        updated = update_step(memories, layout, retrieved, decoded, latents, cameras, steps, labels)
        after = [replace(state, memory=memory) for state, memory in zip(after, updated, strict=True)]
        frames, depth_m = decoded.frames[:, None], depth_of_channel(decoded.pictures[:, None, 3])
        seeds = [state.seed for state in before]
        previous = decoded.before[:, :3]
        outcomes = sample_outcomes(model.reward_heads, frames, seeds, indices, options.temperature, previous)
        rows = [[memory] for memory in updated]
        clips.append(make_views(rows, step_poses, frames, depth_m, retrieved.coverage, outcomes, k, None))
    return after, [[views[i][0] for views in clips] for i in range(len(states))]


@torch.no_grad()
def sample_step_latents(
    model: WorldModel, layout: FrameLayout, states: Sequence[WorldState], cameras: Tensor, options: PictureOptions
) -> tuple[Tensor, Tensor]:
    """Latents `[b, 1, c, h, w]` of the next views from cameras `[b, 4, 4, 4]`, not decoded, and coverage `[b]`."""
    retrieved = retrieve_step(model, layout, states, cameras)
    sampled = sample_step(model, layout, states, retrieved, cameras, options)
    latents = retrieved.inputs.warped_latent if sampled is None else sampled[:, :-1]
    return latents[:, None], retrieved.coverage


@out_of_memory_guard("the views that memory retrieves")
def retrieve_step(
    model: WorldModel, layout: FrameLayout, states: Sequence[WorldState], cameras: Tensor
) -> RetrievedPictures:
    """What the memories of `b` states show from cameras `[b, 4, 4, 4]`, metres."""
    settings = model.settings
    return retrieve_pictures(
        [state.memory.keyframes for state in states],
        cameras,
        layout.intrinsics,
        model.codec,
        layout.frame_size,
        layout.patch,
        settings.max_sources,
        settings.max_patches,
    )


@out_of_memory_guard("the transformer")
def sample_step(
    model: WorldModel,
    layout: FrameLayout,
    states: Sequence[WorldState],
    retrieved: RetrievedPictures,
    cameras: Tensor,
    options: PictureOptions,
) -> Tensor | None:
    """Sampled latents `[b, c + 1, h, w]` of the next views; the last channel is the validity of memory.

    The noise of each is drawn from (seed, step). None without the network.

    Args:
        cameras: `[b, 4, 4, 4]`, world_from_camera, metres.
    """
    if options.denoising_steps is None:
        return None
    b, transformer = len(states), model.transformer
    recent = torch.stack([state.history for state in states])
    recent_cameras = torch.stack([state.history_cameras for state in states])
    seeds, steps = [state.seed for state in states], [state.step_index for state in states]
    shape = (transformer.generated_channels, *layout.latent_shape[1:])
    noise = step_noise(seeds, steps, shape).to(cameras.device)
    k = layout.intrinsics.expand(b, 3, 3)

    def read(network: HourglassTransformer, text: Tensor) -> Reading:
        return network.read(retrieved.inputs, recent, recent_cameras, cameras, k, layout.frame_size, text)

    reading, negative = read(transformer, torch.stack([state.text for state in states])), None
    if options.negative_text is not None:
        negative = read(model.guide or transformer, options.negative_text.expand(b, -1, -1))
    return sample_flow(
        transformer, reading, noise, options.denoising_steps,
        negative=negative, guidance=model.settings.guidance, guide=model.guide,
    )  # fmt: skip


@out_of_memory_guard("decoding frames")
def decode_step(
    model: WorldModel,
    layout: FrameLayout,
    states: Sequence[WorldState],
    retrieved: RetrievedPictures,
    sampled: Tensor | None,
    cameras: Tensor,
) -> Decoded:
    """Frames of a step from sampled latents; None shows what memory has, with holes filled."""
    covered = retrieved.covered
    if sampled is None:
        pictures, from_memory, outdated = retrieved.picture, covered, torch.zeros_like(covered)
    else:
        stride = model.codec.stride
        valid = (sampled[:, -1] > 0).repeat_interleave(stride, -1).repeat_interleave(stride, -2) | retrieved.edited
        from_memory = covered & valid & (retrieved.magnification < COARSE)
        outdated = covered & ~valid
        generated = model.codec.decode_pictures(sampled[:, :-1])
        generated = torch.cat([generated[:, :3].clamp(-1, 1), depth_channel(depth_of_channel(generated[:, 3:]))], 1)
        pictures = torch.where(from_memory[:, None], retrieved.picture, generated)
    before = torch.stack([last_picture(model, state) for state in states])
    before_cameras = torch.stack([state.history_cameras[-1, -1] for state in states])
    between = frames_between(before, before_cameras, pictures, cameras, layout.intrinsics)
    frames = torch.cat([between, pictures[:, None, :3]], 1).clamp(-1, 1)
    return Decoded(pictures, before, frames, from_memory, outdated)


def last_picture(model: WorldModel, state: WorldState) -> Tensor:
    """The picture `[4, H, W]` of a state's last frame."""
    return state.stream[0] if state.stream else model.codec.decode_pictures(state.history[-1:])[0]


def frames_between(
    before: Tensor, before_cameras: Tensor, pictures: Tensor, cameras: Tensor, image_from_camera: Tensor
) -> Tensor:
    """The first three frames of a step `[b, 3, 3, H, W]`: the pictures before and after it, warped to their cameras.

    Args:
        before: `[b, 4, H, W]`, from cameras `[b, 4, 4]`; pictures: `[b, 4, H, W]`, from the last of cameras
            `[b, 4, 4, 4]`, metres.
        image_from_camera: `[3, 3]`, K in pixels.
    """
    both = torch.stack([pictures, before], 1)
    depth_m = depth_of_channel(both[:, :, 3])
    warped = warp_frames(
        both[:, :, :3],
        depth_m,
        torch.zeros_like(depth_m),
        torch.ones_like(depth_m, dtype=torch.bool),
        torch.stack([cameras[:, -1], before_cameras], 1),
        cameras[:, :-1],
        image_from_camera.expand(len(both), 3, 3),
        MAX_GAP,
    )
    return fill_holes(warped.warped_frames, warped.covered)


@out_of_memory_guard("keyframes")
def update_step(
    memories: Sequence[MosaicMemory],
    layout: FrameLayout,
    retrieved: RetrievedPictures,
    decoded: Decoded,
    latents: Tensor,
    cameras: Tensor,
    steps: Sequence[int],
    labels: Sequence[str],
) -> list[MosaicMemory]:
    """The memories after a step: outdated pixels are removed, new ones written.

    Args:
        latents: `[b, c, h, w]`, of the decoded pictures.
        cameras: `[b, 4, 4, 4]`, metres.
        steps, labels: the environment step and the label of each new keyframe.
    """
    written = ~decoded.from_memory
    lifted = lift_pictures(decoded.pictures, latents, written, cameras, layout.intrinsics, layout.patch, 1.0, steps)
    surface_m = depth_of_channel(retrieved.picture[:, 3])
    updated = []
    for i, (memory, keyframe) in enumerate(zip(memories, lifted, strict=True)):
        rows = retrieved.sources[i]
        sources = [memory.keyframes[row] for row in rows]
        released = release(sources, decoded.outdated[i], surface_m[i], cameras[i, -1], layout.intrinsics)
        if any(new is not old for new, old in zip(released, sources, strict=True)):
            keyframes = list(memory.keyframes)
            for row, new in zip(rows, released, strict=True):
                keyframes[row] = new
            memory = replace(memory, keyframes=tuple(keyframes))
        updated.append(memory if keyframe is None else memory.update(keyframe, labels[i]))
    return updated


def advance_pictures(
    model: WorldModel, states: Sequence[WorldState], poses: Poses, cameras: Tensor, pictures: Tensor
) -> tuple[list[WorldState], Tensor]:
    """The states after new pictures `[b, 4, H, W]`, memory unchanged, and the pictures' latents `[b, c, h, w]`."""
    latents = model.codec.encode_pictures(pictures)
    rows = zip(states, poses, latents[:, None], cameras[:, None], pictures, strict=True)
    history = model.settings.history
    after = [
        advance_state(state, path, latent, camera, (picture.clone(),), history)
        for state, path, latent, camera, picture in rows
    ]
    return after, latents


def lift_observed(
    model: WorldModel,
    layout: FrameLayout,
    memory: MosaicMemory,
    frame: np.ndarray,
    cameras: Tensor,
    step: int,
    label: str,
) -> tuple[MosaicMemory, Tensor]:
    """The memory with an observed last frame, and its picture `[4, H, W]`; depth is estimated from the frame.

    Args:
        frame: uint8 `[H, W, 3]`.
        cameras: `[4, 4, 4]`, metres.
        step: of the environment; label: of the keyframe.
    """
    device = layout.intrinsics.device
    colors = frames_to_float(torch.tensor(frame, device=device))[None]
    depth_m = model.depth.estimate(colors, layout.intrinsics[None])
    picture = torch.cat([colors, depth_channel(depth_m)[:, None]], 1)
    latents = model.codec.encode_pictures(picture)
    written = torch.ones(1, *colors.shape[-2:], dtype=torch.bool, device=device)
    (keyframe,) = lift_pictures(picture, latents, written, cameras[None], layout.intrinsics, layout.patch, 0.0, [step])
    return memory.update(keyframe, label), picture[0]


def _clip_steps(poses: Poses) -> list[Poses]:
    """The poses of a clip, step by step."""
    steps = len(poses[0]) // FRAMES_PER_STEP
    return [[path[FRAMES_PER_STEP * k : FRAMES_PER_STEP * (k + 1)] for path in poses] for k in range(steps)]
