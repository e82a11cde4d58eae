"""Alignment finds the true motion, without pull towards a command, and says where it fails."""

from functools import lru_cache

import numpy as np
import pytest

from mosaic_gym.evaluation.metrics.motion import Motion, align, motion_between, motion_errors
from mosaic_gym.geometry.control import pose_at
from tests.evaluation.metrics.scenes import K, blurred, scene

COUNT = 24


@lru_cache
def moved(share: float = 1.0) -> tuple[np.ndarray, ...]:
    """Frames, depths and cameras before and after a step of 0.2 m ahead and a turn of up to 8 degrees."""
    before, after = [], []
    for map_seed in range(COUNT):
        rng = np.random.default_rng([map_seed, 4])
        x, z, yaw = scene(map_seed).start(rng)
        turn = np.radians(rng.uniform(-8, 8)) * share
        before.append(scene(map_seed).render(x, z, yaw))
        shift = 0.2 * share
        after.append(scene(map_seed).render(x + shift * np.sin(yaw), z + shift * np.cos(yaw), yaw + turn))
    return (*(np.stack(column) for column in zip(*before, strict=True)), *map(np.stack, zip(*after, strict=True)))


FRAMES, DEPTH, CAMERAS, NEXT_FRAMES, NEXT_DEPTH, NEXT_CAMERAS = moved()


def errors(frames, depth, next_frames, next_depth):
    return motion_errors(align(frames, depth, next_frames, next_depth, K), CAMERAS, NEXT_CAMERAS)


def test_true_motion_between_known_cameras():
    first, second = pose_at(1, 0, 2, 0.3), pose_at(1 + np.sin(0.3), 0, 2 + np.cos(0.3), 0.5)
    yaw, shift = motion_between(first.world_from_camera[None], second.world_from_camera[None])
    assert yaw == pytest.approx([0.2]) and np.allclose(shift, [[0, 1]])


def test_exact_depth_gives_the_motion_within_two_tenths_of_a_degree_and_a_centimetre():
    found = errors(FRAMES, DEPTH, NEXT_FRAMES, NEXT_DEPTH)
    assert found["rot_err_deg"] < 0.2 and found["trans_err_m"] < 0.01 and found["failed_share"] < 0.3
    assert found["yaw_ratio"] == pytest.approx(1, abs=0.02)


def test_a_world_that_moves_half_as_far_is_measured_as_such():
    """No pull towards the motion of the cameras, which stands for the command."""
    frames, depth = moved(0.5)[3:5]
    found = errors(FRAMES, DEPTH, frames, depth)
    true = np.degrees(np.abs(motion_between(CAMERAS, NEXT_CAMERAS)[0]))
    assert found["yaw_ratio"] == pytest.approx(0.5, abs=0.02)
    assert found["trans_err_m"] == pytest.approx(0.1, abs=0.01)
    assert found["rot_err_deg"] == pytest.approx(np.median(true) / 2, abs=0.7)


def test_one_frame_for_ever_has_no_motion():
    found = errors(FRAMES, DEPTH, FRAMES, DEPTH)
    assert found["yaw_ratio"] == pytest.approx(0, abs=1e-3) and found["trans_err_m"] == pytest.approx(0.2, abs=0.01)


def test_blurred_pictures_and_noisy_depth_are_still_aligned():
    noise = 1 + 0.02 * np.random.default_rng(0).normal(size=(2, *DEPTH.shape))
    found = errors(blurred(FRAMES), DEPTH * noise[0], blurred(NEXT_FRAMES), NEXT_DEPTH * noise[1])
    assert found["rot_err_deg"] < 0.5 and found["trans_err_m"] < 0.03


def test_frames_of_other_places_fail():
    other = align(FRAMES, DEPTH, np.roll(NEXT_FRAMES, 5, 0), np.roll(NEXT_DEPTH, 5, 0), K)
    true = align(FRAMES, DEPTH, NEXT_FRAMES, NEXT_DEPTH, K)
    assert other.converged.mean() < 0.25 < 0.7 < true.converged.mean()
    none = Motion(*(np.zeros(COUNT),) * 3, np.zeros(COUNT, bool), np.zeros(COUNT))
    lost = motion_errors(none, CAMERAS, NEXT_CAMERAS)
    assert lost["rot_err_deg"] is None and lost["failed_share"] == 1 and "no alignment converged" in lost["reason"]


def test_bad_input_is_refused_with_the_fix():
    with pytest.raises(ValueError, match="same length"):
        align(FRAMES, DEPTH, NEXT_FRAMES[:2], NEXT_DEPTH, K)
