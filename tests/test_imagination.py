"""Imagination over a counting world and a tiny dream."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from mosaic_gym import Start, imagine, make_world
from mosaic_gym.envs.tasks import ExploreTask, GoalTask, StartAndGoal, place_of
from mosaic_gym.geometry.control import Pose
from mosaic_gym.worlds.mosaic import MosaicWorld

from .envs.counting_world import CountingWorld
from .tiny import tiny_model

AHEAD = np.tile([1.0, 0.0, 0.0], (2, 3, 1))


def test_futures_are_stacked_by_future_and_step():
    world = CountingWorld()
    state, view = world.start(Start(seed=3))
    actions = AHEAD.copy()
    actions[1] *= -1.0
    task = ExploreTask()
    futures = imagine(
        world, state, actions, task=task, task_state=task.initial_task_state(StartAndGoal(state, view, view.frames[-1]))
    )
    assert futures.batch_size == torch.Size([2, 3])
    assert futures["frames"].shape == (2, 3, 4, 40, 64, 3) and futures["frames"].dtype == torch.uint8
    assert futures["frames"][0, :, 0, 0, 0, 0].tolist() == [4, 8, 12]
    assert futures["pose"][0, -1, 2, 3] > 0.5 > futures["pose"][1, -1, 2, 3]
    assert futures["reward"].sum() > 0 and not futures["terminated"].any()
    torch.testing.assert_close(futures["action"], torch.tensor(actions, dtype=torch.float32))
    assert state.step_index == 0


def test_an_ended_future_is_paid_no_more():
    class OnceTask(ExploreTask):
        needs_task_state = False

        def evaluate(self, task_state, view):
            from mosaic_gym.envs.tasks import TaskStep

            return TaskStep(task_state, 1.0, view.frames[0, 0, 0, 0] >= 8)

    world = CountingWorld()
    state, _ = world.start(Start(seed=0))
    futures = imagine(world, state, np.tile([1.0, 0.0, 0.0], (1, 4, 1)), task=OnceTask())
    assert futures["reward"].tolist() == [[1.0, 1.0, 0.0, 0.0]]
    assert futures["terminated"].tolist() == [[False, True, True, True]]


def test_without_a_task_the_worlds_own_reward_and_end_are_kept():
    world = CountingWorld(last_step=2)
    state, _ = world.start(Start(seed=0))
    futures = imagine(world, state, np.tile([1.0, 0.0, 0.0], (1, 4, 1)))
    torch.testing.assert_close(futures["reward"], torch.tensor([[0.1, 0.2, 0.0, 0.0]]))
    assert futures["terminated"].tolist() == [[False, True, True, True]]


def test_a_dream_keeps_the_rewards_that_it_predicts():
    model = tiny_model()
    model.reward_heads.tell.bias.data.copy_(torch.tensor([-12.0, 0.0, 12.0, -12.0]))  # surely a gain, and no end
    world = MosaicWorld(model)
    state, _ = world.start(Start(seed=1))
    assert world.has_rewards and (imagine(world, state, AHEAD)["reward"] == 1.0).all()
    latents = imagine(world, state, AHEAD, pixels=False)
    assert not latents["reward"].any() and not latents["terminated"].any()
    model.reward_heads = None
    assert not world.has_rewards and not imagine(world, state, AHEAD)["reward"].any()


def test_a_dream_imagines_what_it_then_lives():
    world = MosaicWorld(tiny_model())
    state, _ = world.start(Start(seed=1))
    futures = imagine(world, state, AHEAD[:1])
    lived = state
    for step in range(3):
        (lived,), (view,) = world.step([lived], AHEAD[:1, step])
        np.testing.assert_array_equal(futures["frames"][0, step].numpy(), view.frames)
        assert float(futures["coverage"][0, step]) == pytest.approx(view.coverage)


def test_latents_alone_skip_memory_and_decoding(monkeypatch):
    model = tiny_model()
    world = MosaicWorld(model)
    state, _ = world.start(Start(seed=1))
    whole = imagine(world, state, AHEAD)
    monkeypatch.setattr(model.depth, "estimate", lambda *given: pytest.fail("depth was estimated"))
    futures = imagine(world, state, AHEAD, pixels=False)
    assert futures["latents"].shape == (2, 3, *state.history.shape[1:]) and "frames" not in futures.keys()
    torch.testing.assert_close(futures["pose"][:, 0], whole["pose"][:, 0])


def test_a_policy_sees_the_last_frames():
    world = MosaicWorld(tiny_model())
    states = [world.start(Start(seed=seed))[0] for seed in (1, 2)]
    seen = []

    def policy(frames):
        seen.append(frames)
        return np.tile([0.5, 0.0, 0.0], (len(frames), 1))

    futures = imagine(world, states, policy, horizon=2)
    assert futures.batch_size == torch.Size([2, 2]) and [frames.shape for frames in seen] == [(2, 32, 48, 3)] * 2
    np.testing.assert_array_equal(seen[1], futures["frames"][:, 0, -1].numpy())


@pytest.mark.parametrize(
    ("act", "kwargs", "said"),
    [
        (AHEAD[0], {}, r"\[B, H, 3\].*got shape \(3, 3\)"),
        (AHEAD[:, :0], {}, "at least 1"),
        (AHEAD, {"horizon": 2}, "for 3 steps, and horizon is 2"),
        (np.full((1, 1, 3), np.nan), {}, "finite"),
        (lambda frames: np.zeros((1, 3)), {}, "needs a horizon"),
        (lambda frames: np.zeros((1, 3)), {"horizon": 0}, "at least 1 step"),
        (lambda frames: np.full((1, 3), np.nan), {"horizon": 1}, "finite"),
        (lambda frames: np.zeros((4, 3)), {"horizon": 1}, r"returned shape \(4, 3\)"),
        (AHEAD, {"task": ExploreTask(), "pixels": False}, "pixels=True"),
        (lambda frames: np.zeros((1, 3)), {"horizon": 1, "pixels": False}, "a policy looks at frames"),
    ],
)
def test_bad_input_is_named(act, kwargs, said):
    world = MosaicWorld(tiny_model())
    state, _ = world.start(Start(seed=0))
    with pytest.raises(ValueError, match=said):
        imagine(world, state, act, **kwargs)


@pytest.mark.parametrize("horizon", [2.5, True, "2"])
def test_a_horizon_is_a_whole_number(horizon):
    world = CountingWorld()
    world.current_frame = world.step = lambda *given: pytest.fail("something moved")
    state, _ = world.start(Start(seed=0))
    with pytest.raises(TypeError, match=f"horizon is a whole number; got {horizon!r}"):
        imagine(world, state, lambda frames: AHEAD[:1, 0], horizon=horizon)
    with pytest.raises(TypeError, match="horizon is a whole number"):
        imagine(world, state, AHEAD[:, :1], horizon=horizon)


@pytest.mark.parametrize("state", [5, "ab", None, [None], np.zeros(3), CountingWorld()])
def test_what_is_no_state_is_named(state):
    world = CountingWorld()
    world.step = lambda *given: pytest.fail("something moved")
    (named,) = state if isinstance(state, list) else [state]
    with pytest.raises(TypeError, match=f"states, such as env.unwrapped.state; got {type(named).__name__}"):
        imagine(world, state, AHEAD)


def test_a_state_may_be_a_tuple_itself():
    class Tupled(NamedTuple):
        pose: Pose
        step_index: int
        start: Start

    world = CountingWorld()
    state, _ = world.start(Start(seed=0))
    futures = imagine(world, Tupled(state.pose, state.step_index, state.start), AHEAD)
    assert futures["frames"].equal(imagine(world, state, AHEAD)["frames"])


def test_a_task_is_an_object():
    world = CountingWorld()
    with pytest.raises(TypeError, match=r"env.unwrapped.task; got 'explore'"):
        imagine(world, world.start(Start(seed=0))[0], AHEAD, task="explore")


def test_a_world_that_cannot_be_looked_at_or_foreseen_is_named():
    world = CountingWorld()
    state, _ = world.start(Start(seed=0))
    with pytest.raises(TypeError, match=r"CountingWorld has no current_frame\(\): imagining with a policy needs one"):
        imagine(world, state, lambda frames: AHEAD[:1, 0], horizon=2)
    with pytest.raises(TypeError, match=r"no step_latents\(\): imagining with pixels=False"):
        imagine(world, state, AHEAD, pixels=False)


def test_states_and_actions_must_match():
    world = CountingWorld()
    state, _ = world.start(Start(seed=0))
    with pytest.raises(ValueError, match=r"3 states take actions \[3, H, 3\]"):
        imagine(world, [state] * 3, AHEAD)


def test_every_state_is_judged_by_what_the_task_remembers_of_it():
    world, task = CountingWorld(), GoalTask()
    state, view = world.start(Start(seed=0))
    x, z = place_of(view)
    task_states = [{"goal_m": [x + metres, z], "left_m": metres} for metres in (0.2, 3.0)]
    futures = imagine(world, [state] * 2, AHEAD[:1].repeat(2, 0), task=task, task_state=task_states)
    assert futures["terminated"][:, 0].tolist() == [True, False]
    for wrong, said in (
        (None, "GoalTask needs the episode's task state: pass task_state="),
        (task_states[0], "a list with one for each; got a dict"),
        (task_states[:1], "2 states take 2 task states, a list with one for each; got 1"),
    ):
        with pytest.raises(ValueError, match=said):
            imagine(world, [state] * 2, AHEAD[:1].repeat(2, 0), task=task, task_state=wrong)
    with pytest.raises(ValueError, match=r"pass task_state=env.unwrapped.episode.task_state"):
        imagine(world, state, AHEAD, task=task)


def test_the_engine_says_that_it_cannot_imagine():
    world = make_world("doom")
    state, _ = world.start(Start(seed=0))
    with pytest.raises(RuntimeError, match="cannot go back to an earlier state"):
        imagine(world, state, AHEAD)
    world.close()


class Watchable(CountingWorld):
    """A counting world that a policy can look at."""

    def current_frame(self, state):
        return np.zeros((self.height, self.width, 3), np.uint8)


def test_actions_may_be_tensors_of_any_kind():
    world = CountingWorld()
    state, _ = world.start(Start(seed=0))
    expected = imagine(world, state, AHEAD)["pose"]
    for act in (torch.tensor(AHEAD, dtype=torch.bfloat16, requires_grad=True), AHEAD.astype(np.int8), AHEAD.tolist()):
        assert imagine(world, state, act)["pose"].equal(expected)
    ahead = torch.ones(1, 1, requires_grad=True) * torch.tensor([1.0, 0.0, 0.0])
    assert imagine(Watchable(), state, lambda frames: ahead, horizon=3)["pose"].equal(expected[:1])


def test_the_old_spelling_of_a_task_state_warns():
    world, task = CountingWorld(), GoalTask()
    state, view = world.start(Start(seed=0))
    task_state = {"goal_m": [0.5, 3.5], "left_m": 3.0}
    with pytest.warns(DeprecationWarning, match="progress is deprecated: use task_state"):
        old = imagine(world, state, AHEAD, task=task, progress=task_state)
    assert old["reward"].equal(imagine(world, state, AHEAD, task=task, task_state=task_state)["reward"])


def test_the_default_device_changes_no_future():
    """To rounding: torch leaves its fast path for attention where a default device is set."""
    world = MosaicWorld(tiny_model(), atlas=False)
    state, _ = world.start(Start(seed=1))
    usual = imagine(world, state, AHEAD)
    torch.set_default_device("meta")
    try:
        futures = imagine(world, state, AHEAD)
    finally:
        torch.set_default_device(None)
    for name in usual.keys():
        assert futures[name].device.type == "cpu"
        assert torch.allclose(futures[name].double(), usual[name].double(), atol=1 if name == "frames" else 1e-4)
