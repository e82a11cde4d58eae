"""From noise to the next latent frame: flow matching, Euler steps on diffusers' scheduler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from mosaic_gym.memory.mosaic import Retrieved
from mosaic_gym.model.transformer import MosaicTransformer3DModel


def step_noise(seeds: Sequence[int], steps: Sequence[int], shape: Sequence[int]) -> Tensor:
    """`[b, *shape]` standard normal noise: row i depends on (seeds[i], steps[i]) only, on any device."""
    rows = []
    for seed, step in zip(seeds, steps, strict=True):
        entropy = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(entropy >> np.uint64(1)))
        rows.append(torch.randn(*shape, generator=generator))
    return torch.stack(rows)


def even_sigmas(steps: int, shift: float) -> np.ndarray:
    """The `steps + 1` noise levels of few-step sampling, from 1 to 0: even, but for the schedule's shift."""
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
    steps: int,
    unwanted: Tensor | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """The next latent frames `[b, t, c, h, w]`.

    What the target is predicted from is read once; every denoising step looks at what was kept of it.

    Args:
        noise: `[b, t, c, h, w]`.
        history: `[b, t, c, h, w]`; history_cameras: `[b, t, 4, 4, 4]`.
        recalled: what memory gives for these cameras.
        cameras: `[b, t, 4, 4, 4]`, world_from_camera, metres.
        image_from_camera: `[b, 3, 3]`, K in pixels of frames of `size` (height, width).
        text: `[b, l, text_dim]`.
        steps: denoising steps.
        unwanted: `[b, l, text_dim]`, the prompt to be led away from; with `guidance` above 1. Where it equals `text`
            guidance leads nowhere, and the network is asked once a level; to learn that an accelerator is waited for
            once a call, not once a level.
        guidance: classifier-free guidance, 1 for none.
    """
    where = retrieved, cameras, image_from_camera, size
    once = steps == len(noise) == 1  # one member's tokens are too few to keep a processor busy: fewer, larger calls
    context = transformer.read(history, history_cameras, *where, text, once=once)
    away = None
    if unwanted is not None and guidance != 1.0 and not torch.equal(unwanted, text):
        away = transformer.read(history, history_cameras, *where, unwanted, once=once)
    if transformer.config.causal:  # trained for few steps, at levels spread evenly
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps), device=noise.device)
    else:
        scheduler.set_timesteps(steps, device=noise.device)
    scheduler.set_begin_index(0)  # else it compares the first timestep with its own, and waits for the answer
    latents = noise
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        time = timestep.expand(len(noise))
        said = transformer(latents, time, context)
        # Schedulers hand back what they are given, and latents in half precision fit nothing that comes after.
        said = said.to(torch.promote_types(said.dtype, noise.dtype))
        if away is not None:
            other = transformer(latents, time, away).type_as(said)
            said = other + guidance * (said - other)
        velocity = (latents - said) / sigma if transformer.config.insertion == "split" else said
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents
