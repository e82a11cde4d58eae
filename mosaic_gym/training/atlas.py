"""Recipe: the atlas, trained on recorded frames, the poses they were taken from, and the depth of the horizon."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.camera import place_of
from mosaic_gym.model.atlas import Atlas
from mosaic_gym.model.atlas.drawing import FAR_M, NEAR_M
from mosaic_gym.model.codec import frames_to_float
from mosaic_gym.model.parts import round_to_half, save_part
from mosaic_gym.training.budget import budget_of, recipe_of
from mosaic_gym.training.run import Run

MARGIN_M = 1.5
"""The map goes on for so much behind the outermost places that a body stood at."""
LOCATING = 0.1
"""What an error in locating counts beside one in drawing."""


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym train atlas` takes."""

    data: Path = Path("data/my_way_home")
    """Recorded episodes."""
    begin: Path | None = None
    """A finished atlas of the same map to go on from, with a budget of its own."""
    out: Path = Path("runs/atlas")
    """The run's folder: checkpoints, log, and the finished weights in `weights/`."""
    minutes: float | None = None
    """Wall time of training, earlier pieces included and reading the recording left out; 25 without --steps."""
    steps: int | None = None
    """Optimiser steps of the whole run, instead of minutes."""
    batch: int = 32
    """Frames in a batch."""
    learning_rate: float = 2e-3
    """The peak."""
    precision: str = "no"
    """`no` (float32), or `bf16` on an accelerator or a processor with bfloat16 products."""


@dataclass(frozen=True)
class Sights:
    """Every recorded frame.

    Attributes:
        frames: uint8 `[n, H, W, 3]`; places: `[n, 3]`, (x, z, heading), metres and radians; log_depth: `[n, W]`, of
            the horizon, log metres.
    """

    frames: Tensor
    places: Tensor
    log_depth: Tensor

    def to(self, device: torch.device) -> Sights:
        """All of it on a device."""
        return Sights(self.frames.to(device), self.places.to(device), self.log_depth.to(device))


def gather(store: EpisodeStore) -> Sights:
    """All frames of a split."""
    cameras = store.all("world_from_camera").float()
    row = int(store.image_from_camera[1, 2])
    horizon = store.all("depth_m", np.s_[:, :, row]).float()
    return Sights(
        store.all("frames").flatten(0, 1),
        place_of(cameras).flatten(0, 1),
        horizon.flatten(0, 1).clamp(NEAR_M, FAR_M).log(),
    )


