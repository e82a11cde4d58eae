"""What a view earns and whether it ends the game: small heads on the frame, trained on recorded outcomes.

As in DIAMOND (arXiv 2405.12399), rewards are told by their sign; the value of a sign is the mean of what was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

SIGNS = 3
"""Negative, zero, positive."""


class RewardTerminationHeads(ModelMixin, ConfigMixin):
    """A few strided convolutions over the last frame of a step.

    Args:
        widths: channels of each, every one halving the picture; multiples of 8.
    """

    @register_to_config
    def __init__(self, widths: tuple[int, ...] = (16, 32, 48, 64)):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.see = nn.Sequential(*layers)
        # The nearest and the average of what is seen: an object counts wherever it stands.
        self.tell = nn.Linear(2 * widths[-1], SIGNS + 1)
        self.reward_values = nn.Parameter(torch.zeros(SIGNS), requires_grad=False)
        """What a reward of each sign is worth."""

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the reward's sign `[b, 3]` and of the end `[b]`, of frames `[b, 3, H, W]` in [-1, 1]."""
        seen = self.see(frames)
        told = self.tell(torch.cat([seen.amax((-2, -1)), seen.mean((-2, -1))], dim=1))
        return told[:, :SIGNS], told[:, SIGNS]

    @torch.no_grad()
    def draw(
        self, frames: Tensor, seeds: Sequence[int], steps: Sequence[int], temperature: float
    ) -> tuple[list[float], list[bool]]:
        """A reward and an end for each frame, drawn from (seed, step) alone.

        Args:
            frames: `[b, 3, H, W]` in [-1, 1].
            temperature: 1 draws as often as was recorded, 0 takes the likelier.
        """
        signs, ends = (logits.double().cpu().numpy() for logits in self(frames))
        values = self.reward_values.tolist()
        rewards, over = [], []
        for sign, end, seed, step in zip(signs, ends, seeds, steps, strict=True):
            if temperature == 0:
                rewards.append(values[int(sign.argmax())])
                over.append(bool(end > 0))
                continue
            rng = np.random.default_rng([seed, step, 1])
            weights = np.exp((sign - sign.max()) / temperature)
            rewards.append(values[int(rng.choice(SIGNS, p=weights / weights.sum()))])
            over.append(bool(rng.random() < 1.0 / (1.0 + np.exp(-np.clip(end / temperature, -60, 60)))))
        return rewards, over
