"""Recipe: the linear codec, fitted to recorded frames in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.control import FRAMES_PER_STEP
from mosaic_gym.model.codec import LinearCodec, frames_to_float


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym train codec` takes."""

    data: Path = Path("data/my_way_home")
    """Recorded episodes."""
    out: Path = Path("runs/codec")
    """Where the codec is written."""
    channels: int = 768
    """Numbers a latent cell holds."""
    stride: int = 8
    """Pixels a latent cell is wide and high."""
    steps: int = 3000
    """Recorded steps (of four frames) that the fit looks at."""
    seed: int = 0
    """Of the choice of steps."""


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
    """How well the codec repeats frames `[n, 4, 3, H, W]`, in dB of the pooled error."""
    error = (codec.decode(codec.encode(frames)).clamp(-1, 1) - frames).square().mean()
    return float(10 * torch.log10(4.0 / error))


def train(config: Config) -> LinearCodec:
    """Fits, prints the held-out PSNR, and writes the codec.

    Raises:
        ValueError: a stride that frames are no multiple of, or more channels than a cell has numbers.
    """
    store = EpisodeStore(config.data, "train")
    height, width = store.load(0)["frames"].shape[-3:-1]
    if config.stride < 1 or height % config.stride or width % config.stride:
        raise ValueError(f"--stride divides the recording's {height}x{width} pixels; got {config.stride}")
    most = FRAMES_PER_STEP * 3 * config.stride**2
    if not 1 <= config.channels <= most:
        raise ValueError(f"--channels is 1 to {most}, the numbers in a cell of that stride; got {config.channels}")
    codec = LinearCodec(config.channels, config.stride)
    codec.fit(sample_frames(store, config.steps, config.seed))
    heldout = sample_frames(EpisodeStore(config.data, "heldout"), 400, config.seed)
    print(f"codec: {config.channels} channels repeat held-out frames at {psnr_of(codec, heldout):.2f} dB")
    codec.save_pretrained(config.out)
    return codec
