"""Latents as tokens with coordinates and cameras, and the context that target frames are predicted from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mosaic_gym.geometry.camera import cell_centres
from mosaic_gym.memory.retrieval import Retrieved
from mosaic_gym.model.attention import Positions


@dataclass(frozen=True)
class Tokens:
    """Tokens of one pass and their positions.

    Attributes:
        values: `[b, n, d]`.
        coordinates: `[b, n, 3]`, (t, v, u) in token indices, real-valued.
        cameras: `[b, n, 4, 4, 4]`, world_from_camera of the four sub-frames, metres.
        exists: bool `[b, n]`, false for padding, which no query attends to.
    """

    values: Tensor
    coordinates: Tensor
    cameras: Tensor
    exists: Tensor

    def concatenate(self, others: Tokens) -> Tokens:
        """These tokens, followed by others."""
        pairs = zip(self._parts, others._parts, strict=True)
        return Tokens(*(torch.cat([first, second], dim=1) for first, second in pairs))

    def select(self, rows: Tensor) -> Tokens:
        """The tokens for which `rows`, bool `[n]`, is true."""
        index = rows.nonzero()[:, 0]  # once: on an accelerator, each nonzero waits for the device
        return Tokens(*(part[:, index] for part in self._parts))

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.values, self.coordinates, self.cameras, self.exists


@dataclass(frozen=True)
class Context:
    """The inputs that target frames are predicted from; the same for all denoising steps.

    The last three fields are None until the clean tokens of a causal model are in its KV cache.

    Attributes:
        retrieved: what memory retrieved for the target frames: `b * t` views, the frames of one member side by side.
        history: `[b, t, c, h, w]`, recent latents.
        history_cameras: `[b, t, 4, 4, 4]`, world_from_camera, metres.
        cameras: `[b, t, 4, 4, 4]`, of the target frames, world_from_camera, metres.
        image_from_camera: `[b, 3, 3]`, K in pixels of frames of `size` (height, width).
        text: `[b, l, text_dim]`, the prompt's vectors.
        text_keys_values: for each block, keys and values of the prompt.
        keys_values: for each block, keys and values of the clean tokens.
        target_positions: positions of the target's tokens, and the keys that they attend to.
    """

    retrieved: Retrieved
    history: Tensor
    history_cameras: Tensor
    cameras: Tensor
    image_from_camera: Tensor
    size: tuple[int, int]
    text: Tensor
    text_keys_values: tuple[tuple[Tensor, Tensor], ...] | None = None
    keys_values: tuple[tuple[Tensor, ...], ...] | None = None
    target_positions: Positions | None = None

    @property
    def anchor(self) -> Tensor:
        """`[b, 4, 4]`, the last target camera. Cameras are expressed relative to it, for precision."""
        return self.cameras[:, -1, -1]


def patch_embed(embedding: nn.Conv2d | nn.Conv3d, values: Tensor) -> Tensor:
    """Tokens `[b, n, d]` of `[b, c, ...]`, whose patches the convolution embeds without overlap."""
    if max(embedding.kernel_size) == 1:  # as a matrix product, which a CPU computes five times as fast
        return nn.functional.linear(values.flatten(2).transpose(1, 2), embedding.weight.flatten(1), embedding.bias)
    return embedding(values).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, latents: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """Projected tokens as latents `[b, t, c, h, w]`, the shape of `latents`; (rows, columns, channels) as in Wan."""
    b, t, _, h, w = latents.shape
    high, wide = patch_size[1:]
    blocks = tokens.view(b, t, h // high, w // wide, high, wide, -1)
    return blocks.permute(0, 1, 6, 2, 4, 3, 5).reshape(b, t, -1, h, w)


def token_coordinates(latents: Tensor, first: int, patch_size: tuple[int, ...]) -> Tensor:
    """`[b, n, 3]`: (t, v, u) indices of the tokens of latents `[b, t, c, h, w]`; t counts from `first`."""
    b, t, _, h, w = latents.shape
    high, wide = patch_size[1:]
    like = latents if latents.dtype in (torch.float32, torch.float64) else latents.float()
    cells = (cell_centres(h // high, w // wide, like) - 0.5).flip(-1).flatten(0, 1)
    time = torch.arange(first, first + t, device=latents.device, dtype=cells.dtype).repeat_interleave(len(cells))
    return torch.cat([time[:, None], cells.repeat(t, 1)], dim=1).expand(b, -1, -1)


def token_cameras(cameras: Tensor, latents: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """`[b, n, 4, 4, 4]`: for each token of latents `[b, t, c, h, w]` the cameras `[b, t, 4, 4, 4]` of its frame."""
    high, wide = patch_size[1:]
    return cameras.repeat_interleave((latents.shape[-2] // high) * (latents.shape[-1] // wide), dim=1)