class Learner(nn.Module):
    """Both halves in one call, so that one run trains them."""

    def __init__(self, atlas: Atlas, image_from_camera: Tensor):
        super().__init__()
        self.atlas = atlas
        self.k = image_from_camera  # stays on the CPU, see `Atlas.picture`

    def forward(self, frames: Tensor, places: Tensor, blurred: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Pictures and log depths from `places`, and what `locate` makes of the frames; where `blurred` (bool `[b]`)
        of the pictures instead, which a dream is partly made of."""
        pictures, log_depth = self.atlas.picture(places, self.k)
        seen = torch.where(blurred[:, None, None, None], pictures.detach().clamp(-1, 1), frames)
        return pictures, log_depth, self.atlas(seen)


def locating_loss(atlas: Atlas, said: tuple[Tensor, ...], places: Tensor) -> Tensor:
    """How wrong the believed cells and headings are, and the offsets within the true ones."""
    cell, offset, heading, turn = said
    true_cell, true_offset, true_bin, true_turn = atlas.targets(places)
    rows = torch.arange(len(places), device=places.device)
    apart = (offset[rows, true_cell] - true_offset).square().sum(-1) + (turn[rows, true_bin] - true_turn).square()
    return F.cross_entropy(cell, true_cell) + F.cross_entropy(heading, true_bin) + 2.0 * apart.mean()


@torch.no_grad()
def report(atlas: Atlas, sights: Sights, k: Tensor, count: int = 400) -> dict[str, float]:
    """On frames spread over a split: dB of pictures from true places, and how far the first guess of `locate` is off
    (medians, metres and degrees)."""
    chosen = torch.linspace(0, len(sights.frames) - 1, count).long()
    frames, places = (each[chosen].to(atlas.device) for each in (sights.frames, sights.places))
    frames = frames_to_float(frames)
    pictures = torch.cat([atlas.picture(some, k)[0].clamp(-1, 1) for some in places.split(50)])
    guesses = torch.cat([atlas.locate(some, 1)[:, 0] for some in frames.split(50)])
    error = (pictures - frames).square().mean((1, 2, 3)).clamp_min(1e-4)
    turned = (guesses[:, 2] - places[:, 2] + math.pi).remainder(2 * math.pi) - math.pi
    return {
        "picture_db": float((10 * torch.log10(4.0 / error)).mean()),
        "off_m": float((guesses[:, :2] - places[:, :2]).norm(dim=-1).median()),
        "off_deg": float(turned.abs().median().rad2deg()),
    }


def heights(store: EpisodeStore, every: int = 12) -> tuple[float, float]:
    """How far below and above the camera floor and ceiling mostly are, metres: the lowest and highest that is seen."""
    depth_m = store.all("depth_m", np.s_[::4, 0], every).float()
    rows = torch.arange(depth_m.shape[1])[:, None] + 0.5 - store.image_from_camera[1, 2]
    down_m = (depth_m * (rows / store.image_from_camera[1, 1])).flatten()
    least = max(1, round(0.005 * len(down_m)))  # of pixels that may lie lower still, as in a pit
    return float(down_m.kthvalue(len(down_m) - least).values), -float(down_m.kthvalue(least).values)


def fresh(store: EpisodeStore, sights: Sights) -> Atlas:
    """An untrained atlas of the square that the recorded places lie in, and some more."""
    low, high = sights.places[:, :2].amin(0) - MARGIN_M, sights.places[:, :2].amax(0) + MARGIN_M
    side_m = float((high - low).max())
    corner_m = tuple(((high + low - side_m) / 2).tolist())
    floor_m, ceiling_m = heights(store)
    return Atlas(*sights.frames.shape[1:3], corner_m=corner_m, side_m=side_m, floor_m=floor_m, ceiling_m=ceiling_m)


def train(config: Config) -> Atlas:
    """Trains, prints how it does on held-out frames, and writes the averaged weights, rounded to float16."""
    budget = budget_of(config, minutes=25.0)
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    accelerator = Accelerator(mixed_precision=config.precision)
    store = EpisodeStore(config.data, "train")
    sights, heldout = gather(store), gather(EpisodeStore(config.data, "heldout"))
    device = accelerator.device
    k = torch.tensor(store.image_from_camera, dtype=torch.float32)
    if config.begin is None:
        atlas = fresh(store, sights)
    else:
        atlas = Atlas.from_pretrained(config.begin, low_cpu_mem_usage=False, use_safetensors=True)
    atlas.check_map(tuple(sights.frames.shape[1:3]), sights.places)
    learner = Learner(atlas.train(), k)
    given = {"begin": config.begin, "recipe": recipe_of(config, store)}
    run = Run(config.out, learner, config.learning_rate, *budget, accelerator, **given)
    sights, batch = sights.to(device), config.batch
    told: dict[str, float] = {}
    while not run.finished:
        dice = {"generator": run.generator(device), "device": device}
        drawn = torch.randint(len(sights.frames), (batch,), **dice)
        frames = frames_to_float(sights.frames[drawn])
        places, log_depth = sights.places[drawn], sights.log_depth[drawn]
        noise = 0.05 * torch.randn(frames.shape, **dice)
        blurred = torch.rand(batch, **dice) < 0.3
        with accelerator.autocast():
            pictures, believed, said = run.model(frames + noise, places, blurred)
        error = (pictures - frames).square().mean((1, 2, 3))
        drawing = (error + 1e-4).sqrt().mean() + 0.2 * (believed - log_depth).abs().mean()
        run.update(drawing + LOCATING * locating_loss(atlas, said, places), told)
        if run.step_index % 1000 == 0:
            told = report(run.average.atlas.eval(), heldout, k)
    run.close()
    finished = run.average.atlas.to("cpu").eval()
    round_to_half(finished)
    found = report(finished, heldout, k)
    print("atlas, held out: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    save_part(finished, config.out / "weights")
    return finished
