"""Against the engine: a body that walks into walls ends up where the engine's does, by memory and by map."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mosaic_gym import ACTIONS, Pose, Start, make_world
from mosaic_gym.worlds.mosaic import MosaicWorld


def walked_into_walls(dream: MosaicWorld, seeds: Sequence[int], name: str, watching: bool) -> tuple[list, list]:
    """How far off the engine's is where the dream's body ends each step that something stood in the way of, metres.

    Args:
        watching: whether it sees where it goes; else it has looked around first, and walks with its eyes shut.

    Returns:
        With the dream's obstacles, and with none.
    """
    engine = make_world("doom")
    stopped, walked_through = [], []
    for seed in seeds:
        body, view = engine.start(Start(seed=seed))
        state = dream.begin(view.frames, [Pose(camera) for camera in view.world_from_camera], seed, "")
        for index in range(14 if watching else 20):
            walks = watching or index >= 6
            action = np.array(ACTIONS[name if walks else "turn_right"])
            state = replace(state, pose=body.pose)
            foreseen, free = dream.move([state], action[None])[0][-1], dream.control.advance(body.pose, action)[-1]
            (body,), (view,) = engine.step([body], action[None])
            there_m = view.world_from_camera[-1, :3, 3]
            off_m = [np.linalg.norm(pose.world_from_camera[:3, 3] - there_m) for pose in (foreseen, free)]
            if off_m[1] > 0.1:  # something stood in the way
                stopped.append(off_m[0])
                walked_through.append(off_m[1])
            if watching or not walks:
                state = dream.observe(state, view.frames, [Pose(camera) for camera in view.world_from_camera])
    engine.close()
    return stopped, walked_through


def test_the_dreams_body_stops_where_the_engines_does():
    dream = make_world("mosaic")
    dream.atlas = None  # by what memory has lifted
    stopped, walked_through = walked_into_walls(dream, range(2_000_009, 2_000_040, 10), "forward", watching=True)
    assert len(stopped) >= 8
    assert np.mean(stopped) < 0.5 * np.mean(walked_through), (np.mean(stopped), np.mean(walked_through))


def test_walls_that_were_never_seen_stop_it_where_its_place_on_the_map_is_known():
    dream = make_world("mosaic")
    seeds = (2_000_029, 2_000_039, 2_000_059)
    stopped, walked_through = walked_into_walls(dream, seeds, "backward", watching=False)
    assert len(stopped) >= 8
    assert np.mean(stopped) < 0.5 * np.mean(walked_through), (np.mean(stopped), np.mean(walked_through))
    dream.atlas = None
    without, walked_through = walked_into_walls(dream, seeds[:1], "backward", watching=False)
    assert np.mean(without) > 0.8 * np.mean(walked_through)


def test_collision_is_an_argument():
    free = make_world("mosaic", collision=False)
    state, _ = free.start(Start(seed=0))
    action = np.array(ACTIONS["forward"])
    for _ in range(6):
        expected = free.control.advance(state.pose, action)[-1].world_from_camera
        (state,), _ = free.step([state], action[None])
        np.testing.assert_array_equal(state.pose.world_from_camera, expected)
