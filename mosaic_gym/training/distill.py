"""Recipe: distill a Wan teacher, which attends to its whole clip in many steps, to a causal student of few steps.

Two stages, after Causal Forcing and Self Forcing (arXiv 2602.02214, 2506.08009):

1. *Causal.* The student starts with the teacher's weights. It learns to predict each frame from the clean frames before
   it alone, by flow matching under teacher forcing. (Causal Forcing then regresses that model's own trajectories before
   stage 2; that step is left out here.)
2. *Match.* The student rolls out clips by itself, frame by frame in its few steps. Distribution matching (DMD, arXiv
   2311.18828) moves them to where the teacher's score is higher than that of a critic, which is trained on these clips
   at the same time. Gradients flow through one denoising step of every frame. The teacher is guided, as Wan is when it
   is sampled; the critic and the student are not, so the student learns the effect of guidance.

Differences from Self Forcing: A roll-out takes Euler steps from one noise to a frame, as a step of the world does; Self
Forcing adds fresh noise to the predicted frame at every level. A frame is predicted from one latent frame before it
(`history`) and from memory; Self Forcing keeps a window of frames. And an optimizer step has one clip; published runs
have dozens. Gradients are noisier by as much, and learning rates for such batches may be too large.

Start a student from an image: its training never has an empty history, so a first frame that is generated from the
prompt alone is outside what it was trained on.

Each stage is a run of its own, in `causal/` and `match/` of the run's folder. The critic is made for the second.

Memory, computed and not measured, at the full size of TI2V-5B, whose transformer has 5.283 billion parameters with its
camera projections (1 GB is 10^9 bytes). Frozen weights take 24.7 GB: teacher 10.6 and UMT5 11.4 in bfloat16,
autoencoder 2.8 in float32. Trained weights are float32, 21.1 GB a copy, and there are five copies of each network:
weights, gradients, AdamW's two moments, and their square roots during its step. That is 130 GB in the first stage (the
student) and 236 GB in the second (student and critic). Activations come before the fifth copy and take less: blocks
store their input alone, and run again for their gradients. Every recorded step adds a keyframe, 0.18 MB at 352x640.
Several processes are refused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from accelerate import Accelerator
from torch import Tensor, nn

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.model.transformer import MosaicTransformer3DModel
from mosaic_gym.model.wan.adapters import fuse_adapters
from mosaic_gym.model.wan.options import WanOptions
from mosaic_gym.training.budget import budget_of, recipe_of
from mosaic_gym.training.checkpoint import check_resumable, checkpoint_in
from mosaic_gym.training.clips import draw_sample, lift_long_episodes
from mosaic_gym.training.distill_losses import Sample, causal_loss, roll_out, score_losses
from mosaic_gym.training.precision import float32_by_default
from mosaic_gym.training.pretrained import (
    AUGMENTATION,
    PRECISIONS,
    check_trainable,
    open_pretrained,
    resolve_shift,
    usage_of_transformer,
)
from mosaic_gym.training.run import Run, check_processes
from mosaic_gym.training.samples import LiftedEpisode, MemoryAugmentation
from mosaic_gym.validation import Folder, Number, OneOf, PathOrId, Whole, option, validate
from mosaic_gym.worlds.mosaic import MosaicWorld

STAGES = ("causal", "match")
"""Folders of the two stages' runs."""

Budget = tuple[float | None, int | None]
"""Minutes or optimizer steps."""


