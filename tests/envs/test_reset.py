"""Resets: seeds of every kind, options, snapshots through wrappers, and episodes that survive a refused reset."""

from types import MappingProxyType

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics
from stable_baselines3.common.monitor import Monitor

from mosaic_gym import ACTIONS, pose_at
from mosaic_gym.envs.episode import Rules
from mosaic_gym.envs.members import Members
from mosaic_gym.envs.mosaic_env import WorldEnv, make_simulator_env
from mosaic_gym.envs.sb3 import MosaicVecEnv
from mosaic_gym.envs.vector_env import WorldVectorEnv
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.tiny import tiny_model

from .counting_world import CountingWorld, same

FORWARD = list(ACTIONS).index("forward")
PITCHED = np.array([[1, 0, 0, 0.5], [0, 0.8, -0.6, 0], [0, 0.6, 0.8, 0.5], [0, 0, 0, 1.0]])
SEEDS = [3, np.int64(3), np.uint8(3), np.int32(3), np.array(3), torch.tensor(3)]
NO_SEEDS = [-1, 3.0, np.float64(3), True, np.True_, "3", [3], np.array([3]), torch.tensor([3]), torch.tensor(3.0)]


@pytest.mark.parametrize("seed", SEEDS, ids=repr)
def test_whole_numbers_of_every_kind_are_seeds(seed):
    env, envs = WorldEnv(CountingWorld()), WorldVectorEnv(Members(CountingWorld(), 2))
    assert env.reset(seed=seed)[0][0, 0, 1] == 3 and env.np_random_seed == 3
    assert type(env.state.start.seed) is int
    assert envs.reset(seed=seed)[0][:, 0, 0, 1].tolist() == [3, 4]
    assert env.reset()[0][0, 0, 1] == envs.reset()[0][0, 0, 0, 1]


@pytest.mark.parametrize("seed", NO_SEEDS, ids=repr)
def test_what_is_no_seed_changes_nothing(seed):
    env = WorldEnv(CountingWorld())
    env.reset(seed=1)
    episode, generator = env.episode, env.np_random.bit_generator.state
    with pytest.raises(ValueError, match="a seed is a whole number from 0, or None; got"):
        env.reset(seed=seed)
    assert env.episode is episode and env.np_random.bit_generator.state == generator


def test_seeds_may_be_larger_than_any_machine_word():
    frames = [WorldEnv(MosaicWorld(tiny_model())).reset(seed=seed)[0] for seed in (2**70, 2**70, 2**70 + 1)]
    assert np.array_equal(frames[0], frames[1])


def test_the_simulators_episode_survives_every_refused_reset():
    env = make_simulator_env()
    env.reset(seed=0)
    step = 0
    for kwargs, kind in (
        *(({"seed": seed}, ValueError) for seed in (-1, 3.0, True, "3", np.array([3]))),
        *(({"seed": 5, "options": options}, TypeError) for options in (5, "pose", [], [("pose", 1)])),
        ({"options": {"pose": PITCHED}}, ValueError),
        ({"options": {"pose": np.full((4, 4), np.nan)}}, ValueError),
        ({"options": {"pose": pose_at(500.0, 0.0, 500.0, 0.0).world_from_camera}}, ValueError),
        ({"options": {"image": np.zeros((64, 64, 3), np.uint8)}}, ValueError),
        ({"options": {"snapshot": "here"}}, ValueError),
        ({"options": {"imaeg": None}}, ValueError),
    ):
        with pytest.raises(kind):
            env.reset(**kwargs)
        step += 1
        assert env.step(0)[4]["step_index"] == step, kwargs
    for seed in (np.int64(3), 2**70):
        assert env.reset(seed=seed)[1]["step_index"] == 0
    env.close()


