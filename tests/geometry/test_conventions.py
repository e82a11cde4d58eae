"""Cameras of other programs: known vectors, written out by hand."""

import numpy as np
import pytest

from mosaic_gym.geometry.control import check_pose, pose_at, yaw_of
from mosaic_gym.geometry.conventions import (
    pose_from_camera_from_world,
    pose_from_colmap,
    pose_from_opengl,
    pose_from_ros,
)


def camera(right, down, forward, position) -> np.ndarray:
    """[4, 4] of a camera's axes and its position, in the world's coordinates."""
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, down, forward, position], axis=1)
    return matrix


def test_an_opengl_camera_at_rest_looks_forward_and_up_is_minus_y():
    np.testing.assert_array_equal(pose_from_opengl(np.eye(4), world_up="y"), np.eye(4))
    # It stands 2 right, 3 up and 4 forward (OpenGL's forward is -z), and looks to the right (its backward is -x).
    backward, up = np.array([-1.0, 0, 0]), np.array([0, 1.0, 0])
    c2w = camera(np.cross(up, backward), up, backward, [2.0, 3.0, -4.0])
    ours = pose_from_opengl(c2w, world_up="y")
    np.testing.assert_allclose(ours, pose_at(2.0, -3.0, 4.0, np.pi / 2).world_from_camera, atol=1e-12)


def test_a_blender_or_nerfstudio_camera_stands_in_a_world_with_z_up():
    # It looks along +y (so its backward is -y), z is up, x is right; 2 right, 4 forward, 3 up.
    c2w = camera([1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0], [2.0, 4.0, 3.0])
    ours = pose_from_opengl(c2w, world_up="z")
    np.testing.assert_allclose(ours, pose_at(2.0, -3.0, 4.0, 0.0).world_from_camera, atol=1e-12)
    # It looks along +x: to the right.
    c2w = camera([0, -1.0, 0], [0, 0, 1.0], [-1.0, 0, 0], [0, 0, 0])
    assert yaw_of(pose_from_opengl(c2w, world_up="z")) == pytest.approx(np.pi / 2)


def test_a_colmap_image_is_inverted():
    half = np.pi / 8  # camera_from_world turns by -45 degrees about y, so the camera's heading is 45 degrees
    heading = np.pi / 4
    centre = np.array([1.0, -2.0, 3.0])
    camera_from_world = np.array(
        [[np.cos(heading), 0, -np.sin(heading)], [0, 1, 0], [np.sin(heading), 0, np.cos(heading)]]
    )
    ours = pose_from_colmap([np.cos(half), 0, -np.sin(half), 0], -camera_from_world @ centre, metres_per_unit=2.0)
    np.testing.assert_allclose(ours, pose_at(2.0, -4.0, 6.0, heading).world_from_camera, atol=1e-12)


def test_a_ros_body_looks_along_its_x_and_turns_left_by_positive_yaw():
    np.testing.assert_allclose(pose_from_ros([0, 0, 0], [0, 0, 0, 1]), np.eye(4), atol=1e-12)
    yaw_left = np.pi / 2
    ours = pose_from_ros([4.0, -2.0, 3.0], [0, 0, np.sin(yaw_left / 2), np.cos(yaw_left / 2)])
    np.testing.assert_allclose(ours, pose_at(2.0, -3.0, 4.0, -yaw_left).world_from_camera, atol=1e-12)
    # The usual static transform from body to optical frame: quaternion (-0.5, 0.5, -0.5, 0.5).
    optical = pose_from_ros([4.0, -2.0, 3.0], [-0.5, 0.5, -0.5, 0.5], optical=True)
    np.testing.assert_allclose(optical, pose_at(2.0, -3.0, 4.0, 0.0).world_from_camera, atol=1e-12)


def test_an_extrinsic_matrix_is_inverted_with_or_without_its_last_row():
    there = pose_at(1.0, -1.3, 2.0, 0.7).world_from_camera
    extrinsic = np.linalg.inv(there)
    np.testing.assert_allclose(pose_from_camera_from_world(extrinsic), there, atol=1e-12)
    np.testing.assert_allclose(pose_from_camera_from_world(extrinsic[:3].tolist()), there, atol=1e-12)


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda: pose_from_opengl(np.eye(4), world_up="x"), 'world_up is "y"'),
        (lambda: pose_from_opengl(np.full((4, 4), np.nan), world_up="y"), "world_from_camera has NaN"),
        (lambda: pose_from_opengl(np.eye(3), world_up="y"), r"shape \[4, 4\]; got shape \(3, 3\)"),
        (lambda: pose_from_opengl("home", world_up="z"), "world_from_camera is an array of numbers"),
        (lambda: pose_from_colmap([1, 0, 0], [0, 0, 0]), "qvec has 4 numbers"),
        (lambda: pose_from_colmap([0, 0, 0, 0], [0, 0, 0]), "unit quaternion"),
        (lambda: pose_from_colmap([1, 0, 0, 0], [0, 0]), "tvec has 3 numbers"),
        (lambda: pose_from_colmap([1, 0, 0, 0], [0, 0, 0], metres_per_unit=0), "metres_per_unit is"),
        (lambda: pose_from_ros([0, 0, np.inf], [0, 0, 0, 1]), "position_m has NaN or infinite"),
        (lambda: pose_from_camera_from_world("home"), "camera_from_world is an array of numbers"),
        (lambda: pose_from_camera_from_world(np.eye(4)[:2]), r"shape \[4, 4\]; got shape \(2, 4\)"),
        (lambda: pose_from_camera_from_world(np.diag([2.0, 2.0, 2.0, 1.0])), "camera_from_world is .* scaled by 2"),
    ],
)
def test_what_is_no_camera_is_refused_by_name(convert, message):
    with pytest.raises(ValueError, match=message):
        convert()


def test_results_are_poses():
    for converted in (
        pose_from_opengl(np.eye(4), world_up="y"),
        pose_from_colmap([1, 0, 0, 0], [0, 0, 0]),
        pose_from_ros([1, 2, 3], [0, 0.1, 0, 0.995]),
        pose_from_camera_from_world(np.eye(4)),
    ):
        check_pose(converted)
