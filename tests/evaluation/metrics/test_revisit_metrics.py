"""Revisits: pairs are found by pose, and the ratio tells a memory from none, from drift and from a frozen picture."""

import numpy as np
import pytest

from mosaic_gym.evaluation.metrics.revisit import find_pairs, masked_psnr, mirror_psnr, normalized_memory_ratio
from tests.evaluation.metrics.scenes import noisy, scene

MAPS = np.arange(10)
TURN, TURNS = np.radians(7), 12
OUT_AND_BACK = np.array([*range(TURNS + 1), *range(TURNS - 1, -1, -1)])
LAST = len(OUT_AND_BACK) - 1


def turning(map_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames and cameras of a look around: twelve turns to the right, and back."""
    rng = np.random.default_rng([map_seed, 3])
    x, z, yaw = scene(map_seed).start(rng)
    views = [scene(map_seed).render(x, z, yaw + TURN * turn) for turn in OUT_AND_BACK]
    return np.stack([view[0] for view in views]), np.stack([view[2] for view in views])


WALKS = [turning(map_seed) for map_seed in MAPS]
TRUE = [frames for frames, _ in WALKS]
PAIRS = [find_pairs(cameras, min_gap=6, most=6) for _, cameras in WALKS]


def forgetful(frames: np.ndarray, index: int) -> np.ndarray:
    """The way back shows another map."""
    return np.concatenate([frames[: TURNS + 1], TRUE[(index + 1) % len(TRUE)][TURNS + 1 :]])


def test_pairs_of_a_look_around():
    pairs = find_pairs(WALKS[0][1], min_gap=6)
    assert pairs.revisits.tolist() == [[turn, LAST - turn] for turn in range(TURNS - 2)]
    assert pairs.neighbors.tolist() == [[i, i + 1] for i in range(LAST)]
    gaps, control_gaps = np.diff(pairs.revisits), np.diff(pairs.controls)
    assert (np.abs(gaps - control_gaps) <= gaps / 4).all() and (gaps == control_gaps)[3:].all()
    angles = np.degrees(TURN) * OUT_AND_BACK
    apart = np.abs(angles[pairs.controls[:, 0]] - angles[pairs.controls[:, 1]])
    assert (apart > 30).all()


def test_pairs_of_invented_places_and_of_places_left_out_of_view():
    cameras = WALKS[0][1]
    assert find_pairs(cameras, min_gap=6, first=3).revisits[:, 0].tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert find_pairs(cameras, min_gap=6, away=9).revisits[:, 0].tolist() == [0, 1, 2, 3]
    assert len(find_pairs(cameras, min_gap=6, most=2).revisits) == 2
    outward = find_pairs(cameras[: TURNS + 1], min_gap=6)
    assert len(outward.revisits) == len(outward.controls) == len(outward.neighbors) == 0


def test_memory_is_one_and_forgetting_is_not():
    truth = normalized_memory_ratio(TRUE, PAIRS, MAPS)
    assert truth["revisit"] == pytest.approx(1) and truth["low"] >= 1 and truth["walks"] == 10
    worn = [np.concatenate([frames[: TURNS + 1], noisy(frames[TURNS + 1 :], 12)]) for frames in TRUE]
    forgotten = [forgetful(frames, i) for i, frames in enumerate(TRUE)]
    assert truth["value"] > normalized_memory_ratio(worn, PAIRS, MAPS)["value"] > 0.4
    assert normalized_memory_ratio(forgotten, PAIRS, MAPS)["high"] < 0.3


def test_one_frame_for_ever_is_undefined():
    frozen = [np.repeat(frames[:1], len(frames), 0) for frames in TRUE]
    found = normalized_memory_ratio(frozen, PAIRS, MAPS)
    assert found["value"] is None and "not clear of zero" in found["reason"] and found["revisit"] == 1


def test_mirror_psnr_tells_memory_from_none():
    assert mirror_psnr(TRUE, MAPS)["value"] > 60
    worn = mirror_psnr([np.concatenate([frames[: TURNS + 1], noisy(frames[TURNS + 1 :], 12)]) for frames in TRUE], MAPS)
    assert 20 * np.log10(255 / 12) - 1 < worn["value"] < 20 * np.log10(255 / 12) + 1
    assert mirror_psnr([forgetful(frames, i) for i, frames in enumerate(TRUE)], MAPS)["high"] < 18


def test_masked_psnr_counts_only_the_mask():
    true = TRUE[0][:3]
    frames, mask = true.copy(), np.zeros(true.shape[:3], bool)
    frames[:, :10], mask[:2, 5:20] = 0, True
    frames[:, 10:] = np.clip(true[:, 10:].astype(int) + 8, 0, 255)
    inside = masked_psnr(frames, true, mask)
    by_hand = 10 * np.log10(255**2 / ((frames[0, 5:20].astype(float) - true[0, 5:20]) ** 2).mean())
    assert inside[0] == pytest.approx(by_hand) and np.isnan(inside[2])


def test_bad_input_is_refused_with_the_fix():
    with pytest.raises(ValueError, match="use at least 2"):
        find_pairs(WALKS[0][1], min_gap=1)
    with pytest.raises(ValueError, match="shape"):
        find_pairs(WALKS[0][1][0], min_gap=2)
    none = find_pairs(WALKS[0][1][: TURNS + 1], min_gap=6)
    with pytest.raises(ValueError, match="use longer walks"):
        normalized_memory_ratio(TRUE, [none] * len(TRUE), MAPS)
    with pytest.raises(ValueError, match="use at least 8"):
        mirror_psnr(TRUE, MAPS % 2)
    with pytest.raises(ValueError, match="at least 4 frames"):
        mirror_psnr([frames[:3] for frames in TRUE], MAPS)
