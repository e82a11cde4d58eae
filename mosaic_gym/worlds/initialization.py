"""The first state of an episode of the learned world: checked inputs, first images, states at rest, first keyframes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose, check_poses, is_level, pose_at
from mosaic_gym.memory import whereabouts
from mosaic_gym.memory.keyframe import Keyframe
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.memory.pictures import depth_of_channel
from mosaic_gym.memory.retrieval import retrieve
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.codec import frames_to_float, frames_to_uint8
from mosaic_gym.model.depth import align_scale
from mosaic_gym.model.device import out_of_memory_guard
from mosaic_gym.worlds.generation import camera_tensor, condition_next_step, denoise_latents
from mosaic_gym.worlds.picture_steps import PictureOptions, advance_pictures, lift_observed, retrieve_step, sample_step
from mosaic_gym.worlds.protocol import Start
from mosaic_gym.worlds.spatial_memory import FrameLayout, lift_keyframes, retrieve_views
from mosaic_gym.worlds.state import WorldState

if TYPE_CHECKING:
    from mosaic_gym.model.atlas import Atlas

DEFAULT_PROMPT = "a photograph of a furnished room, seen at eye level"
"""The prompt of a world without start views, where a start names none."""
FIRST_FRAME_STEP = 2**32 - 1
"""The step index whose noise generates a first frame. No episode reaches it."""


def check_pixels(name: str, pixels: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels as a contiguous uint8 array, from tensors and from arrays with any strides, such as `bgr[..., ::-1]`.

    Raises:
        ValueError: another dtype or shape.
    """
    pixels = np.asarray(pixels.cpu() if isinstance(pixels, Tensor) else pixels)
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise ValueError(f"{name} is uint8 of shape {shape}; got {pixels.dtype} of shape {pixels.shape}")
    return np.ascontiguousarray(pixels)


def check_frames(frames: Any, poses: Sequence[Pose], size: tuple[int, int]) -> np.ndarray:
    """The four frames of a step as `check_pixels` returns them, with as many usable poses.

    Args:
        size: (height, width), pixels.

    Raises:
        ValueError: frames of another shape or dtype, another number of poses, or a pose that is NaN, infinite or no
            rigid transform; the message names it.
    """
    checked = check_pixels("an observation", frames, (FRAMES_PER_STEP, *size, 3))
    check_poses(poses)
    if len(poses) != FRAMES_PER_STEP:
        raise ValueError(f"{FRAMES_PER_STEP} frames need {FRAMES_PER_STEP} poses; got {len(poses)}")
    return checked


def check_memory(
    memory: MosaicMemory | None,
    capacity: int,
    fingerprint: str,
    latent_shape: tuple[int, int, int],
    device: torch.device,
) -> MosaicMemory:
    """The memory that an episode starts with, with this world's capacity and on its device; empty for None.

    Args:
        capacity: keyframes that the world keeps.
        fingerprint: of the codec and atlas that keyframes must have been made with.
        latent_shape: (c, h, w) of the world's latent frames.
        device: of the world.

    Raises:
        TypeError: not a MosaicMemory.
        ValueError: a memory of another codec, atlas or latent shape, or any memory for a world that keeps none.
    """
    if memory is None:
        return MosaicMemory(capacity=capacity, made_with=fingerprint)
    if not isinstance(memory, MosaicMemory):
        kind = type(memory).__name__
        raise TypeError(f"a start memory is a MosaicMemory; got {kind}. Load it with MosaicMemory.load")
    memory.check_made_with(fingerprint)
    if len(memory) and capacity == 0:
        raise ValueError("this world keeps no memory (capacity 0), so it cannot start with one; make it with memory")
    if len(memory) and tuple(memory.keyframes[0].latent.shape) != latent_shape:
        shape = tuple(memory.keyframes[0].latent.shape)
        raise ValueError(
            f"the memory has latents of shape {shape}, this checkpoint {latent_shape}: load it in the checkpoint that "
            "made it"
        )
    keyframes = tuple(keyframe.to(device) for keyframe in memory.keyframes)  # a file's are on the CPU
    return replace(memory, keyframes=keyframes, capacity=capacity, made_with=fingerprint)


def draw_start_view(images: Tensor, prompts: Sequence[str], seed: int) -> tuple[np.ndarray, str]:
    """One of a checkpoint's start images `[n, H, W, 3]` and its caption, drawn by the seed."""
    index = int(np.random.default_rng(seed).integers(len(images)))
    return images[index].numpy(), prompts[index]


