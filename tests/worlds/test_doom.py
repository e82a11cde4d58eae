"""The true world: kinematics as foreseen, retracing, determinism, geometry of its depth and K, and its errors."""

import numpy as np
import pytest
import torch

from mosaic_gym.geometry.camera import invert_pose, project, transform, unproject
from mosaic_gym.geometry.control import FRAMES_PER_STEP, Control, Pose, pose_at
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.doom_game import choose_crop
from mosaic_gym.worlds.protocol import StaleStateError, Start, World

FORWARD, RIGHT, REST = (np.array([a], dtype=float) for a in ([1, 0, 0], [0, 0, 1], [0, 0, 0]))
OPEN_SEED = 4
"""An episode of My Way Home that begins in front of open floor."""


@pytest.fixture(scope="module")
def world():
    world = DoomWorld("my_way_home", 48, 64, timeout_tics=0)
    yield world
    world.close()


PITCH = np.array([[1.0, 0, 0, 0], [0, 0.8, -0.6, 0], [0, 0.6, 0.8, 0], [0, 0, 0, 1]])


def test_it_is_a_world(world):
    assert isinstance(world, World)
    _, view = world.start(Start(seed=OPEN_SEED))
    assert view.frames.shape == (4, 48, 64, 3) and view.depth_m.shape == (48, 64)
    assert view.image_from_camera[1, 1] / view.image_from_camera[0, 0] == pytest.approx(1.2)


def test_free_walking_is_what_control_foresees(world):
    state, _ = world.start(Start(seed=OPEN_SEED))
    foreseen = Control().advance(state.pose, FORWARD[0])
    (after,), (view,) = world.step([state], FORWARD)
    for pose, camera in zip(foreseen, view.world_from_camera, strict=True):
        assert np.abs(pose.world_from_camera - camera).max() < 2e-3
    assert np.linalg.norm(after.pose.velocity_m) > 0.05


def test_a_free_walk_is_retraced_to_two_millimetres(world):
    state, view = world.start(Start(seed=OPEN_SEED))
    views = [view]
    for action in [FORWARD] * 3 + [RIGHT] * 2 + [REST] * 8:
        (state,), (view,) = world.step([state], action)
        views.append(view)
    path = [camera for view in views for camera in view.world_from_camera][-2::-1]
    for first in range(0, len(path) - FRAMES_PER_STEP + 1, FRAMES_PER_STEP):
        asked = path[first : first + FRAMES_PER_STEP]
        state, view = world.follow(state, [Pose(camera) for camera in asked])
        assert np.abs(np.stack(asked) - view.world_from_camera).max() < 2e-3


def test_the_same_seed_and_actions_repeat(world):
    shown = []
    for _ in range(2):
        state, view = world.start(Start(seed=7))
        frames = [view.frames]
        for action in (RIGHT, FORWARD, RIGHT):
            (state,), (view,) = world.step([state], action)
            frames.append(view.frames)
        shown.append(np.stack(frames))
    assert np.array_equal(*shown)


def test_depth_and_k_carry_one_view_into_the_next(world):
    """A wrong focal length, depth scale or axis would leave the warped picture far from the true one."""
    state, before = world.start(Start(seed=OPEN_SEED))
    (state,), (after,) = world.step([state], FORWARD)
    (_,), (after,) = world.step([state], RIGHT)
    k = torch.tensor(before.image_from_camera, dtype=torch.float32)
    depth_m = torch.tensor(after.depth_m)
    pose = torch.tensor(after.world_from_camera[-1], dtype=torch.float32)
    points = transform(pose, unproject(depth_m, k).flatten(0, 1))

    def error(scale_y: float) -> float:
        other = k.clone()
        other[1, 1] *= scale_y
        camera_from_world = invert_pose(torch.tensor(before.world_from_camera[-1], dtype=torch.float32))
        uv, z = project(transform(camera_from_world, points), other)
        column, row = uv.floor().long().unbind(-1)
        inside = (column >= 0) & (column < 64) & (row >= 0) & (row < 48) & (z > 0)
        seen = torch.tensor(before.frames[-1])[row.clamp(0, 47), column.clamp(0, 63)].float()
        true = torch.tensor(after.frames[-1]).flatten(0, 1).float()
        assert inside.float().mean() > 0.5
        return float((seen - true)[inside].abs().mean())

    unchanged = float(np.abs(before.frames[-1].astype(float) - after.frames[-1]).mean())
    assert error(1.0) < 0.7 * unchanged
    assert error(1.0) < error(1.15) and error(1.0) < error(0.87)


