"""Stable-Baselines3's face: its VecEnv contract, and learning on a tiny, solvable world."""

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecTransposeImage

from mosaic_gym import ACTIONS
from mosaic_gym.envs.episode import Rules
from mosaic_gym.envs.members import Members
from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.envs.sb3 import MosaicVecEnv, make_sb3
from mosaic_gym.envs.vector_env import make_learned_vector_env

from .counting_world import CountingWorld, UnequalWorld, same

FORWARD = list(ACTIONS).index("forward")


def counting(count=3, max_steps=3, last_step=1000, **faces) -> MosaicVecEnv:
    return MosaicVecEnv(Members(CountingWorld(last_step=last_step), count, rules=Rules(max_steps), **faces))


@pytest.mark.parametrize(("last_step", "cut"), [(1000, True), (3, False)])
def test_an_end_keeps_its_observation_and_begins_anew(last_step, cut):
    env = counting(last_step=last_step)
    env.seed(5)
    assert env.reset()[:, 0, 0, 1].tolist() == [5, 6, 7]
    for _ in range(3):
        observation, rewards, dones, infos = env.step(np.full(3, FORWARD))
    assert dones.all() and rewards.dtype == np.float32
    assert [info["terminal_observation"][0, 0, 0] for info in infos] == [15, 15, 15]
    assert [info["TimeLimit.truncated"] for info in infos] == [cut] * 3
    assert observation[:, 0, 0, 0].tolist() == [3, 3, 3]


def test_members_end_apart_and_none_touches_another():
    # The judge is Stable-Baselines3's own vector, of as many environments, each with a world of its own.
    faces = {"rules": Rules(max_steps=3), "observation": "dict"}
    ours = MosaicVecEnv(Members(UnequalWorld(), 4, **faces))
    theirs = DummyVecEnv([lambda: WorldEnv(UnequalWorld(), **faces)] * 4)
    rng, ends = np.random.default_rng(0), set()
    for seed in (5, None):  # of the second reset every member draws its own
        if seed is not None:
            ours.seed(seed), theirs.seed(seed)
        assert same(ours.reset(), theirs.reset()) and same(ours.reset_infos, theirs.reset_infos)
        for step in range(20):
            actions = rng.integers(0, len(ACTIONS), 4)
            told = ours.step(actions)
            assert same(told, theirs.step(actions)), f"step {step}"
            assert same(ours.reset_infos, theirs.reset_infos), f"step {step}"
            ends.add(int(told[2].sum()))
    assert ends >= {0, 1, 2}, "one at a time, and several together"


def test_dict_observations_are_stacked_by_key():
    env = counting(observation="dict")
    observation = env.reset()
    assert {key: value.shape for key, value in observation.items()} == {
        "image": (3, 40, 64, 3), "depth": (3, 40, 64), "pose": (3, 4, 4), "goal": (3, 40, 64, 3),
    }  # fmt: skip


def test_attributes_and_methods_of_members():
    env = counting()
    env.reset()
    env.step(np.full(3, FORWARD))
    assert env.get_attr("steps") == [1, 1, 1] and env.get_attr("steps", indices=[2]) == [1]
    assert [info["step_index"] for info in env.env_method("info", indices=[0, 1])] == [1, 1]
    assert env.env_is_wrapped(VecMonitor) == [False] * 3
    assert env.get_attr("render_mode") == [None] * 3 and env.get_attr("world", 0) == [env.members.world]
    env.set_attr("rules", Rules(max_steps=9))
    assert env.members.rules.max_steps == 9 and env.get_attr("rules", [1]) == [env.members.rules]
    assert same(env.get_attr("info", [1])[0](), env.env_method("info", indices=[1])[0])
    assert all(env.has_attr(name) for name in ("steps", "task", "render_mode", "fork"))
    assert not any(env.has_attr(name) for name in ("episodes", "set_episodes", "action_masks"))
    assert counting().has_attr("steps")
    with pytest.raises(ResetNeeded, match=r"members \[0\] have not started"):
        counting().get_attr("steps")
    with pytest.raises(AttributeError, match="no attribute 'episodes'; they have action_space, ended, forks, goal"):
        env.get_attr("episodes")


