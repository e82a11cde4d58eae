"""Monocular depth: the shipped estimator, and Hugging Face's models with the same interface."""

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
"""Hugging Face depth models whose processors need torchvision."""
METRIC_TYPES = ("depth_pro", "glpn", "zoedepth")
"""Hugging Face depth models that always predict metres."""
NEAREST_M = 1e-3
"""The smallest estimate, metres."""
FARTHEST = 100.0
"""The largest estimate of a relative model, in medians: for an inverse depth of zero or less."""


class DepthEstimator(Protocol):
    """Perpendicular depth, in metres, of single frames.

    Attributes:
        metric: whether estimates are in metres; if not, every frame has an unknown scale of its own.

    An estimator that is not a torch module is moved by its `to(device)`, if it has one. A world's fingerprint includes
    its `model`, `inverse` and `median_depth_m`.
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

    The rays ((u - cx) / fx, (v - cy) / fy) are inputs, so K is known to the network and not assumed. Blocks of 2x2
    pixels enter and leave as channels (Shi et al., arXiv 1609.05158), because layers at full resolution took a third of
    the time.

    Args:
        widths: channels at half, quarter, eighth and sixteenth resolution, multiples of 8.
        near_m, far_m: the range of estimates, metres.
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
            raise ValueError(f"the depth estimator takes sizes divisible by {factor}; got {height}x{width}")
        focal = torch.stack([image_from_camera[:, 0, 0], image_from_camera[:, 1, 1]], -1)
        rays = (cell_centres(height, width, frames) - image_from_camera[:, None, None, :2, 2]) / focal[:, None, None]
        x = self.stem(torch.cat([frames, rays.permute(0, 3, 1, 2)], dim=1))
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        return 1.0 + self.head(x)[:, 0]

    @torch.no_grad()
    def estimate(self, frames: Tensor, image_from_camera: Tensor) -> Tensor:
        """Depth `[b, H, W]` in metres; see `DepthEstimator`."""
        return self(frames, image_from_camera).exp().clamp(self.config.near_m, self.config.far_m)


class HuggingFaceDepth:
    """A Hugging Face depth model, by folder or hub id, as a `DepthEstimator`.

    Supported are Depth Anything, DPT (and MiDaS), DepthPro with its field-of-view head, GLPN and ZoeDepth. Their
    processor's `post_process_depth_estimation` turns predictions into depth on the frames' grid: it crops ZoeDepth's
    padding and inverts DepthPro's canonical inverse depth (for these two it needs torchvision). They run in float32.

    A relative model predicts inverse depth up to a scale and a shift. The scale is chosen for each frame so that the
    median of all finite distances is `median_depth_m`; `align_scale` then fits it to memory. The shift is not
    corrected, so flat walls come out bent, and distances other than the median are off.

    Args:
        name: folder or hub id.
        inverse: whether the model is a relative one.
        median_depth_m: for a relative model, metres.
        device: where it runs.

    Raises:
        OSError: the model cannot be read.
        ValueError: the model is of another kind, or `inverse` contradicts its config.
    """

    def __init__(self, name: str | Path, inverse: bool = False, median_depth_m: float = 3.0, device: str = "cpu"):
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

        _check_kind(name, AutoConfig.from_pretrained(name), inverse)
        self.processor = AutoImageProcessor.from_pretrained(name)
        if not hasattr(self.processor, "post_process_depth_estimation"):
            raise ValueError(
                f"{type(self.processor).__name__} of {name} cannot convert predictions to depth (it lacks "
                "post_process_depth_estimation): use a Depth Anything, DPT, DepthPro, GLPN or ZoeDepth model"
            )
        # Frames are float32. Without dtype, a checkpoint in half precision would be loaded in half precision.
        model = AutoModelForDepthEstimation.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
        self.model = model.to(device).eval()
        parameters = inspect.signature(self.processor.post_process_depth_estimation).parameters
        self._size_arguments = [name for name in ("source_sizes", "target_sizes") if name in parameters]
        self.inverse = inverse
        self.median_depth_m = median_depth_m

    @property
    def metric(self) -> bool:
        """Whether estimates are in metres."""
        return not self.inverse

    def to(self, device: str | torch.device) -> HuggingFaceDepth:
        """Moves the model, in place."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def estimate(self, frames: Tensor, image_from_camera: Tensor) -> Tensor:
        """Depth `[b, H, W]` in metres; for a relative model, on a scale that differs between frames."""
        images = list(((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
        inputs = self.processor(images=images, return_tensors="pt").to(frames.device)
        outputs = self.model(**inputs)
        sizes = [tuple(frames.shape[-2:])] * len(frames)
        processed = self.processor.post_process_depth_estimation(outputs, **dict.fromkeys(self._size_arguments, sizes))
        predicted = torch.stack([output["predicted_depth"] for output in processed])
        if not self.inverse:
            return predicted.clamp_min(NEAREST_M)
        median = predicted.where(predicted > 0, torch.nan).flatten(1).nanmedian(1).values
        median = median.nan_to_num(1.0)[:, None, None]  # without any finite distance, everything is far
        return (self.median_depth_m * median / predicted.clamp_min(median / FARTHEST)).clamp_min(NEAREST_M)


def _check_kind(name: str | Path, config: Any, inverse: bool) -> None:
    """Raises ValueError for a model whose scale is not as expected, or that cannot run here."""
    if config.model_type in VISION_TYPES and find_spec("torchvision") is None:
        raise ValueError(f"{name} is a {config.model_type} model, whose processor needs torchvision: pip install it")
    if config.model_type == "depth_pro" and not config.use_fov_model:
        raise ValueError(
            f"{name} is DepthPro without its field-of-view head, and does not predict metres; use one with it"
        )
    kind = getattr(config, "depth_estimation_type", "metric" if config.model_type in METRIC_TYPES else None)
    if kind is not None and (kind == "relative") != inverse:
        raise ValueError(f"{name} is a {kind} model: pass inverse_depth={kind == 'relative'}, or use another model")


def align_scale(depth_m: Tensor, known_m: Tensor, metric: bool = True, limit: float = 1.5) -> Tensor:
    """Scales an estimate so that the median of its ratio to the depth of memory is one.

    Args:
        depth_m: `[b, H, W]`, the estimate.
        known_m: `[b, H, W]`, depth of memory in the same camera, metres; inf where it has none. A coarser grid is fine.
        metric: whether the estimate is in metres. If not, every factor is accepted.
        limit: for a metric estimate, factors are clamped to 1 / limit ... limit.

    Returns:
        `[b, H, W]`, metres; the estimate itself if memory covers less than a twentieth of the view.
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
    """|estimate - true| / true, for every pixel."""
    return (estimate_m - true_m).abs() / true_m
