"""Recipe: a causal student of few denoising steps, from a Wan teacher that sees its whole clip and takes many.

Two stages, after Causal Forcing and Self Forcing (arXiv 2602.02214, 2506.08009):

1. *Causal.* The student, which begins with the teacher's weights, learns to predict each frame from clean frames
   before it alone, by flow matching under teacher forcing. (Causal Forcing goes on to regress that model's own
   trajectories before it matches; that step is not here.)
2. *Match.* The student rolls out clips by itself, frame by frame in its few steps. Distribution matching (DMD, arXiv
   2311.18828) pulls them to where the teacher's score is higher than that of a critic, which learns all the while
   what the student makes. Gradients flow through one denoising step of every frame. The teacher is guided as Wan is
   when it is sampled, the critic and the student are not: what guidance does becomes the student's own.

It is not Self Forcing to the letter. A roll-out is stepped as play steps it, by Euler from one noise to a frame, where
Self Forcing adds fresh noise to the predicted frame at every level. A frame is predicted from one latent frame before
it (`history`) and from memory, where Self Forcing keeps a window of frames. And an optimiser step has one clip, where
published runs have dozens: gradients are noisier by as much, and learning rates that suit those may be too large.

A student is to be begun from an image: history is never empty here, and a first frame made from the prompt alone has
nothing before it.

Each stage is a run of its own, in `causal/` and `match/` of the run's folder, and the critic is made for the second.

Memory, computed and not measured, at the full size of TI2V-5B, whose transformer has 5.283 billion parameters with its
camera projections (GB are 10^9 bytes). What is frozen takes 24.7 GB: teacher 10.6 and UMT5 11.4 in bfloat16,
autoencoder 2.8 in float32. What is trained is float32, 21.1 GB a copy, and there are five copies of each network:
weights, gradients, AdamW's two moments, and its square roots while it steps. That makes 130 GB in the first stage (the
student) and 236 in the second (student and critic). Activations come before the fifth copy and take less: blocks keep
their input alone, and run again for their gradients. Every recorded step adds a keyframe, 0.18 MB at 352x640. Several
processes are refused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from torch import Tensor, nn

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.memory.mosaic import Retrieved
from mosaic_gym.model.sampler import even_sigmas
from mosaic_gym.model.transformer import TIMESTEPS, MosaicTransformer3DModel
from mosaic_gym.model.wan.pipeline import WanOptions, fuse_adapters
from mosaic_gym.training.finetune import (
    MIX,
    build_long_enough_memories,
    check,
    draw_sample,
    leaning,
    noised,
    open_teacher,
    played_whole,
    shifted,
)
from mosaic_gym.training.run import Run, budget_of, check_processes, check_resumable, checkpoint_in, recipe_of
from mosaic_gym.training.samples import MemoryMix, Remembered
from mosaic_gym.worlds.mosaic import MosaicWorld

STAGES = ("causal", "match")
"""Folders of the two stages' runs."""
SCORED = (0.02, 0.98)
"""The least and the greatest noise level that a clip is scored at, as DMD and Self Forcing have them."""


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym train student` takes."""

    from_: Annotated[str, tyro.conf.arg(name="from")]
    """The teacher: a Wan pipeline in diffusers' format, folder or hub id."""
    data: Path = Path("data/my_way_home")
    """Recorded episodes."""
    out: Path = Path("runs/student")
    """The run's folder; `weights/transformer` is the student, and `lifted/` holds what was encoded."""
    height: int = 352
    """Of the frames, pixels; recorded ones are resized."""
    width: int = 640
    """Of the frames, pixels."""
    steps: int | None = None
    """Optimiser steps of both stages; 4000 without --minutes."""
    minutes: float | None = None
    """Wall time of both stages, instead of steps."""
    causal_share: float = 0.5
    """Of the budget that goes to the first stage, 0 to 1; which is over once the second has begun."""
    denoising_steps: int = 4
    """Of the student, whose folder records it: it is stepped in so many."""
    guidance: float = 4.0
    """Of the teacher's score in the second stage, away from loading.negative_prompt; 1 for none. Self Forcing's 3.0,
    which it counts from the prompted score on and not from the unprompted one, is 4.0 here."""
    learning_rate: float = 2e-6
    """The peak in each stage, of student and critic."""
    clip: int = 5
    """Latent frames the student rolls out."""
    every: int = 5
    """The student learns in one of so many steps of the second stage, the critic in all."""
    empty_prompt: float = 0.1
    """Share of samples whose prompt is empty."""
    shift: float | None = None
    """Of the noise levels: above 1 leans towards noise. None for the pipeline's own flow_shift. The student's folder
    records it: it is stepped at these levels."""
    mix: MemoryMix = field(default_factory=lambda: MIX)
    """How much of the past a sample remembers."""
    episodes: int | None = None
    """Recorded episodes to use; None for all."""
    checkpoint_minutes: float = 5.0
    """Between checkpoints, each of three times what is trained: 127 GB in the second stage at the size of TI2V-5B."""
    precision: str = "bf16"
    """Of products: `bf16`, or `no` (float32, but for the teacher's, which are as loading.dtype has it)."""
    loading: WanOptions = field(default_factory=WanOptions)
    """How the pipeline is loaded: with `transformer` and `lora`, a fine-tuned one."""


def begun(teacher: MosaicTransformer3DModel) -> MosaicTransformer3DModel:
    """A network to be trained that begins as the teacher, whose adapters, if it has any, become part of its weights."""
    # In float32, for the small steps of the optimiser would be rounded away, and so would adapters.
    network = copy.deepcopy(teacher).float()
    fuse_adapters(network)
    network.enable_gradient_checkpointing()
    return network.requires_grad_(True)


def student_of(teacher: MosaicTransformer3DModel, config: Config) -> MosaicTransformer3DModel:
    """A student that begins as the teacher, and records the noise levels that it is trained at, and that it is guided
    no more."""
    student = begun(teacher)
    levels = {"flow_shift": config.shift, "denoising_steps": config.denoising_steps}
    student.register_to_config(causal=True, guidance=1.0, **levels)
    return student


@dataclass(frozen=True)
class Sample:
    """A clip and all that it is predicted from; tensors as `MosaicTransformer3DModel.read` takes them.

    Attributes:
        unwanted: `[1, l, text_dim]`, what guidance leads the teacher away from; None where no teacher is guided.
    """

    history: Tensor
    history_cameras: Tensor
    retrieved: Retrieved
    latents: Tensor
    cameras: Tensor
    k: Tensor
    size: tuple[int, int]
    text: Tensor
    unwanted: Tensor | None = None

    def before(self, frames: Sequence[Tensor], kept: int) -> tuple[Tensor, Tensor]:
        """History and its cameras behind these frames `[1, c, h, w]` of the clip, at most `kept` of them."""
        latents = torch.cat([self.history, *(frame[:, None] for frame in frames)], dim=1)
        cameras = torch.cat([self.history_cameras, self.cameras[:, : len(frames)]], dim=1)
        return latents[:, -kept:], cameras[:, -kept:]

    def view(self, index: int) -> Retrieved:
        """What memory gives for one frame of the clip."""
        return self.retrieved.views(slice(index, index + 1))


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
    teacher: nn.Module,
    critic: nn.Module,
    clip: Tensor,
    sample: Sample,
    config: Config,
    generator: torch.Generator,
    learns: bool,
) -> tuple[Tensor | None, Tensor]:
    """Stage 2: what moves the student (DMD, eq. 7 with its normalisation, eq. 8), and what teaches the critic.

    The teacher's score is guided: the unprompted one, and `config.guidance` times what the prompt adds. Where the
    student does not learn, nothing moves it (None), and the teacher is not asked.
    """
    sigma = leaning(generator, config.shift, clip).clamp(*SCORED)
    noisy, velocity = noised(clip.detach(), sigma, generator)
    where = sample.history, sample.history_cameras, sample.retrieved, sample.cameras, sample.k, sample.size
    time, level = sigma * TIMESTEPS, sigma.view(-1, 1, 1, 1, 1)
    said = critic(noisy, time, critic.read(*where, sample.text)).float()
    critic_loss = F.mse_loss(said, velocity)
    if not learns:
        return None, critic_loss
    with torch.no_grad():
        wished = teacher(noisy, time, teacher.read(*where, sample.text)).float()
        if config.guidance != 1.0:
            other = teacher(noisy, time, teacher.read(*where, sample.unwanted)).float()
            wished = other + config.guidance * (wished - other)
        real = noisy - level * wished
        fake = noisy - level * said
        pull = (fake - real) / (clip.detach() - real).abs().mean().clamp_min(1e-6)
        wanted = clip.detach() - pull
    return 0.5 * F.mse_loss(clip, wanted), critic_loss


Budget = tuple[float | None, int | None]
"""Minutes or optimiser steps."""


@dataclass(frozen=True)
class Given:
    """What samples are drawn from: the teacher's world, and the recordings."""

    world: MosaicWorld
    store: EpisodeStore
    config: Config
    accelerator: Accelerator

    @cached_property
    def episodes(self) -> dict[int, Remembered]:
        """What is remembered of each episode; made when it is asked for, which takes long."""
        return build_long_enough_memories(self.world, self.store, self.config, self.accelerator)

    @property
    def asked(self) -> dict[str, Any]:
        """What a run on top of them tells `Run`."""
        return {"parts": self.world.model.fingerprint, "recipe": recipe_of(self.config, self.store)}

    def open_run(self, folder: Path, networks: nn.Module, budget: Budget) -> Run:
        """The run of a stage, whose clock starts when there is something to draw from."""
        config = self.config
        told = {"averaged": False, "checkpoint_minutes": config.checkpoint_minutes, **self.asked}
        run = Run(folder, networks, config.learning_rate, *budget, self.accelerator, **told)
        if not run.finished:
            _ = self.episodes
        run.start_clock()
        return run

    def sample(self, seed: int) -> Sample:
        """One of all, the same for a seed."""
        return _sample(self.world, self.store, self.episodes, self.config, seed)


def learn_causally(student: MosaicTransformer3DModel, given: Given, budget: Budget) -> None:
    """Stage 1, in place."""
    config, kept = given.config, given.world.model.settings.history
    run = given.open_run(config.out / STAGES[0], nn.ModuleDict({"student": student}), budget)
    while not run.finished:
        sample = given.sample(run.seed)
        with given.accelerator.autocast():
            loss = causal_loss(student, sample, config, run.generator(), kept)
        run.update(loss, {"causal": loss.detach()})
    run.close()


def match_teacher(student: MosaicTransformer3DModel, given: Given, budget: Budget) -> None:
    """Stage 2, in place."""
    config, model = given.config, given.world.model
    critic = begun(model.transformer)
    networks = nn.ModuleDict({"student": student, "critic": critic})
    run = given.open_run(config.out / STAGES[1], networks, budget)
    kept = model.settings.history
    unwanted = None
    if config.guidance != 1.0:
        unwanted = model.text_encoder.encode([config.loading.negative_prompt])
    told: dict[str, Tensor] = {}
    while not run.finished:
        generator = run.generator()
        sample = replace(given.sample(run.seed + 7919), unwanted=unwanted)  # others than the first stage's
        learns = run.step_index % config.every == 0
        with given.accelerator.autocast():
            clip = roll_out(student, sample, config, generator, kept, learns)
            matching, loss = score_losses(model.transformer, critic, clip, sample, config, generator, learns)
        told["critic"] = loss.detach()
        if learns:
            told["matching"] = matching.detach()  # told until it is known anew
            loss = loss + matching
        run.update(loss, told)
    run.close()


def train(config: Config) -> MosaicTransformer3DModel:
    """Trains the student, and writes it to `weights/transformer`.

    Raises:
        ValueError: as `check` and `open_teacher`, and for a share or a guidance that is none, several processes, or a
            causal teacher.
    """
    causal, match = _budgets(config)
    if not 1.0 <= config.guidance < math.inf:
        raise ValueError(f"guidance is 1 (none) or more; got {config.guidance}")
    check(config)
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision=config.precision)
    check_processes(accelerator, config.minutes, averaged=False, shared=False)
    runs = [config.out / stage for stage in STAGES]
    world, store = open_teacher(config, str(accelerator.device), *runs)
    teacher = world.model.transformer
    if teacher.config.causal:
        whose = "--loading.causal" if config.loading.causal else config.loading.transformer or config.from_
        raise ValueError(
            f"the teacher is causal ({whose}), and a teacher sees its whole clip: take a model that is not, such as "
            "the one that this was distilled from"
        )
    config = shifted(config, world.model)
    teacher.requires_grad_(False)
    given = Given(world, store, config, accelerator)
    for folder in runs:  # the second stage's too, before the first is trained
        check_resumable(folder, {"begin": None, **given.asked})
    student = student_of(teacher, config)
    matching = any(match) and checkpoint_in(runs[1]) is not None
    if any(causal) and not matching:  # its checkpoint has what the first stage made of the student
        learn_causally(student, given, causal)
        accelerator.free_memory()
    if any(match):
        match_teacher(student, given, match)
    folder = config.out / "weights" / "transformer"
    student.save_pretrained(folder)
    # Guidance has become part of the student, and its folder records in how many steps it is stepped.
    own = replace(config.loading, guidance=None, denoising_steps=None, negative_prompt="")
    print(f"the student is in {folder}; {played_whole(replace(config, loading=own), store, folder)}")
    return student


def _budgets(config: Config) -> tuple[Budget, Budget]:
    """The two stages' budgets; 0 for a stage that has no share.

    Raises:
        ValueError: a share that is none, or minutes beside steps.
    """
    if not 0.0 <= config.causal_share <= 1.0:
        raise ValueError(f"causal_share is a share, 0 to 1; got {config.causal_share}")
    minutes, steps = budget_of(config, steps=4000)
    if steps is None:
        first = config.causal_share * minutes
        return (first, None), (minutes - first, None)
    first = round(config.causal_share * steps)
    if (config.causal_share > 0.0 and not first) or (config.causal_share < 1.0 and first == steps):
        raise ValueError(
            f"of --steps {steps} a share of {config.causal_share} leaves a stage without any: give more steps, or "
            "--causal-share 0 or 1 for one stage alone"
        )
    return (None, first), (None, steps - first)


@torch.no_grad()
def _sample(
    world: MosaicWorld, store: EpisodeStore, episodes: dict[int, Remembered], config: Config, seed: int
) -> Sample:
    state, retrieved, latents, cameras = draw_sample(world, store, episodes, config, seed, shortest=config.clip)
    size = (world.height, world.width)
    history, history_cameras = state.history[None], state.history_cameras[None]
    return Sample(history, history_cameras, retrieved, latents, cameras, world.k[None], size, state.text[None])
