"""Recipe: a causal student of few denoising steps, from a Wan teacher that sees its whole clip and takes many.

Two stages, as Causal Forcing and Self Forcing have them (arXiv 2602.02214, 2506.08009):

1. *Causal.* The student, which begins with the teacher's weights, learns to predict each frame from clean frames
   before it alone, by flow matching under teacher forcing. (Causal Forcing goes on to regress that model's own
   trajectories before it matches; that step is not here.)
2. *Match.* The student rolls out clips by itself, frame by frame in its few steps. Distribution matching (DMD, arXiv
   2311.18828) pulls them to where the teacher's score is higher than that of a critic, which learns all the while
   what the student makes. Gradients flow through one denoising step of every frame.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from torch import Tensor, nn

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.memory.mosaic import Recall
from mosaic_gym.model.sampler import even_sigmas
from mosaic_gym.model.transformer import TIMESTEPS, MosaicTransformer3DModel
from mosaic_gym.model.wan import WanOptions, fuse_adapters
from mosaic_gym.training.finetune import MIX, draw_sample, leaning, noised, open_teacher, remember_long_enough
from mosaic_gym.training.run import Run, budget_of
from mosaic_gym.training.samples import MemoryMix
from mosaic_gym.worlds.mosaic import MosaicWorld


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym train student` takes."""

    from_: Annotated[str, tyro.conf.arg(name="from")]
    """The teacher: a Wan pipeline in diffusers' format, folder or hub id."""
    data: Path = Path("data/my_way_home")
    """Recorded episodes."""
    out: Path = Path("runs/student")
    """The run's folder; `weights/transformer` is the student."""
    height: int = 352
    """Of the frames, pixels; recorded ones are resized."""
    width: int = 640
    """Of the frames, pixels."""
    steps: int | None = None
    """Optimiser steps of both stages; 4000 without --minutes."""
    minutes: float | None = None
    """Wall time of both stages, instead of steps."""
    causal_share: float = 0.5
    """Of the budget that goes to the first stage."""
    denoising_steps: int = 4
    """Of the student."""
    learning_rate: float = 2e-6
    """The peak, of student and critic."""
    clip: int = 5
    """Latent frames the student rolls out."""
    every: int = 5
    """The student learns in one of so many steps of the second stage, the critic in all."""
    empty_prompt: float = 0.1
    """Share of samples whose prompt is empty."""
    shift: float = 5.0
    """Of the noise levels: above 1 leans towards noise."""
    mix: MemoryMix = field(default_factory=lambda: MIX)
    """How much of the past a sample remembers."""
    episodes: int | None = None
    """Recorded episodes to use; None for all."""
    precision: str = "bf16"
    """`bf16`, or `no` (float32)."""
    loading: WanOptions = field(default_factory=WanOptions)
    """How the pipeline is loaded: with `transformer` and `lora`, a fine-tuned one."""


class Pair(nn.Module):
    """What is trained: the student, and the critic that knows what it makes.

    Both begin as the teacher, whose adapters, if it has any, become part of their weights.
    """

    def __init__(self, teacher: MosaicTransformer3DModel):
        super().__init__()
        self.critic, self.student = self._begun(teacher), self._begun(teacher)
        self.student.register_to_config(causal=True)

    @staticmethod
    def _begun(teacher: MosaicTransformer3DModel) -> MosaicTransformer3DModel:
        # In float32, for the small steps of the optimiser would be rounded away, and so would adapters.
        network = copy.deepcopy(teacher).float()
        fuse_adapters(network)
        return network.requires_grad_(True)


@dataclass(frozen=True)
class Sample:
    """A clip and all that it is predicted from; tensors as `MosaicTransformer3DModel.read` takes them."""

    history: Tensor
    history_cameras: Tensor
    recalled: Recall
    latents: Tensor
    cameras: Tensor
    k: Tensor
    size: tuple[int, int]
    text: Tensor

    def before(self, frames: Sequence[Tensor], kept: int) -> tuple[Tensor, Tensor]:
        """History and its cameras behind these frames `[1, c, h, w]` of the clip, at most `kept` of them."""
        latents = torch.cat([self.history, *(frame[:, None] for frame in frames)], dim=1)
        cameras = torch.cat([self.history_cameras, self.cameras[:, : len(frames)]], dim=1)
        return latents[:, -kept:], cameras[:, -kept:]

    def view(self, index: int) -> Recall:
        """What memory gives for one frame of the clip."""
        chosen = {each.name: getattr(self.recalled, each.name)[index : index + 1] for each in fields(Recall)}
        return Recall(**chosen)


