"""Recipe: the codec of pictures with depth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.memory.pictures import LOG_DEPTH_SCALE, depth_channel
from mosaic_gym.model.codec import LinearCodec, frames_to_float
from mosaic_gym.model.parts import round_to_half, save_part
from mosaic_gym.model.rgbd_codec import RGBDCodec
from mosaic_gym.training.budget import budget_of, check_one_budget, check_widths, recipe_of
from mosaic_gym.training.pictures import RecordedPictures, check_held_out, read_pictures
from mosaic_gym.training.precision import fast_autocast, float32_by_default
from mosaic_gym.training.run import Run
from mosaic_gym.validation import Folder, ListOf, Number, Whole, option, validate
from mosaic_gym.worlds.picture_steps import frames_between

ENERGY_CELL = 4
"""Side of the cells in which gradient energies are compared, pixels."""
LINEAR_PICTURES = 6000
"""Pictures that the linear maps are fitted to."""
TEST_PICTURES = 1000
"""Held-out pictures that the codec is measured on."""
TEST_WALKS = 24
"""Held-out episodes on which the frames between two pictures are measured."""


@dataclass(frozen=True)
class Config:
    """Train the codec of pictures with depth."""

    data: Annotated[Path, Folder()] = Path("data/rooms")
    """Recorded episodes, with depth."""
    out: Annotated[Path, Folder()] = Path("runs/rgbd-codec")
    """The run's folder: checkpoints, log, and the finished weights in `weights/`."""
    minutes: Annotated[float | None, Number(above=0.0)] = None
    """Wall time of training, earlier parts included; 30 without --steps."""
    steps: Annotated[int | None, Whole(1)] = None
    """Optimizer steps of the whole run, instead of minutes."""
    batch: Annotated[int, Whole(1)] = 32
    """Pictures in a batch."""
    learning_rate: Annotated[float, Number(0.0)] = 1.5e-3
    """The peak."""
    channels: Annotated[int, Whole(1)] = 16
    """Channels of a latent cell."""
    widths: Annotated[tuple[int, ...], ListOf(Whole(8))] = (32, 64, 128)
    """Channels at a half, a quarter, an eighth, ... of the resolution, multiples of 8; the last is the latents'."""
    noise: Annotated[float, Number(0.0)] = 0.05
    """Standard deviation of the noise that the decoder learns to ignore; the mean square of latents is about one."""
    energy_weight: Annotated[float, Number(0.0)] = 2.0
    """Weight of the gradient energy, which a plain L1 loss lowers."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range, or for both budgets."""
        validate(self, option)
        check_one_budget(self)
        check_widths(self.widths)


def gradient_amplitude(pictures: Tensor) -> Tensor:
    """Root of the mean squared color gradient of every cell, `[b, 1, H / 4, W / 4]`, of pictures `[b, 4, H, W]`."""
    colors = pictures[:, :3]
    squares = F.pad(colors.diff(dim=-1).square(), (0, 1)) + F.pad(colors.diff(dim=-2).square(), (0, 0, 0, 1))
    return (F.avg_pool2d(squares.mean(1, keepdim=True), ENERGY_CELL) + 1e-5).sqrt()


def reconstruction_loss(decoded: Tensor, pictures: Tensor, energy_weight: float) -> Tensor:
    """L1 of colors, depth and gradients, and of the gradients' amplitude in cells, which keeps texture sharp."""
    error = decoded - pictures
    gradients = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    loss = error[:, :3].abs().mean() + 0.5 * error[:, 3].abs().mean() + gradients
    return loss + energy_weight * (gradient_amplitude(decoded) - gradient_amplitude(pictures)).abs().mean()


@torch.no_grad()
def measure(codec: RGBDCodec, pictures: Tensor) -> dict[str, float]:
    """What a codec keeps of pictures `[n, 4, H, W]`.

    Returns:
        `psnr`: dB, mean over pictures; `gradient_energy`: of the decoded colors over that of the true ones;
        `depth_error`: median of |decoded - true| / true.
    """
    decoded = torch.cat([codec.decode_pictures(codec.encode_pictures(part)) for part in pictures.split(100)])
    colors, true = decoded[:, :3].clamp(-1, 1), pictures[:, :3]
    squares = (colors - true).square().mean((1, 2, 3)) / 4
    energies = [sum(x.diff(dim=axis).square().mean() for axis in (-1, -2)) for x in (colors, true)]
    error = ((decoded[:, 3] - pictures[:, 3]) * LOG_DEPTH_SCALE).exp() - 1
    return {
        "psnr": round(float(-10 * squares.clamp_min(1e-8).log10().mean()), 2),
        "gradient_energy": round(float(energies[0] / energies[1]), 4),
        "depth_error": round(float(error.abs().median()), 4),
    }


