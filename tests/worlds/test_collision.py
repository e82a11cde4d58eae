"""Against the engine: a body that walks into walls ends up where the engine's does, by memory and by map."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mosaic_gym import ACTIONS, Pose, Start, make_world
from mosaic_gym.worlds.mosaic import MosaicWorld


@dataclass
class Walks:
    """How far off the engine's is where the dream's body ends, metres, step by step.

    Attributes:
        stopped: where something stood in the way; walked_through: the same for a body that nothing stops.
        free: where nothing did, and the body moved.
    """

    stopped: list[float] = field(default_factory=list)
    walked_through: list[float] = field(default_factory=list)
    free: list[float] = field(default_factory=list)

    def check(self) -> None:
        """It stops where the engine's does, and nowhere else."""
        assert len(self.stopped) >= 8 and len(self.free) >= 4
        assert np.mean(self.stopped) < 0.3 * np.mean(self.walked_through), self
        assert np.quantile(self.free, 0.9) < 0.03, self.free


def walk(dream: MosaicWorld, seeds: Sequence[int], name: str, watching: bool) -> Walks:
    """Walks in the engine, each step foreseen by the dream.

    Args:
        watching: whether it sees where it goes; else it has looked around first, and walks with its eyes shut.
    """
    engine, told = make_world("doom"), Walks()
    for seed in seeds:
        body, view = engine.start(Start(seed=seed))
        state = dream.begin(view.frames, [Pose(camera) for camera in view.world_from_camera], seed, "")
        for index in range(14 if watching else 20):
            walks = watching or index >= 6
            action = np.array(ACTIONS[name if walks else "turn_right"])
            state, before_m = replace(state, pose=body.pose), body.pose.world_from_camera[:3, 3]
            foreseen, free = dream.move([state], action[None])[0][-1], dream.control.advance(body.pose, action)[-1]
            (body,), (view,) = engine.step([body], action[None])
            there_m = view.world_from_camera[-1, :3, 3]
            off_m, free_off_m = (np.linalg.norm(pose.world_from_camera[:3, 3] - there_m) for pose in (foreseen, free))
            if free_off_m > 0.1:  # something stood in the way
                told.stopped.append(off_m)
                told.walked_through.append(free_off_m)
            elif free_off_m < 0.02 and np.linalg.norm(there_m - before_m) > 0.1:
                told.free.append(off_m)
            if watching or not walks:
                state = dream.observe(state, view.frames, [Pose(camera) for camera in view.world_from_camera])
    engine.close()
    return told


def test_the_dreams_body_stops_where_the_engines_does():
    dream = make_world("mosaic")
    dream.atlas = None  # by what memory has lifted
    walk(dream, range(2_000_009, 2_000_060, 10), "forward", watching=True).check()


def test_walls_that_were_never_seen_stop_it_where_its_place_on_the_map_is_known():
    dream = make_world("mosaic")
    seeds = (2_000_029, 2_000_039, 2_000_059, 2_000_069)
    walk(dream, seeds, "backward", watching=False).check()
    dream.atlas = None
    blind = walk(dream, seeds[:1], "backward", watching=False)
    assert np.mean(blind.stopped) > 0.8 * np.mean(blind.walked_through)


def test_collision_is_an_argument():
    free = make_world("mosaic", collision=False)
    state, _ = free.start(Start(seed=0))
    action = np.array(ACTIONS["forward"])
    for _ in range(6):
        expected = free.control.advance(state.pose, action)[-1].world_from_camera
        (state,), _ = free.step([state], action[None])
        np.testing.assert_array_equal(state.pose.world_from_camera, expected)
