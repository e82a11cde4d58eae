"""Differences of images: squared error, PSNR, SSIM, and the error that small shifts explain."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

SSIM_WINDOW, SSIM_SIGMA = 7, 1.5
SHIFTS_PX = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
SHIFT_WINDOW = 5


def squared_error(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Per-pixel squared error, mean over colors, `[..., H, W]` of uint8 frames `[..., H, W, 3]`."""
    return ((one.astype(np.float64) - other.astype(np.float64)) ** 2).mean(-1)


def decibels(mean_squared_error: float) -> float:
    """PSNR of a mean squared error on the scale of uint8. An error of zero counts as 1e-3."""
    return float(10 * np.log10(255.0**2 / max(mean_squared_error, 1e-3)))


def check_frames(name: str, frames: np.ndarray) -> np.ndarray:
    """The frames.

    Raises:
        ValueError: they are not uint8 `[n, H, W, 3]`, or there is none. The message starts with `name`.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"{name} must be uint8 of shape [n, H, W, 3] with n >= 1, got {frames.dtype} {frames.shape}")
    return frames


def realigned_error(frames: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Per-pixel squared error after every pixel took the shift that fits its 5 x 5 neighborhood best.

    Shifts go up to one pixel, in quarters and halves, with cubic interpolation. The shifts are chosen by the true
    frames, so this is a bound on what better placement of the pixels of `frames` could gain.

    Args:
        frames: uint8 `[n, H, W, 3]`.
        true: uint8 `[n, H, W, 3]`.

    Returns:
        float64 `[n, H, W]`.
    """
    x, y = (torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2) for images in (frames, true))
    height, width = x.shape[-2:]
    smallest = torch.full((len(x), 1, height, width), torch.inf, dtype=x.dtype)
    chosen = smallest.clone()
    for right in SHIFTS_PX:
        for down in SHIFTS_PX:
            affine = torch.tensor([[1.0, 0.0, 2.0 * right / width], [0.0, 1.0, 2.0 * down / height]], dtype=x.dtype)
            grid = F.affine_grid(affine.expand(len(x), 2, 3), list(x.shape), align_corners=False)
            shifted = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
            error = (shifted - y).square().mean(1, keepdim=True)
            nearby = F.avg_pool2d(error, SHIFT_WINDOW, 1, SHIFT_WINDOW // 2, count_include_pad=False)
            better = nearby < smallest
            smallest, chosen = torch.where(better, nearby, smallest), torch.where(better, error, chosen)
    return chosen[:, 0].numpy()


def ssim_map(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """SSIM of every pixel (Wang et al. 2004; Gaussian window 7, sigma 1.5), mean over colors.

    Args:
        one: uint8 `[n, H, W, 3]`.
        other: uint8 `[n, H, W, 3]`.

    Returns:
        float64 `[n, H, W]`.
    """
    x, y = (torch.tensor(frames, dtype=torch.float64).permute(0, 3, 1, 2) / 255.0 for frames in (one, other))
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights = (line / line.sum()).tolist()
    height, width = x.shape[-2:]

    def blur(image: torch.Tensor) -> torch.Tensor:
        # Row by row and column by column: float64 convolution takes ten times as long.
        padded = F.pad(image, [SSIM_WINDOW // 2] * 4, mode="reflect")
        down = sum(weight * padded[..., i : i + height, :] for i, weight in enumerate(weights))
        return sum(weight * down[..., i : i + width] for i, weight in enumerate(weights))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(1).numpy()
