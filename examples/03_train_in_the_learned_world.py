"""Train PPO in the learned world for a few minutes, then record it in the simulator. Needs the extra `rl`.

    python examples/03_train_in_the_learned_world.py [steps] [out.mp4]

Eight sub-environments step together. The number of steps is rounded up to whole rollouts, at least eight.
"""

import sys

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor

import mosaic_gym

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
path = sys.argv[2] if len(sys.argv) > 2 else "trained_in_the_learned_world.mp4"

learned = VecMonitor(mosaic_gym.make_sb3(8, max_episode_steps=48, task="explore"))
rollout = max(1, min(64, steps // 8))  # steps of every sub-environment between updates
model = PPO("CnnPolicy", learned, n_steps=rollout, batch_size=min(128, 8 * rollout), seed=0, device="cpu", verbose=1)
model.learn(steps)
learned.close()

env = gym.make("MosaicWorldReal-v0", max_episode_steps=48)
observation, _ = env.reset(seed=9)
frames, total, ended = [], 0.0, False
while not ended:
    observation, reward, terminated, truncated, _ = env.step(int(model.predict(observation)[0]))
    frames.append(env.unwrapped.view.frames)
    total, ended = total + reward, terminated or truncated
env.close()
iio.imwrite(path, np.concatenate(frames).repeat(4, axis=1).repeat(4, axis=2), fps=35)
print(f"{total:.0f} square metres of the simulator seen; wrote {path}")