def test_options_are_any_mapping_and_images_any_strides():
    env = WorldEnv(CountingWorld(), observation="dict")
    bgr = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    bgr.setflags(write=False)
    options = MappingProxyType({"image": bgr[..., ::-1], "goal": bgr[::-1, ::-1], "pose": torch.eye(4)})
    observation, info = env.reset(options=options)
    np.testing.assert_array_equal(observation["image"], bgr[..., ::-1])
    np.testing.assert_array_equal(observation["goal"], bgr[::-1, ::-1])
    np.testing.assert_array_equal(info["pose"], np.eye(4))
    start = env.state.start
    assert start.image.flags.c_contiguous and env.episode.goal.flags.c_contiguous and start.image.flags.writeable
    learned = WorldEnv(MosaicWorld(tiny_model()))
    bgr = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    flipped = learned.reset(seed=0, options={"image": bgr[..., ::-1]})[0]
    np.testing.assert_array_equal(flipped, learned.reset(seed=0, options={"image": bgr[..., ::-1].copy()})[0])


ACTION_KINDS = [
    FORWARD,
    np.int8(FORWARD),
    np.array(FORWARD),
    torch.tensor(FORWARD),
    torch.tensor(FORWARD).to(torch.int8),
]


@pytest.mark.parametrize("action", ACTION_KINDS, ids=repr)
def test_discrete_actions_of_every_kind(action):
    env = WorldEnv(CountingWorld())
    env.reset(seed=0)
    assert env.step(action)[4]["pose"][2, 3] > 0.5
    with pytest.raises(ValueError, match="an integer from 0 to 8"):
        env.step(torch.tensor([1]))


@pytest.mark.parametrize(
    "action",
    [
        [1, 0, 0],
        (1.0, 0.0, 0.0),
        np.array([1, 0, 0], np.int8),
        torch.tensor([1.0, 0.0, 0.0], requires_grad=True),
        torch.tensor([1.0, 0.0, 0.0], dtype=torch.bfloat16),
    ],
    ids=repr,
)
def test_continuous_actions_of_every_kind(action):
    env = WorldEnv(CountingWorld(), action_space="continuous")
    env.reset(seed=0)
    assert env.step(action)[4]["pose"][2, 3] > 0.5


def test_batches_of_actions_may_be_tensors():
    envs = WorldVectorEnv(Members(CountingWorld(), 2))
    envs.reset(seed=0)
    assert (envs.step(torch.full((2,), FORWARD))[4]["pose"][:, 2, 3] > 0.5).all()
    envs = MosaicVecEnv(Members(CountingWorld(), 2, action_space="continuous"))
    envs.reset()
    assert all(info["pose"][2, 3] > 0.5 for info in envs.step(torch.tensor([[1.0, 0.0, 0.0]] * 2))[3])


def saved(tmp_path, steps=2):
    """An environment after some steps, and the file of its snapshot."""
    env = WorldEnv(MosaicWorld(tiny_model()))
    env.reset(seed=3)
    for _ in range(steps):
        env.step(FORWARD)
    env.save(tmp_path / "here.safetensors")
    return env, tmp_path / "here.safetensors"


def test_a_snapshot_is_a_reset_option_that_wrappers_understand(tmp_path):
    gym.register("TinyWorld-v0", entry_point=lambda: WorldEnv(MosaicWorld(tiny_model())), max_episode_steps=3)
    try:
        env, path = saved(tmp_path)
        snapshot = env.snapshot()
        future = [env.step(FORWARD)[0] for _ in range(3)]
        next_episode = env.reset()[0]
        for value in (path, str(path), snapshot):
            wrapped = Monitor(RecordEpisodeStatistics(gym.make("TinyWorld-v0")))
            observation, info = wrapped.reset(options={"snapshot": value})
            np.testing.assert_array_equal(observation, snapshot.episode.view.frames[-1])
            assert info["step_index"] == 2
            steps = [wrapped.step(FORWARD) for _ in range(3)]
            for step, frame in zip(steps, future, strict=True):
                np.testing.assert_array_equal(step[0], frame)
            assert [step[3] for step in steps] == [False, False, True], "TimeLimit counts from the reset"
            assert steps[-1][4]["episode"]["l"] == 3
            np.testing.assert_array_equal(wrapped.reset()[0], next_episode)
    finally:
        del gym.registry["TinyWorld-v0"]