def first_image(
    model: WorldModel, layout: FrameLayout, start: Start, denoising_steps: int, negative_text: Tensor | None
) -> tuple[np.ndarray, str]:
    """The first image of an episode, uint8 `[H, W, 3]`, and its prompt.

    It is the start's own image, one of the checkpoint's, or one generated from the prompt by a model that ships none.

    Raises:
        ValueError: a start image of another shape or dtype.
    """
    prompt = start.prompt
    if start.image is not None:
        return check_pixels("a start image", start.image, (*layout.frame_size, 3)), prompt or ""
    if len(model.start_images):
        image, caption = draw_start_view(model.start_images, model.start_prompts, start.seed)
        return image, caption if prompt is None else prompt
    prompt = DEFAULT_PROMPT if prompt is None else prompt
    if model.codec.has_depth:
        return sample_first_picture(model, layout, prompt, start.seed, denoising_steps), prompt
    return generate_first_image(model, layout, prompt, start.seed, denoising_steps, negative_text), prompt


@torch.no_grad()
def generate_first_image(
    model: WorldModel, layout: FrameLayout, prompt: str, seed: int, denoising_steps: int, negative_text: Tensor | None
) -> np.ndarray:
    """A first frame from the prompt alone, uint8 `[H, W, 3]`: a clip of one latent frame without history or memory.

    Args:
        negative_text: `[1, n, d]`, the encoded negative prompt; None without guidance.
    """
    device, shape = layout.intrinsics.device, layout.latent_shape
    cameras = camera_tensor([[pose_at(0.0, 0.0, 0.0, 0.0)] * FRAMES_PER_STEP], device)
    retrieved = retrieve([()], cameras[0], layout.intrinsics, model.codec, shape, 0, 0, layout.patch)
    history = torch.zeros(1, 0, *shape, dtype=torch.float32, device=device)
    text = model.text_encoder.encode([prompt])
    noise_keys, inputs = [(seed, FIRST_FRAME_STEP)], (history, cameras[:, :0], retrieved, cameras, text)
    latents = denoise_latents(model, layout, *inputs, noise_keys, denoising_steps, negative_text)
    (stream,) = model.codec.start_clips(latents[:, 0])
    return frames_to_uint8(model.codec.last_frame(latents[0, 0], stream)).cpu().numpy()


@torch.no_grad()
def sample_first_picture(
    model: WorldModel, layout: FrameLayout, prompt: str, seed: int, denoising_steps: int
) -> np.ndarray:
    """A first frame from the prompt alone, uint8 `[H, W, 3]`: sampled without memory, after an empty latent."""
    device = layout.intrinsics.device
    poses = [pose_at(0.0, 0.0, 0.0, 0.0)] * FRAMES_PER_STEP
    cameras = camera_tensor([poses], device)  # [1, 1, 4, 4, 4]
    latents = torch.zeros(1, *layout.latent_shape, dtype=torch.float32, device=device)
    state = state_at_rest(model, poses[-1], latents, cameras[0], MosaicMemory(), prompt, seed)
    state = replace(state, step_index=FIRST_FRAME_STEP)
    retrieved = retrieve_step(model, layout, [state], cameras[:, 0])
    sampled = sample_step(model, layout, [state], retrieved, cameras[:, 0], PictureOptions(denoising_steps, 0.0, None))
    colors = model.codec.decode_pictures(sampled[:, :-1])[0, :3].clamp(-1, 1)
    return frames_to_uint8(colors).cpu().numpy()


def frames_tensor(frames: np.ndarray, device: torch.device) -> Tensor:
    """Frames uint8 `[4, H, W, 3]` as `[1, 4, 3, H, W]` in [-1, 1]."""
    return frames_to_float(torch.tensor(frames, device=device))[None]


def state_at_rest(
    model: WorldModel,
    pose: Pose,
    latents: Tensor,
    cameras: Tensor,
    memory: MosaicMemory,
    prompt: str,
    seed: int,
) -> WorldState:
    """The state before a first step. Its history repeats one latent frame.

    Args:
        model: that encodes the prompt.
        latents: `[1, c, h, w]`; cameras: `[1, 4, 4, 4]`, metres.

    Raises:
        ValueError: a prompt that is too long.
    """
    history_length = model.settings.history
    return WorldState(
        pose=pose,
        history=latents.expand(history_length, -1, -1, -1).clone(),
        history_cameras=cameras.expand(history_length, -1, -1, -1).clone(),
        memory=memory,
        prompt=prompt,
        text=model.text_encoder.encode([prompt])[0],
        seed=int(seed),
        step_index=0,
        stream=model.codec.start_clips(latents)[0],
    )


