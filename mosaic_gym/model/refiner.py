"""The refiner: a small convolutional network that corrects decoded frames pixel by pixel.

A token of the transformer is eight pixels wide. Errors of warped memory are often narrower: a seam, an edge that is off
by half a pixel, a strip that a turn has just revealed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from mosaic_gym.geometry.control import FRAMES_PER_STEP

DECODED_LOGIT = 3.0
"""Added to the logit of the decoded frames, so that an untrained network outputs nearly these. Without it, a network
learned only this in its first thousands of steps."""
OUTPUTS = 6
"""Channels for each pixel: an additive color correction, and three logits to mix decoded, warped and map frames."""
INPUTS = 11
"""Channels for each pixel: the colors of decoded, warped and map frames, warp uncertainty and memory weight."""


class _Residual(nn.Module):
    """A residual block with normalized input. Without the norm, residuals grew until all units were zero."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class Refiner(ModelMixin, ConfigMixin):
    """A U-Net over the four frames of a step, at half, quarter and eighth resolution.

    Args:
        widths: channels at the three resolutions, multiples of 8.
    """

    @register_to_config
    def __init__(self, widths: tuple[int, int, int] = (32, 48, 64)):
        super().__init__()
        half, quarter, eighth = widths
        self.stem = nn.Conv2d(4 * INPUTS * FRAMES_PER_STEP, half, 3, padding=1)
        self.fine = _Residual(half)
        self.down = nn.Conv2d(half, quarter, 4, stride=2, padding=1)
        self.middle = _Residual(quarter)
        self.down_again = nn.Conv2d(quarter, eighth, 4, stride=2, padding=1)
        self.coarse = nn.Sequential(_Residual(eighth), _Residual(eighth))
        self.up = nn.Conv2d(eighth, 4 * quarter, 1)
        self.middle_up = _Residual(quarter)
        self.up_again = nn.Conv2d(quarter, 4 * half, 1)
        self.fine_up = nn.Sequential(_Residual(half), _Residual(half))
        self.norm = nn.GroupNorm(8, half)
        self.head = nn.Conv2d(half, 4 * OUTPUTS * FRAMES_PER_STEP, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        decoded: Float[Tensor, "b 4 3 H W"],
        warped_frames: Float[Tensor, "b 4 3 H W"],
        pictures: Float[Tensor, "b 4 3 H W"],
        warp_uncertainty: Float[Tensor, "b 4 H W"],
        memory_weight: Float[Tensor, "b 4 H W"],
    ) -> Float[Tensor, "b 4 3 H W"]:
        """The step's frames `[b, 4, 3, H, W]`, nominally in [-1, 1].

        The correction is scaled by warp_uncertainty * (1 - memory_weight). Where that is zero, the output is the blend
        of warped frames and map by memory weight: with a memory weight of one, the output is the warped frame exactly,
        so frames do not drift while the camera rests.

        Args:
            decoded: the transformer's latents, decoded.
            warped_frames: keyframes warped to these cameras, holes filled.
            pictures: frames from the map.
            warp_uncertainty, memory_weight: 0 to 1; see `memory.retrieval.Retrieved`.

        Raises:
            ValueError: a size that 8 does not divide.
        """
        height, width = decoded.shape[-2:]
        if height % 8 or width % 8:
            raise ValueError(f"the refiner takes sizes divisible by 8; got {height}x{width}")
        planes = torch.stack([warp_uncertainty, memory_weight], dim=2)
        x = torch.cat([decoded, warped_frames, pictures, planes], dim=2).flatten(1, 2)
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        fine = self.fine(self.stem(x))
        middle = self.middle(self.down(fine))
        coarse = self.coarse(self.down_again(middle))
        middle = self.middle_up(middle + F.pixel_shuffle(self.up(coarse), 2))
        fine = self.fine_up(fine + F.pixel_shuffle(self.up_again(middle), 2))
        output = F.pixel_shuffle(self.head(F.silu(self.norm(fine))), 2).unflatten(1, (FRAMES_PER_STEP, OUTPUTS))
        correction, logits = output.split((3, 3), dim=2)
        bias = logits.new_tensor([DECODED_LOGIT, 0.0, 0.0])[:, None, None]
        use_decoded, _, use_map = (4.0 * logits + bias).softmax(2).split(1, 2)
        refined = warped_frames + use_decoded * (decoded - warped_frames) + use_map * (pictures - warped_frames)
        refined = refined + correction
        prior = torch.lerp(pictures, warped_frames, memory_weight[:, :, None])
        return prior + (warp_uncertainty * (1.0 - memory_weight))[:, :, None] * (refined - prior)
