"""Reward and termination heads: small networks on the frame, trained on recorded rewards and terminations.

As in DIAMOND (arXiv 2405.12399), they predict the sign of a reward; the value of a sign is the mean recorded reward of
that sign.
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
    """A few strided convolutions over the last frame of a step, and over the one before it if asked for.

    Args:
        widths: channels of each convolution, which halves the frame's height and width; multiples of 8.
        previous: whether the last frame of the step before is an input too. A thing that is gathered is in view before,
            and no more afterwards.
    """

    @register_to_config
    def __init__(self, widths: tuple[int, ...] = (16, 32, 48, 64), previous: bool = False):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((6 if previous else 3, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.see = nn.Sequential(*layers)
        # Maximum and mean over the frame, so that an object counts wherever it is.
        self.tell = nn.Linear(2 * widths[-1], SIGNS + 1)
        self.reward_values = nn.Parameter(torch.zeros(SIGNS), requires_grad=False)
        """The reward of each sign."""

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the reward's sign `[b, 3]` and of termination `[b]`, for frames `[b, 3, H, W]` in [-1, 1].

        With `previous`, frames are `[b, 6, H, W]`: the one before, then the last one.
        """
        features = self.see(frames)
        logits = self.tell(torch.cat([features.amax((-2, -1)), features.mean((-2, -1))], dim=1))
        return logits[:, :SIGNS], logits[:, SIGNS]

    @torch.no_grad()
    def draw(
        self, frames: Tensor, seeds: Sequence[int], steps: Sequence[int], temperature: float
    ) -> tuple[list[float], list[bool]]:
        """A reward and a termination flag for each frame, drawn from (seed, step) alone.

        Args:
            frames: as for `forward`.
            temperature: 1 draws with the predicted probabilities, 0 takes the most probable value.
        """
        signs, ends = (logits.double().cpu().numpy() for logits in self(frames))
        values = self.reward_values.tolist()
        rewards, terminated = [], []
        for sign, end, seed, step in zip(signs, ends, seeds, steps, strict=True):
            if temperature == 0:
                rewards.append(values[int(sign.argmax())])
                terminated.append(bool(end > 0))
                continue
            rng = np.random.default_rng([seed, step, 1])
            with np.errstate(under="ignore", over="ignore"):  # at a low temperature, improbable signs have weight 0
                weights = np.exp((sign - sign.max()) / temperature)
            rewards.append(values[int(rng.choice(SIGNS, p=weights / weights.sum()))])
            terminated.append(bool(rng.random() < 1.0 / (1.0 + np.exp(-np.clip(end / temperature, -60, 60)))))
        return rewards, terminated