def test_a_snapshot_that_cannot_be_continued_changes_nothing(tmp_path):
    env, path = saved(tmp_path)
    episode = env.episode
    ended = WorldEnv(env.world, rules=Rules(max_steps=1))
    ended.reset(seed=0), ended.step(0)
    image = np.zeros((32, 48, 3), np.uint8)
    for kwargs, kind, message in (
        ({"seed": 1, "options": {"snapshot": path}}, ValueError, "reset with a snapshot or a seed"),
        ({"options": {"snapshot": path, "image": image}}, ValueError, r"options\['snapshot'\], or with image"),
        ({"options": {"snapshot": ended.snapshot()}}, ValueError, "of an episode that has ended"),
        ({"options": {"snapshot": 5}}, TypeError, "snapshot"),
        ({"options": {"snapshot": tmp_path / "nothing"}}, FileNotFoundError, "nothing"),
        ({"options": {"snapshot": saved_elsewhere(tmp_path)}}, ValueError, "another checkpoint"),
    ):
        with pytest.raises(kind, match=message):
            env.reset(**kwargs)
        assert env.episode is episode


def saved_elsewhere(tmp_path):
    other = WorldEnv(MosaicWorld(tiny_model(seed=1)))
    other.reset(seed=0)
    other.save(tmp_path / "other.safetensors")
    return tmp_path / "other.safetensors"


def test_one_snapshot_is_forked_for_all_members(tmp_path):
    env, path = saved(tmp_path)
    frame = env.step(FORWARD)[0]
    envs = RecordVectorStatistics(WorldVectorEnv(Members(env.world, 3)))
    _, infos = envs.reset(options={"snapshot": path})
    assert infos["step_index"].tolist() == [2, 2, 2]
    observation, *_ = envs.step([FORWARD] * 3)
    assert all(np.abs(row.astype(int) - frame).max() <= 1 for row in observation)
    assert envs.episode_lengths.tolist() == [1, 1, 1]
    envs.reset()
    assert len({episode.state.seed for episode in envs.unwrapped.members.episodes}) == 3
    _, infos = envs.reset(options={"snapshot": path, "reset_mask": np.array([False, True, False])})
    assert infos["_step_index"].tolist() == [False, True, False]
    assert [episode.steps for episode in envs.unwrapped.members.episodes] == [0, 2, 0]


def test_snapshots_are_options_of_stable_baselines3_and_of_gymnasiums_vector(tmp_path):
    env, path = saved(tmp_path)
    vec_env = MosaicVecEnv(Members(env.world, 2))
    vec_env.set_options({"snapshot": path})
    vec_env.reset()
    assert [info["step_index"] for info in vec_env.reset_infos] == [2, 2]
    vec_env.set_options([{"snapshot": env.snapshot()}, {}])
    vec_env.reset()
    assert [info["step_index"] for info in vec_env.reset_infos] == [2, 0]
    vec_env.env_method("reset", options={"snapshot": path}, indices=[1])
    assert vec_env.get_attr("steps") == [2, 2]
    sync = SyncVectorEnv([lambda: TimeLimit(WorldEnv(env.world), 5)] * 2)
    assert sync.reset(options={"snapshot": path})[1]["step_index"].tolist() == [2, 2]


def test_wrapped_and_unwrapped_restore_alike(tmp_path):
    env, path = saved(tmp_path)
    snapshot = env.snapshot()
    assert same(env.restore(snapshot), env.reset(options={"snapshot": snapshot}))
    assert same(env.load(path), env.reset(options={"snapshot": path}))
