"""Against the engine: a body that walks into walls ends up where the engine's does, by what memory has lifted."""

from dataclasses import replace

import numpy as np

from mosaic_gym import ACTIONS, Pose, Start, make_world


def test_the_dreams_body_stops_where_the_engines_does():
    dream, engine = make_world("mosaic"), make_world("doom")
    action = np.array(ACTIONS["forward"])
    stopped, walked_through = [], []
    for seed in (2_000_009, 2_000_019, 2_000_029, 2_000_039):
        body, view = engine.start(Start(seed=seed))
        state = dream.begin(view.frames, [Pose(camera) for camera in view.world_from_camera], seed, "")
        for _ in range(14):
            state = replace(state, pose=body.pose)
            foreseen, free = dream.move([state], action[None])[0][-1], dream.control.advance(body.pose, action)[-1]
            (body,), (view,) = engine.step([body], action[None])
            there_m = view.world_from_camera[-1, :3, 3]
            if np.linalg.norm(free.world_from_camera[:3, 3] - there_m) > 0.1:  # something stood in the way
                stopped.append(np.linalg.norm(foreseen.world_from_camera[:3, 3] - there_m))
                walked_through.append(np.linalg.norm(free.world_from_camera[:3, 3] - there_m))
            state = dream.observe(state, view.frames, [Pose(camera) for camera in view.world_from_camera])
    engine.close()
    assert len(stopped) >= 8
    assert np.mean(stopped) < 0.5 * np.mean(walked_through), (np.mean(stopped), np.mean(walked_through))


def test_collision_is_an_argument():
    free = make_world("mosaic", collision=False)
    state, _ = free.start(Start(seed=0))
    action = np.array(ACTIONS["forward"])
    for _ in range(6):
        expected = free.control.advance(state.pose, action)[-1].world_from_camera
        (state,), _ = free.step([state], action[None])
        np.testing.assert_array_equal(state.pose.world_from_camera, expected)
