"""The Frechet distance against closed forms, and its ratio on sets that are alike or not."""

import numpy as np
import pytest

from mosaic_gym.evaluation.metrics.frechet import frechet_distance, frechet_ratio

MAPS = np.repeat(np.arange(120), 2)


def features(seed: int, mean: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """`[240, 8]`, correlated inside each of 120 maps."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(8, 8))
    rows = np.repeat(rng.normal(size=(120, 8)), 2, axis=0) + 0.5 * rng.normal(size=(240, 8))
    return mean + scale * rows @ mixing


def test_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    one = rng.normal(0, 1, (40_000, 3))
    other = rng.normal(0, 1, (40_000, 3)) * [2, 1, 1] + [0, 3, 0]
    assert frechet_distance(one, other) == pytest.approx((2 - 1) ** 2 + 3**2, rel=0.03)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one))
    turned, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    assert frechet_distance(one @ turned, other @ turned) == pytest.approx(frechet_distance(one, other))


def test_few_samples_are_shrunk_and_finite():
    few = np.random.default_rng(0).normal(size=(5, 32))
    assert 0 <= frechet_distance(few, few + 1) == pytest.approx(32, rel=1e-6)


def test_ratio_is_about_one_for_other_true_maps_and_not_for_worse():
    same = frechet_ratio(features(1), features(0), MAPS + 100, MAPS)
    assert 0.5 < same["value"] < 2 and same["low"] < 1.5 and same["reason"] is None
    for bad in (features(1, mean=6.0), features(1, scale=0.3), np.zeros((240, 8))):
        worse = frechet_ratio(bad, features(0), MAPS + 100, MAPS)
        assert worse["low"] > 2 and worse["value"] > 3 and worse["low"] < worse["value"] < worse["high"]
    assert same == frechet_ratio(features(1), features(0), MAPS + 100, MAPS), "deterministic"


def test_paired_maps_are_never_compared_with_themselves():
    assert 0.7 < frechet_ratio(features(0), features(0), MAPS, MAPS)["value"] < 1.4


def test_bad_input_is_refused_with_the_fix():
    still = frechet_ratio(features(1), np.ones((240, 8)), MAPS, MAPS)
    assert still["value"] is None and "use data of more maps" in still["reason"]
    with pytest.raises(ValueError, match="use at least 16"):
        frechet_ratio(features(1), features(0), MAPS % 4, MAPS)
    with pytest.raises(ValueError, match="at most 64"):
        frechet_distance(np.zeros((3, 65)), np.zeros((3, 65)))
    with pytest.raises(ValueError, match="use more frames"):
        frechet_distance(np.zeros((1, 2)), np.zeros((3, 2)))
