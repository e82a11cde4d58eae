"""Codecs: between four video frames and one latent frame (temporal stride 4).

A clip is decoded latent by latent: `decode_next` takes where each clip stands and returns where it stands then
(nothing, for a codec whose latents stand alone). Besides, a codec says how its latents may be laid into another view:

- `still(latents)` is its picture of the last of the four instants, on whatever grid it can offer;
- `from_keyframe_images(stills)` makes a latent frame out of four such pictures, one for each instant;
- `instants` are those of the four that such a latent shows: a cell of it is worth what memory covers of these.

Warped Latent resamples stills between the two. For a linear codec both are matrix products, so that is
the resampling of the latent itself, only exact below the size of a latent cell and with the right camera
for each of the four instants. (Resampling its 8x8-pixel cells directly would blur whatever moves by less.)
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
    """Principal components of blocks of 4 frames x `stride` x `stride` pixels x 3 colours.

    Fitted in seconds (`mosaic-gym train codec`), decoded by one matrix product. Channels are half-whitened:
    divided by the square root of their deviation, so that loud ones lead without drowning the rest.

    Args:
        channels: of the latent.
        stride: pixels a latent cell is wide and high.
    """

    @register_to_config
    def __init__(self, channels: int = 128, stride: int = 8):
        super().__init__()
        numbers = FRAMES_PER_STEP * 3 * stride * stride
        self.mean = nn.Parameter(torch.zeros(numbers), requires_grad=False)
        self.components = nn.Parameter(torch.eye(channels, numbers), requires_grad=False)
        """`[channels, numbers]`, orthonormal rows, loudest first."""
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
        """Pixels of a frame for one cell of a still."""
        return 1

    instants = slice(0, FRAMES_PER_STEP)
    """All four frames are in one latent."""

    restarts = False
    """Whether every step begins a clip of its own; see `model/wan.py`."""

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
            before: the frame in front of them, which these latents do not depend on.

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
        """The frames of one more latent of every clip; each latent stands alone, so there is nothing to keep."""
        return self.decode(latents), list(streams)

    def begin(self, latents: Float[Tensor, "b c h w"]) -> list[tuple[Any, ...]]:
        """Clips that have shown their first latent: nothing to keep."""
        return [()] * len(latents)

    def present(self, latent: Float[Tensor, "c h w"], stream: tuple[Any, ...]) -> Float[Tensor, "3 H W"]:
        """The last frame `[3, H, W]` of the last latent."""
        return self.keyframe_image(latent[None])[0]

    def keyframe_image(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """The last frame `[b, 3, H, W]` of latents `[b, c, h, w]`."""
        return self._decode(latents, slice(FRAMES_PER_STEP - 1, FRAMES_PER_STEP))[:, 0]

    def from_keyframe_images(self, warped_frames: Float[Tensor, "b 4 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Latents `[b, c, h, w]` of four stills `[b, 4, 3, H, W]`."""
        return self.encode(warped_frames)

    def _decode(self, latents: Tensor, which: slice) -> Tensor:
        s = self.stride
        b, _, h, w = latents.shape
        components = self.components.unflatten(1, (FRAMES_PER_STEP, -1))[:, which].flatten(1)
        mean = self.mean.unflatten(0, (FRAMES_PER_STEP, -1))[which].flatten()
        coordinates = latents.permute(0, 2, 3, 1) * self.scale
        blocks = (coordinates @ components + mean).view(b, h, w, -1, 3, s, s)
        return blocks.permute(0, 3, 4, 1, 5, 2, 6).reshape(b, -1, 3, h * s, w * s)

    @torch.no_grad()
    def fit(self, frames: Tensor) -> None:
        """Sets mean, components and scale from frames `[n, 4, 3, H, W]` in [-1, 1]."""
        blocks = self._blocks(frames).flatten(0, 2).double()
        mean = blocks.mean(0)
        centred = blocks - mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(blocks))
        order = values.argsort(descending=True)[: self.channels]
        components = vectors[:, order].T
        # The sign of an eigenvector is arbitrary; the largest entry is made positive so that a fit repeats.
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
