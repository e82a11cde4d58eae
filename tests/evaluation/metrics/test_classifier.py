"""The classifier is at chance for other true maps, finds fine faults by pixels, and only faults of layout by layout."""

import numpy as np
import pytest

from mosaic_gym.evaluation.metrics.classifier import auc_of_classifier
from tests.evaluation.metrics.scenes import blurred, mush, noisy, smoothed, views

TRUE, OTHER = views(range(40)), views(range(100, 140))


def auc(frames: np.ndarray, at: str) -> dict[str, float]:
    return auc_of_classifier(frames, TRUE.frames, OTHER.maps, TRUE.maps, at)


def nearer(frames: np.ndarray) -> np.ndarray:
    """The middle of every frame, twice as large: all walls stand twice as near."""
    return frames[:, 16:48, 16:48].repeat(2, axis=1).repeat(2, axis=2)


@pytest.mark.parametrize("at", ["pixels", "layout"])
def test_other_true_maps_are_at_chance(at):
    found = auc(OTHER.frames, at)
    assert 0.35 < found["value"] < 0.65 and found["low"] < 0.5 + 0.08 and found["high"] > 0.5 - 0.08
    assert found == auc(OTHER.frames, at), "deterministic"
    assert 0.35 < auc_of_classifier(TRUE.frames, TRUE.frames, TRUE.maps, TRUE.maps, at)["value"] < 0.65


@pytest.mark.parametrize("spoil", [blurred, noisy, smoothed])
def test_fine_faults_are_found_by_pixels_and_not_by_layout(spoil):
    assert auc(spoil(OTHER.frames), "pixels")["value"] >= 0.95
    assert abs(auc(spoil(OTHER.frames), "layout")["value"] - auc(OTHER.frames, "layout")["value"]) < 0.08


def test_faults_of_layout_are_found_by_layout():
    flat = np.zeros_like(OTHER.frames) + OTHER.frames.mean((1, 2), keepdims=True).astype(np.uint8)
    for bad, least in ((mush(OTHER.frames), 0.9), (nearer(OTHER.frames), 0.7), (flat, 0.99)):
        assert auc(bad, "layout")["value"] > least


def test_dither_hides_rounding_but_no_blur():
    coarse = OTHER.frames // 2 * 2  # grey levels that are all even
    assert auc(coarse, "pixels")["value"] > 0.9
    dithered = [
        auc_of_classifier(frames, TRUE.frames, OTHER.maps, TRUE.maps, dither=2.0)["value"]
        for frames in (coarse, blurred(OTHER.frames))
    ]
    assert dithered[0] < 0.7 and dithered[1] > 0.85


def test_bad_input_is_refused_with_the_fix():
    with pytest.raises(ValueError, match="known: pixels, layout"):
        auc(OTHER.frames, "colors")
    with pytest.raises(ValueError, match="use at least 20"):
        auc_of_classifier(OTHER.frames, TRUE.frames, OTHER.maps % 9, TRUE.maps)
    with pytest.raises(ValueError, match="multiples of 16"):
        auc_of_classifier(OTHER.frames[:, :60], TRUE.frames, OTHER.maps, TRUE.maps)