def start_from_true_frames(
    model: WorldModel,
    layout: FrameLayout,
    atlas: Atlas | None,
    memory: MosaicMemory,
    frames: np.ndarray,
    poses: Sequence[Pose],
    cameras: Tensor,
    prompt: str,
    seed: int,
) -> tuple[WorldState, Tensor]:
    """The state after checked first frames, uint8 `[4, H, W, 3]`, and the depth `[H, W]` of the last one, metres.

    Args:
        model, layout, atlas: of the world.
        memory: that the episode starts with.
        poses: four; cameras: theirs, `[1, 1, 4, 4, 4]`.
    """
    if model.codec.has_depth:
        memory, picture = lift_observed(model, layout, memory, frames[-1], cameras[0, 0], 0, prompt)
        latents = model.codec.encode_pictures(picture[None])
        state = state_at_rest(model, poses[-1], latents, cameras[0], memory, prompt, seed)
        return replace(state, stream=(picture,)), depth_of_channel(picture[3])
    latents = model.codec.encode(frames_tensor(frames, layout.intrinsics.device))  # [1, c, h, w]
    state = state_at_rest(model, poses[-1], latents, cameras[0], memory, prompt, seed)
    keyframe, depth_m = lift_true_frames(model, layout, atlas, memory, frames, latents, cameras[0], step=0)
    return replace(state, memory=memory.update(keyframe, prompt)), depth_m


def observe_true_frames(
    model: WorldModel,
    layout: FrameLayout,
    atlas: Atlas | None,
    state: WorldState,
    frames: np.ndarray,
    poses: Sequence[Pose],
    cameras: Tensor,
) -> WorldState:
    """The state after four more true frames, uint8 `[4, H, W, 3]`, from four poses; arguments as above."""
    step = state.step_index + 1
    if model.codec.has_depth:
        memory, picture = lift_observed(model, layout, state.memory, frames[-1], cameras[0, 0], step, state.prompt)
        (after,), _ = advance_pictures(model, [state], [poses], cameras[:, 0], picture[None])
        return replace(after, memory=memory)
    previous = model.codec.last_frame(state.history[-1], state.stream)[None]
    pixels = frames_tensor(frames, layout.intrinsics.device)
    latents = model.codec.encode(pixels, previous)[None]  # [1, 1, c, h, w]
    streams = [state.stream]
    if not model.codec.restarts:  # otherwise `condition_next_step` starts a clip with the observed frame
        _, streams = model.codec.decode_next(latents[0], streams)
    keyframe, _ = lift_true_frames(model, layout, atlas, state.memory, frames, latents[0], cameras[0], step)
    (after,) = condition_next_step(model, [state], [poses], latents, pixels[None], cameras, streams)
    return replace(after, memory=state.memory.update(keyframe, state.prompt))


def renumber(memory: MosaicMemory, step: int, number: int) -> MosaicMemory:
    """The memory, with the keyframes of one environment step counted as another's."""
    keyframes = [replace(row, step=number) if row.step == step else row for row in memory.keyframes]
    return replace(memory, keyframes=tuple(keyframes))


def lift_true_frames(
    model: WorldModel,
    layout: FrameLayout,
    atlas: Atlas | None,
    memory: MosaicMemory,
    frames: np.ndarray,
    latents: Tensor,
    cameras: Tensor,
    step: int,
) -> tuple[Keyframe, Tensor]:
    """The keyframe of four true frames, and the last one's depth `[H, W]`, metres.

    Args:
        model: depth estimator and codec.
        layout: shapes of the world.
        atlas: that locates the frames on its map.
        memory: of the episode so far, on whose scale the estimated depth is put.
        frames: uint8 `[4, H, W, 3]`.
        latents: `[1, c, h, w]`; cameras: `[1, 4, 4, 4]`, metres.
        step: index of the environment step.
    """
    device = layout.intrinsics.device
    last = frames_tensor(frames[-1:], device)[:, 0]
    with out_of_memory_guard("the depth estimator"):
        depth_m = model.depth.estimate(last, layout.intrinsics[None])
    if len(memory):
        limits = model.settings.max_sources, model.settings.max_patches
        retrieved = retrieve_views([memory], cameras[None], layout, model.codec, *limits, has_atlas=atlas is not None)
        depth_m = align_scale(depth_m, retrieved.depth_m, model.depth.metric)
    place = None
    # The atlas locates level cameras only, and worlds without memory locate nothing.
    if atlas is not None and memory.capacity and is_level(cameras[0, -1].double().cpu().numpy()):
        frame = frames_tensor(frames, device)[0, -1]
        located = memory.keyframes, frame, cameras[0, -1], layout.intrinsics
        place = whereabouts.recognise(atlas, model.codec, *located)[None]
    generation = torch.zeros(1, *layout.patch_grid, dtype=torch.float32, device=device)
    (keyframe,) = lift_keyframes(latents, depth_m, cameras, generation, [step], layout, place)
    return keyframe, depth_m[0]
