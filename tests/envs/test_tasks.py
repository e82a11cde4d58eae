import numpy as np
import pytest

from mosaic_gym import FRAMES_PER_STEP, View, pose_at
from mosaic_gym.envs.tasks import TASKS, EngineTask, ExploreTask


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


def test_explore_pays_once_for_each_square_and_never_for_the_first():
    task = ExploreTask()
    progress = task.begin(view_at([(0.5, 0.5)]))
    rewards = []
    for places in ([(0.9, 0.1)], [(1.1, 0.5)], [(0.5, 0.5)], [(0.5, 1.5), (0.5, 2.5)], [(-0.1, 0.5)]):
        judgement = task.judge(progress, view_at(places))
        progress = judgement.progress
        rewards.append(judgement.reward)
        assert not judgement.terminated
    assert rewards == [0.0, 1.0, 0.0, 2.0, 1.0]


def test_explore_remembers_nothing_of_other_episodes():
    task = ExploreTask()
    first, second = task.begin(view_at([(0.5, 0.5)])), task.begin(view_at([(0.5, 0.5)]))
    task.judge(first, view_at([(5.5, 0.5)]))
    assert task.judge(second, view_at([(5.5, 0.5)])).reward == 1.0


def test_the_side_of_a_square_is_an_argument():
    task = ExploreTask(cell_m=4.0)
    assert task.judge(task.begin(view_at([(0.5, 0.5)])), view_at([(3.9, 0.5)])).reward == 0.0


@pytest.mark.parametrize("terminated", [False, True])
def test_engine_passes_on_reward_and_end(terminated):
    task = EngineTask()
    judgement = task.judge(task.begin(view_at([(0, 0)])), view_at([(0, 0)], reward=2.5, terminated=terminated))
    assert (judgement.reward, judgement.terminated) == (2.5, terminated)


def test_the_tasks_by_name():
    assert TASKS == {"engine": EngineTask, "explore": ExploreTask}
