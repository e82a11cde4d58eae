"""Kinematics, checks of poses and their messages."""

import numpy as np
import pytest
import torch

from mosaic_gym.geometry.control import (
    ACTIONS,
    FRAMES_PER_STEP,
    Control,
    Pose,
    check_action,
    check_level,
    check_pose,
    check_poses,
    pose_at,
    slide,
    yaw_matrix,
    yaw_of,
)


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


def tilted(pitch_rad: float = 0.0, roll_rad: float = 0.0, yaw_rad: float = 0.0) -> np.ndarray:
    """A camera pitched up, then rolled, with a heading: rotations about its x, its z and the world's y axis."""
    (cp, sp), (cr, sr) = [(np.cos(angle), np.sin(angle)) for angle in (pitch_rad, roll_rad)]
    pitch = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    camera = np.eye(4)
    camera[:3, :3] = yaw_matrix(yaw_rad) @ pitch @ roll
    camera[:3, 3] = 1.0, -1.3, 2.0
    return camera


TILTS = [(0.5, 0.0), (-0.9, 0.3), (0.0, -0.7), (0.2, 1.2), (np.pi / 2, 0.0)]


@pytest.mark.parametrize(("pitch_rad", "roll_rad"), TILTS)
def test_a_tilted_camera_keeps_its_pitch_and_roll_and_walks_as_a_level_one(pitch_rad, roll_rad):
    control, rng = Control(), np.random.default_rng(0)
    level, pose = Pose(tilted(yaw_rad=0.4)), check_pose(tilted(pitch_rad, roll_rad, 0.4))
    obstacles_m = rng.uniform(-4, 4, (20, 2))
    for _ in range(20):
        action = rng.uniform(-1, 1, 3)
        levels, poses = control.advance(level, action, obstacles_m), control.advance(pose, action, obstacles_m)
        check_poses(poses)
        for one, other in zip(levels, poses, strict=True):
            np.testing.assert_allclose(other.world_from_camera[:3, 3], one.world_from_camera[:3, 3], atol=1e-9)
            expected = tilted(pitch_rad, roll_rad, yaw_of(one.world_from_camera))
            np.testing.assert_allclose(other.world_from_camera[:3, :3], expected[:3, :3], atol=1e-9)
        level, pose = levels[-1], poses[-1]
    with pytest.raises(
        ValueError, match="the simulator's camera is level: .*cannot pitch or roll; got a pose tilted by"
    ):
        check_level(pose, "the simulator's camera")
    assert check_level(level) is level


def test_a_level_camera_moves_as_by_the_formula_bit_for_bit():
    control, pose, rng = Control(), pose_at(1.0, -1.3, 2.0, 0.4), np.random.default_rng(1)
    obstacles_m = rng.uniform(-6, 6, (30, 2))
    world_from_camera, velocity_m = pose.world_from_camera, pose.velocity_m
    for step in range(100):
        action, blocks = rng.uniform(-1, 1, 3), obstacles_m if step % 3 == 0 else None
        yaw_rad = float(np.arctan2(world_from_camera[0, 2], world_from_camera[2, 2]))
        for moved in control.advance(pose, action, blocks):
            yaw_rad += control.turn_rad * float(action[2])
            cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
            rotation = np.array([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])
            push_m = control.strafe_acceleration_m * action[1], 0.0, control.forward_acceleration_m * action[0]
            movement_m = velocity_m + rotation @ np.array(push_m)
            if blocks is not None:
                movement_m = slide(world_from_camera[:3, 3], movement_m, blocks, control.radius_m)
            velocity_m = movement_m * control.friction
            world_from_camera = world_from_camera.copy()
            world_from_camera[:3, :3] = rotation
            world_from_camera[:3, 3] += movement_m
            assert np.array_equal(moved.world_from_camera, world_from_camera)
            assert np.array_equal(moved.velocity_m, velocity_m)
            pose = moved