def test_the_body_can_be_put_behind_a_camera(world):
    state, _ = world.start(Start(seed=OPEN_SEED))
    for action in (FORWARD, FORWARD, RIGHT, *[REST] * 6):
        (state,), (there,) = world.step([state], action)
    camera = there.world_from_camera[-1]
    state, view = world.start(Start(seed=OPEN_SEED + 1, world_from_camera=camera))
    assert state.step_index == 0 and not view.terminated
    assert np.abs(view.world_from_camera - camera).max() < 2e-3, "all four frames, at rest"
    assert np.abs(view.frames - there.frames[-1].astype(float)).mean() < 3.0
    assert np.median(np.abs(view.depth_m / there.depth_m - 1)) < 0.01
    (_,), (after,) = world.step([state], FORWARD)
    foreseen = Control().advance(Pose(camera), FORWARD[0])[-1].world_from_camera
    assert np.abs(after.world_from_camera[-1] - foreseen).max() < 5e-3, "it walks on from there"


def test_a_camera_where_no_body_can_be_is_refused_and_the_episode_goes_on(world):
    state, view = world.start(Start(seed=OPEN_SEED))
    camera = view.world_from_camera[-1]
    wall_m = float(view.depth_m[24, 32])
    for ahead_m in (wall_m, 500.0):
        lost = camera.copy()
        lost[:3, 3] += camera[:3, 2] * ahead_m
        with pytest.raises(ValueError, match="no body can stand at x .* off the map, or in a wall"):
            world.start(Start(seed=0, world_from_camera=lost))
    high = camera.copy()
    high[1, 3] -= 1.0
    with pytest.raises(ValueError, match=r"the eyes of a body at x .* are at y = -1.281 m, not -2.281"):
        world.start(Start(seed=0, world_from_camera=high))
    tilted, turn = camera.copy(), np.deg2rad(15.0)
    tilted[:3, :3] = camera[:3, :3] @ [[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]]
    with pytest.raises(ValueError, match="the simulator's camera is level: .* tilted by 15.0 degrees"):
        world.start(Start(seed=0, world_from_camera=tilted))
    (after,), (seen,) = world.step([state], FORWARD)
    assert after.step_index == 1
    state, _ = world.start(Start(seed=OPEN_SEED))
    (_,), (again,) = world.step([state], FORWARD)
    assert np.array_equal(seen.frames, again.frames), "as if nothing had been asked"


def test_the_first_start_of_all_may_be_refused_too():
    world = DoomWorld("my_way_home", 48, 64)
    with pytest.raises(ValueError, match="no body can stand at x 500.00, z 0.00 m of my_way_home"):
        world.start(Start(seed=0, world_from_camera=pose_at(500.0, -1.281, 0.0, 0.0).world_from_camera))
    state, _ = world.start(Start(seed=0))
    world.step([state], REST)
    world.close()


def test_a_body_stands_on_the_floor_under_it_whatever_its_height():
    world = DoomWorld("freedoom1:E1M1", 48, 64)
    state, _ = world.start(Start(seed=0))
    for action in [FORWARD] * 12 + [RIGHT] * 3 + [FORWARD] * 12:
        (state,), (view,) = world.step([state], action)
        camera = view.world_from_camera[-1]
        eyes_m = [-eyes / 32.0 for eyes in world._surfaces.eye_heights(camera[0, 3] * 32, camera[2, 3] * 32)]
        assert min(abs(eye_m - camera[1, 3]) for eye_m in eyes_m) < 0.4, "up to what a step down takes to fall"
    world.close()


def test_an_episode_that_cannot_go_on_there_is_stale(world, monkeypatch):
    state, view = world.start(Start(seed=OPEN_SEED))
    camera = view.world_from_camera[-1].copy()
    monkeypatch.setattr("mosaic_gym.worlds.doom._PLACEMENT_TOLERANCE_M", -1.0)  # no simulator is as exact
    monkeypatch.setattr(world, "_check_place", lambda *arguments: None)
    with pytest.raises(ValueError, match=r"placed at x .* came to stand 0.0.. m away, at x .*, y -1.281, z .*; start"):
        world.start(Start(seed=0, world_from_camera=camera))
    with pytest.raises(StaleStateError, match="moved past"):
        world.step([state], REST)
    monkeypatch.undo()
    world.start(Start(seed=0))


