"""How well a classifier that was fitted on some maps separates generated from true frames of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from mosaic_gym.evaluation.metrics.frame_features import layout_features, pixel_features
from mosaic_gym.evaluation.metrics.intervals import check_maps

LEAST_MAPS = 20
"""Least maps on each side, so that every fold is fitted on 16 or more."""
RIDGE, KERNEL_RIDGE = 1e-2, 1e-4
"""Regularization of the linear and of the kernel classifier, times the number of frames."""
LARGEST = 6.0
"""Standardized features are cut off there."""

FEATURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"pixels": pixel_features, "layout": layout_features}


def auc_of_classifier(
    generated: np.ndarray,
    true: np.ndarray,
    maps_generated: np.ndarray,
    maps_true: np.ndarray,
    at: Literal["pixels", "layout"] = "pixels",
    dither: float = 0.0,
    folds: int = 5,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Area under the ROC curve of a classifier of generated against true frames (Lopez-Paz and Oquab 2017).

    0.5 is chance, 1 is separation without error. Maps are dealt into folds; frames of a fold are scored by a classifier
    that was fitted on the other folds, and compared inside the fold alone. A map that is on both sides is in one fold.
    The classifier is the mean of a ridge regression and a Gaussian kernel ridge regression on fixed features. Both are
    solved exactly, so nothing depends on how long they train, and the result is deterministic.

    `pixels` uses the fine grain and the layout of full-size frames: a blur of one pixel, noise of two grey levels and a
    codec's smoothing are found without error from 50 maps on. `layout` uses frames averaged to 16 x 16 and beyond: it
    does not react to any of the three, but to walls that are too near, to rooms that do not fit together, and to mush.
    Neither detects a copy of true frames, too little variety, or faults in the order of frames.

    Args:
        generated: uint8 `[n, H, W, 3]`; `maps_generated`: `[n]`, the map of each.
        true: uint8 `[m, H, W, 3]`, of the same steps and the same policy; `maps_true`: `[m]`.
        at: which features.
        dither: standard deviation of noise, grey levels, that is added to both sides first. True frames hold exactly
            equal neighbors and pure greys, by which any rounding is found; with a `dither` of 2 those do not count.
        folds: at least 2.
        draws, seed: of the interval by bootstrap over maps, and of the folds. Classifiers are not fitted again, so the
            interval leaves out what other maps to fit on would change.

    Returns:
        value, low, high (95 %).

    Raises:
        ValueError: unknown `at`, or fewer than `LEAST_MAPS` maps on a side.
    """
    inputs = (features_at(frames, at, dither, seed + side) for side, frames in enumerate((generated, true)))
    return auc_of_features(*inputs, maps_generated, maps_true, folds, draws, seed)


def features_at(frames: np.ndarray, at: str, dither: float = 0.0, seed: int = 0) -> np.ndarray:
    """The features `[n, d]` of frames that `auc_of_classifier` uses; `seed`: of the dither.

    Raises:
        ValueError: unknown `at`.
    """
    if at not in FEATURES:
        raise ValueError(f"unknown features {at!r}; known: {', '.join(FEATURES)}")
    if dither:
        frames = _dithered(frames, dither, np.random.default_rng(seed))
    return FEATURES[at](frames)


def auc_of_features(
    generated: np.ndarray,
    true: np.ndarray,
    maps_generated: np.ndarray,
    maps_true: np.ndarray,
    folds: int = 5,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """`auc_of_classifier` of features `[n, d]` and `[m, d]`, from `features_at`.

    Raises:
        ValueError: fewer than `LEAST_MAPS` maps on a side.
    """
    names = np.concatenate(
        [check_maps(maps_generated, len(generated), LEAST_MAPS), check_maps(maps_true, len(true), LEAST_MAPS)]
    )
    inputs = np.concatenate([generated, true])
    labels = np.concatenate([np.ones(len(generated)), -np.ones(len(true))])
    fold = _deal(names, labels, folds, seed)
    scores = np.empty(len(labels))
    for index in range(folds):
        test = fold == index
        scores[test] = _score(inputs[~test], labels[~test], inputs[test])
    return _auc(scores, labels > 0, names, fold, draws, seed)


def _dithered(frames: np.ndarray, levels: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(frames.shape, dtype=np.float32) * np.float32(levels)
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)


def _deal(names: np.ndarray, labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of every frame: maps of both sides, of the one and of the other are dealt out in turn."""
    rng = np.random.default_rng(seed)
    ours, true = set(names[labels > 0].tolist()), set(names[labels < 0].tolist())
    fold: dict[object, int] = {}
    for group in (ours & true, ours - true, true - ours):
        order = rng.permutation(np.array(sorted(group)))
        fold |= {name: i % folds for i, name in enumerate(order.tolist())}
    return np.array([fold[name] for name in names.tolist()])


def _score(inputs: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Scores `[q]` of queries by both classifiers, each in standard deviations of its own scores, added."""
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-6
    x = np.clip((inputs - mean) / scale, -LARGEST, LARGEST).astype(np.float32)
    q = np.clip((queries - mean) / scale, -LARGEST, LARGEST).astype(np.float32)
    weights = labels * np.where(labels > 0, len(labels) / (labels > 0).sum(), len(labels) / (labels < 0).sum()) / 2
    targets = (weights - weights.mean()).astype(np.float32)
    penalty = np.float32(RIDGE * len(x)) * np.eye(x.shape[1], dtype=np.float32)
    linear = q @ np.linalg.solve(x.T @ x + penalty, x.T @ targets)
    squared = _squared_distances(x, x)
    width = np.median(squared)
    kernel = np.exp(-squared / width) + np.float32(KERNEL_RIDGE * len(x)) * np.eye(len(x), dtype=np.float32)
    curved = np.exp(-_squared_distances(q, x) / width) @ np.linalg.solve(kernel, targets)
    return sum((part / max(float(part.std()), 1e-9)).astype(np.float64) for part in (linear, curved))


def _squared_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.maximum((one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T, 0)


def _auc(
    scores: np.ndarray, positive: np.ndarray, names: np.ndarray, fold: np.ndarray, draws: int, seed: int
) -> dict[str, float]:
    """AUC over pairs of frames in one fold, and its interval by bootstrap over maps."""
    maps, index = np.unique(names, return_inverse=True)
    wins, pairs = np.zeros((len(maps), len(maps))), np.zeros((len(maps), len(maps)))
    for part in np.unique(fold):
        ours, true = np.flatnonzero((fold == part) & positive), np.flatnonzero((fold == part) & ~positive)
        won = (scores[ours, None] > scores[true]) + 0.5 * (scores[ours, None] == scores[true])
        cells = index[ours][:, None] * len(maps) + index[true]
        size = len(maps) ** 2
        wins += np.bincount(cells.ravel(), won.ravel(), size).reshape(wins.shape)
        pairs += np.bincount(cells.ravel(), minlength=size).reshape(pairs.shape)
    weights = np.random.default_rng(seed).multinomial(len(maps), np.full(len(maps), 1 / len(maps)), draws)
    weights = weights.astype(np.float64)
    resampled = ((weights @ wins) * weights).sum(1) / np.maximum(((weights @ pairs) * weights).sum(1), 1e-9)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"value": float(wins.sum() / pairs.sum()), "low": float(low), "high": float(high)}
