"""Kinematics: what the engine's numbers say, and what is refused."""

import numpy as np
import pytest

from mosaic_gym.geometry.control import ACTIONS, FRAMES_PER_STEP, Control, check_action, pose_at, yaw_of


def test_walking_reaches_dooms_top_speed_and_rests_again():
    control, pose = Control(), pose_at(0, 0, 0, 0)
    for _ in range(30):
        pose = control.advance(pose, np.array(ACTIONS["forward"]))[-1]
    top = control.forward_acceleration_m / (1 - control.friction)
    before = pose.world_from_camera[2, 3]
    pose = control.advance(pose, np.array(ACTIONS["forward"]))[-1]
    assert (pose.world_from_camera[2, 3] - before) / FRAMES_PER_STEP == pytest.approx(top, rel=1e-3)
    for _ in range(40):
        pose = control.advance(pose, np.zeros(3))[-1]
    assert np.abs(pose.velocity_m).max() < 1e-5


def test_turning_right_turns_towards_x_and_walking_follows_the_turn():
    control = Control()
    poses = control.advance(pose_at(0, 0, 0, 0), np.array(ACTIONS["turn_right"]))
    assert yaw_of(poses[-1].world_from_camera) == pytest.approx(FRAMES_PER_STEP * control.turn_rad)
    quarter = pose_at(0, 0, 0, np.pi / 2)
    ahead = control.advance(quarter, np.array(ACTIONS["forward"]))[-1].world_from_camera
    aside = control.advance(quarter, np.array(ACTIONS["right"]))[-1].world_from_camera
    assert ahead[0, 3] > 0.1 and abs(ahead[2, 3]) < 1e-9
    assert aside[2, 3] < -0.1 and abs(aside[0, 3]) < 1e-9


def test_the_four_poses_are_in_order_and_the_given_one_is_untouched():
    pose = pose_at(1.0, -1.3, 2.0, 0.4)
    kept = pose.world_from_camera.copy()
    poses = Control().advance(pose, np.array([1.0, 0.5, -0.25]))
    distances = [np.linalg.norm(p.world_from_camera[:3, 3] - kept[:3, 3]) for p in poses]
    assert len(poses) == FRAMES_PER_STEP and distances == sorted(distances) and distances[0] > 0
    assert np.array_equal(pose.world_from_camera, kept)


@pytest.mark.parametrize(
    "name", ["forward_acceleration_m", "strafe_acceleration_m", "turn_rad", "friction", "radius_m"]
)
@pytest.mark.parametrize("value", ["x", None, True, -0.1, np.nan, np.inf])
def test_a_body_is_made_of_finite_numbers_from_0(name, value):
    with pytest.raises(ValueError, match=f"{name} is a finite number from 0.*; got {value!r}"):
        Control(**{name: value})


def test_a_body_that_would_never_rest_is_refused():
    with pytest.raises(ValueError, match="friction .* below 1; got 1.0"):
        Control(friction=1.0)
    assert Control(friction=0, radius_m=np.float32(0.25)).reach_m(pose_at(0, 0, 0, 0)) > 0.25


@pytest.mark.parametrize("action", [[0, 0], [np.nan, 0, 0], [0, np.inf, 0], [0, 0, 1.1]])
def test_bad_actions_are_refused(action):
    with pytest.raises(ValueError, match="shape|finite"):
        check_action(np.array(action))