@dataclass(frozen=True)
class Config:
    """Distil a pretrained Wan model to a causal student that takes few denoising steps."""

    from_: Annotated[str, tyro.conf.arg(name="from"), PathOrId()]
    """The teacher: a Wan pipeline in diffusers' format, folder or hub id."""
    data: Annotated[Path, Folder()] = Path("data/my_way_home")
    """Recorded episodes."""
    out: Annotated[Path, Folder()] = Path("runs/student")
    """The run's folder; `weights/transformer` is the student, and `lifted/` holds the encoded recordings."""
    height: Annotated[int, Whole(1)] = 352
    """Height of the frames, pixels; recorded ones are resized."""
    width: Annotated[int, Whole(1)] = 640
    """Width of the frames, pixels."""
    steps: Annotated[int | None, Whole(1)] = None
    """Optimizer steps of both stages; 4000 without --minutes."""
    minutes: Annotated[float | None, Number(above=0.0)] = None
    """Wall time of both stages, instead of --steps."""
    causal_share: Annotated[float, Number(0.0, 1.0)] = 0.5
    """Share of the budget for the first stage. It does not resume once the second has started."""
    denoising_steps: Annotated[int, Whole(1)] = 4
    """Denoising steps of the student; its folder records them."""
    guidance: Annotated[float, Number(1.0)] = 4.0
    """Guidance scale of the teacher's score in the second stage, away from loading.negative_prompt; 1 for none. Self
    Forcing's 3.0 counts from the prompted score, and is 4.0 here, counted from the unprompted one."""
    learning_rate: Annotated[float, Number(above=0.0)] = 2e-6
    """The peak in each stage, of student and critic."""
    clip: Annotated[int, Whole(1)] = 5
    """Latent frames that the student rolls out."""
    every: Annotated[int, Whole(1)] = 5
    """The student is trained in one of so many steps of the second stage, the critic in all."""
    empty_prompt: Annotated[float, Number(0.0, 1.0)] = 0.1
    """Share of samples whose prompt is empty."""
    shift: Annotated[float | None, Number(above=0.0)] = None
    """Shift of the noise levels; above 1, more of them are near pure noise. None for the pipeline's own flow_shift. The
    student's folder records it, and the student is sampled at these levels."""
    augmentation: MemoryAugmentation = field(default_factory=lambda: AUGMENTATION)
    """How much of the past a sample's memory holds."""
    episodes: Annotated[int | None, Whole(1)] = None
    """Recorded episodes to use; None for all."""
    checkpoint_minutes: Annotated[float, Number(above=0.0)] = 5.0
    """Time between checkpoints. Each is three times the size of what is trained: 127 GB in the second stage for
    TI2V-5B."""
    precision: Annotated[str, OneOf(*PRECISIONS)] = "bf16"
    """Precision of products: `bf16`, or `no` (float32; the teacher's are always in loading.dtype)."""
    loading: WanOptions = field(default_factory=WanOptions)
    """How the pipeline is loaded; `transformer` and `lora` make the teacher a fine-tuned one."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range, and for options that exclude each other."""
        validate(self, option)
        _stage_budgets(self)
        check_trainable(self.loading, self.augmentation, all_weights=True)


def _stage_budgets(config: Config) -> tuple[Budget, Budget]:
    """The two stages' budgets; 0 for a stage that has no share.

    Raises:
        ValueError: minutes beside steps, or steps that leave a stage with a share none.
    """
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


def trainable_copy(teacher: MosaicTransformer3DModel) -> MosaicTransformer3DModel:
    """A network with the teacher's weights, in float32, to be trained; the teacher's adapters are fused into it."""
    # In float32, because small steps of the optimizer would be rounded away, and adapters too.
    network = copy.deepcopy(teacher).float()
    fuse_adapters(network)
    network.enable_gradient_checkpointing()
    return network.requires_grad_(True)


def make_student(teacher: MosaicTransformer3DModel, config: Config) -> MosaicTransformer3DModel:
    """A student with the teacher's weights. Its config records its noise levels, and that it needs no guidance."""
    student = trainable_copy(teacher)
    levels = {"flow_shift": config.shift, "denoising_steps": config.denoising_steps}
    student.register_to_config(causal=True, guidance=1.0, **levels)
    return student


