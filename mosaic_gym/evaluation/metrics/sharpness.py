"""Sharpness of frames by gradient energy."""

from __future__ import annotations

import numpy as np

from mosaic_gym.evaluation.metrics.image import check_frames
from mosaic_gym.evaluation.metrics.intervals import bootstrap_maps_ratio


def gradient_energy(frames: np.ndarray) -> np.ndarray:
    """Mean squared difference of neighbors to the right plus that of neighbors below, mean over colors, `[n]`.

    Pixels count in [0, 1]: a step of 255 grey levels is 1.

    Args:
        frames: uint8 `[n, H, W, 3]`.
    """
    pixels = check_frames("frames", frames).astype(np.float32) / 255
    right, down = np.diff(pixels, axis=2), np.diff(pixels, axis=1)
    return (right**2).mean((1, 2, 3), dtype=np.float64) + (down**2).mean((1, 2, 3), dtype=np.float64)


def sharpness(
    frames: np.ndarray, true_frames: np.ndarray, maps: np.ndarray, true_maps: np.ndarray
) -> dict[str, float | str | None]:
    """Mean gradient energy of frames over that of true frames, as value, low, high, reason.

    A blur gives less than 1, noise and invented edges give more. It does not distinguish right edges from wrong ones,
    and true frames of a near wall have less gradient energy: compare frames of one policy and one step.

    Args:
        frames: uint8 `[n, H, W, 3]`; `maps`: `[n]`, the map of each.
        true_frames: uint8 `[m, H, W, 3]`; `true_maps`: `[m]`.

    Returns:
        As `bootstrap_maps_ratio`; undefined where the true frames have no gradients.
    """
    return bootstrap_maps_ratio(gradient_energy(frames), maps, gradient_energy(true_frames), true_maps)
