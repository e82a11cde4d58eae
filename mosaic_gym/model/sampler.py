"""From noise to the next latent frame: flow matching, with Euler steps by diffusers' scheduler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from mosaic_gym.memory.retrieval import Retrieved
from mosaic_gym.model.hourglass import HourglassTransformer, Reading
from mosaic_gym.model.transformer import MosaicTransformer3DModel


def step_noise(seeds: Sequence[int], steps: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 `[b, *shape]` on the CPU: row i depends on (seeds[i], steps[i]) only."""
    rows = []
    for seed, step in zip(seeds, steps, strict=True):
        entropy = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
        generator = torch.Generator("cpu").manual_seed(int(entropy >> np.uint64(1)))
        rows.append(torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu"))
    return torch.stack(rows)


def even_sigmas(steps: int, shift: float) -> np.ndarray:
    """The `steps + 1` noise levels of few-step sampling, from 1 to 0: evenly spaced, then shifted by the schedule."""
    even = np.linspace(1.0, 1.0 / steps, steps)
    return np.append(shift * even / (1 + (shift - 1) * even), 0.0)


@torch.no_grad()
def denoise(
    transformer: MosaicTransformer3DModel,
    scheduler: SchedulerMixin,
    noise: Tensor,
    history: Tensor,
    history_cameras: Tensor,
    retrieved: Retrieved,
    cameras: Tensor,
    image_from_camera: Tensor,
    size: tuple[int, int],
    text: Tensor,
    denoising_steps: int,
    negative_text: Tensor | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """The next latent frames `[b, t, c, h, w]`.

    The context is read once; all denoising steps share it.

    Args:
        noise: `[b, t, c, h, w]`.
        history: `[b, t, c, h, w]`, recent latents, oldest first.
        history_cameras: `[b, t, 4, 4, 4]`, world_from_camera, metres.
        retrieved: what memory retrieved for these cameras.
        cameras: `[b, t, 4, 4, 4]`, world_from_camera, metres.
        image_from_camera: `[b, 3, 3]`, K in pixels of frames of `size` (height, width).
        text: `[b, l, text_dim]`, vectors of the prompt.
        negative_text: `[b, l, text_dim]`, vectors of the negative prompt, used if `guidance` is above 1. If it equals
            `text`, guidance has no effect and its forward passes are skipped. That comparison waits for the
            accelerator once per call.
        guidance: scale of classifier-free guidance (Ho and Salimans, arXiv 2207.12598); 1 for none.
    """
    conditions = retrieved, cameras, image_from_camera, size
    # The tokens of one member are too few to keep a processor busy; one larger call is then faster than two.
    single_step = denoising_steps == len(noise) == 1
    context = transformer.read(history, history_cameras, *conditions, text, single_step=single_step)
    negative = None
    if negative_text is not None and guidance != 1.0 and not torch.equal(negative_text, text):
        negative = transformer.read(history, history_cameras, *conditions, negative_text, single_step=single_step)
    if transformer.config.causal:  # trained for few steps, at evenly spaced levels
        sigmas = np.linspace(1.0, 1.0 / denoising_steps, denoising_steps)
        scheduler.set_timesteps(sigmas=sigmas, device=noise.device)
    else:
        scheduler.set_timesteps(denoising_steps, device=noise.device)
    scheduler.set_begin_index(0)  # otherwise it looks up the first timestep, and waits for the accelerator
    latents = noise
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        timesteps = timestep.expand(len(noise))
        output = transformer(latents, timesteps, context)
        # The scheduler returns the dtype of its input, and the steps after this one need the noise's precision.
        output = output.to(torch.promote_types(output.dtype, noise.dtype))
        if negative is not None:
            negative_output = transformer(latents, timesteps, negative).type_as(output)
            output = negative_output + guidance * (output - negative_output)
        velocity = (latents - output) / sigma if transformer.config.insertion == "split" else output
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents


@torch.no_grad()
def sample_flow(
    model: HourglassTransformer,
    reading: Reading,
    noise: Tensor,
    denoising_steps: int,
    shift: float = 1.0,
    negative: Reading | None = None,
    guidance: float = 1.0,
    guide: HourglassTransformer | None = None,
) -> Tensor:
    """The latents that Euler steps lead to from noise `[b, c, h, w]`, at the noise levels of `even_sigmas`.

    A model that was trained to regress takes one step, from zeros.

    Args:
        negative, guidance: the reading of the negative prompt by the guide, and the scale of guidance; None and 1 for
            none.
        guide: a weaker version of the model (autoguidance, Karras et al., arXiv 2406.02507); None for the model itself
            (classifier-free guidance, Ho and Salimans, arXiv 2207.12598).
    """
    if model.config.objective == "regression":
        denoising_steps, noise = 1, torch.zeros_like(noise)
    levels = even_sigmas(denoising_steps, shift)
    latents = noise
    for level, following in zip(levels[:-1], levels[1:], strict=True):
        noise_level = noise.new_full((len(noise),), float(level))
        velocity = model(latents, noise_level, reading)
        if negative is not None and guidance != 1.0:
            away = (guide or model)(latents, noise_level, negative)
            velocity = away + guidance * (velocity - away)
        latents = latents + float(following - level) * velocity.to(latents.dtype)
    return latents