@torch.no_grad()
def measure_between(data: Path, codec: RGBDCodec) -> dict[str, float]:
    """How well the first three frames of a step follow by geometry from true pictures, on held-out maps.

    Returns:
        `between_psnr`: dB, mean over steps, of `frames_between` from the true pictures before and after them;
        `packed_psnr`: of a linear codec that packs all four frames into as many channels, fitted to `train` maps.
    """
    store, train = EpisodeStore(data, "heldout"), EpisodeStore(data, "train")
    packed = LinearCodec(codec.channels, codec.stride)
    packed.fit(torch.cat([frames_to_float(train.load(i)["frames"][::5]) for i in range(min(len(train), 40))]))
    errors: dict[str, list[Tensor]] = {"between_psnr": [], "packed_psnr": []}
    k = torch.as_tensor(store.image_from_camera, dtype=torch.float32)
    for index in range(min(len(store), TEST_WALKS)):
        episode = store.load(index)
        frames, depth_m, cameras = (episode[name][:] for name in ("frames", "depth_m", "world_from_camera"))
        frames, cameras = frames_to_float(frames), cameras.clone()
        pictures = torch.cat([frames[:, -1], depth_channel(depth_m[:, -1])[:, None]], 1)
        after = torch.arange(1, len(frames), 4)
        found = frames_between(pictures[after - 1], cameras[after - 1, -1], pictures[after], cameras[after], k)
        for name, output in (
            ("between_psnr", found),
            ("packed_psnr", packed.decode(packed.encode(frames[after]))[:, :-1]),
        ):
            errors[name].append((output.clamp(-1, 1) - frames[after, :-1]).square().mean((1, 2, 3, 4)) / 4)
    return {
        name: round(float(-10 * torch.cat(rows).clamp_min(1e-8).log10().mean()), 2) for name, rows in errors.items()
    }


def held_out_pictures(data: Path) -> Tensor:
    """Pictures `[n, 4, H, W]` of held-out maps, spread over all of them."""
    recorded = read_pictures(EpisodeStore(data, "heldout"))
    return recorded.pictures(torch.linspace(0, len(recorded) - 1, TEST_PICTURES).long().unique())


def draw_pictures(recorded: RecordedPictures, batch: int, generator: torch.Generator) -> Tensor:
    """Random pictures `[b, 4, H, W]`, half of them mirrored."""
    index = torch.randint(len(recorded), (batch,), generator=generator)
    pictures = recorded.pictures(index)
    flip = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
    return torch.where(flip, pictures.flip(-1), pictures)


@float32_by_default()
def train(config: Config) -> RGBDCodec:
    """Trains, prints what the codec keeps of held-out maps, and writes the averaged weights, rounded to float16.

    Raises:
        FileNotFoundError: no episode of `train` or of `heldout` is recorded. ValueError: a recording without depth.
    """
    budget = budget_of(config, minutes=30.0)
    torch.manual_seed(0)
    store = EpisodeStore(config.data, "train")
    check_held_out(store)
    test = held_out_pictures(config.data)
    recorded = read_pictures(store)
    codec = RGBDCodec(config.channels, config.widths)
    spread = torch.linspace(0, len(recorded) - 1, LINEAR_PICTURES).long().unique()
    codec.fit_linear(recorded.pictures(spread))
    codec.to(memory_format=torch.channels_last)
    accelerator = Accelerator()
    run = Run(
        config.out, codec, config.learning_rate, *budget, accelerator, ema_decay=0.997, recipe=recipe_of(config, store)
    )
    with run:
        run.start_clock()
        while not run.finished:
            generator = run.generator()
            pictures = draw_pictures(recorded, config.batch, generator).to(accelerator.device)
            pictures = pictures.contiguous(memory_format=torch.channels_last)
            with fast_autocast(accelerator.device):
                latents = accelerator.unwrap_model(run.model).encode_pictures(pictures)
                noise = torch.randn(latents.shape, generator=generator).to(latents.device)
                decoded = accelerator.unwrap_model(run.model).decode_pictures(latents + config.noise * noise)
            # The latents' mean square is kept near one; without this they grow, and the noise loses its effect.
            size = (latents.float().square().mean() - 1.0).square()
            run.update(reconstruction_loss(decoded.float(), pictures, config.energy_weight) + 0.01 * size)
    finished = run.average.eval().to(memory_format=torch.contiguous_format).cpu()
    round_to_half(finished)
    metrics = {"start": _linear_metrics(config, recorded, spread, test), "trained": measure(finished, test)}
    metrics["step"] = measure_between(config.data, finished)
    print(f"codec on held-out maps: {metrics['trained']}; its linear maps alone: {metrics['start']}")
    print(f"the first three frames of a step: {metrics['step']}")
    save_part(finished, config.out / "weights")
    (config.out / "weights" / "metrics.json").write_text(json.dumps(metrics) + "\n")
    return finished


def _linear_metrics(config: Config, recorded: RecordedPictures, spread: Tensor, test: Tensor) -> dict[str, float]:
    """What the linear maps alone keep, for comparison."""
    linear = RGBDCodec(config.channels, config.widths)
    linear.fit_linear(recorded.pictures(spread))
    return measure(linear, test)