def with_entry(row: int, column: int, value: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[row, column] = value
    return matrix


FAULTY_CAMERAS = [
    (with_entry(0, 3, np.nan), "NaN or infinite numbers, as trackers report"),
    (with_entry(2, 3, -np.inf), "NaN or infinite numbers, as trackers report"),
    (np.diag([1.0, -1.0, -1.0, 1.0]), "upside down: .*pose_from_opengl.*pose_from_camera_from_world"),
    (with_entry(0, 3, 2.0).T, "translation is in the last row instead of the last column: pass its transpose"),
    (with_entry(3, 0, 0.5) + with_entry(0, 3, 0.5), "last row is"),
    (np.eye(4)[:3], r"shape \(3, 4\): append the last row 0 0 0 1"),
    (np.eye(3), r"shape \(3, 3\)"),
    (np.diag([2.0, 2.0, 2.0, 1.0]), "scaled by 2: divide"),
    (np.diag([1.0, 1.0, -1.0, 1.0]), "mirrored"),
    (np.diag([40.0, 50.0, 1.0, 1.0]), "not a rotation; it may be multiplied by K"),
]


@pytest.mark.parametrize(("matrix", "mistake"), FAULTY_CAMERAS)
def test_a_faulty_camera_is_refused_with_the_likely_mistake(matrix, mistake):
    with pytest.raises(ValueError, match=f"a pose is a finite world_from_camera.*{mistake}"):
        check_pose(matrix)
    with pytest.raises(ValueError, match=f"camera 2: a pose is .*{mistake}"):
        check_poses([pose_at(0, 0, 0, 1.0), pose_at(1, 0, 0, 0), Pose(matrix)], "camera")


@pytest.mark.parametrize("matrix", ["home", None, [["1", "0", "0", "0"]] * 4, [[1.0, 0.0], [0.0]], {}, np.eye(4) > 0])
def test_a_pose_that_is_no_array_of_numbers_is_refused(matrix):
    with pytest.raises(ValueError, match="a pose is a finite world_from_camera"):
        check_pose(matrix)


def test_poses_of_any_rigid_camera_are_accepted():
    poses = [Pose(tilted(pitch_rad, roll_rad, 2.0)) for pitch_rad, roll_rad in TILTS]
    check_poses(poses)
    check_poses([Pose(pose.world_from_camera.astype(np.float32)) for pose in poses])
    check_poses([])
    reversed_twice = np.ascontiguousarray(tilted(0.3)[::-1])[::-1]  # negative strides
    assert np.array_equal(check_pose(reversed_twice).world_from_camera, tilted(0.3))
    assert np.array_equal(check_pose(torch.eye(4)).world_from_camera, np.eye(4))
    for tensor in (torch.eye(4, requires_grad=True), torch.eye(4, dtype=torch.bfloat16)):
        assert np.array_equal(check_pose(tensor).world_from_camera, np.eye(4))
    assert check_pose([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).world_from_camera.dtype == np.float64


@pytest.mark.parametrize(
    ("poses", "got"),
    [
        (Pose(np.eye(4)), "got one Pose"),
        (np.stack([np.eye(4)] * 4), "got a ndarray among them"),
        ([pose_at(0, 0, 0, 0), np.eye(4)], "got a ndarray among them"),
        (torch.stack([torch.eye(4)] * 4), "got a Tensor among them"),
    ],
)
def test_cameras_that_are_no_poses_are_refused_with_what_makes_poses(poses, got):
    with pytest.raises(
        ValueError, match=rf"{got}: make one of a camera \[4, 4\] by Pose\(world_from_camera\).*pose_at"
    ):
        check_poses(poses)


def test_a_pose_of_a_tensor_with_gradients_is_refused():
    with pytest.raises(ValueError, match="pose 1: Can't call numpy"):
        check_poses([pose_at(0, 0, 0, 0), Pose(torch.eye(4, requires_grad=True))])


@pytest.mark.parametrize("velocity_m", [np.array([0.0, np.nan, 0.0]), np.zeros(2)])
def test_a_faulty_velocity_is_refused(velocity_m):
    with pytest.raises(ValueError, match="pose 0: velocity_m has three finite numbers"):
        check_poses([Pose(np.eye(4), velocity_m)])