def test_what_cannot_be_done_is_said(world):
    state, view = world.start(Start(seed=1))
    world.step([state], REST)
    with pytest.raises(StaleStateError, match="moved past step 0"):
        world.step([state], REST)
    with pytest.raises(ValueError, match="cannot start from a given image"):
        world.start(Start(seed=0, image=view.frames[0]))
    with pytest.raises(ValueError, match="one body"):
        world.step([state, state], np.zeros((2, 3)))
    with pytest.raises(ValueError, match="my_way_home"):
        DoomWorld("no_such_map")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": "3"}, "the seed of a start is a whole number from 0; got '3'"),
        ({"seed": -1}, "the seed of a start is a whole number from 0; got -1"),
        ({"seed": 1.5}, "the seed of a start is a whole number from 0; got 1.5"),
        ({"seed": True}, "the seed of a start is a whole number from 0; got True"),
        ({"seed": 0, "prompt": "a cave"}, "cannot start from a given prompt"),
        ({"seed": 0, "world_from_camera": np.full((4, 4), np.nan)}, "pose"),
        ({"seed": 0, "world_from_camera": "here"}, "pose"),
        ({"seed": 0, "world_from_camera": np.eye(3)}, "pose"),
    ],
)
def test_a_refused_start_leaves_the_episode_as_it_was(world, wrong, message):
    state, _ = world.start(Start(seed=OPEN_SEED))
    with pytest.raises(ValueError, match=message):
        world.start(Start(**wrong))
    (_,), (view,) = world.step([state], FORWARD)
    state, _ = world.start(Start(seed=OPEN_SEED))
    (_,), (again,) = world.step([state], FORWARD)
    np.testing.assert_array_equal(view.frames, again.frames)


def test_seeds_of_numpy_are_taken(world):
    frames = world.start(Start(seed=7))[1].frames
    for seed in (np.int64(7), np.uint8(7), np.array(7)[()]):
        state, view = world.start(Start(seed=seed))
        np.testing.assert_array_equal(view.frames, frames)
        assert type(state.seed) is int


def test_a_timeout_that_is_none_is_refused():
    for timeout in (-1, 2.5, "soon"):
        with pytest.raises(ValueError, match="timeout_tics is a whole number from 0, or None"):
            DoomWorld("my_way_home", 48, 64, timeout_tics=timeout)


def test_an_episode_ends_with_the_scenarios_time_and_then_refuses():
    world = DoomWorld("my_way_home", 48, 64, timeout_tics=30)
    state, view = world.start(Start(seed=0))
    for _ in range(10):
        if view.terminated:
            break
        (state,), (view,) = world.step([state], REST)
    assert view.terminated
    with pytest.raises(RuntimeError, match="has ended"):
        world.step([state], REST)
    world.close()
    world.close()


def test_an_episode_that_is_over_when_it_begins_says_so():
    for tics in (16, 17, 18, 20):
        world = DoomWorld("my_way_home", 48, 64, timeout_tics=tics)
        with pytest.raises(RuntimeError, match="ended before the body could move; give a longer timeout_tics"):
            world.start(Start(seed=0))
        world.close()


def test_seeds_larger_than_the_engines_are_other_episodes(world):
    shown = [world.start(Start(seed=seed))[1].frames for seed in (7, 7 + 2**31, 7 + 2**32)]
    assert len({frames.tobytes() for frames in shown}) == 3
    np.testing.assert_array_equal(world.start(Start(seed=7 + 2**31))[1].frames, shown[1])


@pytest.mark.parametrize("scenario", ["health_gathering_supreme", "take_cover", "freedoom1:E1M1", "freedoom2:MAP01"])
def test_other_maps_by_name(scenario):
    world = DoomWorld(scenario)
    state, view = world.start(Start(seed=0))
    (_,), (after,) = world.step([state], RIGHT)
    assert view.frames.std() > 5 and not np.array_equal(view.frames[-1], after.frames[-1])
    world.close()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda poses: [Pose(np.full((4, 4), np.nan))] * 4, "pose 0: .*NaN"),
        (lambda poses: [*poses[:3], Pose(poses[3].world_from_camera @ PITCH)], "the simulator's camera is level"),
        (lambda poses: np.stack([pose.world_from_camera for pose in poses]), "list of Pose objects.*a ndarray"),
        (lambda poses: poses[0], "got one Pose"),
        (lambda poses: poses[:3], "a step follows 4 poses; got 3"),
    ],
)
def test_poses_that_no_body_can_follow_move_nothing(world, change, named):
    state, _ = world.start(Start(seed=OPEN_SEED))
    poses = Control().advance(state.pose, FORWARD[0])
    with pytest.raises(ValueError, match=named):
        world.follow(state, change(poses))
    after, _ = world.follow(state, poses)
    assert np.abs(after.pose.world_from_camera - poses[-1].world_from_camera).max() < 2e-3


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 64), (120, 160), (96, 96), (100, 75)])
def test_a_frame_is_the_mean_of_square_blocks(height, width):
    crop = choose_crop(height, width)
    screen = np.random.default_rng(0).integers(0, 256, (crop.screen_height, crop.screen_width, 3), dtype=np.uint8)
    blocks = screen[crop.window].reshape(height, crop.factor, width, crop.factor, 3)
    np.testing.assert_array_equal(crop.shrink_frame(screen), np.floor(blocks.mean((1, 3)) + 0.5))
