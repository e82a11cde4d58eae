"""Planning where the best plan is known, and what a planner remembers."""

import numpy as np
import pytest

from mosaic_gym import Planner, Search, Start
from mosaic_gym.envs.episode import Rules
from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.envs.tasks import ReturnTask
from mosaic_gym.geometry.control import Control, Pose
from mosaic_gym.planning import blurred, poses_of
from mosaic_gym.worlds.mosaic import MosaicWorld

from .envs.counting_world import CountingWorld
from .tiny import tiny_model


@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_a_planner_finds_the_known_optimum(method):
    # In the counting world nothing stands in the way, and the goal's place is straight ahead. Full thrust
    # forward is the obvious best; a planner may even find out that side steps add to it, as Doom's players do.
    world = CountingWorld()
    planner = Planner(world, Search(method, futures=64, horizon=4, rounds=4, commit=1, elites=8), seed=1)
    state, view = world.start(Start(seed=0))
    planner.state, planner.goal, planner.plan = state, blurred(view.frames[-1]), np.zeros((4, 3))
    planner.places = [(blurred(view.frames[-1]), np.array([0.5, 6.0]))]
    best = state
    for _ in range(5):
        (planner.state, best), _ = world.step([planner.state, best], np.stack([planner.act(), [1.0, 0.0, 0.0]]))
    gained_m = 5.5 - np.hypot(*(planner.state.pose.world_from_camera[[0, 2], 3] - [0.5, 6.0]))
    best_m = best.pose.world_from_camera[2, 3] - 0.5
    assert gained_m > 0.75 * best_m


def test_a_planner_goes_on_as_fast_as_the_body_that_it_watched():
    control, world = Control(), CountingWorld()
    state, view = world.start(Start(seed=0))
    for action_vector in ([1.0, 0.0, 0.3], [0.5, 1.0, -0.2], [0.0, 0.0, 0.0]):
        (state,), (view,) = world.step([state], np.array([action_vector]))
        (*_, last) = poses_of(view, control)
        np.testing.assert_allclose(last.velocity_m, state.pose.velocity_m, atol=1e-12)
        np.testing.assert_array_equal(last.world_from_camera, state.pose.world_from_camera)
    assert isinstance(last, Pose) and np.abs(last.velocity_m).max() > 0.01


@pytest.mark.parametrize("memory", ["on", "place", "off"])
def test_a_planner_remembers_as_much_as_it_is_told_to(memory):
    world = MosaicWorld(tiny_model())
    env = WorldEnv(
        world, task=ReturnTask(far_m=1.5, steps=(3, 4)), observation="dict", action_space="continuous",
        rules=Rules(max_steps=2),
    )  # fmt: skip
    planner = Planner(world, Search(futures=4, horizon=2), memory, seed=1)
    gained_m, reached = planner.play(env, seed=3)
    assert env.episode.ended and reached == env.episode.success and np.isfinite(gained_m)
    views = [*env.episode.past_views, env.episode.view]
    planner.reset(views, env.episode.goal)
    kept = planner.state.memory.keyframes
    assert planner.state.step_index == len(views) - 1
    if memory == "on":
        assert [one.step for one in kept] == list(range(len(views))) and len(planner.places) == len(views)
    elif memory == "place":
        assert [one.step for one in kept] == [len(views) - 1] and len(planner.places) == len(views)
        whole = Planner(world, Search(futures=4, horizon=2), seed=1)
        whole.reset(views, env.episode.goal)
        assert kept[0].place.equal(whole.state.memory.keyframes[-1].place), "the place is known as well as with frames"
    else:
        assert not kept and planner.state.memory.capacity == 0 and len(planner.places) == 1
    known = planner.goal_place()
    first_m = views[0].world_from_camera[-1][[0, 2], 3]
    assert (known is not None and (known == first_m).all()) == (memory != "off"), "the goal is where it began"
    assert planner.act().shape == (3,)


def test_a_planner_repeats_itself():
    world = MosaicWorld(tiny_model())
    _, view = world.start(Start(seed=1))
    told = []
    for seed in (1, 1, 2):
        planner = Planner(world, Search(futures=4, horizon=2), seed=seed)
        planner.reset([view], view.frames[0])
        told.append(planner.act())
    np.testing.assert_array_equal(told[0], told[1])
    assert (told[0] != told[2]).any()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Search("magic"), "method is one of cem, mppi; got 'magic'"),
        (lambda: Search(futures=4, elites=5), "elites are some of the futures; got 5 of 4"),
        (lambda: Search(commit=0), "commit is a whole number from 1; got 0"),
        (lambda: Search(horizon=3, commit=4), "commit is at most the horizon, 3 steps; got 4"),
        (lambda: Search(temperature=-0.5), "temperature is a finite number above 0; got -0.5"),
        (lambda: Search(image_cost_m=float("nan")), "image_cost_m is a finite number from 0; got nan"),
        (lambda: Planner(CountingWorld()).play(WorldEnv(CountingWorld()), 0), "observation='dict' and action_space="),
        (lambda: Planner(CountingWorld(), memory="some"), "memory is one of on, place, off; got 'some'"),
        (lambda: blurred(np.zeros((36, 36, 3))), "multiples of 8 pixels; got 36x36"),
    ],
)
def test_what_cannot_be_planned_is_said(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("name", ["futures", "horizon", "rounds", "commit", "elites"])
@pytest.mark.parametrize("value", [2.5, True])
def test_what_a_search_counts_is_whole(name, value):
    with pytest.raises(ValueError, match=f"{name} is a whole number from 1; got {value}"):
        Search(**{name: value})


def test_a_world_that_takes_in_nothing_cannot_see_for_a_planner():
    world = CountingWorld()
    _, view = world.start(Start(seed=0))
    with pytest.raises(TypeError, match=r"CountingWorld has no start_from_frames\(\): .* as MosaicWorld has it"):
        Planner(world).reset([view], view.frames[0])


def test_who_has_seen_nothing_has_no_plan():
    with pytest.raises(RuntimeError, match="reset"):
        Planner(CountingWorld()).act()


def test_old_spellings_of_planners_and_searches_warn():
    world = MosaicWorld(tiny_model())
    _, view = world.start(Start(seed=1))
    with pytest.warns(DeprecationWarning) as recorded:
        search = Search(futures=4, horizon=2, recognise_db=7.0, image_price=2.0)
        planner = Planner(dream=world, search=search)
        planner.begin([view], view.frames[0])
        planner.see(view)
        assert (planner.recognised() == planner.goal_place()).all()
    assert (search.match_db, search.image_cost_m) == (7.0, 2.0) and len(planner.places) == 2
    messages = " ".join(str(warning.message) for warning in recorded)
    for old in ("recognise_db", "image_price", "dream", "Planner.begin", "Planner.see", "Planner.recognised"):
        assert f"{old} is deprecated" in messages
