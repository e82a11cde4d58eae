"""Whether another seed gives another world."""

from __future__ import annotations

import numpy as np

from mosaic_gym.evaluation.metrics.intervals import bootstrap_maps_ratio, check_maps


def diversity_ratio(
    one: np.ndarray, other: np.ndarray, maps: np.ndarray, true: np.ndarray, true_maps: np.ndarray, seed: int = 0
) -> dict[str, float | str | None]:
    """Distance between two seeds' inventions over that between frames of two true maps.

    A world that averages, or that plays one training map back, gives nearly 0; 1 is as varied as truth. More than 1 is
    possible for noise that has no rooms in it: read it beside `auc_layout`. Both seeds start from the same state, so
    what they share by continuing the same view lowers the ratio, also for a good world.

    Args:
        one, other: features `[n, d]` of the same places after the same actions, invented with two seeds; give the
            features of the invented area alone.
        maps: `[n]`, the map that each starts in.
        true: features `[m, d]` of true frames at as many steps; `true_maps`: `[m]`. Every frame is paired with one of
            another map, drawn with `seed`.

    Returns:
        As `bootstrap_maps_ratio`, of mean Euclidean distances.

    Raises:
        ValueError: shapes do not fit, or too few maps.
    """
    if one.shape != other.shape or one.ndim != 2 or true.ndim != 2 or one.shape[1] != true.shape[1]:
        raise ValueError(f"expected features [n, d], [n, d] and [m, d], got {one.shape}, {other.shape}, {true.shape}")
    names = check_maps(true_maps, len(true))
    rng = np.random.default_rng(seed)
    partners = np.array([rng.choice(np.flatnonzero(names != name)) for name in names])
    between = np.linalg.norm(true.astype(np.float64) - true[partners], axis=1)
    return bootstrap_maps_ratio(np.linalg.norm(one.astype(np.float64) - other, axis=1), maps, between, true_maps)
