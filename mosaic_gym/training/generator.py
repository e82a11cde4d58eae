"""Recipe: the generative model of generated maps, by flow matching over all noise levels."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from accelerate import Accelerator
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.control import Control, control_settings
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.depth import ConvDepth
from mosaic_gym.model.hourglass import OBJECTIVES, HourglassTransformer
from mosaic_gym.model.parts import fingerprint_of, load_part, round_to_half, save_part
from mosaic_gym.model.reward_heads import RewardTerminationHeads
from mosaic_gym.model.rgbd_codec import RGBDCodec
from mosaic_gym.model.settings import WorldSettings
from mosaic_gym.model.text import ByteTextEncoder
from mosaic_gym.training.budget import budget_of, check_one_budget, recipe_of
from mosaic_gym.training.encoded import encode_recording
from mosaic_gym.training.flow import Generator, draw_noise, flow_loss, regenerate_memory
from mosaic_gym.training.generator_report import report
from mosaic_gym.training.generator_samples import PATCHES, Augmentation, draw_batch
from mosaic_gym.training.pictures import check_held_out
from mosaic_gym.training.precision import fast_autocast, float32_by_default
from mosaic_gym.training.run import Run
from mosaic_gym.training.world import start_views
from mosaic_gym.validation import Folder, ListOf, Number, OneOf, Whole, option, validate

TEST_EPISODES = 60
"""Held-out episodes of reports."""
CANDIDATES = 2
"""Samples that are drawn for each that is taken, so that most samples have something to invent."""
REGENERATE_FROM = 500
"""Optimizer steps before the model's own samples are of use as memory."""
DENOISING_STEPS = 6
"""Denoising steps of reports, and of the finished world."""
GUIDANCE = 2.0
"""Scale of guidance of reports, and of the finished world, once there is a guide. At 3 colors saturate."""
MAX_SOURCES = 6
"""Keyframes that the finished world warps into a view: memory that is written once is spread over more of them."""


@dataclass(frozen=True)
class Config:
    """Train the generative model."""

    data: Annotated[Path, Folder()] = Path("data/rooms")
    """Recorded episodes, with depth."""
    codec: Annotated[Path, Folder()] = Path("runs/rgbd-codec/weights")
    """The trained codec."""
    depth: Annotated[Path, Folder()] = Path("runs/rooms-depth/weights")
    """The trained depth estimator, for first frames, which come without depth."""
    reward_heads: Annotated[Path | None, Folder()] = None
    """Trained reward and termination heads; None for a world without rewards."""
    out: Annotated[Path, Folder()] = Path("runs/generator")
    """The run's folder: latents, checkpoints, log, reports, and in `world/` the world with the averaged weights."""
    minutes: Annotated[float | None, Number(above=0.0)] = None
    """Wall time of training, earlier parts included; 600 without --steps."""
    steps: Annotated[int | None, Whole(1)] = None
    """Optimizer steps of the whole run, instead of minutes."""
    batch: Annotated[int, Whole(1)] = 4
    """Samples in a batch. On a CPU many small steps learn more in the same time than few large ones."""
    noise_draws: Annotated[int, Whole(1)] = 3
    """Noise levels that are drawn for each sample; they share what the network reads of its context."""
    learning_rate: Annotated[float, Number(0.0)] = 7e-4
    """The peak."""
    history: Annotated[int, Whole(1)] = 2
    """Recent latent frames that condition the next one."""
    widths: Annotated[tuple[int, ...], ListOf(Whole(8))] = (128, 192)
    """Channels of the convolutions, and width of the transformer."""
    patch: Annotated[int, Whole(1)] = 1
    """Latent cells along each side of a token."""
    fine_blocks: Annotated[int, Whole(1)] = 3
    """Convolutional blocks before and after the transformer."""
    blocks: Annotated[int, Whole(1)] = 4
    """Transformer blocks."""
    episodes: Annotated[int | None, Whole(1)] = None
    """Recorded episodes to train on; None for all."""
    objective: Annotated[str, OneOf(*OBJECTIVES)] = "flow"
    """`flow` for the generative model; `regression` for the baseline with the same data, steps and size."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How the memories of samples vary."""
    guide_step: Annotated[int, Whole(1)] = 800
    """The optimizer step whose averaged weights become the guide: sampling is guided away from them."""
    report_minutes: Annotated[float, Number(above=0.0)] = 30.0
    """Time between two reports: a sheet of held-out samples and three figures."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range, or for both budgets."""
        validate(self, option)
        check_one_budget(self)
        if len(self.widths) != 2:
            raise ValueError(f"--widths are two numbers; got {self.widths}")


