"""PPO through Stable-Baselines3, in the dream: many members, one network call a step.

    python agents/ppo.py [--steps 4096] [--task explore] [--members 8] [--episodes 8] [--scenes 64]

Prints the mean return before and after, in the dream and in the engine. Needs the extra `rl`.
"""

import argparse

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

import mosaic_gym

LIMIT = 48


def returns(model: PPO, env, episodes: int) -> str:
    """Mean return, and its standard error."""
    each, _ = evaluate_policy(model, env, n_eval_episodes=episodes, deterministic=False, return_episode_rewards=True)
    return f"{np.mean(each):.2f} +- {np.std(each) / np.sqrt(len(each)):.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4096)
    parser.add_argument("--task", choices=("explore", "goal", "return"), default="explore")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=8, help="that each figure is a mean of")
    parser.add_argument("--scenes", type=int, default=64, help="that episodes with a goal are drawn from in the dream")
    asked = parser.parse_args()
    face = {"max_episode_steps": LIMIT, "observation": "image" if asked.task == "explore" else "dict"}
    # With a goal, a script walks before every episode, and all members would wait for it.
    task = asked.task if asked.task == "explore" else mosaic_gym.FixedStarts(asked.task, asked.scenes)
    dream = VecMonitor(mosaic_gym.make_sb3(asked.members, task=task, **face))
    engine = gym.make("MosaicWorldReal-v0", task=asked.task, **face)
    policy = "CnnPolicy" if asked.task == "explore" else "MultiInputPolicy"
    model = PPO(policy, dream, n_steps=64, batch_size=128, n_epochs=4, learning_rate=5e-4, seed=0, device="cpu")
    for learnt in (0, asked.steps):
        if learnt:
            model.learn(learnt)
        there, here = (returns(model, env, asked.episodes) for env in (dream, engine))
        print(f"after {learnt} steps of dream: return {there} in the dream, {here} in the engine")
    dream.close()
    engine.close()
