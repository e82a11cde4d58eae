"""Whether invented frames are copies of training frames."""

from __future__ import annotations

import numpy as np

from mosaic_gym.evaluation.metrics.intervals import bootstrap_maps
from mosaic_gym.evaluation.metrics.neighbors import nearest_distances

NEIGHBORS = 50
THRESHOLD_PERCENTILE = 1.0
LEAST_HELD_OUT = 500
"""With fewer frames the first percentile is not reliable."""


def copy_ratio(queries: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Distance to the nearest training frame over the mean distance to the `NEIGHBORS` nearest, `[n]`, from 0 to 1.

    The ratio of Carlini et al. 2023 (Extracting training data from diffusion models, section 4). A blank wall is near
    to many frames and has a ratio near 1; a copy is near to one. The distance alone finds 70 % of copies shifted by two
    pixels where the ratio finds 98 %.

    Args:
        queries: `[n, d]`, features or `pooled_pixels`.
        training: `[m, d]`, m at least `NEIGHBORS`; may be a memory map.

    Raises:
        ValueError: fewer training frames.
    """
    if len(training) < NEIGHBORS:
        raise ValueError(f"{len(training)} training frames are too few: use at least {NEIGHBORS}")
    distances = nearest_distances(queries, training, NEIGHBORS).astype(np.float64)
    return (distances[:, 0] + 1e-6) / (distances.mean(1) + 1e-6)


def copy_threshold(heldout: np.ndarray, training: np.ndarray) -> float:
    """The `copy_ratio` below which a frame counts as memorised: the first percentile of true held-out frames'.

    The minimum would depend on how many held-out frames there are.

    Args:
        heldout: `[h, d]`, true frames of maps that are not in training, from the same policy.
        training: `[m, d]`; may be a memory map.

    Raises:
        ValueError: fewer than `LEAST_HELD_OUT` held-out frames, or too few training frames.
    """
    if len(heldout) < LEAST_HELD_OUT:
        raise ValueError(f"{len(heldout)} held-out frames are too few: use at least {LEAST_HELD_OUT}")
    return float(np.percentile(copy_ratio(heldout, training), THRESHOLD_PERCENTILE))


def memorised_share(invented: np.ndarray, training: np.ndarray, maps: np.ndarray, threshold: float) -> dict[str, float]:
    """Share of invented frames that are nearer to a training frame than true held-out frames are.

    A frame counts as memorised if its `copy_ratio` is below the threshold. True frames of other maps give 1 % by its
    construction. It catches copies, blurred, noisy, shifted by some pixels or brightened; not a map that is known from
    another side.

    Args:
        invented: `[n, d]`, `pooled_pixels` or features; `maps`: `[n]`.
        training: `[m, d]`; may be a memory map.
        threshold: from `copy_threshold`.

    Returns:
        value, low, high (95 %, bootstrap over maps), and `threshold`.

    Raises:
        ValueError: too few training frames or maps.
    """
    share = bootstrap_maps((copy_ratio(invented, training) < threshold).astype(np.float64), maps)
    return {**share, "threshold": threshold}
