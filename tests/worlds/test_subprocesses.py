"""Several simulators at once, in processes of their own: by Stable-Baselines3 and by Gymnasium."""

import gymnasium as gym
import numpy as np
import pytest

from tests.test_processes import wait_for_end


def make():
    return gym.make("mosaic_gym:MosaicWorldReal-v0")


def test_subproc_vec_env_steps_two_simulators():
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    envs = vec_env.SubprocVecEnv([make, make], start_method="spawn")
    processes = [process.pid for process in envs.processes]
    envs.seed(3)
    assert envs.reset().shape == (2, 64, 64, 3)
    frames, rewards, _, _ = envs.step([1, 2])
    assert frames.shape == (2, 64, 64, 3) and rewards.shape == (2,) and (frames[0] != frames[1]).any()
    envs.close()
    assert not wait_for_end(processes)


def test_make_vec_env_of_stable_baselines():
    sb3 = pytest.importorskip("stable_baselines3.common.env_util")
    from stable_baselines3.common.vec_env import SubprocVecEnv

    envs = sb3.make_vec_env(
        "mosaic_gym:MosaicWorldReal-v0", 2, seed=3, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "spawn"}
    )
    assert envs.reset().shape == (2, 64, 64, 3)
    envs.step([0, 0])
    envs.close()


@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_async_vector_env_of_gymnasium(context):
    envs = gym.make_vec(
        "mosaic_gym:MosaicWorldReal-v0", num_envs=2, vectorization_mode="async", vector_kwargs={"context": context}
    )
    images, infos = envs.reset(seed=[3, 4])
    assert images.shape == (2, 64, 64, 3) and (images[0] != images[1]).any()
    again, _ = envs.reset(seed=[3, 4])
    np.testing.assert_array_equal(images, again)
    envs.step(envs.action_space.sample())
    envs.close()
