"""Recipe: the reward and termination heads, trained on recorded rewards and terminations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.model.codec import frames_to_float
from mosaic_gym.model.reward_heads import SIGNS, RewardTerminationHeads
from mosaic_gym.training.budget import budget_of, check_one_budget, check_widths, recipe_of
from mosaic_gym.training.precision import fast_autocast, float32_by_default
from mosaic_gym.training.run import Run
from mosaic_gym.validation import Folder, ListOf, Number, Whole, option, validate

RARE_SHARE = 0.25
"""Share of a batch that is drawn from rare steps alone."""


@dataclass(frozen=True)
class Config:
    """Train the reward and termination heads on recorded rewards and terminations."""

    data: Annotated[Path, Folder()] = Path("data/my_way_home")
    """Recorded episodes."""
    out: Annotated[Path, Folder()] = Path("runs/reward_heads")
    """The run's folder: checkpoints, log, and the finished weights in `weights/`."""
    minutes: Annotated[float | None, Number(above=0.0)] = None
    """Wall time of training, earlier parts included, without the time to read the recording; 3 without --steps."""
    steps: Annotated[int | None, Whole(1)] = None
    """Optimizer steps of the whole run, instead of minutes."""
    batch: Annotated[int, Whole(1)] = 64
    """Frames in a batch; a quarter of them are drawn from rare steps."""
    learning_rate: Annotated[float, Number(0.0)] = 2e-3
    """The peak."""
    widths: Annotated[tuple[int, ...], ListOf(Whole(8))] = (16, 32, 48, 64)
    """Channels of the convolutions, multiples of 8; each halves the resolution."""
    previous: bool = False
    """Whether the heads read the last frame of the step before too, as for things that are gathered."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range, or for both budgets."""
        validate(self, option)
        check_one_budget(self)
        check_widths(self.widths)


@dataclass(frozen=True)
class Steps:
    """All recorded steps.

    Attributes:
        frames: uint8 `[n, H, W, 3]`, the last ones.
        rewards: `[n]`; terminations: bool `[n]`.
        before: `[n]`, the index of the step before; a first step's own.
    """

    frames: Tensor
    rewards: Tensor
    terminations: Tensor
    before: Tensor

    def images(self, index: Tensor, previous: bool) -> Tensor:
        """Inputs of the heads, `[b, 3, H, W]`, or `[b, 6, H, W]` with the frames before, in [-1, 1]."""
        last = frames_to_float(self.frames[index])
        return torch.cat([frames_to_float(self.frames[self.before[index]]), last], 1) if previous else last


def load_steps(store: EpisodeStore) -> Steps:
    """Every recorded step."""
    lengths = [len(store.load(index)["reward"]) for index in range(len(store))]
    first = torch.cat([torch.arange(length) == 0 for length in lengths])
    before = (torch.arange(len(first)) - 1).where(~first, torch.arange(len(first)))
    return Steps(store.all("frames", np.s_[:, -1]), store.all("reward"), store.all("terminated"), before)


def sign_values(rewards: Tensor) -> Tensor:
    """The mean reward `[3]` of each sign, 0 for a sign that was not recorded."""
    signs = rewards.sign().long() + 1
    by_sign = [rewards[signs == sign] for sign in range(SIGNS)]
    return torch.tensor([float(values.mean()) if len(values) else 0.0 for values in by_sign])


def rare_step_weights(rewards: Tensor, terminations: Tensor) -> tuple[Tensor, Tensor]:
    """Which steps are rare, bool `[n]`, and importance weights `[n]` that undo drawing them more often than others.

    A step is rare if it terminates, or if fewer than 5 % of the rewards have its sign.
    """
    signs = rewards.sign().long() + 1
    counts = torch.bincount(signs, minlength=SIGNS)
    rare = terminations | (counts[signs] < 0.05 * len(rewards))
    share = rare.float().mean().clamp(1e-6, 1 - 1e-6)
    # A rare step is drawn from the rare ones or from all, another step from all alone.
    odds = torch.where(rare, RARE_SHARE / share + (1 - RARE_SHARE), 1 - RARE_SHARE)
    return rare, 1.0 / odds if rare.any() else torch.ones(len(rewards))


@torch.no_grad()
def heldout_metrics(heads: RewardTerminationHeads, store: EpisodeStore) -> dict[str, float]:
    """On held-out steps: the mean probability of termination, at steps that terminate and at others, the mean absolute
    error of the expected reward, and its mean at steps with a positive reward and at those with none."""
    steps = load_steps(store)
    rewards, terminations = steps.rewards, steps.terminations
    parts = torch.arange(len(rewards)).split(256)
    outputs = [heads(steps.images(index, heads.config.previous)) for index in parts]
    probability = torch.cat([termination for _, termination in outputs]).sigmoid()
    expected = torch.cat([sign for sign, _ in outputs]).softmax(-1) @ heads.reward_values
    metrics = {
        "terminations": float(terminations.sum()),
        "probability_elsewhere": float(probability[~terminations].mean()),
    }
    if terminations.any():
        metrics["probability_at_terminations"] = float(probability[terminations].mean())
    metrics["reward_error"] = float((expected - rewards).abs().mean())
    for name, chosen in (("reward_where_positive", rewards > 0), ("reward_where_none", rewards == 0)):
        if chosen.any():
            metrics[name] = float(expected[chosen].mean())
    return metrics


@float32_by_default()
def train(config: Config) -> RewardTerminationHeads:
    """Trains, prints metrics on held-out steps, and writes the averaged weights."""
    budget = budget_of(config, minutes=3.0)
    torch.manual_seed(0)
    accelerator = Accelerator()
    device = accelerator.device
    store = EpisodeStore(config.data, "train")
    recorded = load_steps(store)
    rewards, terminations = recorded.rewards, recorded.terminations
    signs = rewards.sign().long() + 1
    rare, weights = rare_step_weights(rewards, terminations)
    all_steps = torch.arange(len(rewards))
    rare_steps = all_steps[rare] if rare.any() else all_steps
    heads = RewardTerminationHeads(config.widths, config.previous)
    heads.reward_values.copy_(sign_values(rewards))
    rare_count = int(config.batch * RARE_SHARE)
    with Run(config.out, heads, config.learning_rate, *budget, accelerator, recipe=recipe_of(config, store)) as run:
        while not run.finished:
            # 1. Frames, more rare ones than recorded, half of them mirrored.
            generator = run.generator()
            index = torch.cat([
                rare_steps[torch.randint(len(rare_steps), (rare_count,), generator=generator)],
                all_steps[torch.randint(len(all_steps), (config.batch - rare_count,), generator=generator)],
            ])  # fmt: skip
            images = recorded.images(index, config.previous)
            mirrored = torch.rand(config.batch, generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images).to(device)
            # 2. Predicted signs of the reward and terminations, and their weighted cross-entropy.
            with fast_autocast(accelerator.device):
                sign, termination = run.model(images)
            ended = terminations[index].float().to(device)
            error = F.cross_entropy(sign.float(), signs[index].to(device), reduction="none")
            error = error + F.binary_cross_entropy_with_logits(termination.float(), ended, reduction="none")
            run.update((error * weights[index].to(device)).mean())
    finished = run.average.to("cpu").eval()
    metrics = heldout_metrics(finished, EpisodeStore(config.data, "heldout"))
    print("reward heads, held out: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    finished.save_pretrained(config.out / "weights")
    return finished
