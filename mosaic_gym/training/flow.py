"""Flow matching (Lipman et al., arXiv 2210.02747): the networks that are trained together, noise levels, the loss."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mosaic_gym.memory.pictures import MemoryInputs
from mosaic_gym.model.hourglass import HourglassTransformer, Reading
from mosaic_gym.model.text import ByteTextEncoder
from mosaic_gym.training.generator_samples import Batch

VALID_WEIGHT = 0.2
"""Weight of the loss in a cell that memory shows as it is, all of it; 1 where memory shows nothing that is so."""
REGENERATED_LEVELS = (0.4, 0.9)
"""Noise levels from which memory is generated again."""


class Generator(nn.Module):
    """The networks that are trained together."""

    def __init__(self, transformer: HourglassTransformer, text_encoder: ByteTextEncoder):
        super().__init__()
        self.transformer, self.text_encoder = transformer, text_encoder

    def read(self, batch: Batch, image_from_camera: Tensor, size: tuple[int, int]) -> Reading:
        """The context of a batch; see `HourglassTransformer.read`."""
        k = image_from_camera.expand(len(batch.index), 3, 3)
        text = self.text_encoder(batch.prompts)
        return self.transformer.read(batch.memory, batch.recent, batch.recent_cameras, batch.cameras, k, size, text)

    def forward(
        self, batch: Batch, noisy: Tensor, noise_level: Tensor, image_from_camera: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """The velocity of noisy latents `[k * b, c, h, w]`, the batch repeated k times with a noise level each.

        One call, so that autocast covers all of it.
        """
        reading = self.read(batch, image_from_camera, size)
        return self.transformer(noisy, noise_level, reading.repeat(len(noisy) // len(batch.index)))


def draw_noise(target: Tensor, objective: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise `[b, c, h, w]` and noise levels `[b]`; for `regression` zeros at full level, so nothing of the target."""
    if objective == "regression":
        return torch.zeros_like(target), target.new_ones(len(target))
    level = draw_noise_levels(len(target), generator)
    return torch.randn(target.shape, generator=generator, device=target.device), level


def draw_noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels in (0, 1) `[b]` on the generator's device: logit-normal, and a tenth of them nearly pure noise."""
    normal = torch.randn(count, generator=generator, device=generator.device)
    uniform = torch.rand(count, 2, generator=generator, device=generator.device)
    return torch.where(uniform[:, 0] < 0.1, 0.9 + 0.1 * uniform[:, 1], torch.sigmoid(0.4 + 1.2 * normal))


def flow_loss(velocity: Tensor, noise: Tensor, target: Tensor, valid_share: Tensor) -> Tensor:
    """Weighted squared error of the velocity (flow matching, Lipman et al., arXiv 2210.02747).

    Args:
        valid_share: `[b, 1, h, w]`, the share of each cell that memory shows as it is; see `Batch.valid_share`.
    """
    weight = 1.0 - (1.0 - VALID_WEIGHT) * valid_share
    squares = (velocity.float() - (noise - target)).square().mean(1, keepdim=True)
    return (squares * weight).sum() / weight.sum()


@torch.no_grad()
def regenerate_memory(
    model: Generator, batch: Batch, count: int, image_from_camera: Tensor, size: tuple[int, int],
    generator: torch.Generator,
) -> Batch:  # fmt: skip
    """A batch in which the memory of the first `count` samples has the look of what the model generates.

    The warped latents of covered cells are noised and denoised again in two steps (as SDEdit, Meng et al.,
    arXiv 2108.01073), so that a model sees its own faults in memory and learns to generate crisp latents beside them.

    Args:
        model: the averaged networks.
    """
    part = _first(batch, count)
    device, latents = batch.target.device, part.memory.warped_latent
    clean = torch.cat([latents, part.target[:, -1:]], 1)
    low, high = REGENERATED_LEVELS
    level = low + (high - low) * torch.rand(count, generator=generator, device=device)
    noise = torch.randn(clean.shape, generator=generator, device=device)
    noisy = torch.lerp(clean, noise, level[:, None, None, None])
    reading = model.read(part, image_from_camera, size)
    for start in (level, level / 2):
        noisy = noisy - (level / 2)[:, None, None, None] * model.transformer(noisy, start, reading).float()
    covered = F.avg_pool2d(part.covered[:, None].float(), part.covered.shape[-1] // latents.shape[-1]) > 0.5
    latents = torch.cat([torch.where(covered, noisy[:, :-1], latents), batch.memory.warped_latent[count:]])
    return replace(batch, memory=replace(batch.memory, warped_latent=latents))


def _first(batch: Batch, count: int) -> Batch:
    """The first samples of a batch."""
    memory = MemoryInputs(**{f.name: getattr(batch.memory, f.name)[:count] for f in fields(MemoryInputs)})
    rest = {f.name: getattr(batch, f.name)[:count] for f in fields(Batch) if f.name != "memory"}
    return Batch(memory=memory, **rest)
