"""The last strokes: a small convolutional network that works on pixels where tokens are too coarse.

A token of the transformer is eight pixels wide, and what is wrong with a warped memory is often narrower:
a seam, an edge that landed half a pixel off, the strip that a turn has just brought into view.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from mosaic_gym.geometry.control import FRAMES_PER_STEP

TRUST = 3.0
"""How firmly, in logits, a fresh network shows what the transformer believes. A network without this choice came to
make it all the same, and thousands of steps later had learnt nothing more."""
OUTPUTS = 6
"""Of every pixel: three colours of strokes, and the logits of the choice between belief, memory and map."""
INPUTS = 11
"""Of every pixel: three colours each that the transformer believes in, that memory shows, and that the map does; doubt
and reliance."""


class _Residual(nn.Module):
    """Normed at its entry: without that the sum of many steps' corrections grew until every unit was shut, for good."""

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
        believed: Float[Tensor, "b 4 3 H W"],
        warped_frames: Float[Tensor, "b 4 3 H W"],
        pictures: Float[Tensor, "b 4 3 H W"],
        warp_uncertainty: Float[Tensor, "b 4 H W"],
        memory_weight: Float[Tensor, "b 4 H W"],
    ) -> Float[Tensor, "b 4 3 H W"]:
        """The step's frames `[b, 4, 3, H, W]`, nominally in [-1, 1].

        It goes on from what memory and map let expect, as far as there is doubt and memory is not to be relied on.
        Without either, memory shows this very pixel from this very place, and it stays as it is: a body at rest sees a
        world at rest.

        Args:
            believed: the transformer's latents, decoded.
            stills: what memory shows, holes filled; pictures: what the map does; doubt, reliance: 0 to 1. See
                `memory.mosaic.Recall`.

        Raises:
            ValueError: a size that 8 does not divide.
        """
        height, width = believed.shape[-2:]
        if height % 8 or width % 8:
            raise ValueError(f"the detail network takes sizes that 8 divides; got {height}x{width}")
        planes = torch.stack([warp_uncertainty, memory_weight], dim=2)
        x = torch.cat([believed, warped_frames, pictures, planes], dim=2).flatten(1, 2)
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        fine = self.fine(self.stem(x))
        middle = self.middle(self.down(fine))
        coarse = self.coarse(self.down_again(middle))
        middle = self.middle_up(middle + F.pixel_shuffle(self.up(coarse), 2))
        fine = self.fine_up(fine + F.pixel_shuffle(self.up_again(middle), 2))
        drawn = F.pixel_shuffle(self.head(F.silu(self.norm(fine))), 2).unflatten(1, (FRAMES_PER_STEP, OUTPUTS))
        strokes, logits = drawn.split((3, 3), dim=2)
        begins = logits.new_tensor([TRUST, 0.0, 0.0])[:, None, None]
        belief, _, by_heart = (4.0 * logits + begins).softmax(2).split(1, 2)
        drawn = warped_frames + belief * (believed - warped_frames) + by_heart * (pictures - warped_frames) + strokes
        expected = torch.lerp(pictures, warped_frames, memory_weight[:, :, None])
        return expected + (warp_uncertainty * (1.0 - memory_weight))[:, :, None] * (drawn - expected)