def test_what_members_share_is_checked_when_it_is_set():
    env = counting()
    env.reset()
    before = list(env.members.episodes)
    for name, value, kind, said in (
        ("task", "goal", ValueError, "GoalTask puts its goal into the observation: use observation='dict'"),
        ("task", "fly", ValueError, "unknown task 'fly'"),
        ("task", 5, TypeError, "a task is one of"),
        ("rules", 5, TypeError, "Rules; got 5"),
        ("prompt", "a cave", AttributeError, "no attribute 'prompt' to set"),
        ("steps", 0, AttributeError, "no attribute 'steps' to set; they have rules, task"),
        ("observation_space", None, AttributeError, "no attribute 'observation_space' to set"),
    ):
        with pytest.raises(kind, match=said):
            env.set_attr(name, value)
    with pytest.raises(ValueError, match="set for all of them only"):
        env.set_attr("rules", Rules(), indices=[0])
    assert all(one is other for one, other in zip(env.members.episodes, before, strict=True))
    env.step(np.full(3, FORWARD))


def test_another_task_is_for_episodes_to_come():
    env = counting(observation="dict", task="goal")
    env.reset()
    env.set_attr("task", "explore")
    with pytest.raises(ResetNeeded, match="reset them first"):
        env.step(np.full(3, FORWARD))
    env.set_options({"goal": np.full((40, 64, 3), 9, np.uint8)})  # which the task before drew itself
    assert (env.reset()["goal"] == 9).all()
    assert "is_success" not in env.step(np.full(3, FORWARD))[3][0]


def test_every_member_keeps_and_restores_its_own(tmp_path):
    env = counting()
    env.seed(5)
    env.reset()
    kept = env.env_method("snapshot")
    assert [snapshot.episode.state.start.seed for snapshot in kept] == [5, 6, 7]
    env.step(np.full(3, FORWARD))
    ((seen, info),) = env.env_method("restore", kept[2], indices=[1])
    assert seen[0, 0, 1] == 7 and info["step_index"] == 0
    assert env.get_attr("steps") == [1, 0, 1]
    forks = env.env_method("fork", 2, indices=[0, 1])
    assert [[one.episode.steps for one in each] for each in forks] == [[1, 1], [0, 0]]
    env.env_method("save", tmp_path / "member", indices=[0])
    ((seen, info),) = env.env_method("load", tmp_path / "member", indices=[2])
    assert seen[0, 0, 1] == 5 and info["step_index"] == 1
    ((seen, info),) = env.env_method("reset", seed=9, indices=[0])
    assert seen[0, 0, 1] == 9 and info["step_index"] == 0 and env.get_attr("steps") == [0, 0, 1]
    with pytest.raises(AttributeError, match="no method 'fly'; they have fork, info, load, prompt_now, reset, restore"):
        env.env_method("fly")


def test_options_are_for_the_next_reset_only_and_may_differ_by_member():
    env = counting(observation="dict")
    image = np.full((40, 64, 3), 9, np.uint8)
    env.set_options({"image": image})
    assert (env.reset()["image"] == 9).all()
    assert not (env.reset()["image"] == 9).all(axis=(1, 2, 3)).any()
    env.set_options([{"goal": image}, {}, {"image": image}])
    seen = env.reset()
    assert (seen["goal"][0] == 9).all() and not (seen["image"][0] == 9).all()
    assert not (seen["goal"][1] == 9).all() and (seen["image"][2] == 9).all()
    before = list(env.members.episodes)
    for options, said in (({"imaeg": image}, "unknown reset option 'imaeg'"), ([{}, {}], "or 3; got 2")):
        env.set_options(options)
        with pytest.raises(ValueError, match=said):
            env.reset()
    assert all(one is other for one, other in zip(env.members.episodes, before, strict=True))


