"""Recipe: the outcome heads, trained on recorded rewards and ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.model.codec import frames_to_float
from mosaic_gym.model.reward_heads import SIGNS, RewardTerminationHeads
from mosaic_gym.training.run import Run, budget_of, recipe_of


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym train reward-heads` takes."""

    data: Path = Path("data/my_way_home")
    """Recorded episodes."""
    out: Path = Path("runs/reward_heads")
    """The run's folder: checkpoints, log, and the finished weights in `weights/`."""
    minutes: float | None = None
    """Wall time of training, earlier pieces included and reading the recording left out; 3 without --steps."""
    steps: int | None = None
    """Optimiser steps of the whole run, instead of minutes."""
    batch: int = 64
    """Frames in a batch; a quarter of them are rare ones."""
    learning_rate: float = 2e-3
    """The peak."""
    widths: tuple[int, ...] = (16, 32, 48, 64)
    """Channels, halving the picture at each."""
    precision: str = "no"
    """`no` (float32), or `bf16` on an accelerator."""


def outcomes(store: EpisodeStore) -> tuple[Tensor, Tensor, Tensor]:
    """Last frames uint8 `[n, H, W, 3]`, rewards `[n]` and ends bool `[n]` of every recorded step."""
    return store.all("frames", np.s_[:, -1]), store.all("reward"), store.all("terminated")


def sign_values(rewards: Tensor) -> Tensor:
    """The mean reward of each sign, 0 where none was recorded."""
    signs = rewards.sign().long() + 1
    of_sign = [rewards[signs == sign] for sign in range(SIGNS)]
    return torch.tensor([float(some.mean()) if len(some) else 0.0 for some in of_sign])


def rareness(rewards: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Which steps are rare, bool `[n]`, and the weight `[n]` that undoes their being drawn more often than others."""
    signs = rewards.sign().long() + 1
    counts = torch.bincount(signs, minlength=SIGNS)
    rare = ends | (counts[signs] < 0.05 * len(rewards))
    share = rare.float().mean().clamp(1e-6, 1 - 1e-6)
    # A rare step is drawn as one of the quarter, or as one of all.
    odds = torch.where(rare, 0.25 / share + 0.75, 0.75)
    return rare, 1.0 / odds if rare.any() else torch.ones(len(rewards))


@torch.no_grad()
def report(heads: RewardTerminationHeads, store: EpisodeStore) -> dict[str, float]:
    """On held-out steps: how likely an end is held, at steps that ended and at others; and the reward's error."""
    frames, rewards, ends = outcomes(store)
    told = [heads(frames_to_float(part)) for part in frames.split(256)]
    likely = torch.cat([end for _, end in told]).sigmoid()
    expected = torch.cat([sign for sign, _ in told]).softmax(-1) @ heads.reward_values
    found = {"ends": float(ends.sum()), "likely_elsewhere": float(likely[~ends].mean())}
    if ends.any():
        found["likely_at_ends"] = float(likely[ends].mean())
    return {**found, "reward_error": float((expected - rewards).abs().mean())}


def train(config: Config) -> RewardTerminationHeads:
    """Trains, prints how ends are told on held-out steps, and writes the averaged weights."""
    budget = budget_of(config, minutes=3.0)
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision=config.precision)
    store = EpisodeStore(config.data, "train")
    frames, rewards, ends = outcomes(store)
    signs = rewards.sign().long() + 1
    rare, weights = rareness(rewards, ends)
    common = torch.arange(len(frames))
    special = common[rare] if rare.any() else common
    heads = RewardTerminationHeads(config.widths)
    heads.reward_values.copy_(sign_values(rewards))
    run = Run(config.out, heads, config.learning_rate, *budget, accelerator, recipe=recipe_of(config, store))
    device = accelerator.device
    while not run.finished:
        generator = run.generator()
        few = config.batch // 4
        drawn = torch.cat([
            special[torch.randint(len(special), (few,), generator=generator)],
            common[torch.randint(len(common), (config.batch - few,), generator=generator)],
        ])  # fmt: skip
        seen = frames_to_float(frames[drawn])
        mirrored = torch.rand(config.batch, generator=generator) < 0.5
        seen = torch.where(mirrored[:, None, None, None], seen.flip(-1), seen).to(device)
        with accelerator.autocast():
            told, ended = run.model(seen)
        error = F.cross_entropy(told.float(), signs[drawn].to(device), reduction="none")
        error = error + F.binary_cross_entropy_with_logits(
            ended.float(), ends[drawn].float().to(device), reduction="none"
        )
        run.update((error * weights[drawn].to(device)).mean())
    run.close()
    finished = run.average.to("cpu").eval()
    found = report(finished, EpisodeStore(config.data, "heldout"))
    print("outcome, held out: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    finished.save_pretrained(config.out / "weights")
    return finished
