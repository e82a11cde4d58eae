"""Against the engine: a body that walks into walls ends up where the engine's does, by memory and by map."""

from collections.abc import Sequence

import numpy as np
import pytest

from mosaic_gym import ACTIONS, Start, make_world
from mosaic_gym.evaluation.suites.collision import PositionErrors, walk
from mosaic_gym.worlds.mosaic import MosaicWorld


def walks(dream: MosaicWorld, seeds: Sequence[int], action: str, watching: bool) -> PositionErrors:
    engine = make_world("doom")
    errors = walk(dream, engine, seeds, action, watching)
    engine.close()
    return errors


def assert_stops_with_the_engine_and_nowhere_else(errors: PositionErrors) -> None:
    assert len(errors.stopped) >= 8 and len(errors.free) >= 4
    assert np.mean(errors.stopped) < 0.3 * np.mean(errors.without_collision), errors
    assert np.quantile(errors.free, 0.9) < 0.03, errors.free


def test_the_dreams_body_stops_where_the_engines_does():
    dream = make_world("mosaic")
    dream.atlas = None  # by what memory has lifted
    assert_stops_with_the_engine_and_nowhere_else(walks(dream, range(2_000_009, 2_000_060, 10), "forward", True))


@pytest.mark.slow
def test_walls_that_were_never_seen_stop_it_where_its_place_on_the_map_is_known():
    dream = make_world("mosaic")
    seeds = (2_000_029, 2_000_039, 2_000_059, 2_000_069)
    assert_stops_with_the_engine_and_nowhere_else(walks(dream, seeds, "backward", False))
    dream.atlas = None
    blind = walks(dream, seeds[:1], "backward", False)
    assert np.mean(blind.stopped) > 0.8 * np.mean(blind.without_collision)


def test_collision_is_an_argument():
    free = make_world("mosaic", collision=False)
    state, _ = free.start(Start(seed=0))
    action = np.array(ACTIONS["forward"])
    for _ in range(6):
        expected = free.control.advance(state.pose, action)[-1].world_from_camera
        (state,), _ = free.step([state], action[None])
        np.testing.assert_array_equal(state.pose.world_from_camera, expected)
