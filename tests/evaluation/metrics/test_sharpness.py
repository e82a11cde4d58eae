"""Gradient energy falls with a blur, and little else moves it."""

import numpy as np
import pytest

from mosaic_gym.evaluation.metrics.sharpness import gradient_energy, sharpness
from tests.evaluation.metrics.scenes import blurred, noisy, smoothed, views

TRUE, OTHER = views(range(40)), views(range(100, 140))


def measure(frames, of=OTHER):
    return sharpness(frames, TRUE.frames, of.maps, TRUE.maps)


def test_gradient_energy_of_known_images():
    stripes = np.zeros((1, 4, 6, 3), np.uint8)
    stripes[:, :, 3:] = 255
    assert gradient_energy(stripes) == pytest.approx([1 / 5])  # one of five steps to the right, none down
    assert gradient_energy(stripes.transpose(0, 2, 1, 3)) == pytest.approx([1 / 5])
    assert gradient_energy(np.full((2, 4, 6, 3), 9, np.uint8)) == pytest.approx([0, 0])


def test_other_maps_are_as_sharp_and_a_blur_is_not():
    assert measure(OTHER.frames)["low"] < 1 < measure(OTHER.frames)["high"]
    assert measure(noisy(OTHER.frames))["value"] == pytest.approx(measure(OTHER.frames)["value"], rel=0.15)
    for bad in (blurred(OTHER.frames), np.full_like(OTHER.frames, 90)):
        assert measure(bad)["high"] < 0.6
    assert measure(blurred(TRUE.frames), TRUE)["high"] < 0.6
    assert measure(smoothed(TRUE.frames), TRUE)["high"] < 0.75


def test_a_map_pairs_with_itself():
    same = measure(TRUE.frames, TRUE)
    assert same["value"] == same["low"] == same["high"] == 1


def test_bad_input_is_refused_with_the_fix():
    with pytest.raises(ValueError, match="uint8 of shape"):
        gradient_energy(TRUE.frames.astype(np.float32))
    with pytest.raises(ValueError, match="1 maps are too few: use at least 8"):
        sharpness(TRUE.frames, TRUE.frames, np.zeros(len(TRUE.maps)), TRUE.maps)
    flat = sharpness(TRUE.frames, np.zeros_like(TRUE.frames), TRUE.maps, TRUE.maps)
    assert flat["value"] is None and "use more maps" in flat["reason"]
