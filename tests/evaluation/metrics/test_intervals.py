"""Bootstrap over maps: intervals widen where values of a map agree, and a ratio over zero is undefined."""

import numpy as np
import pytest

from mosaic_gym.evaluation.metrics.intervals import (
    bootstrap_interval,
    bootstrap_maps,
    bootstrap_maps_difference,
    bootstrap_maps_ratio,
    is_clear_of_zero,
)

RNG = np.random.default_rng(0)
MAPS = np.repeat(np.arange(30), 5)
OF_MAP = np.repeat(RNG.normal(3, 1, 30), 5)
VALUES = OF_MAP + 0.01 * RNG.normal(size=150)


def width(interval):
    return interval["high"] - interval["low"]


def test_maps_are_resampled_whole():
    found = bootstrap_maps(VALUES, MAPS)
    assert found["value"] == pytest.approx(VALUES.mean()) and found["low"] < found["value"] < found["high"]
    assert width(found) == pytest.approx(2 * 1.96 * OF_MAP[::5].std() / np.sqrt(30), rel=0.1)
    assert width(found) > 1.8 * width(bootstrap_interval(VALUES)), "as if the values did not depend on each other"
    assert found == bootstrap_maps(VALUES, MAPS)
    order = RNG.permutation(150)
    assert bootstrap_maps(VALUES[order], MAPS[order])["low"] == pytest.approx(found["low"])


def test_intervals_hold_the_truth_as_often_as_they_say():
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = np.repeat(rng.normal(size=40), 3) + rng.normal(size=120)
        found = bootstrap_maps(values, np.repeat(np.arange(40), 3), draws=400, seed=seed)
        hits += found["low"] < 0 < found["high"]
    assert 0.88 <= hits / 200 <= 0.99


def test_ratio_and_difference_pair_the_same_maps():
    ratio = bootstrap_maps_ratio(2 * VALUES, MAPS, VALUES, MAPS)
    assert ratio["low"] == pytest.approx(2) and ratio["high"] == pytest.approx(2) and ratio["reason"] is None
    apart = bootstrap_maps_ratio(2 * VALUES, MAPS + 100, VALUES, MAPS)
    assert apart["value"] == pytest.approx(2) and width(apart) > 0.2
    same = bootstrap_maps_difference(VALUES + 1, MAPS, VALUES, MAPS)
    assert same["low"] == pytest.approx(1) and same["high"] == pytest.approx(1)
    assert width(bootstrap_maps_difference(VALUES + 1, MAPS + 100, VALUES, MAPS)) > 0.3


def test_a_ratio_over_zero_is_undefined():
    found = bootstrap_maps_ratio(VALUES, MAPS, VALUES - VALUES.mean(), MAPS)
    assert found["value"] is found["low"] is found["high"] is None and "not clear of zero" in found["reason"]
    assert bootstrap_maps_ratio(VALUES, MAPS, -VALUES, MAPS)["value"] == pytest.approx(-1)
    assert not is_clear_of_zero({"low": 0.0, "high": 0.0}) and is_clear_of_zero({"low": -2.0, "high": -1.0})


def test_bad_input_is_refused_with_the_fix():
    with pytest.raises(ValueError, match="3 maps are too few: use at least 8"):
        bootstrap_maps(VALUES, MAPS % 3)
    with pytest.raises(ValueError, match="map of every value"):
        bootstrap_maps(VALUES, MAPS[:5])
    with pytest.raises(ValueError, match="leave out undefined ones"):
        bootstrap_maps(np.where(MAPS == 3, np.nan, VALUES), MAPS)
