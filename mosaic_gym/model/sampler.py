"""From noise to the next latent frame: flow matching, Euler steps on diffusers' scheduler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mosaic_gym.memory.mosaic import Recall
from mosaic_gym.model.transformer import MosaicTransformer3DModel


def step_noise(seeds: Sequence[int], steps: Sequence[int], shape: Sequence[int]) -> Tensor:
    """`[b, *shape]` standard normal noise: row i depends on (seeds[i], steps[i]) only, on any device."""
    rows = []
    for seed, step in zip(seeds, steps, strict=True):
        entropy = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(entropy >> np.uint64(1)))
        rows.append(torch.randn(*shape, generator=generator))
    return torch.stack(rows)


@torch.no_grad()
def denoise(
    transformer: MosaicTransformer3DModel,
    scheduler: FlowMatchEulerDiscreteScheduler,
    noise: Tensor,
    history: Tensor,
    history_cameras: Tensor,
    recalled: Recall,
    cameras: Tensor,
    image_from_camera: Tensor,
    size: tuple[int, int],
    text: Tensor,
    steps: int,
) -> Tensor:
    """The next latent frame `[b, c, h, w]`.

    The clean tokens are read once; every denoising step looks at their kept keys and values.

    Args:
        noise: `[b, c, h, w]`.
        history: `[b, t, c, h, w]`; history_cameras: `[b, t, 4, 4, 4]`.
        recalled: what memory gives for these cameras.
        cameras: `[b, 4, 4, 4]`, world_from_camera, metres.
        image_from_camera: `[b, 3, 3]`, K in pixels of frames of `size` (height, width).
        text: `[b, l, text_dim]`.
        steps: Euler steps, from sigma 1 down to 0 evenly.
    """
    context = transformer.read(history, history_cameras, recalled, cameras, image_from_camera, size, text)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps), device=noise.device)
    latents = noise
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        level = sigma.expand(len(noise))
        clean = transformer(
            latents, level, context, recalled, cameras, image_from_camera, size, time_index=history.shape[1]
        )
        velocity = (latents - clean) / sigma
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents
