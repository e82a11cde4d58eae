"""The vector environment: Gymnasium's semantics on a counting world, then on a tiny dream."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics, RecordVideo

from mosaic_gym import ACTIONS, make_world
from mosaic_gym.envs.episode import Rules
from mosaic_gym.envs.members import Members
from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.envs.tasks import ExploreTask, FixedStarts, TaskStep
from mosaic_gym.envs.vector_env import WorldVectorEnv
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.tiny import tiny_model

from .counting_world import CountingWorld, UnequalWorld, same

MODES = pytest.mark.parametrize("mode", list(AutoresetMode))
FORWARD = list(ACTIONS).index("forward")


def counting(count=3, mode=AutoresetMode.NEXT_STEP, max_steps=3, render_mode=None, **faces) -> WorldVectorEnv:
    members = Members(CountingWorld(), count, rules=Rules(max_steps=max_steps), **faces)
    return WorldVectorEnv(members, mode, render_mode)


def indices(observation) -> list[int]:
    """The frame index that each member's picture tells, as a step."""
    return [int(red) // 4 for red in observation[:, 0, 0, 0]]


def test_members_are_seeded_one_by_one():
    env = counting()
    observation, _ = env.reset(seed=5)
    assert observation[:, 0, 0, 1].tolist() == [5, 6, 7]
    observation, _ = env.reset(seed=np.array([9, 4, 3]))
    assert observation[:, 0, 0, 1].tolist() == [9, 4, 3]
    observation, _ = env.reset(seed=[9, None, 3])
    assert observation[:, 0, 0, 1].tolist()[::2] == [9, 3]
    alone = WorldEnv(CountingWorld())
    alone.reset(seed=6), env.reset(seed=5)
    drawn = alone.reset()[0][0, 0, 1]
    assert env.reset()[0][1, 0, 0, 1] == drawn, "a member draws its next seeds as a single environment does"


@MODES
def test_what_becomes_of_a_member_whose_episode_ended(mode):
    env = counting(mode=mode)
    env.reset(seed=0)
    told = []
    for _ in range(5):
        if mode is AutoresetMode.DISABLED and told and all(told[-1][3]):
            break
        observation, rewards, terminated, truncated, infos = env.step([FORWARD] * 3)
        told.append((indices(observation), rewards.tolist(), terminated.tolist(), truncated.tolist()))
    steps = [one[0][0] for one in told]
    over = [one[3][0] for one in told]
    if mode is AutoresetMode.NEXT_STEP:
        assert steps == [1, 2, 3, 0, 1] and over == [False, False, True, False, False]
        assert told[3][1] == [0.0] * 3
    elif mode is AutoresetMode.SAME_STEP:
        assert steps == [1, 2, 0, 1, 2] and over == [False, False, True, False, False]
    else:
        assert steps == [1, 2, 3]
        with pytest.raises(ResetNeeded, match="member 0 has ended"):
            env.step([FORWARD] * 3)


class SecondStep(ExploreTask):
    """Asks for a second step."""

    def evaluate(self, task_state, view):
        return TaskStep(task_state, 1.0, False, success=bool(view.depth_m[0, 0] == 2))


@MODES
def test_members_end_apart_and_none_touches_another(mode):
    # The judge is Gymnasium's own vector, of as many environments, each with a world of its own.
    faces = {"rules": Rules(max_steps=3), "task": SecondStep(), "observation": "dict"}
    ours = WorldVectorEnv(Members(UnequalWorld(), 4, **faces), mode)
    theirs = SyncVectorEnv([lambda: WorldEnv(UnequalWorld(), **faces)] * 4, autoreset_mode=mode)
    assert same(ours.reset(seed=5), theirs.reset(seed=5))
    rng, over, ends = np.random.default_rng(0), np.zeros(4, bool), set()
    for step in range(40):
        mask = over if mode is AutoresetMode.DISABLED else over & (np.cumsum(over) == 1) & (over.sum() > 1)
        if mask.any():  # of those that are over, or the first of several: the others begin anew by themselves
            resets = [env.reset(options={"reset_mask": mask.copy()}) for env in (ours, theirs)]
            assert same(*resets), f"before step {step}"
        actions = rng.integers(0, len(ACTIONS), 4)
        if mode is AutoresetMode.NEXT_STEP:
            actions[over & ~mask] = -1
        told = ours.step(actions)
        assert same(told, theirs.step(actions)), f"step {step}"
        over = told[2] | told[3]
        ends.add(int(over.sum()))
    assert ends >= {0, 1, 2}, "one at a time, and several together"


@pytest.mark.parametrize(("action_space", "none"), [("discrete", -1), ("continuous", np.nan)])
def test_the_action_of_a_member_that_begins_anew_is_not_looked_at(action_space, none):
    env = WorldVectorEnv(Members(UnequalWorld(), 2, action_space=action_space))
    env.reset(seed=[0, 3])  # of one step, and of four
    act = np.zeros((2, *env.single_action_space.shape), env.single_action_space.dtype)
    assert env.step(act)[2].tolist() == [True, False]
    act[1] = none
    before = list(env.members.episodes)
    with pytest.raises(ValueError, match="action"):
        env.step(act)
    assert all(one is other for one, other in zip(env.members.episodes, before, strict=True))
    act[1], act[0] = 0, none
    assert indices(env.step(act)[0]) == [0, 2]
    env.restore([env.snapshot()[1]] * 2)  # of which neither is over
    with pytest.raises(ValueError, match="action"):
        env.step(act)


@pytest.mark.parametrize(
    ("task", "asks"),
    [
        ("explore", False),
        ("simulator", False),
        ("goal", True),
        (FixedStarts("explore", 2), False),
        (SecondStep(), True),
    ],
)
def test_only_of_tasks_that_can_succeed_it_is_told_whether_they_did(task, asks):
    # Stable-Baselines3 would count a success rate of 0 for others.
    env = counting(task=task, observation="dict")
    _, infos = env.reset(seed=0)
    assert ("is_success" in infos) == (task == "goal"), "whose place is not reached yet; of others nothing is known"
    for step in (1, 2):
        *_, infos = env.step([FORWARD] * 3)
        assert ("is_success" in infos) == ("_is_success" in infos) == asks
        if asks:
            assert infos["_is_success"].all() and infos["is_success"].dtype == bool
        if isinstance(task, SecondStep):
            assert infos["is_success"].tolist() == [step == 2] * 3


def test_same_step_keeps_the_end():
    env = counting(mode="SameStep")
    env.reset(seed=0)
    for _ in range(3):
        *_, infos = env.step([FORWARD] * 3)
    assert infos["_final_obs"].all()
    assert [int(final[0, 0, 0]) // 4 for final in infos["final_obs"]] == [3, 3, 3]
    assert infos["final_info"]["step_index"].tolist() == [3, 3, 3] and infos["step_index"].tolist() == [0, 0, 0]


def test_a_mask_resets_some_and_leaves_the_others():
    env = counting(mode="Disabled")
    env.reset(seed=0)
    env.step([FORWARD] * 3)
    observation, infos = env.reset(seed=[7, 8, 9], options={"reset_mask": np.array([False, True, False])})
    assert indices(observation) == [1, 0, 1] and observation[:, 0, 0, 1].tolist() == [0, 8, 2]
    assert infos["_step_index"].tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (np.array([True, False]), ValueError),
        (np.array([False] * 3), ValueError),
        (np.array([1, 0, 1]), TypeError),
        ([True, True, True], TypeError),
        (None, TypeError),
    ],
)
def test_a_wrong_mask_changes_nothing(mask, kind):
    env = counting()
    env.reset(seed=0)
    env.step([FORWARD] * 3)
    before = list(env.members.episodes)
    with pytest.raises(kind, match=r"reset_mask.*shape \(3,\)"):
        env.reset(options={"reset_mask": mask})
    assert all(one is other for one, other in zip(env.members.episodes, before, strict=True))


def test_a_reset_that_fails_leaves_what_is_drawn_next(monkeypatch):
    env = counting()
    env.reset(seed=0)
    before = [snapshot.generator for snapshot in env.snapshot()]

    def fail(*_):
        raise ValueError("no such start")

    monkeypatch.setattr(env.members.world, "start", fail)
    for seed in (None, 5):
        with pytest.raises(ValueError, match="no such start"):
            env.reset(seed=seed)
    assert [snapshot.generator for snapshot in env.snapshot()] == before


class SometimesUnable(ExploreTask):
    """A task whose scenes cannot always be set."""

    able = True

    def sample_start_and_goal(self, world, starts):
        if not self.able:
            raise RuntimeError("no such scene")
        return super().sample_start_and_goal(world, starts)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_step_that_cannot_begin_a_member_anew_moves_nobody(mode):
    task = SometimesUnable()
    env = counting(mode=mode, max_steps=2, task=task)
    env.reset(seed=0)
    env.step([FORWARD] * 3)
    if mode is AutoresetMode.NEXT_STEP:
        env.step([FORWARD] * 3)
    before, generators = list(env.members.episodes), [kept.generator for kept in env.snapshot()]
    task.able = False
    for _ in range(2):  # and not only once
        with pytest.raises(RuntimeError, match="no such scene"):
            env.step([FORWARD] * 3)
        assert all(one is other for one, other in zip(env.members.episodes, before, strict=True))
    assert [kept.generator for kept in env.snapshot()] == generators
    task.able = True
    env.step([FORWARD] * 3)
    assert all(episode.steps == 0 for episode in env.members.episodes)


