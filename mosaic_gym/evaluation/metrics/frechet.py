"""Frechet distance of features (Heusel et al. 2017), relative to that of two true halves."""

from __future__ import annotations

import numpy as np

from mosaic_gym.evaluation.metrics.halves import ratio_to_true_halves

MOST_FEATURES = 64
"""More features than this need more frames than an evaluation has."""


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Frechet distance of Gaussians fitted to two sets of features (Dowson and Landau 1982).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the root is that of (C1^(1/2) C2 C1^(1/2))^(1/2), which is
    symmetric, so that eigenvalues of symmetric matrices suffice. Covariances are shrunk towards a multiple of the
    identity by the OAS rule (Chen et al. 2010), which matters only for few samples.

    Args:
        one: `[n, d]`, d at most `MOST_FEATURES`.
        other: `[m, d]`.

    Raises:
        ValueError: shapes do not fit, too many features, or fewer than two samples.
    """
    x, y = (np.asarray(features, dtype=np.float64) for features in (one, other))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features must have shapes [n, d] and [m, d], got {x.shape} and {y.shape}")
    if x.shape[1] > MOST_FEATURES:
        raise ValueError(f"{x.shape[1]} features are too many: project them to at most {MOST_FEATURES}")
    if min(len(x), len(y)) < 2:
        raise ValueError("a Frechet distance needs at least 2 samples on each side: use more frames")
    first, second = _covariance(x), _covariance(y)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    distance = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * cross
    return float(max(distance, 0.0))


def frechet_ratio(
    generated: np.ndarray, true: np.ndarray, maps_generated: np.ndarray, maps_true: np.ndarray, seed: int = 0
) -> dict[str, float | str | None]:
    """Frechet distance of generated to true frames over that of two true halves of disjoint maps.

    Arguments and result as those of `ratio_to_true_halves`, with features `[n, d]` and d at most `MOST_FEATURES`. Only
    means and covariances are compared: worlds that repeat one training frame each, and frames in the wrong order, are
    not detected.
    """
    return ratio_to_true_halves(frechet_distance, generated, true, maps_generated, maps_true, seed=seed)


def _covariance(x: np.ndarray) -> np.ndarray:
    """Covariance `[d, d]`, shrunk by the OAS rule."""
    count, size = x.shape
    sample = np.cov(x, rowvar=False, bias=True).reshape(size, size)
    mean_variance, squares = np.trace(sample) / size, (sample**2).sum()
    excess = (count + 1 - 2 / size) * (squares - size * mean_variance**2)
    top = (1 - 2 / size) * squares + (size * mean_variance) ** 2
    share = min(top / excess, 1.0) if excess > 0 else 1.0
    return (1 - share) * sample + share * mean_variance * np.eye(size)
