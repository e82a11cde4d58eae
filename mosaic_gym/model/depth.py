"""Depth from one frame: the estimator that ships, and any of Hugging Face's behind the same call."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from mosaic_gym.geometry.camera import cell_centres
from mosaic_gym.memory.keyframe import median_per_cell

VISION_TYPES = ("depth_pro", "zoedepth")
"""Of Hugging Face's depth models, those whose processors need torchvision."""
METRIC_TYPES = ("depth_pro", "glpn", "zoedepth")
"""Those that all say depth in metres."""
NEAREST_M = 1e-3
"""No estimate is nearer."""
FARTHEST = 100.0
"""Where a relative model says an inverse depth of zero, or less, it is so many medians far."""


class DepthEstimator(Protocol):
    """Perpendicular depth, in metres, of single frames.

    Attributes:
        metric: whether those are true metres, as well as it knows; if not, every frame has a scale of its own.

    One that is no torch module is moved by its `to(device)`, if it has that, and counts in a world's fingerprint by its
    `model`, `inverse` and `median_depth_m`.
    """

    metric: bool

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

    metric = True

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
    """A depth model of Hugging Face's, local folder or hub id, behind the estimator's call.

    These are supported: Depth Anything, DPT (MiDaS too), DepthPro with its field-of-view head, GLPN and ZoeDepth. What
    they answer is made depth on the frames' grid by their processor's own `post_process_depth_estimation`, which cuts
    ZoeDepth's padding off and inverts DepthPro's canonical inverse depth (of these two it needs torchvision). They run
    in float32.

    A relative model says inverse depth up to a scale and a shift. The scale is chosen for each frame so that the median
    of what lies at a finite distance is `median_depth_m`; `align_scale` then holds it to memory. The shift is not
    corrected, so flat walls come out bent, and distances other than the median's are off.

    Args:
        name: folder or id.
        inverse: whether the model is a relative one.
        median_depth_m: metres, of a relative model.
        device: where it runs.

    Raises:
        OSError: it cannot be read. ValueError: another kind of model, or `inverse` contradicts what it says of itself.
    """

    def __init__(self, name: str | Path, inverse: bool = False, median_depth_m: float = 3.0, device: str = "cpu"):
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

        _check_kind(name, AutoConfig.from_pretrained(name), inverse)
        self.processor = AutoImageProcessor.from_pretrained(name)
        if not hasattr(self.processor, "post_process_depth_estimation"):
            raise ValueError(
                f"{type(self.processor).__name__} of {name} does not say how answers become depth (it lacks "
                "post_process_depth_estimation): take a Depth Anything, DPT, DepthPro, GLPN or ZoeDepth model"
            )
        # Frames are float32, and a checkpoint in half precision would be loaded as it was saved.
        model = AutoModelForDepthEstimation.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
        self.model = model.to(device).eval()
        takes = inspect.signature(self.processor.post_process_depth_estimation).parameters
        self._sizes = [each for each in ("source_sizes", "target_sizes") if each in takes]
        self.inverse = inverse
        self.median_depth_m = median_depth_m

    @property
    def metric(self) -> bool:
        """Whether it says metres."""
        return not self.inverse

    def to(self, device: str | torch.device) -> HuggingFaceDepth:
        """Moves the model, in place."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def estimate(self, frames: Tensor, image_from_camera: Tensor) -> Tensor:
        """Depth `[b, H, W]`: metres; of a relative model, on a scale of each frame's own."""
        pictures = list(((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
        answers = self.model(**self.processor(images=pictures, return_tensors="pt").to(frames.device))
        sizes = [tuple(frames.shape[-2:])] * len(frames)
        processed = self.processor.post_process_depth_estimation(answers, **dict.fromkeys(self._sizes, sizes))
        said = torch.stack([each["predicted_depth"] for each in processed])
        if not self.inverse:
            return said.clamp_min(NEAREST_M)
        middle = said.where(said > 0, torch.nan).flatten(1).nanmedian(1).values
        middle = middle.nan_to_num(1.0)[:, None, None]  # where nothing is at a finite distance, all is far
        return (self.median_depth_m * middle / said.clamp_min(middle / FARTHEST)).clamp_min(NEAREST_M)


def _check_kind(name: str | Path, config: Any, inverse: bool) -> None:
    """Raises ValueError for a model that says no metres, that is not what it is taken for, or that cannot run here."""
    if config.model_type in VISION_TYPES and find_spec("torchvision") is None:
        raise ValueError(f"{name} is a {config.model_type} model, whose processor needs torchvision: pip install it")
    if config.model_type == "depth_pro" and not config.use_fov_model:
        raise ValueError(f"{name} is DepthPro without its field-of-view head, and says no metres; take one with it")
    kind = getattr(config, "depth_estimation_type", "metric" if config.model_type in METRIC_TYPES else None)
    if kind is not None and (kind == "relative") != inverse:
        raise ValueError(f"{name} is a {kind} model: give inverse_depth={kind == 'relative'}, or take another")


def align_scale(depth_m: Tensor, known_m: Tensor, metric: bool = True, limit: float = 1.5) -> Tensor:
    """Scales an estimate so that its median agrees with what memory already knows.

    Args:
        depth_m: `[b, H, W]`, the estimate.
        known_m: `[b, H, W]`, memory's surface in the same camera, metres, or on a coarser grid; inf where it has none.
        metric: whether the estimate is in metres; any factor is right for one that is relative.
        limit: of a metric one, the largest factor, and one over it the smallest, that is believed.

    Returns:
        `[b, H, W]`, metres; the estimate itself where memory covers less than a twentieth of the view.
    """
    compared_m = median_per_cell(depth_m, tuple(known_m.shape[-2:])) if known_m.shape != depth_m.shape else depth_m
    both = known_m.isfinite()
    ratio = torch.where(both, torch.log(known_m / compared_m), torch.nan).flatten(1)
    factor = ratio.nanmedian(1).values.exp()
    if metric:
        factor = factor.clamp(1.0 / limit, limit)
    enough = both.float().mean((1, 2)) >= 0.05
    return depth_m * torch.where(enough, factor, 1.0)[:, None, None]


def relative_error(estimate_m: Tensor, true_m: Tensor) -> Tensor:
    """|estimate - engine| / engine, pixel by pixel."""
    return (estimate_m - true_m).abs() / true_m
