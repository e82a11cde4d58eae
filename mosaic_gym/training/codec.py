"""Recipe: the linear codec, fitted to recorded frames in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.control import FRAMES_PER_STEP
from mosaic_gym.model.codec import LinearCodec, frames_to_float
from mosaic_gym.training.precision import float32_by_default
from mosaic_gym.validation import Folder, Whole, option, validate


@dataclass(frozen=True)
class Config:
    """Fit the codec to recorded frames."""

    data: Annotated[Path, Folder()] = Path("data/my_way_home")
    """Recorded episodes."""
    out: Annotated[Path, Folder()] = Path("runs/codec")
    """Folder for the codec."""
    channels: Annotated[int, Whole(1)] = 768
    """Channels of a latent cell."""
    stride: Annotated[int, Whole(1)] = 8
    """Width and height of a latent cell, pixels."""
    steps: Annotated[int, Whole(1)] = 3000
    """Recorded steps (of four frames) that the codec is fitted to."""
    seed: Annotated[int, Whole(0)] = 0
    """Seed of the choice of steps."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        validate(self, option)


def sample_frames(store: EpisodeStore, steps: int, seed: int) -> torch.Tensor:
    """Frames `[n, 4, 3, H, W]` in [-1, 1] of random recorded steps, spread over all episodes."""
    rng = np.random.default_rng(seed)
    per_episode = max(1, round(steps / len(store)))
    chosen = []
    for index in range(len(store)):
        frames = store.load(index)["frames"]
        rows = torch.from_numpy(np.sort(rng.choice(len(frames), min(per_episode, len(frames)), replace=False)))
        chosen.append(frames[rows])
    return frames_to_float(torch.cat(chosen))


def psnr_of(codec: LinearCodec, frames: torch.Tensor) -> float:
    """PSNR of frames `[n, 4, 3, H, W]` that are encoded and decoded, in dB of the pooled error."""
    error = (codec.decode(codec.encode(frames)).clamp(-1, 1) - frames).square().mean()
    return float(10 * torch.log10(4.0 / error))


@float32_by_default()
def train(config: Config) -> LinearCodec:
    """Fits, prints the held-out PSNR, and writes the codec.

    Raises:
        ValueError: a stride that does not divide the frames, or more channels than a cell has values.
    """
    store = EpisodeStore(config.data, "train")
    height, width = store.load(0)["frames"].shape[-3:-1]
    if height % config.stride or width % config.stride:
        raise ValueError(f"--stride divides the recording's {height}x{width} pixels; got {config.stride}")
    most = FRAMES_PER_STEP * 3 * config.stride**2
    if config.channels > most:
        raise ValueError(f"--channels is 1 to {most}, the values in a cell of that stride; got {config.channels}")
    codec = LinearCodec(config.channels, config.stride)
    codec.fit(sample_frames(store, config.steps, config.seed))
    heldout = sample_frames(EpisodeStore(config.data, "heldout"), 400, config.seed)
    print(f"codec: {config.channels} channels reproduce held-out frames at {psnr_of(codec, heldout):.2f} dB")
    codec.save_pretrained(config.out)
    return codec