def test_an_episode_that_is_over_is_not_restored_where_it_would_never_begin_anew():
    env = counting(mode=AutoresetMode.DISABLED, max_steps=1)
    env.reset(seed=0)
    env.step([FORWARD] * 3)
    over, other = env.snapshot(), counting(mode=AutoresetMode.SAME_STEP, max_steps=1)
    other.reset(seed=0)
    with pytest.raises(ValueError, match=r"members \[0, 1, 2\] are of episodes that have ended"):
        other.restore(over)
    other.step([FORWARD] * 3)


def test_the_face_says_how_it_was_seeded():
    env = counting()
    env.reset(seed=5)
    assert env.np_random_seed == 5


def test_a_fork_further_on_than_the_limit_is_cut_off():
    members = Members(CountingWorld(), 1, rules=Rules(max_steps=4))
    members.reset([0], [1])
    members.episodes[0] = replace(members.episodes[0], steps=5)
    (after,) = members.step_episodes([0], np.zeros((1, 3)))
    assert after.truncated and members.episodes[0].steps == 5, "until it is kept"


def test_wrong_numbers_are_named_before_anything_moves():
    env = counting()
    env.reset(seed=0)
    before = list(env.members.episodes)
    for actions, said in (
        ([FORWARD] * 2, "3 members take 3 actions; got 2"),
        ([0, 1, 99], "integer from 0 to 8"),
        (5, "3 members take 3 actions, one each; got 5"),
        (None, "3 members take 3 actions, one each; got None"),
        (np.array(5), r"3 members take 3 actions, one each; got array\(5\)"),
    ):
        with pytest.raises(ValueError, match=said):
            env.step(actions)
    with pytest.raises(ValueError, match="3 members take 3 seeds; got 2"):
        env.reset(seed=[1, 2])
    for seed in (1.5, -1, True, {}, [0, 1.5, 2], [0, "1", 2]):
        with pytest.raises(ValueError, match="a seed is a whole number from 0, or None; got"):
            env.reset(seed=seed)
    with pytest.raises(ValueError, match="a seed is a whole number from 0, or None; got 'a'"):
        env.reset(seed=["a", 1, 2], options={"reset_mask": np.array([False, True, True])})
    with pytest.raises(TypeError, match="options are a dict"):
        env.reset(options=["image"])
    for n in ("3", True, 2.5, None):
        with pytest.raises(ValueError, match=f"the number of forks is a whole number from 1; got {n!r}"):
            env.fork(n)
    with pytest.raises(ValueError, match="3 members take 3 snapshots; got 1"):
        env.restore(env.snapshot()[:1])
    with pytest.raises(TypeError, match="a list of 3 snapshots; got Snapshot"):
        env.restore(env.snapshot()[0])
    for count in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"num_envs is a whole number from 1; got {count}"):
            counting(count=count)
    assert all(one is other for one, other in zip(env.members.episodes, before, strict=True))


