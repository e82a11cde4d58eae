"""Frechet distance of features (Heusel et al. 2017), relative to that of two true halves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mosaic_gym.evaluation.metrics.halves import ratio_to_true_halves

MOST_FEATURES = 64
"""More features than this need more frames than an evaluation has."""


@dataclass(frozen=True)
class Gaussian:
    """Mean `[d]` and covariance `[d, d]` of features."""

    mean: np.ndarray
    covariance: np.ndarray


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
    if one.shape[1:] != other.shape[1:]:
        raise ValueError(f"features must have shapes [n, d] and [m, d], got {one.shape} and {other.shape}")
    return _distance(*(_gaussian([_moments(features)]) for features in (one, other)))


def frechet_ratio(
    generated: np.ndarray, true: np.ndarray, maps_generated: np.ndarray, maps_true: np.ndarray, seed: int = 0
) -> dict[str, float | str | None]:
    """Frechet distance of generated to true frames over that of two true halves of disjoint maps.

    Arguments and result as those of `ratio_to_true_halves`, with features `[n, d]` and d at most `MOST_FEATURES`. Only
    means and covariances are compared: worlds that repeat one training frame each, and frames in the wrong order, are
    not detected.

    Both distances hold what the sampling of maps adds to them, which falls with the number of maps. So the ratio of a
    world that differs from the truth at all grows with that number: compare worlds of as many maps.
    """
    return ratio_to_true_halves(_moments, _gaussian, _distance, generated, true, maps_generated, maps_true, seed=seed)


class Whitening:
    """Principal components of features, each scaled to one standard deviation of a set of other true frames.

    The Frechet distance depends on the scale of the features. Unscaled, it measures little but the features that vary
    most from map to map, such as colors, and neither a blur nor a regression is further from the truth than true maps
    are from each other.

    Args:
        features: `[n, d]` of true frames that are on neither side of the distance.
        components: how many of the d are kept, those of the largest variance.
        floor: added to their variances, as a share of the mean variance.
    """

    def __init__(self, features: np.ndarray, components: int, floor: float):
        rows = np.asarray(features, dtype=np.float64)
        self.mean = rows.mean(0)
        variances, vectors = np.linalg.eigh(np.cov(rows, rowvar=False, bias=True))
        variances, vectors = variances[::-1][:components], vectors[:, ::-1][:, :components]
        self.scaled = vectors / np.sqrt(np.maximum(variances, 0) + floor * max(variances.mean(), 1e-12))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Whitened features `[n, components]` of features `[n, d]`."""
        return (features - self.mean) @ self.scaled


def _moments(features: np.ndarray) -> np.ndarray:
    """Number, sum and sum of outer products of features, in one array `[1 + d + d * d]`."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"features must have shape [n, d], got {x.shape}")
    if x.shape[1] > MOST_FEATURES:
        raise ValueError(f"{x.shape[1]} features are too many: project them to at most {MOST_FEATURES}")
    return np.concatenate([[len(x)], x.sum(0), (x.T @ x).ravel()])


def _gaussian(moments: Sequence[np.ndarray]) -> Gaussian:
    """The Gaussian of all rows whose `_moments` are given, its covariance shrunk by the OAS rule."""
    total = moments[0].copy()
    for part in moments[1:]:
        total += part
    count, size = total[0], round(np.sqrt(len(total) - 0.75) - 0.5)
    if count < 2:
        raise ValueError("a Frechet distance needs at least 2 samples on each side: use more frames")
    mean = total[1 : 1 + size] / count
    sample = total[1 + size :].reshape(size, size) / count - np.outer(mean, mean)
    mean_variance, squares = np.trace(sample) / size, (sample**2).sum()
    excess = (count + 1 - 2 / size) * (squares - size * mean_variance**2)
    top = (1 - 2 / size) * squares + (size * mean_variance) ** 2
    share = min(top / excess, 1.0) if excess > 0 else 1.0
    return Gaussian(mean, (1 - share) * sample + share * mean_variance * np.eye(size))


def _distance(one: Gaussian, other: Gaussian) -> float:
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other.covariance @ root), 0)).sum()
    distance = ((one.mean - other.mean) ** 2).sum() + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross
    return float(max(distance, 0.0))
