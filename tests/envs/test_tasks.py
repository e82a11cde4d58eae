import json
from dataclasses import replace

import numpy as np
import pytest

from mosaic_gym import FRAMES_PER_STEP, Start, View, pose_at
from mosaic_gym.envs.arguments import check_has_rewards
from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.envs.tasks import (
    TASKS,
    ExploreTask,
    FixedStarts,
    GoalTask,
    ReturnTask,
    SimulatorTask,
    StartAndGoal,
    make_task,
)

from .counting_world import CountingWorld


def view_at(places_m, reward=0.0, terminated=False) -> View:
    """A view whose four cameras stand at `(x, z)` places; the first is repeated to fill them."""
    places_m = [places_m[0]] * (FRAMES_PER_STEP - len(places_m)) + list(places_m)
    return View(
        frames=np.zeros((FRAMES_PER_STEP, 2, 2, 3), np.uint8),
        depth_m=np.ones((2, 2), np.float32),
        world_from_camera=np.stack([pose_at(x, 0.0, z, 0.0).world_from_camera for x, z in places_m]),
        image_from_camera=np.eye(3),
        reward=reward,
        terminated=terminated,
    )


def begun(task, view, goal_m=None):
    return task.initial_task_state(StartAndGoal(None, view, view.frames[-1], goal_m))


def wall_at(z_m: float, x_m: float = 0.0, turned_rad: float = 0.0) -> View:
    """A wall that fills a view of 8 x 8 pixels, 90 degrees wide, from a camera at (x, 0, 0)."""
    return View(
        frames=np.zeros((FRAMES_PER_STEP, 8, 8, 3), np.uint8),
        depth_m=np.full((8, 8), z_m, np.float32),
        world_from_camera=np.stack([pose_at(x_m, 0.0, 0.0, turned_rad).world_from_camera] * FRAMES_PER_STEP),
        image_from_camera=np.array([[4.0, 0.0, 4.0], [0.0, 4.0, 4.0], [0.0, 0.0, 1.0]]),
    )


def test_explore_pays_once_for_each_square_metre():
    # At 3.5 m, pixels lie at -3.06 to 3.06 m in steps of 0.875: seven or eight metres wide and high.
    task = ExploreTask(stride_px=1)
    task_state = begun(task, wall_at(3.5))
    width = len(np.unique(np.floor((np.arange(8) - 3.5) / 4 * 3.5)))
    assert len(task_state) == width**2
    told = []
    for view in (wall_at(3.5), wall_at(3.5, x_m=2.0), wall_at(3.5, x_m=2.0), wall_at(9.0), wall_at(3.5)):
        task_step = task.evaluate(task_state, view)
        task_state = json.loads(json.dumps(task_step.task_state, default=np.ndarray.tolist))
        told.append(task_step.reward)
        assert not task_step.terminated
    assert told[0] == told[2] == told[3] == told[4] == 0.0 and width <= told[1] <= 3 * width


def test_turning_round_shows_new_surface():
    task = ExploreTask()
    task_state = begun(task, wall_at(3.5))
    assert task.evaluate(task_state, wall_at(3.5, turned_rad=np.pi)).reward == len(task_state)


def test_explore_remembers_nothing_of_other_episodes():
    task = ExploreTask()
    first, second = begun(task, wall_at(3.5)), begun(task, wall_at(3.5))
    reward = task.evaluate(first, wall_at(5.5)).reward
    assert task.evaluate(second, wall_at(5.5)).reward == reward > 0


def test_the_side_of_a_cube_is_an_argument():
    fine, coarse = ExploreTask(cell_m=0.5, stride_px=1), ExploreTask(cell_m=4.0, stride_px=1)
    assert len(begun(fine, wall_at(3.5))) > len(begun(coarse, wall_at(3.5))) == 4


@pytest.mark.parametrize("terminated", [False, True])
def test_engine_passes_on_reward_and_end(terminated):
    task = SimulatorTask()
    task_step = task.evaluate(begun(task, view_at([(0, 0)])), view_at([(0, 0)], reward=2.5, terminated=terminated))
    assert (task_step.reward, task_step.terminated) == (2.5, terminated)


@pytest.mark.parametrize("kind", [GoalTask, ReturnTask])
def test_reaching_pays_by_the_metre_and_ends_with_a_bonus(kind):
    task = kind(reach_m=1.0)
    task_state = begun(task, view_at([(0.0, 0.0)]), goal_m=(0.0, 4.0))
    told = []
    for place in ((0.0, 1.5), (0.0, 1.0), (0.5, 3.5)):
        task_step = task.evaluate(task_state, view_at([place]))
        task_state = json.loads(json.dumps(task_step.task_state))
        told.append((round(task_step.reward, 6), task_step.terminated))
    left = float(np.hypot(0.5, 0.5))
    assert told == [(1.5, False), (-0.5, False), (round(3.0 - left + task.BONUS, 6), True)]


@pytest.mark.parametrize("kind", [GoalTask, ReturnTask])
def test_a_scripted_walk_leads_away_from_where_it_began(kind):
    world = CountingWorld()
    task = kind(far_m=1.5)
    starts = [Start(seed=seed) for seed in (3, 4)]
    for start, scene in zip(starts, task.sample_start_and_goal(world, starts), strict=True):
        _, first = world.start(start)
        here_m = scene.view.world_from_camera[-1][[0, 2], 3]
        home_m = first.world_from_camera[-1][[0, 2], 3]
        assert np.hypot(*(here_m - scene.goal_m)) >= 1.5
        np.testing.assert_array_equal(scene.goal_m if kind is ReturnTask else here_m, home_m)
        if kind is ReturnTask:
            np.testing.assert_array_equal(scene.goal, first.frames[-1])
            assert scene.state.step_index > 0
        else:
            assert scene.state.step_index == 0 and scene.goal[0, 0, 0] > 3


