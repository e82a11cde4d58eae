"""Depth's figures pass other true maps, and each catches what it is for."""

import numpy as np
import pytest

from mosaic_gym.evaluation.metrics.depth import depth_distance, floor_error, manhattan_share, wasserstein
from mosaic_gym.evaluation.metrics.surfaces import fit_planes
from tests.evaluation.metrics.scenes import EYE_M, K, Views, views

TRUE, OTHER = views(range(40)), views(range(100, 140))


def waves(amount: float) -> np.ndarray:
    """Smooth random factors around 1, `[n, 64, 64]`."""
    rng = np.random.default_rng(3)
    coarse = np.kron(rng.normal(size=(len(OTHER.maps), 8, 8)), np.ones((8, 8)))
    for axis in (1, 2):
        coarse = sum(np.roll(coarse, shift, axis) for shift in range(-4, 5)) / 9
    return np.exp(amount * coarse / coarse.std())


def distance(depth_m):
    return depth_distance(depth_m, TRUE.depth_m, OTHER.maps, TRUE.maps)


def floor(depth_m, place: Views = OTHER):
    return floor_error(depth_m, place.cameras, K, place.maps, EYE_M)


def manhattan(depth_m):
    return manhattan_share(depth_m, OTHER.cameras, OTHER.maps, TRUE.depth_m, TRUE.cameras, TRUE.maps, K)


def test_wasserstein_of_known_sets():
    one = np.random.default_rng(0).normal(size=(500, 2))
    assert wasserstein(one, one[:, :] + [1, 3]) == pytest.approx(2)
    assert wasserstein(one, one) == 0
    assert wasserstein(one, one[::2]) < 0.2, "sets of different size"


def test_depth_distance_passes_other_maps_and_catches_near_walls():
    ceiling = distance(OTHER.depth_m)
    assert 0.3 < ceiling["value"] < 2.5 and ceiling["low"] < 1.5
    for bad in (OTHER.depth_m * 0.5, np.full_like(OTHER.depth_m, 1.0), OTHER.depth_m * 2):
        assert distance(bad)["value"] > 2 * ceiling["value"] and distance(bad)["low"] > 1


def test_floor_error_is_zero_in_truth_and_the_factor_of_scaled_depth():
    truth = floor(OTHER.depth_m)
    assert truth["high"] < 1e-3 and truth["share"] > 0.7
    assert floor(OTHER.depth_m * 0.8)["value"] == pytest.approx(0.2, abs=1e-3)
    assert floor(OTHER.depth_m * waves(0.2))["low"] > 0.05


def test_a_wall_right_ahead_leaves_no_floor():
    wall = floor(np.full_like(OTHER.depth_m, 1.0))
    assert wall["value"] is None and wall["share"] == 0 and "use more frames" in wall["reason"]


def test_manhattan_share_passes_other_maps_and_catches_bent_and_noisy_walls():
    ceiling = manhattan(OTHER.depth_m)
    assert 0.95 < ceiling["low"] and ceiling["high"] < 1.05 and ceiling["true_share"] > 0.9
    noise = 1 + 0.05 * np.random.default_rng(0).normal(size=OTHER.depth_m.shape)
    for bad in (OTHER.depth_m * waves(0.15), OTHER.depth_m * noise):
        assert manhattan(bad)["high"] < 0.6


def test_rooms_of_any_heading_have_right_angles():
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(0.5), 0, np.sin(0.5)], [0, 1, 0], [-np.sin(0.5), 0, np.cos(0.5)]]
    turned = manhattan_share(OTHER.depth_m, turn @ OTHER.cameras, OTHER.maps, TRUE.depth_m, TRUE.cameras, TRUE.maps, K)
    assert turned["value"] == pytest.approx(manhattan(OTHER.depth_m)["value"], abs=0.01)


def test_planes_are_exact_and_not_fitted_across_edges():
    columns = np.arange(64)
    step = np.where(columns < 30, 2.0, 5.0)[None, None].repeat(64, 1)
    normals, residual = fit_planes(step, K)
    assert np.allclose(normals, [0, 0, -1], atol=1e-6) and residual.max() < 1e-6
    # The plane x + 1.2 z = 1.
    slopes = (columns + 0.5 - 32) / K[0, 0]
    seen = 1 / (slopes[None, None].repeat(64, 1) + 1.2)
    normals, residual = fit_planes(seen, K)
    expected = -np.array([1, 0, 1.2]) / np.hypot(1, 1.2)
    assert np.allclose(normals, expected, atol=1e-6) and residual.max() < 1e-6


def test_bad_input_is_refused_with_the_fix():
    broken = OTHER.depth_m.copy()
    broken[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        distance(broken)
    with pytest.raises(ValueError, match="shape"):
        floor(OTHER.depth_m[0])
    with pytest.raises(ValueError, match="use at least 16"):
        depth_distance(OTHER.depth_m, TRUE.depth_m, OTHER.maps % 3, TRUE.maps)
