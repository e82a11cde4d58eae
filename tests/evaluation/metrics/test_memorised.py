"""Copies and missing variety are caught; true frames of other maps pass."""

import numpy as np
import pytest

from mosaic_gym.evaluation.metrics.diversity import diversity_ratio
from mosaic_gym.evaluation.metrics.memorised import copy_threshold, memorised_share
from mosaic_gym.evaluation.metrics.neighbors import nearest_distances, pooled_pixels
from tests.evaluation.metrics.scenes import blurred, noisy, views

TRAINING, HELDOUT, OTHER = views(range(40), 12), views(range(100, 140), 13), views(range(200, 240))
TRAINING_PIXELS, HELDOUT_PIXELS = pooled_pixels(TRAINING.frames), pooled_pixels(HELDOUT.frames)

THRESHOLD = copy_threshold(HELDOUT_PIXELS, TRAINING_PIXELS)


def share(frames, maps):
    return memorised_share(pooled_pixels(frames), TRAINING_PIXELS, maps, THRESHOLD)["value"]


def test_nearest_distances_equal_the_obvious_ones_in_any_blocks():
    rng = np.random.default_rng(0)
    queries, rows = rng.normal(size=(23, 5)).astype(np.float32), rng.normal(size=(31, 5)).astype(np.float32)
    obvious = np.sort(np.linalg.norm(queries[:, None] - rows[None], axis=-1), axis=1)
    for block in (4, 7, 100):
        assert np.allclose(nearest_distances(queries, rows, 3, block), obvious[:, :3], atol=1e-4)
    assert np.allclose(nearest_distances(rows, rows)[:, 0], 0, atol=5e-3)


def test_true_frames_of_other_maps_are_no_copies_and_copies_are_found():
    assert share(OTHER.frames, OTHER.maps) < 0.05
    copies = TRAINING.frames[::3]
    for played_back in (copies, blurred(copies), noisy(copies, 8), np.roll(copies, 1, axis=2)):
        assert share(played_back, TRAINING.maps[::3]) > 0.8


def test_half_of_the_frames_copied_is_a_half():
    mixed = np.concatenate([OTHER.frames, TRAINING.frames[::3]])
    maps = np.concatenate([OTHER.maps, TRAINING.maps[::3]])
    assert share(mixed, maps) == pytest.approx(0.5, abs=0.05)


def test_diversity_of_true_maps_is_one_and_of_one_world_zero():
    one, other = pooled_pixels(HELDOUT.frames), pooled_pixels(TRAINING.frames)
    seeds = pooled_pixels(OTHER.frames), pooled_pixels(views(range(300, 340)).frames)
    other_maps = diversity_ratio(*seeds, OTHER.maps, one, HELDOUT.maps)
    assert 0.8 < other_maps["low"] and other_maps["high"] < 1.25
    same = diversity_ratio(seeds[0], pooled_pixels(noisy(OTHER.frames)), OTHER.maps, one, HELDOUT.maps)
    assert same["high"] < 0.05
    mean = np.repeat(other.mean(0, keepdims=True), 160, 0)
    assert diversity_ratio(mean, 0.8 * mean + 0.2 * seeds[0], OTHER.maps, one, HELDOUT.maps)["high"] < 0.4


def test_bad_input_is_refused_with_the_fix():
    with pytest.raises(ValueError, match="use at least 500"):
        copy_threshold(HELDOUT_PIXELS[:99], TRAINING_PIXELS)
    with pytest.raises(ValueError, match="use at least 50"):
        memorised_share(HELDOUT_PIXELS, TRAINING_PIXELS[:9], HELDOUT.maps, THRESHOLD)
    with pytest.raises(ValueError, match="change `cells`"):
        pooled_pixels(OTHER.frames, 7)
    with pytest.raises(ValueError, match="expected features"):
        diversity_ratio(TRAINING_PIXELS, HELDOUT_PIXELS, TRAINING.maps, TRAINING_PIXELS, TRAINING.maps)
