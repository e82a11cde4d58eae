"""Codecs: between four video frames and one latent frame (temporal stride 4).

A clip is decoded latent by latent. `decode_next` takes the decoder's state of each clip and returns the next one; the
state is empty for a codec whose latents are independent. For the Warped Latent, a codec also has:

- `keyframe_image(latents)`: the last of the four instants as an image, on a grid that the codec chooses;
- `from_keyframe_images(images)`: a latent frame from four such images, one for each instant;
- `instants`: the instants that such a latent frame shows. Its coverage is memory's coverage of these.

The Warped Latent (MosaicMem, arXiv 2603.17117) resamples keyframe images between the two calls. For a linear codec both
are matrix products, so this equals resampling the latent, but exactly below the size of a latent cell and with the
right camera for each instant. (Resampling its cells of 8x8 pixels directly would blur every smaller motion.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from mosaic_gym.geometry.control import FRAMES_PER_STEP


class LinearCodec(ModelMixin, ConfigMixin):
    """Principal components of blocks of 4 frames x `stride` x `stride` pixels x 3 colors.

    `fit` takes seconds (`mosaic-gym train codec`), and decoding is one matrix product. Channels are half-whitened, that
    is divided by the square root of their standard deviation: strong channels keep more weight, within limits.

    Args:
        channels: of the latent.
        stride: width and height of a latent cell, pixels.
    """

    @register_to_config
    def __init__(self, channels: int = 128, stride: int = 8):
        super().__init__()
        numbers = FRAMES_PER_STEP * 3 * stride * stride
        self.mean = nn.Parameter(torch.zeros(numbers), requires_grad=False)
        self.components = nn.Parameter(torch.eye(channels, numbers), requires_grad=False)
        """`[channels, numbers]`, orthonormal rows, by decreasing variance."""
        self.scale = nn.Parameter(torch.ones(channels), requires_grad=False)
        """`[channels]`: a latent times this is a coordinate along its component."""

    @property
    def channels(self) -> int:
        return self.config.channels

    @property
    def stride(self) -> int:
        return self.config.stride

    @property
    def image_stride(self) -> int:
        """Pixels of a frame for one cell of a keyframe image."""
        return 1

    instants = slice(0, FRAMES_PER_STEP)
    """A latent frame shows all four frames."""

    restarts = False
    """Whether every step starts a new clip; see `WanCodec`."""

    has_depth = False
    """Whether latents hold depth too; without it, an estimator follows the decoder."""

    def _blocks(self, frames: Tensor) -> Tensor:
        """`[b, 4, 3, H, W]` to `[b, h, w, numbers]`."""
        s = self.stride
        b, f, c, height, width = frames.shape
        blocks = frames.view(b, f, c, height // s, s, width // s, s)
        return blocks.permute(0, 3, 5, 1, 2, 4, 6).flatten(3)

    def encode(
        self, frames: Float[Tensor, "b f 3 H W"], before: Float[Tensor, "b 3 H W"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Latents `[b, c, h, w]` of frames `[b, 4, 3, H, W]` in [-1, 1].

        Args:
            before: the previous frame, which these latents do not depend on.

        Raises:
            ValueError: not four frames, or a size the stride does not divide.
        """
        if frames.shape[1] != FRAMES_PER_STEP or frames.shape[-2] % self.stride or frames.shape[-1] % self.stride:
            raise ValueError(
                f"the codec takes [b, {FRAMES_PER_STEP}, 3, H, W] with H and W multiples of {self.stride}; "
                f"got {list(frames.shape)}"
            )
        coordinates = (self._blocks(frames) - self.mean) @ self.components.T
        return (coordinates / self.scale).permute(0, 3, 1, 2)

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 4 3 H W"]:
        """Frames `[b, 4, 3, H, W]`, nominally in [-1, 1] and not clipped, of latents `[b, c, h, w]`."""
        return self._decode(latents, slice(0, FRAMES_PER_STEP))

    def decode_next(
        self, latents: Float[Tensor, "b c h w"], streams: Sequence[tuple[Any, ...]]
    ) -> tuple[Float[Tensor, "b 4 3 H W"], list[tuple[Any, ...]]]:
        """The frames of the next latent of every clip. Latents are independent, so states stay as they are."""
        return self.decode(latents), list(streams)

    def start_clips(self, latents: Float[Tensor, "b c h w"]) -> list[tuple[Any, ...]]:
        """States of clips after their first latent: empty."""
        return [()] * len(latents)

    def last_frame(self, latent: Float[Tensor, "c h w"], stream: tuple[Any, ...]) -> Float[Tensor, "3 H W"]:
        """The last frame `[3, H, W]` of the last latent."""
        return self.keyframe_image(latent[None])[0]

    def keyframe_image(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """The last frame `[b, 3, H, W]` of latents `[b, c, h, w]`."""
        return self._decode(latents, slice(FRAMES_PER_STEP - 1, FRAMES_PER_STEP))[:, 0]

    def from_keyframe_images(self, warped_frames: Float[Tensor, "b 4 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Latents `[b, c, h, w]` of four keyframe images `[b, 4, 3, H, W]`, warped or not."""
        return self.encode(warped_frames)

    def _decode(self, latents: Tensor, instants: slice) -> Tensor:
        s = self.stride
        b, _, h, w = latents.shape
        components = self.components.unflatten(1, (FRAMES_PER_STEP, -1))[:, instants].flatten(1)
        mean = self.mean.unflatten(0, (FRAMES_PER_STEP, -1))[instants].flatten()
        coordinates = latents.permute(0, 2, 3, 1) * self.scale
        blocks = (coordinates @ components + mean).view(b, h, w, -1, 3, s, s)
        return blocks.permute(0, 3, 4, 1, 5, 2, 6).reshape(b, -1, 3, h * s, w * s)

    @torch.no_grad()
    def fit(self, frames: Tensor) -> None:
        """Sets mean, components and scale from frames `[n, 4, 3, H, W]` in [-1, 1]."""
        blocks = self._blocks(frames).flatten(0, 2).double()
        mean = blocks.mean(0)
        centered = blocks - mean
        values, vectors = torch.linalg.eigh(centered.T @ centered / len(blocks))
        order = values.argsort(descending=True)[: self.channels]
        components = vectors[:, order].T
        # The sign of an eigenvector is arbitrary. The largest entry is made positive, so that fits are reproducible.
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        self.mean.copy_(mean)
        self.components.copy_(components * largest.sign())
        self.scale.copy_(values[order].clamp_min(1e-8).pow(0.25))


def frames_to_float(frames: Tensor) -> Tensor:
    """uint8 `[..., 4, H, W, 3]` to float `[..., 4, 3, H, W]` in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1.0


def frames_to_uint8(frames: Tensor) -> Tensor:
    """float `[..., 4, 3, H, W]` in [-1, 1], clipped, to uint8 `[..., 4, H, W, 3]`."""
    return ((frames.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).movedim(-3, -1)
