"""The atlas: the map a model was trained on, known by heart.

It is a network with two halves. `locate` says where in the map a frame was taken, and `picture` what is seen from a
place. Between them lies an ordinary place, metres and a heading, so each half learns from poses that recordings hold,
without waiting for the other: inpainting networks, without that joint, learnt next to nothing from as many samples.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from mosaic_gym.model.atlas.drawing import AROUND, GAIN, Drawing
from mosaic_gym.model.atlas.finding import Finding


class Atlas(Drawing, Finding, ModelMixin, ConfigMixin):
    """Where a frame was taken, and what is seen from there.

    A place is (x, z, heading): metres and radians in the map's frame, heading 0 along z and growing towards x.

    Args:
        height, width: of the frames, pixels, multiples of 16.
        corner_m: (x, z), the least corner of the square that the map lies in; side_m: its side.
        coarse, fine: cells along a side of the two planes of features; features: of each of their cells.
        samples: depths at which a ray is asked on its way.
        hidden: width of the networks along a ray.
        floor_m, ceiling_m: how far below and above the camera they mostly are.
        strip: colours that a wall has between them, one above the other.
        ground: cells along a side of the pictures of floor and ceiling.
        cells: along a side of the board on which frames are located; headings: bins of a whole turn.
    """

    @register_to_config
    def __init__(
        self,
        height: int = 64,
        width: int = 64,
        corner_m: tuple[float, float] = (0.0, 0.0),
        side_m: float = 32.0,
        coarse: int = 64,
        fine: int = 560,
        features: int = 16,
        samples: int = 24,
        hidden: int = 320,
        cells: int = 32,
        headings: int = 24,
        floor_m: float = 1.28,
        ceiling_m: float = 2.72,
        strip: int = 128,
        ground: int = 448,
    ):
        super().__init__()
        self.coarse_plane = nn.Parameter(torch.randn(1, features, coarse, coarse) * 0.1 / GAIN)
        self.fine_plane = nn.Parameter(torch.randn(1, features, fine, fine) * 0.1 / GAIN)
        self.feel = nn.Sequential(
            nn.Linear(samples * features + 4, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.depth = nn.Linear(hidden, 1)
        self.draw = nn.Sequential(
            nn.Linear(hidden + len(AROUND) * features + 5, hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, height * 3),
        )  # fmt: skip
        # Both begin at nothing: grain is added to what the networks along a ray say.
        self.paint = nn.Sequential(
            nn.Linear(len(AROUND) * features, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, strip * 3),
        )  # fmt: skip
        nn.init.zeros_(self.paint[-1].weight)
        nn.init.zeros_(self.paint[-1].bias)
        self.light = nn.Linear(hidden, 2)
        self.ground_plane = nn.Parameter(torch.zeros(1, 6, ground, ground))
        widths = (32, 64, 128, 192)
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1)]
        for fewer, more in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.GroupNorm(8, fewer), nn.SiLU(), nn.Conv2d(fewer, more, 4, stride=2, padding=1)]
        layers += [nn.GroupNorm(8, widths[-1]), nn.SiLU(), nn.Flatten()]
        self.recognise = nn.Sequential(
            *layers, nn.Linear(widths[-1] * (height // 16) * (width // 16), 384), nn.SiLU(),
            nn.Linear(384, 3 * cells * cells + 2 * headings),
        )  # fmt: skip

    def holds(self, places: Float[Tensor, "n d"]) -> bool:
        """Whether places (x, z, ...), metres, all lie in the square that the map does."""
        inside = (places[:, :2] - places.new_tensor(self.config.corner_m)) / self.config.side_m
        return bool(((inside >= 0) & (inside <= 1)).all())

    def check_map(self, size: tuple[int, int], places: Float[Tensor, "n 3"]) -> None:
        """Raises ValueError if frames of another size, or places off the map, are to be learnt or recognised."""
        mine = (self.config.height, self.config.width)
        if tuple(size) != mine:
            raise ValueError(
                f"the atlas draws frames of {mine}, recorded are {tuple(size)}; train one: mosaic-gym train atlas"
            )
        if not self.holds(places):
            raise ValueError(
                "the recorded walk leaves the atlas's map; train one of it: mosaic-gym train atlas --data ..."
            )