def load_parts(config: Config) -> dict[str, nn.Module | None]:
    """The trained networks that the generator is not trained with: codec, depth estimator, reward heads.

    Raises:
        FileNotFoundError: there is none in a folder; the message names the command that trains it.
    """
    kinds = {"codec": (RGBDCodec, "rgbd-codec"), "depth": (ConvDepth, "depth --data data/rooms --out runs/rooms-depth"),
             "reward_heads": (RewardTerminationHeads, "reward-heads --data data/rooms")}  # fmt: skip
    parts: dict[str, nn.Module | None] = {}
    for name, (kind, command) in kinds.items():
        folder = getattr(config, name)
        if folder is None:
            parts[name] = None
            continue
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"there are no trained weights in {folder}: run `mosaic-gym train {command}` first, or give their "
                f"folder ({option(name)})"
            )
        parts[name] = load_part(kind, folder.parent, folder.name).eval().requires_grad_(False)
    return parts


def assemble(
    config: Config, model: Generator, parts: Mapping[str, nn.Module | None], store: EpisodeStore
) -> WorldModel:
    """The world of a generator, with the recording's first frames as start images, and the guide, if there is one."""
    guide = None
    if (config.out / "guide").is_dir():
        guide = load_part(HourglassTransformer, config.out, "guide").eval().to(model.transformer.device)
    images, prompts = start_views(store)
    settings = WorldSettings(
        height=images.shape[1],
        width=images.shape[2],
        image_from_camera=tuple(tuple(map(float, row)) for row in store.image_from_camera),
        control=control_settings(Control()),
        denoising_steps=DENOISING_STEPS if config.objective == "flow" else 1,
        history=config.history,
        max_sources=MAX_SOURCES,
        max_patches=PATCHES,
        guidance=1.0 if guide is None else GUIDANCE,
        scenario=store.metadata(0)["scenario"],
    )
    return WorldModel(
        settings=settings,
        transformer=model.transformer,
        refiner=None,
        text_encoder=model.text_encoder,
        atlas=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        start_images=images,
        start_prompts=prompts,
        guide=guide,
        **parts,
    )


def save_guide(average: Generator, folder: Path) -> None:
    """Writes the transformer of averaged weights, rounded to float16, as the guide of later samples, in `guide/`."""
    guide = copy.deepcopy(average.transformer).cpu()
    round_to_half(guide)
    save_part(guide, folder / "guide")


@float32_by_default()
def train(config: Config) -> WorldModel:
    """Trains, reports every `report_minutes`, and writes the world with the averaged weights, rounded to float16.

    Raises:
        FileNotFoundError: no episodes, or a part that is not trained yet. ValueError: a recording without depth.
    """
    budget = budget_of(config, minutes=600.0)
    parts = load_parts(config)
    codec = parts["codec"]
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    store = EpisodeStore(config.data, "train")
    check_held_out(store)
    accelerator = Accelerator()
    device = accelerator.device
    codec.to(device)
    model = Generator(
        HourglassTransformer(
            codec.channels,
            1,
            widths=tuple(config.widths),
            patch=config.patch,
            num_fine_blocks=config.fine_blocks,
            num_blocks=config.blocks,
            objective=config.objective,
        ),
        ByteTextEncoder(),
    )
    encoded = encode_recording(store, codec, model.text_encoder, config.out, config.patch, config.episodes).to(device)
    test = encode_recording(
        EpisodeStore(config.data, "heldout"), codec, model.text_encoder, config.out, config.patch, TEST_EPISODES
    ).to(device)
    run = Run(
        config.out, model, config.learning_rate, *budget, accelerator, ema_decay=0.999,
        parts=fingerprint_of((codec,)), recipe=recipe_of(config, store),
    )  # fmt: skip
    size, k = tuple(encoded.recorded.frames.shape[1:3]), encoded.recorded.image_from_camera
    reported_at = time.monotonic()
    with run:
        run.start_clock()
        while not run.finished:
            generator = run.generator(device)
            batch = draw_batch(encoded, codec, config.batch, config.history, config.augmentation, generator, CANDIDATES)
            regenerated = round(config.augmentation.generated * config.batch)
            if regenerated and config.objective == "flow" and run.step_index >= REGENERATE_FROM:
                with fast_autocast(device):
                    batch = regenerate_memory(run.average, batch, regenerated, k, size, generator)
            target = batch.target.repeat(config.noise_draws, 1, 1, 1)
            noise, level = draw_noise(target, config.objective, generator)
            noisy = torch.lerp(target, noise, level[:, None, None, None])
            with fast_autocast(device):
                velocity = run.model(batch, noisy, level, k, size)
            loss = flow_loss(velocity, noise, target, batch.valid_share.repeat(config.noise_draws, 1, 1, 1))
            run.update(loss)
            if run.step_index == config.guide_step and config.objective == "flow":
                save_guide(run.average, config.out)
            if time.monotonic() - reported_at > 60 * config.report_minutes:
                world = assemble(config, run.average, parts, store)
                report(world, test, config.out, run.step_index, config.history, config.augmentation)
                reported_at = time.monotonic()
    world = assemble(config, run.average, parts, store)
    report(world, test, config.out, run.step_index, config.history, config.augmentation)
    finished = run.average.eval().cpu()
    round_to_half(finished)
    world = assemble(config, finished, {name: part and part.cpu() for name, part in parts.items()}, store)
    world.save_pretrained(config.out / "world")
    return world
