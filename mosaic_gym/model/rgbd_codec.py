"""A learned codec of pictures with depth: one RGB-D picture to one latent frame.

The encoder and the decoder are a linear map of blocks of pixels (the principal components, as in `LinearCodec`) plus a
small convolutional network. The linear map alone keeps most of a picture, so training starts near the goal.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn


class Residual(nn.Module):
    """Two normalized convolutions, added to their input; the second starts at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.norm_in = nn.GroupNorm(8, width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.norm_out = nn.GroupNorm(8, width)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv_in(F.silu(self.norm_in(x)))
        return x + self.conv_out(F.silu(self.norm_out(hidden)))


def _output(width: int, channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)]


class RGBDCodec(ModelMixin, ConfigMixin):
    """Pictures `[b, 4, H, W]` to latents `[b, c, H / s, W / s]` of stride s, and back.

    A picture has colors in [-1, 1] and a depth channel, see `memory/pictures.py`.

    Args:
        channels: of the latent.
        widths: channels of the networks at a half, a quarter, ... of the resolution, multiples of 8; the stride is 2 to
            the power of their number.
    """

    @register_to_config
    def __init__(self, channels: int = 12, widths: tuple[int, ...] = (48, 96)):
        super().__init__()
        numbers = 4 * self.stride**2
        self.mean = nn.Parameter(torch.zeros(numbers), requires_grad=False)
        self.latent_scale = nn.Parameter(torch.ones(()), requires_grad=False)
        """Latents are divided by this, so that their mean square is one."""
        self.linear_encoder = nn.Conv2d(numbers, channels, 1, bias=False)
        self.linear_decoder = nn.Conv2d(channels, numbers, 1, bias=False)
        encoder: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(16, widths[0], 3, padding=1), Residual(widths[0])]
        for before, width in itertools.pairwise(widths):
            encoder += [nn.Conv2d(before, width, 4, stride=2, padding=1), Residual(width), Residual(width)]
        decoder: list[nn.Module] = [nn.Conv2d(channels, widths[-1], 3, padding=1), Residual(widths[-1])]
        for before, width in itertools.pairwise(reversed(widths)):
            decoder += [Residual(before), Residual(before), nn.Conv2d(before, 4 * width, 1), nn.PixelShuffle(2)]
        decoder += [Residual(widths[0]), Residual(widths[0])]
        self.encoder = nn.Sequential(*encoder, *_output(widths[-1], channels))
        self.decoder = nn.Sequential(*decoder, *_output(widths[0], 16), nn.PixelShuffle(2))
        for network in (self.encoder[-1], self.decoder[-2]):
            nn.init.zeros_(network.weight)
            nn.init.zeros_(network.bias)

    @property
    def stride(self) -> int:
        """Width and height of a latent cell, pixels."""
        return 2 ** len(self.config.widths)

    image_stride = 1
    """Pixels of a frame for one cell of a keyframe's depth."""
    has_depth = True
    """Whether latents hold depth too, so that no estimator follows the decoder."""
    restarts = False
    """Whether every step starts a new clip; see `WanCodec`."""

    @property
    def channels(self) -> int:
        return self.config.channels

    def encode_pictures(self, pictures: Float[Tensor, "b n H W"]) -> Float[Tensor, "b c h w"]:
        """Latents of pictures.

        Raises:
            ValueError: a size that the stride does not divide, or a picture without depth.
        """
        if pictures.shape[1] != 4 or pictures.shape[-2] % self.stride or pictures.shape[-1] % self.stride:
            raise ValueError(
                f"the codec takes [b, 4, H, W] (colors and depth) with H and W multiples of {self.stride}; "
                f"got {list(pictures.shape)}"
            )
        blocks = F.pixel_unshuffle(pictures, self.stride) - self.mean[:, None, None]
        return (self.linear_encoder(blocks) + self.encoder(pictures)) / self.latent_scale

    def decode_pictures(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 4 H W"]:
        """Pictures of latents; colors are nominally in [-1, 1] and are not clipped."""
        latents = latents * self.latent_scale
        blocks = self.linear_decoder(latents) + self.mean[:, None, None]
        return F.pixel_shuffle(blocks, self.stride) + self.decoder(latents)

    @torch.no_grad()
    def fit_linear(self, pictures: Tensor) -> None:
        """Sets the linear maps to the principal components of blocks of pictures `[n, 4, H, W]`.

        Channels are half-whitened, that is divided by the square root of their standard deviation.
        """
        blocks = F.pixel_unshuffle(pictures, self.stride).permute(0, 2, 3, 1).flatten(0, 2).double()
        mean = blocks.mean(0)
        centered = blocks - mean
        values, vectors = torch.linalg.eigh(centered.T @ centered / len(blocks))
        order = values.argsort(descending=True)[: self.channels]
        components = vectors[:, order].T
        # The sign of an eigenvector is arbitrary. The largest entry is made positive, so that fits are reproducible.
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        components = components * largest.sign()
        scale = values[order].clamp_min(1e-8).pow(0.25)[:, None]
        self.mean.copy_(mean)
        self.linear_encoder.weight.copy_((components / scale)[:, :, None, None])
        self.linear_decoder.weight.copy_((components * scale).T[:, :, None, None])
        self.latent_scale.fill_(float(scale.square().mean().sqrt()))

    def last_frame(self, latent: Float[Tensor, "c h w"], stream: tuple[Any, ...]) -> Float[Tensor, "3 H W"]:
        """The colors of the last picture of a clip, which its state holds; decoded where it holds none."""
        return stream[0][:3] if stream else self.decode_pictures(latent[None])[0, :3]

    def start_clips(self, latents: Float[Tensor, "b c h w"]) -> list[tuple[Any, ...]]:
        """States of clips after their first latent: empty."""
        return [()] * len(latents)
