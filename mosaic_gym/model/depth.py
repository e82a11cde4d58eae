"""Depth from one frame: the estimator that ships, and any of Hugging Face's behind the same call."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from mosaic_gym.geometry.camera import cell_centres
from mosaic_gym.memory.keyframe import median_per_cell


class DepthEstimator(Protocol):
    """Perpendicular depth, in metres, of single frames."""

    def estimate(self, frames: Tensor, image_from_camera: Tensor) -> Tensor:
        """Depth `[b, H, W]` in metres of frames `[b, 3, H, W]` in [-1, 1]; K `[b, 3, 3]` in pixels."""
        ...


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ConvDepth(ModelMixin, ConfigMixin):
    """A small U-Net from a frame and its viewing rays to log depth.

    The rays ((u - cx) / fx, (v - cy) / fy) are inputs, so that K is told and not assumed. Blocks of 2x2 pixels go
    in and come out as one (Shi et al., arXiv 1609.05158): layers at full resolution took a third of the time.

    Args:
        widths: channels at half, quarter, eighth and sixteenth resolution, multiples of 8.
        near_m, far_m: the range of what it can say, metres.
    """

    @register_to_config
    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 128), near_m: float = 0.2, far_m: float = 60.0):
        super().__init__()
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(20, widths[0], 3, padding=1))
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for fine, coarse in zip(widths[:-1], widths[1:], strict=True):
            self.down.append(nn.Sequential(nn.Conv2d(fine, coarse, 4, stride=2, padding=1), _Residual(coarse)))
            self.up.append(nn.Sequential(nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2)))
        self.middle = nn.Sequential(_Residual(widths[-1]), _Residual(widths[-1]))
        self.merge = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(2 * w, w, 3, padding=1), _Residual(w)) for w in widths[:-1]]
        )
        self.head = nn.Sequential(nn.SiLU(), nn.Conv2d(widths[0], 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, frames: Tensor, image_from_camera: Tensor) -> Tensor:
        """Log of depth in metres `[b, H, W]`, of frames `[b, 3, H, W]` in [-1, 1] and K `[b, 3, 3]` in pixels."""
        height, width = frames.shape[-2:]
        factor = 2 ** (1 + len(self.down))
        if height % factor or width % factor:
            raise ValueError(f"the depth estimator takes sizes that {factor} divides; got {height}x{width}")
        focal = torch.stack([image_from_camera[:, 0, 0], image_from_camera[:, 1, 1]], -1)
        rays = (cell_centres(height, width, frames) - image_from_camera[:, None, None, :2, 2]) / focal[:, None, None]
        x = self.stem(torch.cat([frames, rays.permute(0, 3, 1, 2)], dim=1))
        kept = []
        for down in self.down:
            kept.append(x)
            x = down(x)
        x = self.middle(x)
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            x = merge(torch.cat([up(x), kept.pop()], dim=1))
        return 1.0 + self.head(x)[:, 0]

    @torch.no_grad()
    def estimate(self, frames: Tensor, image_from_camera: Tensor) -> Tensor:
        """Depth `[b, H, W]` in metres; see `DepthEstimator`."""
        return self(frames, image_from_camera).exp().clamp(self.config.near_m, self.config.far_m)


class HuggingFaceDepth:
    """Any `AutoModelForDepthEstimation`, local folder or hub id, behind the estimator's call.

    Args:
        name: folder or id.
        inverse: whether the model says inverse depth (the Depth-Anything family's relative models do).
        device: where it runs.
    """

    def __init__(self, name: str | Path, inverse: bool = False, device: str = "cpu"):
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        self.processor = AutoImageProcessor.from_pretrained(name)
        self.model = AutoModelForDepthEstimation.from_pretrained(name, use_safetensors=True).to(device).eval()
        self.inverse = inverse

    def to(self, device: str | torch.device) -> HuggingFaceDepth:
        """Moves the model, in place."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def estimate(self, frames: Tensor, image_from_camera: Tensor) -> Tensor:
        """Depth `[b, H, W]`; metres if the model is metric, else up to the scale that memory aligns."""
        pictures = list(((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
        inputs = self.processor(images=pictures, return_tensors="pt").to(frames.device)
        said = self.model(**inputs).predicted_depth[:, None]
        said = F.interpolate(said, size=frames.shape[-2:], mode="nearest")[:, 0]
        return (1.0 / said.clamp_min(1e-3)) if self.inverse else said.clamp_min(1e-3)


def align_scale(depth_m: Tensor, known_m: Tensor, limit: float = 1.5) -> Tensor:
    """Scales an estimate so that its median agrees with what memory already knows.

    Args:
        depth_m: `[b, H, W]`, the estimate.
        known_m: `[b, H, W]`, memory's surface in the same camera, metres, or on a coarser grid; inf where it has none.
        limit: the largest factor, and one over it the smallest, that is believed.

    Returns:
        `[b, H, W]`, metres; the estimate itself where memory covers less than a twentieth of the view.
    """
    compared_m = median_per_cell(depth_m, tuple(known_m.shape[-2:])) if known_m.shape != depth_m.shape else depth_m
    both = known_m.isfinite()
    ratio = torch.where(both, torch.log(known_m / compared_m), torch.nan).flatten(1)
    factor = ratio.nanmedian(1).values.exp().clamp(1.0 / limit, limit)
    enough = both.float().mean((1, 2)) >= 0.05
    return depth_m * torch.where(enough, factor, 1.0)[:, None, None]


def relative_error(estimate_m: Tensor, engine_m: Tensor) -> Tensor:
    """|estimate - engine| / engine, pixel by pixel."""
    return (estimate_m - engine_m).abs() / engine_m
