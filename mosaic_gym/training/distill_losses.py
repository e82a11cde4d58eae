"""Losses of distillation: flow matching of a causal student, its roll-outs, and distribution matching (DMD)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mosaic_gym.memory.retrieval import Retrieved
from mosaic_gym.model.sampler import even_sigmas
from mosaic_gym.model.transformer import TIMESTEPS
from mosaic_gym.training.clips import add_noise, draw_noise_level

SCORED_LEVELS = (0.02, 0.98)
"""The lowest and the highest noise level at which a clip is scored, as in DMD and Self Forcing."""


class LossOptions(Protocol):
    """The fields of the recipe's config that the losses read."""

    clip: int
    denoising_steps: int
    guidance: float
    shift: float


@dataclass(frozen=True)
class Sample:
    """A clip and everything it is predicted from; tensors as `MosaicTransformer3DModel.read` takes them.

    Attributes:
        negative_text: `[1, l, text_dim]`, what guidance leads the teacher away from; None without guidance.
    """

    history: Tensor
    history_cameras: Tensor
    retrieved: Retrieved
    latents: Tensor
    cameras: Tensor
    k: Tensor
    size: tuple[int, int]
    text: Tensor
    negative_text: Tensor | None = None

    def history_after(self, frames: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
        """History and its cameras after these first frames `[1, c, h, w]` of the clip, at most `length` of them."""
        latents = torch.cat([self.history, *(frame[:, None] for frame in frames)], dim=1)
        cameras = torch.cat([self.history_cameras, self.cameras[:, : len(frames)]], dim=1)
        return latents[:, -length:], cameras[:, -length:]

    def view(self, index: int) -> Retrieved:
        """What memory retrieves for one frame of the clip."""
        return self.retrieved.views(slice(index, index + 1))


def causal_loss(
    student: nn.Module, sample: Sample, options: LossOptions, generator: torch.Generator, length: int
) -> Tensor:
    """Stage 1: flow matching of one frame after true ones; `length` is that of the history."""
    index = int(torch.randint(options.clip, (1,), generator=generator))
    history, history_cameras = sample.history_after(list(sample.latents[:, :index].unbind(1)), length)
    cameras = sample.cameras[:, index : index + 1]
    context = student.read(history, history_cameras, sample.view(index), cameras, sample.k, sample.size, sample.text)
    sigma = draw_noise_level(generator, options.shift, sample.latents)
    noisy, velocity = add_noise(sample.latents[:, index : index + 1], sigma, generator)
    return F.mse_loss(student(noisy, sigma * TIMESTEPS, context).float(), velocity)


def roll_out(
    student: nn.Module, sample: Sample, options: LossOptions, generator: torch.Generator, length: int, learns: bool
) -> Tensor:
    """The student's own clip `[1, t, c, h, w]`; if it learns, with gradients through one step of each frame."""
    sigmas = even_sigmas(options.denoising_steps, options.shift)
    stop = int(torch.randint(options.denoising_steps, (1,), generator=generator))  # one for all frames
    frames: list[Tensor] = []
    for index in range(options.clip):
        cameras = sample.cameras[:, index : index + 1]
        latents = torch.randn(sample.latents[:, :1].shape, generator=generator).to(sample.latents)
        history, history_cameras = sample.history_after([frame.detach() for frame in frames], length)
        for step in range(stop + 1):
            with torch.set_grad_enabled(learns and step == stop):
                # Read inside: gradients cannot flow through what was read without them.
                context = student.read(
                    history, history_cameras, sample.view(index), cameras, sample.k, sample.size, sample.text
                )
                time = torch.full((1,), float(sigmas[step]) * TIMESTEPS).to(latents)
                velocity = student(latents, time, context).float()
                clean = latents - float(sigmas[step]) * velocity
                latents = latents + (float(sigmas[step + 1]) - float(sigmas[step])) * velocity
        frames.append(clean[:, 0])
    return torch.stack(frames, dim=1)


def score_losses(
    teacher: nn.Module,
    critic: nn.Module,
    clip: Tensor,
    sample: Sample,
    options: LossOptions,
    generator: torch.Generator,
    learns: bool,
) -> tuple[Tensor | None, Tensor]:
    """Stage 2: the student's loss (DMD, eq. 7 with its normalization, eq. 8) and the critic's.

    The teacher's score is guided: the unprompted one plus `options.guidance` times what the prompt adds. In a step
    where the student does not learn, its loss is None and the teacher does not run.
    """
    sigma = draw_noise_level(generator, options.shift, clip).clamp(*SCORED_LEVELS)
    noisy, velocity = add_noise(clip.detach(), sigma, generator)
    inputs = sample.history, sample.history_cameras, sample.retrieved, sample.cameras, sample.k, sample.size
    time, level = sigma * TIMESTEPS, sigma.view(-1, 1, 1, 1, 1)
    critic_velocity = critic(noisy, time, critic.read(*inputs, sample.text)).float()
    critic_loss = F.mse_loss(critic_velocity, velocity)
    if not learns:
        return None, critic_loss
    with torch.no_grad():
        teacher_velocity = teacher(noisy, time, teacher.read(*inputs, sample.text)).float()
        if options.guidance != 1.0:
            unprompted = teacher(noisy, time, teacher.read(*inputs, sample.negative_text)).float()
            teacher_velocity = unprompted + options.guidance * (teacher_velocity - unprompted)
        real = noisy - level * teacher_velocity
        fake = noisy - level * critic_velocity
        gradient = (fake - real) / (clip.detach() - real).abs().mean().clamp_min(1e-6)
        target = clip.detach() - gradient
    return 0.5 * F.mse_loss(clip, target), critic_loss