def test_the_first_reset_is_of_all():
    env = counting()
    with pytest.raises(ValueError, match=r"members \[1, 2\] have never been reset"):
        env.reset(seed=0, options={"reset_mask": np.array([True, False, False])})
    assert env.members.episodes == [None] * 3
    shown = counting(render_mode="rgb_array")
    for act in (lambda: shown.step([FORWARD] * 3), shown.render, shown.snapshot):
        with pytest.raises(ResetNeeded, match=r"members \[0, 1, 2\] have not started"):
            act()


def test_lost_in_the_unknown_is_cut_off():
    # The counting world covers 1 - 1 / (2 + step) of its views.
    env = WorldEnv(CountingWorld(), rules=Rules(min_coverage=0.8, min_coverage_patience=2))
    env.reset(seed=0)
    assert [env.step(FORWARD)[3] for _ in range(2)] == [False, True]
    for world, least in ((CountingWorld(), 0.6), (OnItsMap(), 0.8)):
        env = WorldEnv(world, rules=Rules(min_coverage=least, min_coverage_patience=2))
        env.reset(seed=0)
        assert not any(env.step(FORWARD)[3] for _ in range(5))


class Flickering(CountingWorld):
    """Covers much or little of its views, step by step."""

    covered = (0.9, 0.1, 0.9, 0.1, 0.1, 0.9)

    def step(self, states, actions):
        states, views = super().step(states, actions)
        covered = [self.covered[state.step_index % len(self.covered)] for state in states]
        return states, [replace(view, coverage=share) for view, share in zip(views, covered, strict=True)]


def test_patience_is_of_steps_on_end():
    env = WorldEnv(Flickering(), rules=Rules(min_coverage=0.5, min_coverage_patience=2))
    env.reset(seed=0)
    assert [env.step(FORWARD)[3] for _ in range(4)] == [False, False, False, True], "covered in between, counted anew"


class OnItsMap(CountingWorld):
    """Knows by heart what it does not remember."""

    def step(self, states, actions):
        states, views = super().step(states, actions)
        return states, [replace(view, on_map=True) for view in views]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"min_coverage": True}, "min_coverage is a finite number above 0 and up to 1, or None; got True"),
        ({"min_coverage": "0.5"}, "min_coverage is a finite number above 0 and up to 1"),
        ({"max_steps": True}, "max_steps is a whole number from 1, or None; got True"),
        ({"min_coverage_patience": True}, "min_coverage_patience is a whole number from 1; got True"),
    ],
)
def test_rules_are_numbers(rules, said):
    with pytest.raises(ValueError, match=said):
        Rules(**rules)


def test_gymnasiums_wrappers_work(tmp_path):
    env = RecordEpisodeStatistics(counting(render_mode="rgb_array"))
    env.reset(seed=0)
    for _ in range(3):
        *_, infos = env.step([FORWARD] * 3)
    assert infos["episode"]["l"].tolist() == [3, 3, 3]
    recorded = {"episode_trigger": lambda i: i == 0, "video_aspect_ratio": (1, 1)}
    env = RecordVideo(counting(render_mode="rgb_array"), str(tmp_path), **recorded)
    env.reset(seed=0)
    for _ in range(4):
        env.step([FORWARD] * 3)
    env.close()
    assert list(tmp_path.glob("*.mp4"))


def test_forks_of_one_become_members_of_many():
    alone = WorldEnv(CountingWorld())
    alone.reset(seed=4)
    alone.step(FORWARD)
    env = counting()
    observation, _ = env.restore(alone.fork(3))
    assert indices(observation) == [1, 1, 1] and observation[:, 0, 0, 1].tolist() == [4, 4, 4]


def test_forks_of_forks_begin_other_episodes_too():
    alone = WorldEnv(CountingWorld())
    alone.reset(seed=4)
    env = counting(count=3)
    env.restore(alone.fork(3))
    once, again = env.fork(2), env.fork(2)  # without a step in between
    alone.step(FORWARD)
    living = [kept for pair in zip(once, again, strict=True) for kept in (*pair[0], *pair[1][1:])]
    living += alone.fork(2)[1:]
    many = counting(count=len(living), max_steps=None)
    many.restore(living)
    many.reset()
    seeds = [episode.state.start.seed for episode in many.members.episodes]
    assert len(set(seeds)) == len(seeds)


