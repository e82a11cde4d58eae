"""The evaluation net: a small classifier of single frames, by which generated worlds are measured.

It names the theme of the room in view and the kinds of things in view, and its 64 features measure how far apart sets
of frames are. It is trained on maps of the split `train` alone (`mosaic-gym train evaluator`) and is then frozen. No
world may be trained with it, because its figures would then be biased towards that world.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from mosaic_gym.model.parts import fingerprint_of, load_part

WEIGHTS = Path(__file__).parent.parent / "weights" / "evaluator"
FEATURES = 64
KINDS = ("DoomImp", "Demon", "HealthBonus", "ArmorBonus", "Zombieman")
"""The simulator's names of the things that a map can hold and that the net names. Props are part of a theme."""
BATCH = 128
LEAST_CONTRAST = 1e-4
"""Added to local contrasts before their logarithm: a channel without any is not infinitely far from the others."""


class EvaluationNet(ModelMixin, ConfigMixin):
    """Convolutions of stride 2 and a linear layer to `FEATURES` features.

    Nothing is normalized inside a frame: a network with group normalization amplifies the contrast of a faint, averaged
    frame until its features vary like those of a true one, and the Frechet distance of a blur to the truth was 1.

    Args:
        themes: names of the themes, in the order of the first head.
        widths: channels at half, quarter, eighth and sixteenth resolution, multiples of 8, at least two.
    """

    @register_to_config
    def __init__(self, themes: tuple[str, ...] = (), widths: tuple[int, ...] = (32, 64, 96, 128)):
        super().__init__()
        stages, before = nn.ModuleList(), 3
        for width in widths:
            layers = [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.SiLU()]
            if before > 3:  # the finest grid costs most
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
            stages.append(nn.Sequential(*layers))
            before = width
        self.stages = stages
        for layer in stages.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.project = nn.Linear(4 * before, FEATURES)
        self.theme_head = nn.Linear(FEATURES, max(len(themes), 1))
        self.kind_map = nn.Sequential(nn.Conv2d(widths[1], 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, len(KINDS), 1))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features `[b, 64]`, theme logits `[b, themes]` and kind logits `[b, kinds]` of frames `[b, 3, H, W]`.

        Frames are in [-1, 1]. A theme fills much of a frame, so its features are means over the upper and the lower
        half, maxima and spreads. A thing is small, so it is looked for on the grid of quarter resolution: the largest
        logit of any cell counts.
        """
        grid, kinds = frames, None
        for stage in self.stages:
            grid = stage(grid)
            if stage is self.stages[1]:
                kinds = self.kind_map(grid).amax((-2, -1))
        upper, lower = grid.chunk(2, dim=-2)
        top = grid.amax((-2, -1))
        spread = grid.flatten(2).std(-1)
        features = self.project(torch.cat([upper.mean((-2, -1)), lower.mean((-2, -1)), top, spread], 1))
        return features, self.theme_head(nn.functional.silu(features)), kinds

    @torch.no_grad()
    def read_with_contrasts(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features `[n, 64]`, and the logarithms of local contrast `[n, channels]` of the net's finest grid.

        The contrast of a channel is the mean squared difference of neighbors to the right plus that of neighbors below.
        The 64 features name themes, which a blur leaves as they are; the contrasts show blur, noise and mush.

        Args:
            frames: uint8 `[n, H, W, 3]`.
        """
        self.eval()
        parts = []
        for pixels in self._batches(frames):
            grid = self.stages[0](pixels)
            right, down = (grid.diff(dim=dim).square().mean((2, 3)) for dim in (3, 2))
            parts.append((self(pixels)[0].numpy(), torch.log(right + down + LEAST_CONTRAST).numpy()))
        return tuple(np.concatenate(rows) for rows in zip(*parts, strict=True))

    @torch.no_grad()
    def read(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features `[n, 64]`, theme probabilities `[n, themes]` and kind probabilities `[n, kinds]`.

        Args:
            frames: uint8 `[n, H, W, 3]`.
        """
        self.eval()
        parts = []
        for pixels in self._batches(frames):
            features, themes, kinds = self(pixels)
            parts.append((features.numpy(), themes.softmax(1).numpy(), kinds.sigmoid().numpy()))
        return tuple(np.concatenate(rows) for rows in zip(*parts, strict=True))

    @torch.no_grad()
    def kinds_at(self, frame: np.ndarray, pixel: np.ndarray, within_px: float) -> np.ndarray:
        """Probabilities `[kinds]` of a thing near a pixel of one frame.

        Args:
            frame: uint8 `[H, W, 3]`.
            pixel: (column, row); outside the frame the nearest pixel inside counts.
            within_px: cells count whose distance in columns and in rows is at most this.
        """
        self.eval()
        (pixels,) = self._batches(frame[None])
        logits = self.kind_map(self.stages[1](self.stages[0](pixels)))[0]
        cell_px = frame.shape[0] / logits.shape[1]
        rows, columns = (
            slice(*(int(np.clip((at + by) / cell_px, 0, count - 1)) + (by > 0) for by in (-within_px, within_px)))
            for at, count in zip(pixel[::-1], logits.shape[1:], strict=True)
        )
        return logits[:, rows, columns].amax((-2, -1)).sigmoid().numpy()

    @staticmethod
    def _batches(frames: np.ndarray) -> Iterator[Tensor]:
        for start in range(0, len(frames), BATCH):
            yield torch.tensor(frames[start : start + BATCH]).permute(0, 3, 1, 2).float() / 127.5 - 1


def load_evaluation_net(folder: Path = WEIGHTS) -> tuple[EvaluationNet, dict[str, float | str]]:
    """The frozen net, and what is printed with every table: its fingerprint and held-out accuracies.

    Raises:
        ValueError: it is missing or damaged.
    """
    if not (folder / "accuracy.json").is_file():
        raise ValueError(f"there is no evaluation net in {folder}; train one: mosaic-gym train evaluator")
    net = load_part(EvaluationNet, folder.parent, folder.name).requires_grad_(False).eval()
    accuracy = json.loads((folder / "accuracy.json").read_text())
    return net, {"fingerprint": fingerprint_of([net])[:12], **accuracy}