class Stuck(CountingWorld):
    """The first walks lead nowhere: the body does not move, or the world ends at once."""

    def __init__(self, walks: int, ends: bool = False) -> None:
        super().__init__()
        self.walks, self.ends = walks, ends

    def start(self, start):
        self.walks -= 1
        return super().start(start)

    def step(self, states, actions):
        states, views = super().step(states, np.zeros_like(actions) if self.walks >= 0 and not self.ends else actions)
        return states, [replace(view, terminated=self.ends and self.walks >= 0) for view in views]


@pytest.mark.parametrize("kind", [GoalTask, ReturnTask])
@pytest.mark.parametrize("ends", [False, True])
def test_a_walk_that_leads_nowhere_is_walked_anew(kind, ends):
    world = Stuck(3, ends)
    (scene,) = kind(steps=(4, 6)).sample_start_and_goal(world, [Start(seed=1)])
    here_m = scene.view.world_from_camera[-1][[0, 2], 3]
    assert np.hypot(*(here_m - scene.goal_m)) > 1.0 and not scene.view.terminated
    with pytest.raises(RuntimeError, match="8 scripted walks.*smaller reach_m"):
        kind(steps=(4, 6)).sample_start_and_goal(Stuck(100, ends), [Start(seed=1)])


def test_scenes_do_not_depend_on_who_is_prepared_beside():
    world, task = CountingWorld(), GoalTask()
    together = task.sample_start_and_goal(world, [Start(seed=1), Start(seed=2)])
    alone = task.sample_start_and_goal(world, [Start(seed=2)])
    assert together[1].goal_m == alone[0].goal_m != together[0].goal_m


@pytest.mark.parametrize("kind", ["goal", "return"])
def test_fixed_scenes_are_set_once_and_drawn_by_seed(kind, monkeypatch):
    world, task = CountingWorld(), FixedStarts(kind, 5)
    starts, begun_at = [], world.start
    monkeypatch.setattr(world, "start", lambda start: starts.append(start.seed) or begun_at(start))
    drawn = task.sample_start_and_goal(world, [Start(seed=seed) for seed in range(30)])
    walked = len(starts)
    assert set(starts) == set(range(5)) and {id(scene) for scene in drawn} == {id(scene) for scene in task.samples}
    again = task.sample_start_and_goal(world, [Start(seed=seed) for seed in range(30)])
    assert all(one is other for one, other in zip(drawn, again, strict=True)) and len(starts) == walked
    env = WorldEnv(world, observation="dict", task=task)
    assert task.samples_goal and task.needs_task_state
    env.reset(seed=3)
    env.step(1)
    assert env.episode.task_state["goal_m"] == list(drawn[3].goal_m)
    WorldEnv(world, observation="dict", task=kind).restore(env.snapshot())  # which judges alike


def test_fixed_scenes_cannot_begin_elsewhere():
    world, task = CountingWorld(), FixedStarts(GoalTask(), 2)
    with pytest.raises(ValueError, match="the number of fixed starts is a whole number from 1; got 0"):
        FixedStarts("goal", 0)
    with pytest.raises(ValueError, match="cannot start with a given prompt: take another task"):
        task.sample_start_and_goal(world, [Start(seed=0, prompt="a cave")])
    task.prepare(world)
    with pytest.raises(ValueError, match="sampled in another world"):
        task.sample_start_and_goal(CountingWorld(height=48), [Start(seed=0)])
    world.forkable = False
    with pytest.raises(ValueError, match="CountingWorld cannot return to a sampled start; take GoalTask itself"):
        task.sample_start_and_goal(world, [Start(seed=0)])


def test_the_tasks_by_name():
    assert TASKS == {"explore": ExploreTask, "goal": GoalTask, "return": ReturnTask, "simulator": SimulatorTask}
    mine = ExploreTask(cell_m=2.0)
    assert make_task(mine) is mine and isinstance(make_task("goal"), GoalTask)
    with pytest.raises(ValueError, match="unknown task 'fly'; the known ones are explore, goal, return, simulator"):
        make_task("fly")
    with pytest.raises(TypeError, match="lacks samples_goal, sample_start_and_goal, initial_task_state, evaluate"):
        make_task(3)


def test_a_task_of_the_version_before_is_refused_with_the_new_names():
    class OldTask:
        draws_goal = False
        set_scenes = begin = judge = None

    expected = (
        "mosaic_gym.Task; .* lacks samples_goal, .*draws_goal is now samples_goal, set_scenes is now "
        "sample_start_and_goal, begin is now initial_task_state, judge is now evaluate"
    )
    with pytest.raises(TypeError, match=expected):
        make_task(OldTask())
    with pytest.raises(TypeError, match="lacks .*evaluate$"):
        make_task(3)


@pytest.mark.parametrize("pays", [True, False])
def test_the_old_spelling_of_a_worlds_rewards_is_read(pays):
    world = CountingWorld()
    world.pays = pays
    with pytest.warns(DeprecationWarning, match="CountingWorld.pays is deprecated: use has_rewards"):
        if pays:
            check_has_rewards(world, make_task("simulator"))
        else:
            with pytest.raises(ValueError, match="no heads that predict them"):
                check_has_rewards(world, make_task("simulator"))
    world.has_rewards = True
    check_has_rewards(world, make_task("simulator"))