def test_every_member_forks():
    env = counting(count=2)
    env.reset(seed=4)
    env.step([FORWARD] * 2)
    forks = env.fork(3)
    assert [len(each) for each in forks] == [3, 3]
    assert [each[0].episode.state.start.seed for each in forks] == [4, 5]
    env.step([FORWARD] * 2)
    observation, _ = env.restore([forks[1][0], forks[1][1]])
    assert indices(observation) == [1, 1] and observation[:, 0, 0, 1].tolist() == [5, 5]
    with pytest.raises(ValueError, match="the number of forks is a whole number from 1; got 0"):
        env.fork(0)
    with pytest.raises(ResetNeeded, match=r"members \[0, 1, 2\] have not started"):
        counting().fork(1)


def test_all_members_are_saved_in_one_file_and_go_on_bit_for_bit(tmp_path):
    def tiny(count):
        return WorldVectorEnv(Members(MosaicWorld(tiny_model()), count, rules=Rules(max_steps=4)))

    env, actions = tiny(3), np.random.default_rng(0).integers(0, len(ACTIONS), (5, 3))
    env.reset(seed=20)
    env.step(actions[0])
    # One member goes on from where another is: what they share is written once.
    first, _, third = env.snapshot()
    env.restore([first, first, third])
    env.save(tmp_path / "three")
    lone = tiny(1)
    lone.restore([first])
    lone.save(tmp_path / "one")
    assert (tmp_path / "three").stat().st_size < 2.5 * (tmp_path / "one").stat().st_size
    later = [env.step(row)[0] for row in actions]  # over the end of the episodes, into those drawn after them
    other = tiny(3)
    observation, infos = other.load(tmp_path / "three")
    assert infos["step_index"].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(observation[0], first.episode.view.frames[-1])
    for row, seen in zip(actions, later, strict=True):
        np.testing.assert_array_equal(other.step(row)[0], seen)
    alone = WorldEnv(MosaicWorld(tiny_model()))
    np.testing.assert_array_equal(alone.load(tmp_path / "one")[0], observation[0])
    before = list(other.members.episodes)
    for path, said in ((tmp_path / "one", "holds 1 members"), (tmp_path / "two", "holds 2 members")):
        if path.name == "two":
            two = tiny(2)
            two.restore([first, third])
            two.save(path)
        with pytest.raises(ValueError, match=said):
            other.load(path)
    assert all(one is kept for one, kept in zip(other.members.episodes, before, strict=True))


def test_the_engine_cannot_be_many_members():
    world = make_world("doom")
    with pytest.raises(RuntimeError, match="vectorization_mode='sync'"):
        Members(world, 2)
    world.close()


def test_the_registered_dream_is_one_batched_environment():
    mode = AutoresetMode.SAME_STEP
    env = gym.make_vec("MosaicWorld-v0", num_envs=2, observation="dict", autoreset_mode=mode, max_episode_steps=2)
    assert isinstance(env, WorldVectorEnv) and env.metadata["autoreset_mode"] is mode
    observation, _ = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    for _ in range(2):
        observation, _, _, truncated, _ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation) and truncated.all()
    env.close()


def test_a_member_walks_as_it_would_alone():
    world = MosaicWorld(tiny_model())
    env = WorldVectorEnv(Members(world, 3, rules=Rules(max_steps=4)), AutoresetMode.NEXT_STEP)
    rng = np.random.default_rng(0)
    actions = rng.integers(0, len(ACTIONS), (6, 3))
    env.reset(seed=20)
    together = [env.step(row)[0][1] for row in actions]
    alone = WorldEnv(world, rules=Rules(max_steps=4))
    alone.reset(seed=21)
    for step, row in enumerate(actions):
        frame = alone.reset()[0] if step == 4 else alone.step(row[1])[0]
        assert np.abs(frame.astype(int) - together[step].astype(int)).max() <= 1, f"step {step}"
