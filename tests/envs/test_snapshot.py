"""Snapshots of environments: back, forked, on disk, refused."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mosaic_gym import ACTIONS
from mosaic_gym.envs.members import Members
from mosaic_gym.envs.mosaic_env import WorldEnv, make_simulator_env
from mosaic_gym.envs.tasks import ExploreTask, GoalTask, ReturnTask
from mosaic_gym.envs.vector_env import WorldVectorEnv
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.tiny import tiny_model

from .counting_world import CountingWorld, same

WALK = [list(ACTIONS).index(name) for name in ("forward", "turn_left", "forward", "right")]


def tiny_env(seed=0, **kwargs) -> WorldEnv:
    return WorldEnv(MosaicWorld(tiny_model(seed)), **kwargs)


def walk(env) -> list[tuple]:
    """As far as the episode goes: in a random world a body may be home at once."""
    told = []
    for action in WALK:
        observation, reward, terminated, _, info = env.step(action)
        told.append((observation["image"].tolist(), observation["depth"].tolist(), reward, terminated, info))
        if terminated:
            break
    return told


SHORT = {"far_m": 1.5, "steps": (3, 4)}  # walks


@pytest.mark.parametrize("task", ["explore", GoalTask(**SHORT), ReturnTask(**SHORT)], ids=["explore", "goal", "return"])
def test_restore_and_load_go_on_bit_for_bit(task, tmp_path):
    env = tiny_env(observation="dict", task=task)
    env.reset(seed=3)
    env.step(WALK[0])
    kept = env.snapshot()
    env.save(tmp_path / "here.safetensors")
    before, next_seed = walk(env), env.reset()[1]
    env.restore(kept)
    assert same(walk(env), before) and same(env.reset()[1], next_seed)
    other = tiny_env(observation="dict", task=task)
    observation, info = other.load(tmp_path / "here.safetensors")
    assert same(info, kept.episode.info())
    np.testing.assert_array_equal(observation["goal"], kept.episode.goal)
    assert same(walk(other), before) and same(other.reset()[1], next_seed)


def test_a_saved_episode_goes_on_in_another_process(tmp_path):
    env = gym.make("MosaicWorld-v0").unwrapped
    env.reset(seed=1)
    env.step(1)
    env.save(tmp_path / "here.safetensors")
    frames = [env.step(action)[0] for action in WALK]
    program = (
        "import gymnasium as gym, numpy as np, mosaic_gym, torch\n"
        f"torch.set_num_threads({__import__('torch').get_num_threads()})\n"
        "env = gym.make('MosaicWorld-v0').unwrapped\n"
        f"env.load({str(tmp_path / 'here.safetensors')!r})\n"
        f"np.save({str(tmp_path / 'frames.npy')!r}, [env.step(action)[0] for action in {WALK}])\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "frames.npy"), frames)


def test_snapshots_of_others_are_refused_and_nothing_changes(tmp_path):
    env = tiny_env()
    env.reset(seed=0)
    present = env.episode
    stranger = tiny_env(seed=1)
    stranger.reset(seed=0)
    stranger.save(tmp_path / "stranger.safetensors")
    with pytest.raises(ValueError, match="another checkpoint"):
        env.restore(stranger.snapshot())
    with pytest.raises(ValueError, match="another checkpoint"):
        env.load(tmp_path / "stranger.safetensors")
    goal = WorldEnv(env.world, observation="dict", task="goal")
    goal.reset(seed=0)
    with pytest.raises(ValueError, match=r"of the task GoalTask\(.*this environment has ExploreTask\(cell_m=1.0"):
        env.restore(goal.snapshot())
    finer = WorldEnv(env.world, task=ExploreTask(cell_m=0.25))
    with pytest.raises(ValueError, match=r"cell_m=1.0.*this environment has ExploreTask\(cell_m=0.25"):
        finer.restore(env.snapshot())
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere to save"):
        env.save(tmp_path / "nowhere" / "here.safetensors")
    with pytest.raises(ValueError, match="the snapshot is on cuda, this world on cpu: save it to a file"):
        env.restore(replace(env.snapshot(), device="cuda"))
    with pytest.raises(TypeError, match="what snapshot"):
        env.restore("a path")
    with pytest.raises(FileNotFoundError):
        env.load(tmp_path / "nothing.safetensors")
    (tmp_path / "cut").write_bytes((tmp_path / "stranger.safetensors").read_bytes()[:-64])
    with pytest.raises(ValueError, match="damaged or cut short"):
        env.load(tmp_path / "cut")
    with pytest.raises(ValueError, match="the number of forks is a whole number from 1; got 0"):
        env.fork(0)
    assert env.episode is present


def test_a_file_that_says_too_little_is_damaged(tmp_path):
    env, path = WorldEnv(CountingWorld()), tmp_path / "here.safetensors"
    env.reset(seed=0)
    env.save(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()["about"]
    tensors, present = load_file(path), env.episode

    def rewritten(change):
        told = json.loads(about)
        save_file(tensors, path, metadata={"about": change(told) or json.dumps(told)})
        return path

    for change in (
        lambda told: told["members"][0].pop("generator") and None,
        lambda told: told["members"][0]["state"].pop("seed") and None,
        lambda told: told.pop("members") and None,
        lambda told: told.update(members=[5]),
        lambda told: "[1]",
        lambda told: "{",
    ):
        with pytest.raises(ValueError, match="here.safetensors is damaged .*; save the snapshot again"):
            env.load(rewritten(change))
    with pytest.raises(ValueError, match="is no snapshot .mosaic-snapshots-4.; .*save it again"):
        env.load(rewritten(lambda told: told.update(format="mosaic-snapshot-3")))
    assert env.episode is present
    env.load(rewritten(lambda told: None))


def test_files_with_the_earlier_name_of_a_task_load(tmp_path):
    env, path = WorldEnv(CountingWorld(), task="simulator"), tmp_path / "here.safetensors"
    env.reset(seed=0)
    env.step(1)
    env.save(path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    (member,) = about["members"]
    assert member["task"] == "SimulatorTask()" and "progress" in member, "keys in files keep their names"
    member["task"] = "EngineTask()"
    save_file(load_file(path), path, metadata={"about": json.dumps(about)})
    assert env.load(path)[1]["step_index"] == 1


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"capacity": 0}, "capacity=0"),
        ({"denoising_steps": 3, "collision": False}, "denoising_steps=3, collision=False"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"network": False, "atlas": False}, "network=False, atlas=False"),
    ],
)
def test_worlds_that_would_go_on_otherwise_do_not_take_each_others_snapshots(made, said, tmp_path):
    usual, other = tiny_env(), WorldEnv(MosaicWorld(tiny_model(), **made))
    usual.reset(seed=0), other.reset(seed=0)
    for one, another, found in (
        (other, usual, f"made in a world with {said}, and this world has the checkpoint's defaults"),
        (usual, other, f"made in a world with the checkpoint's defaults, and this world has {said}: its future would"),
    ):
        one.save(tmp_path / "here.safetensors")
        with pytest.raises(ValueError, match=found):
            another.restore(one.snapshot())
        with pytest.raises(ValueError, match=found):
            another.load(tmp_path / "here.safetensors")
        one.load(tmp_path / "here.safetensors")


class Remembering(ExploreTask):
    """A task that remembers whatever it is told to."""

    def __init__(self, remembered):
        super().__init__()
        self.remembered = {"it": remembered}

    def initial_task_state(self, sample):
        return self.remembered


def test_what_a_task_remembers_is_saved_or_refused(tmp_path):
    env = WorldEnv(CountingWorld(), task=Remembering([np.int64(3), {"a": np.arange(2), "b": (None, True)[1]}]))
    env.reset(seed=0)
    env.save(tmp_path / "here.safetensors")
    env.load(tmp_path / "here.safetensors")
    assert env.episode.task_state == {"it": [3, {"a": [0, 1], "b": True}]}
    for unfit in ({3: "a key that JSON makes a text of"}, {"it": object()}, {"it": (1, 2)}):
        env = WorldEnv(CountingWorld(), task=Remembering(unfit))
        env.reset(seed=0)
        with pytest.raises(TypeError, match="a task state is saved as JSON"):
            env.save(tmp_path / "there.safetensors")
    assert not (tmp_path / "there.safetensors").exists()


def test_what_members_share_in_a_file_they_share_again(tmp_path):
    env = tiny_env()
    env.reset(seed=0)
    for _ in range(3):
        env.step(1)
    envs = WorldVectorEnv(Members(env.world, 3))
    envs.restore(env.fork(3))
    envs.step([1, 1, 5])
    envs.save(tmp_path / "here.safetensors")
    envs.load(tmp_path / "here.safetensors")
    one, other, third = (episode.state.memory.keyframes for episode in envs.members.episodes)
    for a, b, c in zip(one[:4], other, third, strict=False):
        for name in ("latent", "depth_m", "points_m", "world_from_camera"):
            assert getattr(a, name).data_ptr() == getattr(b, name).data_ptr() == getattr(c, name).data_ptr()
    assert len(one) == 5 and one[4].latent.data_ptr() != third[4].latent.data_ptr()


def test_forks_begin_anew_each_with_its_own_seeds():
    env = tiny_env()
    env.reset(seed=0)
    first, *others = env.fork(3)
    assert first == env.snapshot()
    seeds = []
    for fork in (first, *others):
        env.restore(fork)
        seeds.append([env.reset() and env.state.seed for _ in range(2)])
    assert len({seed for each in seeds for seed in each}) == 6
    env.restore(first)
    assert [env.reset() and env.state.seed for _ in range(2)] == seeds[0], "the first is the snapshot itself"


def test_there_is_nothing_to_keep_before_the_first_reset():
    with pytest.raises(ResetNeeded):
        WorldEnv(CountingWorld()).snapshot()


def test_the_engine_says_that_it_cannot_be_forked():
    env = make_simulator_env()
    env.reset(seed=0)
    for act in (env.snapshot, lambda: env.fork(2), lambda: env.save("x")):
        with pytest.raises(RuntimeError, match="cannot go back to an earlier state"):
            act()
    env.close()


def test_forks_share_what_they_have_in_common():
    env = tiny_env()
    env.reset(seed=0)
    for _ in range(8):
        env.step(1)
    env.snapshot()  # the first one of a process also computes the checkpoint's fingerprint
    spent = []
    for _ in range(5):  # other work on the machine may hold up any one of them
        started = time.perf_counter()
        forks = env.fork(64)
        spent.append(time.perf_counter() - started)
    assert min(spent) < 0.005
    first, second = tiny_env(), tiny_env()
    first.world = second.world = env.world
    for fork, other in ((forks[0], first), (forks[1], second)):
        other.restore(fork)
    first.step(WALK[1]), second.step(WALK[0])
    common = env.state.memory.keyframes
    for other in (first, second):
        assert len(other.state.memory) == len(common) + 1
        assert all(one is kept for one, kept in zip(other.state.memory.keyframes, common, strict=False))
    assert not np.array_equal(first.view.frames, second.view.frames) and len(env.state.memory) == len(common)