def test_a_bad_action_moves_nothing():
    env = counting()
    env.reset()
    before = list(env.members.episodes)
    with pytest.raises(ValueError, match="3 members take 3 actions"):
        env.step_async(np.zeros(2, int))
    with pytest.raises(RuntimeError, match="call step_async"):
        env.step_wait()
    env.step_async(np.full(3, FORWARD))
    for bad in (np.zeros(2, int), 5, None, [0, 1, 99]):
        with pytest.raises(ValueError, match="action"):
            env.step_async(bad)
        with pytest.raises(RuntimeError, match="call step_async"):  # nor are those before it taken
            env.step_wait()
    assert all(one is other for one, other in zip(env.members.episodes, before, strict=True))


def test_a_reset_forgets_the_actions_that_were_pending():
    env = counting()
    env.reset()
    env.step_async(np.full(3, FORWARD))
    env.reset()
    with pytest.raises(RuntimeError, match="call step_async"):
        env.step_wait()


def test_videos_are_played_as_fast_as_a_single_worlds():
    assert counting().metadata["render_fps"] == WorldEnv.metadata["render_fps"]
    with pytest.raises(ResetNeeded):
        counting().get_images()


def test_the_dream_goes_through_sb3s_image_wrapper():
    env = VecTransposeImage(make_sb3(2, max_episode_steps=2))
    env.seed(0)
    assert env.reset().shape == (2, 3, 64, 64)
    observation, *_ = env.step(np.zeros(2, int))
    assert observation.dtype == np.uint8
    env.close()


class WalkOnTask:
    """A metre ahead is a point: a world whose best policy is known."""

    samples_goal = False

    def sample_start_and_goal(self, world, starts):
        from mosaic_gym.envs.tasks import ExploreTask

        return ExploreTask().sample_start_and_goal(world, starts)

    def initial_task_state(self, sample):
        return float(sample.view.world_from_camera[-1, 2, 3])

    def evaluate(self, task_state, view):
        from mosaic_gym.envs.tasks import TaskStep

        here = float(view.world_from_camera[-1, 2, 3])
        return TaskStep(here, here - task_state, False)


def episode_returns(env: MosaicVecEnv, choose, episodes: int) -> np.ndarray:
    observation, total, told = env.reset(), np.zeros(env.num_envs), []
    while len(told) < episodes:
        observation, rewards, dones, _ = env.step(choose(observation))
        total += rewards
        told += total[dones].tolist()
        total[dones] = 0.0
    return np.array(told[:episodes])


def test_ppo_beats_random_where_the_best_policy_is_known():
    faces = {"action_space": "continuous", "task": WalkOnTask()}
    members = Members(CountingWorld(height=36, width=36), 8, rules=Rules(max_steps=8), **faces)
    env = VecTransposeImage(MosaicVecEnv(members))
    env.seed(0)
    model = PPO("CnnPolicy", env, n_steps=16, batch_size=64, n_epochs=4, learning_rate=1e-3, seed=0, device="cpu")
    model.learn(2048)
    rng = np.random.default_rng(0)
    trained = episode_returns(env, lambda seen: model.predict(seen, deterministic=True)[0], 24)
    random = episode_returns(env, lambda seen: rng.uniform(-1, 1, (8, 3)), 24)
    assert trained.mean() > random.mean() + 2 * (trained.std() + random.std()) / np.sqrt(24)


@pytest.mark.parametrize("make", [make_sb3, make_learned_vector_env])
def test_a_render_mode_there_is_not_is_refused_before_a_world_is_loaded(make):
    with pytest.raises(ValueError, match="render_mode of a vector environment"):
        make(2, checkpoint="no such checkpoint", render_mode="human")


def test_an_autoreset_mode_there_is_not_is_refused_before_a_world_is_loaded():
    with pytest.raises(ValueError, match="never is not a valid AutoresetMode|'never'"):
        make_learned_vector_env(2, checkpoint="no such checkpoint", autoreset_mode="never")
