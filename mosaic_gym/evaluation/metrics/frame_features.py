"""Fixed features of frames by which a classifier separates generated from true ones, at full size and at 16 x 16."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from mosaic_gym.evaluation.metrics.image import check_frames

LAYOUT_CELLS = 16
STEPS_OF_GREY = (0.5, 1.5, 2.5, 4.5, 8.5, 16.5, 32.5)
"""Bounds of the cumulative histograms of differences, grey levels."""
VARIANCE_SHARES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9)
SMALL_STEP = 4.0
"""Grey levels. Differences of cells below this hardly count for the layout, so that noise of a few levels in a pixel
does not show."""
CHUNK = 256


def pixel_features(frames: np.ndarray) -> np.ndarray:
    """Statistics of the fine grain of frames, and their layout, float64 `[n, d]`.

    For green, red minus green and blue minus green, at full and half size: first, second and mixed differences to the
    right and down, each by the logarithms of mean size and energy and by how many are below `STEPS_OF_GREY`. Then
    quantiles of the logarithmic variance in 4 x 4 pixels, and `layout_features`. Blur empties the upper end of the
    histograms, noise the lower one, and a codec both.

    Args:
        frames: uint8 `[n, H, W, 3]`, H and W multiples of 16.
    """
    return np.concatenate([_in_chunks(_grain, frames), layout_features(frames)], axis=1)


def layout_features(frames: np.ndarray) -> np.ndarray:
    """Features of the layout of frames, without their grain, float64 `[n, d]`.

    Frames are averaged to 16 x 16. A classifier on those values, or on their differences, still detects a blur of one
    pixel (AUC 0.59) and a codec (0.79), so cells are averaged again by 2 and by 4. Of both sizes: the logarithms of
    differences to the right and down, mean over every row and every column; and the grey values at 8 x 8 with mean and
    contrast of the frame removed.

    Args:
        frames: uint8 `[n, H, W, 3]`, H and W multiples of 16.
    """
    return _in_chunks(_layout, frames)


def _in_chunks(function, frames: np.ndarray) -> np.ndarray:
    _, height, width, _ = check_frames("frames", frames).shape
    if height % LAYOUT_CELLS or width % LAYOUT_CELLS:
        raise ValueError(f"frames of {height} x {width} pixels have no 16 x 16 equal cells: use multiples of 16")
    parts = []
    for start in range(0, len(frames), CHUNK):
        pixels = torch.tensor(np.ascontiguousarray(frames[start : start + CHUNK]), dtype=torch.float32)
        parts.append(function(pixels.permute(0, 3, 1, 2)).double().numpy())
    return np.concatenate(parts)


def _opponent(pixels: torch.Tensor) -> torch.Tensor:
    red, green, blue = pixels.split(1, dim=1)
    return torch.cat([green, red - green, blue - green], 1)


def _grain(pixels: torch.Tensor) -> torch.Tensor:
    features = []
    colors = _opponent(pixels)
    for image in (colors, F.avg_pool2d(colors, 2)):
        right, down = image.diff(dim=3), image.diff(dim=2)
        for difference in (right, down, right.diff(dim=3), down.diff(dim=2), right.diff(dim=2)):
            size = difference.abs()
            features += [torch.log1p(size.mean((2, 3))), torch.log1p(size.square().mean((2, 3)))]
            features += [(size < bound).float().mean((2, 3)) for bound in STEPS_OF_GREY]
    grey = pixels.mean(1, keepdim=True)
    variance = torch.log1p((F.avg_pool2d(grey**2, 4) - F.avg_pool2d(grey, 4) ** 2).clamp_min(0)).flatten(1)
    features.append(torch.quantile(variance, torch.tensor(VARIANCE_SHARES, dtype=torch.float32), dim=1).T)
    return torch.cat(features, 1)


def _layout(pixels: torch.Tensor) -> torch.Tensor:
    height, width = pixels.shape[-2:]
    cells = F.avg_pool2d(pixels, (height // LAYOUT_CELLS, width // LAYOUT_CELLS))
    colors, features = _opponent(cells), []
    for size in (2, 4):
        image = F.avg_pool2d(colors, size)
        for difference in (image.diff(dim=3), image.diff(dim=2)):
            steps = torch.log(difference.abs() + SMALL_STEP)
            features += [steps.mean(2).flatten(1), steps.mean(3).flatten(1)]
    grey = cells.mean(1, keepdim=True)
    contrast = (grey - grey.mean((2, 3), keepdim=True)) / (grey.std((2, 3), keepdim=True) + 4)
    features.append(F.avg_pool2d(contrast, 2).flatten(1))
    return torch.cat(features, 1)
