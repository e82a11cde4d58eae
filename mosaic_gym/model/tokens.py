"""What the transformer works on: tokens that know where they are, and what a target is predicted from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mosaic_gym.memory.mosaic import Retrieved
from mosaic_gym.model.attention import Positions


@dataclass(frozen=True)
class Tokens:
    """Tokens of one pass, and where they are.

    Attributes:
        values: `[b, n, d]`.
        coordinates: `[b, n, 3]`, (t, v, u) in token indices, real-valued.
        cameras: `[b, n, 4, 4, 4]`, world_from_camera of the four instants, metres.
        exists: bool `[b, n]`: padding rows are nobody's key.
    """

    values: Tensor
    coordinates: Tensor
    cameras: Tensor
    exists: Tensor

    def then(self, others: Tokens) -> Tokens:
        """These, and others behind them."""
        return Tokens(*(torch.cat([mine, theirs], dim=1) for mine, theirs in zip(self._all, others._all, strict=True)))

    def kept(self, rows: Tensor) -> Tokens:
        """Those that `rows`, bool `[n]`, says."""
        index = rows.nonzero()[:, 0]  # once: an accelerator is waited for to learn how many there are
        return Tokens(*(part[:, index] for part in self._all))

    @property
    def _all(self) -> tuple[Tensor, ...]:
        return self.values, self.coordinates, self.cameras, self.exists


@dataclass(frozen=True)
class Context:
    """What a target is predicted from, the same for all its denoising steps.

    Attributes:
        recalled: of the target frames, members first: `b * t` views.
        history: `[b, t, c, h, w]`, recent latents; history_cameras: `[b, t, 4, 4, 4]`.
        cameras: `[b, t, 4, 4, 4]`, of the target frames, world_from_camera, metres.
        image_from_camera: `[b, 3, 3]`, K in pixels of frames of `size` (height, width).
        text: `[b, l, text_dim]`, the prompt's vectors.
        told: of a model that has read: for each block its keys and values of the prompt.
        keys_values: of a model that has read: for each block what its attention keeps of the clean tokens.
        target: of a model that has read: where the target's tokens are, and which keys they may look at.
    """

    retrieved: Retrieved
    history: Tensor
    history_cameras: Tensor
    cameras: Tensor
    image_from_camera: Tensor
    size: tuple[int, int]
    text: Tensor
    told: tuple[tuple[Tensor, Tensor], ...] | None = None
    keys_values: tuple[tuple[Tensor, ...], ...] | None = None
    target: Positions | None = None

    @property
    def anchor(self) -> Tensor:
        """`[b, 4, 4]`: cameras are measured from the last of the target's, for precision."""
        return self.cameras[:, -1, -1]
