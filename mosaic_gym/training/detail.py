"""Recipe: the detail network alone, further than the world's recipe takes it.

A step of it costs a tenth of what a step of all networks does, for recall and the transformer run once for each
sample, before training begins. What they gave is kept in memory, and drawn from again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.training.run import Run
from mosaic_gym.training.samples import MemoryMix, Remembered, remember_all
from mosaic_gym.training.world import Config as WorldConfig
from mosaic_gym.training.world import draw_batch, frame_loss, validate
from mosaic_gym.worlds.mosaic import MosaicWorld

SOFTENING = 3e-4
"""As the world's, but lower: these samples begin nearer to the truth."""
LEAST_DOUBT = 1e-3
"""Of a sample, the mean over its pixels; a body at rest has less, all of it rounding."""


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym train detail` takes."""

    world: Path = Path("runs/world/weights")
    """What `train world` wrote."""
    data: Path = Path("data/my_way_home")
    """Recorded episodes."""
    out: Path = Path("runs/detail")
    """The run's folder: checkpoints, log, and the finished world in `weights/`."""
    minutes: float | None = 18.0
    """Wall time of the training, earlier pieces included, the drawing of samples apart; None with --steps."""
    steps: int | None = None
    """Optimiser steps of the whole run, instead of minutes."""
    samples: int = 8_000
    """Drawn once; 0.3 MB each at 64x64."""
    batch: int = 16
    """Samples in a batch."""
    learning_rate: float = 1e-3
    """The peak."""
    whole: float = 0.5
    """Share of samples that remember all of their past; the others are as those of `train world`."""
    dream: float = 0.1
    """Share of samples whose last one to three steps before the target are the model's own dream."""
    episodes: int | None = None
    """Recorded episodes to use; None for all."""
    precision: str = "no"
    """`no` (float32), or `bf16` on an accelerator."""


Samples = dict[str, Tensor]
"""What the detail network takes, by name, and `true`: the frames that it should give."""


@torch.no_grad()
def draw_samples(world: MosaicWorld, episodes: list[Remembered], config: Config) -> Samples:
    """What the frozen networks give for recorded places; the same for the same config.

    Views that memory is sure of everywhere are left out: there the detail network is not heard.
    """
    drawing = WorldConfig(batch=min(12, config.samples), dream=config.dream)
    all_of_it = replace(drawing, mix=MemoryMix(forget=0.0, last_only=0.0, most=1000, worn=0.0, wedge=0.0))
    some_of_it = replace(drawing, mix=replace(drawing.mix, forget=0.0, worn=0.15))
    drawn: dict[str, list[Tensor]] = {"believed": [], "stills": [], "doubt": [], "covered": [], "true": []}
    bar = tqdm(total=config.samples, desc="drawing samples", unit="sample", mininterval=2.0)
    count, seed, barren = 0, 0, 0
    while count < config.samples:
        seed += 1
        whole = torch.rand((), generator=torch.Generator().manual_seed(seed)) < config.whole
        states, latents, cameras = draw_batch(world, episodes, all_of_it if whole else some_of_it, seed)
        recalled = world.recall(states, cameras[:, None])
        believed = world.model.codec.decode(world.denoised(states, recalled, cameras[:, None])[:, 0])
        doubtful = recalled.doubt.flatten(1).mean(1) > LEAST_DOUBT
        barren = 0 if bool(doubtful.any()) else barren + 1
        if barren == 100:
            raise ValueError(f"nothing moves in the episodes of {config.data}: there is no doubt to learn from")
        true = world.model.codec.decode(latents)
        pixels = believed, recalled.stills, recalled.doubt, recalled.pixels_covered, true
        for rows, values in zip(drawn.values(), pixels, strict=True):
            kept = values[doubtful].cpu()
            rows.append(kept if kept.dtype == torch.bool else kept.half())
        count += int(doubtful.sum())
        bar.update(int(doubtful.sum()))
    bar.close()
    return {name: torch.cat(rows)[: config.samples] for name, rows in drawn.items()}


def draw(samples: Samples, count: int, generator: torch.Generator, device: torch.device) -> Samples:
    """A batch of samples, float32, half of the batches mirrored."""
    chosen = torch.randint(len(samples["true"]), (count,), generator=generator)
    mirrored = bool(torch.rand((), generator=generator) < 0.5)
    turn: Callable[[Tensor], Tensor] = (lambda x: x.flip(-1)) if mirrored else (lambda x: x)
    batch = {name: turn(values[chosen]).to(device) for name, values in samples.items()}
    return {name: values if values.dtype == torch.bool else values.float() for name, values in batch.items()}


def train(config: Config) -> WorldModel:
    """Draws samples, trains on them, and writes the finished world with the averaged weights.

    Raises:
        ValueError: recordings in which nothing moves.
    """
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    accelerator = Accelerator(mixed_precision=config.precision)
    model = WorldModel.from_pretrained(config.world)
    world = MosaicWorld(model, device=str(accelerator.device), denoising_steps=1)
    store, heldout = (EpisodeStore(config.data, split) for split in ("train", "heldout"))
    episodes, others = (remember_all(each, model.codec, model.depth, config.episodes) for each in (store, heldout))
    samples = draw_samples(world, episodes, config)
    learner = model.detail.requires_grad_(True)
    budget = config.learning_rate, config.minutes, config.steps
    run = Run(config.out, learner, *budget, accelerator)
    model.detail = run.average
    told: dict[str, float] = {}
    while not run.finished:
        batch = draw(samples, config.batch, run.generator(), accelerator.device)
        true = batch.pop("true")
        with accelerator.autocast():
            predicted = run.model(**batch)
        loss, decibels = frame_loss(predicted.float(), true, SOFTENING)
        run.update(loss, {"db": float(decibels), **told})
        if run.step_index % 1000 == 0:
            told = validate(world, others, run)
    run.close()
    print("world: one step ahead on held-out episodes:", validate(world, others, run))
    model.save_pretrained(config.out / "weights")
    return model