def causal_loss(student: nn.Module, sample: Sample, config: Config, generator: torch.Generator, kept: int) -> Tensor:
    """Stage 1: flow matching of one frame behind true ones."""
    index = int(torch.randint(config.clip, (1,), generator=generator))
    history, cameras = sample.before(list(sample.latents[:, :index].unbind(1)), kept)
    here = sample.cameras[:, index : index + 1]
    context = student.read(history, cameras, sample.view(index), here, sample.k, sample.size, sample.text)
    sigma = leaning(generator, config.shift, sample.latents)
    noisy, velocity = noised(sample.latents[:, index : index + 1], sigma, generator)
    return F.mse_loss(student(noisy, sigma * TIMESTEPS, context).float(), velocity)


def roll_out(
    student: nn.Module, sample: Sample, config: Config, generator: torch.Generator, kept: int, learns: bool
) -> Tensor:
    """The student's own clip `[1, t, c, h, w]`; if it learns, with gradients through one step of each frame."""
    sigmas = even_sigmas(config.denoising_steps, config.shift)
    stop = int(torch.randint(config.denoising_steps, (1,), generator=generator))  # one for all frames
    frames: list[Tensor] = []
    for index in range(config.clip):
        here = sample.cameras[:, index : index + 1]
        latents = torch.randn(sample.latents[:, :1].shape, generator=generator).to(sample.latents)
        history, cameras = sample.before([frame.detach() for frame in frames], kept)
        for step in range(stop + 1):
            with torch.set_grad_enabled(learns and step == stop):
                # Read where it is used: what was read without gradients cannot be learnt through.
                context = student.read(history, cameras, sample.view(index), here, sample.k, sample.size, sample.text)
                time = torch.full((1,), float(sigmas[step]) * TIMESTEPS).to(latents)
                velocity = student(latents, time, context).float()
                clean = latents - float(sigmas[step]) * velocity
                latents = latents + (float(sigmas[step + 1]) - float(sigmas[step])) * velocity
        frames.append(clean[:, 0])
    return torch.stack(frames, dim=1)


def score_losses(
    teacher: nn.Module, critic: nn.Module, clip: Tensor, sample: Sample, config: Config, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Stage 2: what moves the student (DMD, eq. 7 with its normalisation, eq. 8), and what teaches the critic."""
    sigma = leaning(generator, config.shift, clip)
    noisy, velocity = noised(clip.detach(), sigma, generator)
    where = sample.history, sample.history_cameras, sample.recalled, sample.cameras, sample.k, sample.size, sample.text
    time, level = sigma * TIMESTEPS, sigma.view(-1, 1, 1, 1, 1)
    said = critic(noisy, time, critic.read(*where)).float()
    critic_loss = F.mse_loss(said, velocity)
    with torch.no_grad():
        real = noisy - level * teacher(noisy, time, teacher.read(*where)).float()
        fake = noisy - level * said
        pull = (fake - real) / (clip.detach() - real).abs().mean().clamp_min(1e-6)
        wanted = clip.detach() - pull
    return 0.5 * F.mse_loss(clip, wanted), critic_loss


def train(config: Config) -> MosaicTransformer3DModel:
    """Trains the student, and writes it to `weights/transformer`.

    Raises:
        ValueError: a causal teacher, or episodes shorter than a clip.
    """
    budget = budget_of(config, steps=4000)
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision=config.precision)
    world, store = open_teacher(config, str(accelerator.device))
    teacher = world.model.transformer
    if teacher.config.causal:
        raise ValueError(f"{config.from_} is causal itself; a teacher sees its whole clip")
    teacher.requires_grad_(False)
    episodes = remember_long_enough(world, store, config)
    run = Run(config.out, Pair(teacher), config.learning_rate, *budget, accelerator, averaged=False)
    pair = accelerator.unwrap_model(run.model)
    kept = world.model.settings.history
    while not run.finished:
        generator = run.generator()
        sample = _sample(world, store, episodes, config, run.seed)
        with accelerator.autocast():
            if run.progress < config.causal_share:
                loss = causal_loss(pair.student, sample, config, generator, kept)
                told = {"causal": loss.detach()}
            else:
                learns = run.step_index % config.every == 0
                clip = roll_out(pair.student, sample, config, generator, kept, learns)
                matching, loss = score_losses(teacher, pair.critic, clip, sample, config, generator)
                told = {"critic": loss.detach(), "matching": matching.detach()}
                if learns:
                    loss = loss + matching
        run.update(loss, told)
    run.close()
    folder = config.out / "weights" / "transformer"
    pair.student.save_pretrained(folder)
    loading = {"transformer": str(folder), "denoising_steps": config.denoising_steps, "guidance": 1.0}
    print(f"the student is in {folder}; step it with gym.make(..., loading={loading})")
    return pair.student


def _sample(world: MosaicWorld, store: EpisodeStore, episodes: dict, config: Config, seed: int) -> Sample:
    state, recalled, latents, cameras = draw_sample(world, store, episodes, config, seed)
    size = (world.height, world.width)
    history, history_cameras = state.history[None], state.history_cameras[None]
    return Sample(history, history_cameras, recalled, latents, cameras, world.k[None], size, state.text[None])


