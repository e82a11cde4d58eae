"""A body stops at lifted geometry and slides along it."""

import numpy as np
import pytest
import torch

from mosaic_gym.geometry.control import Control, pose_at, slide
from mosaic_gym.memory.obstacles import EYE_M, STEP_M, obstacles_near
from tests.tiny import lifted

CONTROL = Control()
FORWARD = np.array([1.0, 0.0, 0.0])


def wall(z_m: float, slope: float = 0.0) -> np.ndarray:
    """Points of a wall across the way, `slope` metres farther for each metre to the right."""
    x = np.linspace(-6.0, 6.0, 61)
    return np.stack([x, z_m + slope * x], axis=1)


def walk(steps, obstacles_m, yaw_rad=0.0):
    pose = pose_at(0.0, 0.0, 0.0, yaw_rad)
    for _ in range(steps):
        pose = CONTROL.advance(pose, FORWARD, obstacles_m)[-1]
    return pose.world_from_camera[:3, 3]


def test_without_obstacles_nothing_changes():
    nothing = np.zeros((0, 2))
    np.testing.assert_array_equal(walk(5, nothing), walk(5, None))


def test_a_wall_stops_the_body_at_its_radius():
    x, _, z = walk(12, wall(3.0))
    assert 3.0 - CONTROL.radius_m - 0.3 < z <= 3.0 - CONTROL.radius_m + 1e-6 and x == pytest.approx(0.0, abs=0.05)


def test_the_body_slides_along_a_slanted_wall():
    x, _, z = walk(12, wall(3.0, slope=1.0))
    assert x > 1.0, "it has gone along, to where the wall is farther"
    behind = z - (3.0 + x)
    assert behind < 0, "it is still on its own side"


def test_the_body_slides_along_a_wall_at_its_side():
    side = np.stack([np.full(81, 0.55), np.linspace(-2, 14, 81)], axis=1)
    free, beside = walk(10, None, yaw_rad=0.2), walk(10, side, yaw_rad=0.2)
    assert beside[0] <= 0.06 and beside[2] > 0.85 * free[2]


def test_a_body_too_near_may_leave():
    stuck = np.array([[0.0, 0.3]])
    away = slide(np.zeros(3), np.array([0.0, 0.0, -0.1]), stuck, 0.5)
    into = slide(np.zeros(3), np.array([0.0, 0.0, 0.1]), stuck, 0.5)
    np.testing.assert_array_equal(away, [0.0, 0.0, -0.1])
    np.testing.assert_allclose(into, 0.0)


def test_a_corner_holds():
    corner = np.concatenate([wall(2.0), np.stack([np.full(41, 1.0), np.linspace(-2, 2, 41)], axis=1)])
    x, _, z = walk(30, corner, yaw_rad=0.4)
    assert x <= 0.5 + 1e-6 and z <= 1.5 + 1e-6


def test_no_step_reaches_farther_than_is_looked_for_obstacles():
    rng = np.random.default_rng(0)
    for _ in range(50):
        pose = pose_at(0.0, 0.0, 0.0, float(rng.uniform(-3, 3)))
        for _ in range(int(rng.integers(1, 9))):  # up to full speed
            reach_m, before_m = CONTROL.reach_m(pose), pose.world_from_camera[:3, 3]
            pose = CONTROL.advance(pose, np.array([rng.choice([-1, 1]), rng.choice([-1, 1]), rng.uniform(-1, 1)]))[-1]
            went_m = np.linalg.norm(pose.world_from_camera[:3, 3] - before_m)
            assert went_m + CONTROL.radius_m <= reach_m + 1e-9
    at_rest = CONTROL.reach_m(pose_at(0.0, 0.0, 0.0, 0.0))
    straight = CONTROL.advance(pose_at(0.0, 0.0, 0.0, 0.0), np.array([1.0, 1.0, 0.0]))[-1].world_from_camera[:3, 3]
    assert at_rest == pytest.approx(np.linalg.norm(straight) + CONTROL.radius_m)


def plane_keyframe(z_m: float, alive: bool = True):
    """A wall that fills the view of a camera at the origin, 64 x 64 pixels, 90 degrees wide."""
    camera = torch.eye(4).expand(4, 4, 4)
    k = torch.tensor([[32.0, 0.0, 32.0], [0.0, 32.0, 32.0], [0.0, 0.0, 1.0]])
    keyframe = lifted(torch.zeros(8, 8, 8), torch.full((64, 64), z_m), camera, k, torch.zeros(8, 8), 0)
    return keyframe if alive else keyframe.masked(torch.zeros(8, 8, dtype=torch.bool))


def test_obstacles_are_what_each_body_cannot_pass():
    wall, gone, far = plane_keyframe(2.0), plane_keyframe(2.0, alive=False), plane_keyframe(9.0)
    eyes_m = np.zeros((5, 3))
    eyes_m[4, 1] = -5.0
    points, *others = obstacles_near([[wall], [gone], [far], [], [wall]], eyes_m, [3.0] * 5)
    assert len(points) and np.allclose(points[:, 1], 2.0)
    # Of the patches at heights (y down) -1.75 to 1.75 in steps of 0.5, those from -0.25 to 0.25 stand in the way.
    assert len(points) == 2 * 8 and EYE_M - STEP_M < 0.75
    assert [each.shape for each in others] == [(0, 2)] * 4
    both, alone = obstacles_near([[gone, far, wall], [plane_keyframe(1.0)]], np.zeros((2, 3)), [3.0, 2.0])
    assert np.array_equal(both, points) and np.allclose(alone[:, 1], 1.0)
    assert [len(each) for each in obstacles_near([[], []], np.zeros((2, 3)), [3.0, 3.0])] == [0, 0]