@dataclass(frozen=True)
class Source:
    """The data that samples are drawn from: the teacher's world, and the recordings."""

    world: MosaicWorld
    store: EpisodeStore
    config: Config
    accelerator: Accelerator

    @cached_property
    def episodes(self) -> dict[int, LiftedEpisode]:
        """The recorded episodes as keyframes; lifted at the first access, which takes long."""
        return lift_long_episodes(self.world, self.store, self.config, self.accelerator)

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the run, which `Run` compares when it resumes."""
        return {"parts": self.world.model.fingerprint, "recipe": recipe_of(self.config, self.store)}

    def open_run(self, folder: Path, networks: nn.Module, budget: Budget) -> Run:
        """The run of a stage; its clock starts when the episodes are lifted."""
        config = self.config
        options = {"averaged": False, "checkpoint_minutes": config.checkpoint_minutes, **self.identity}
        run = Run(folder, networks, config.learning_rate, *budget, self.accelerator, **options)
        if not run.finished:
            _ = self.episodes
        run.start_clock()
        return run

    @torch.no_grad()
    def sample(self, seed: int) -> Sample:
        """A random sample; the same one for the same seed."""
        world, config = self.world, self.config
        state, retrieved, latents, cameras = draw_sample(
            world, self.store, self.episodes, config, seed, shortest=config.clip
        )
        history, history_cameras = state.history[None], state.history_cameras[None]
        k, size = world.layout.intrinsics[None], (world.height, world.width)
        return Sample(history, history_cameras, retrieved, latents, cameras, k, size, state.text[None])


def train_causal(student: MosaicTransformer3DModel, source: Source, budget: Budget) -> None:
    """Stage 1, in place."""
    config, length = source.config, source.world.model.settings.history
    with source.open_run(config.out / STAGES[0], nn.ModuleDict({"student": student}), budget) as run:
        while not run.finished:
            sample = source.sample(run.seed)
            with source.accelerator.autocast():
                loss = causal_loss(student, sample, config, run.generator(), length)
            run.update(loss, {"causal": loss.detach()})


def match_teacher(student: MosaicTransformer3DModel, source: Source, budget: Budget) -> None:
    """Stage 2, in place."""
    config, model = source.config, source.world.model
    critic = trainable_copy(model.transformer)
    networks = nn.ModuleDict({"student": student, "critic": critic})
    length = model.settings.history
    negative_text = None
    if config.guidance != 1.0:
        negative_text = model.text_encoder.encode([config.loading.negative_prompt])
    losses: dict[str, Tensor] = {}
    with source.open_run(config.out / STAGES[1], networks, budget) as run:
        while not run.finished:
            generator = run.generator()
            sample = source.sample(run.seed + 7919)  # other samples than in the first stage
            sample = replace(sample, negative_text=negative_text)
            learns = run.step_index % config.every == 0
            with source.accelerator.autocast():
                clip = roll_out(student, sample, config, generator, length, learns)
                matching, loss = score_losses(model.transformer, critic, clip, sample, config, generator, learns)
            losses["critic"] = loss.detach()
            if learns:
                losses["matching"] = matching.detach()  # logged until the next step that computes it
                loss = loss + matching
            run.update(loss, losses)


@float32_by_default()
def train(config: Config) -> MosaicTransformer3DModel:
    """Trains the student, and writes it to `weights/transformer`.

    Raises:
        ValueError: as for `open_pretrained`, and for several processes or a causal teacher.
    """
    causal, match = _stage_budgets(config)
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision=config.precision)
    check_processes(accelerator, config.minutes, averaged=False, shared=False)
    runs = [config.out / stage for stage in STAGES]
    world, store = open_pretrained(config, str(accelerator.device), *runs)
    teacher = world.model.transformer
    if teacher.config.causal:
        cause = "--loading.causal" if config.loading.causal else config.loading.transformer or config.from_
        raise ValueError(
            f"the teacher is causal ({cause}), and a teacher has to attend to its whole clip: take a model that is "
            "not, such as the one that this was distilled from"
        )
    config = resolve_shift(config, world.model)
    teacher.requires_grad_(False)
    source = Source(world, store, config, accelerator)
    for folder in runs:  # the second stage's too, before the first is trained
        check_resumable(folder, {"begin": None, **source.identity})
    student = make_student(teacher, config)
    matching = any(match) and checkpoint_in(runs[1]) is not None
    if any(causal) and not matching:  # a checkpoint of the second stage already has the student of the first
        train_causal(student, source, causal)
        accelerator.free_memory()
    if any(match):
        match_teacher(student, source, match)
    folder = config.out / "weights" / "transformer"
    student.save_pretrained(folder)
    # Guidance has become part of the student, and its folder records its number of denoising steps.
    own = replace(config.loading, guidance=None, denoising_steps=None, negative_prompt="")
    print(f"the student is in {folder}; {usage_of_transformer(replace(config, loading=own), store, folder)}")
    return student
