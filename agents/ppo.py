"""PPO of Stable-Baselines3 in the learned world: all sub-environments share one network call per step.

    python agents/ppo.py [--steps 4096] [--task explore] [--members 8] [--episodes 8] [--goals 64]

Prints the mean return before and after training, in the learned world and in the simulator. Needs the extra `rl`.
"""

import argparse

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

import mosaic_gym

EPISODE_STEPS = 48


def mean_return(model: PPO, env, episodes: int) -> str:
    """Mean return and its standard error."""
    returns, _ = evaluate_policy(model, env, n_eval_episodes=episodes, deterministic=False, return_episode_rewards=True)
    return f"{np.mean(returns):.2f} +- {np.std(returns) / np.sqrt(len(returns)):.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4096)
    parser.add_argument("--task", choices=("explore", "goal", "return"), default="explore")
    parser.add_argument("--members", type=int, default=8, help="sub-environments")
    parser.add_argument("--episodes", type=int, default=8, help="per mean return")
    parser.add_argument("--goals", type=int, default=64, help="starts and goals that training episodes are drawn from")
    options = parser.parse_args()
    spaces = {"max_episode_steps": EPISODE_STEPS, "observation": "image" if options.task == "explore" else "dict"}
    # A script walks to every new goal, and all sub-environments would wait for it: sample the goals once.
    task = options.task if options.task == "explore" else mosaic_gym.FixedStarts(options.task, options.goals)
    learned = VecMonitor(mosaic_gym.make_sb3(options.members, task=task, **spaces))
    simulator = gym.make("MosaicWorldReal-v0", task=options.task, **spaces)
    policy = "CnnPolicy" if options.task == "explore" else "MultiInputPolicy"
    model = PPO(policy, learned, n_steps=64, batch_size=128, n_epochs=4, learning_rate=5e-4, seed=0, device="cpu")
    for steps in (0, options.steps):
        if steps:
            model.learn(steps)
        in_learned, in_simulator = (mean_return(model, env, options.episodes) for env in (learned, simulator))
        print(f"after {steps} steps: return {in_learned} in the learned world, {in_simulator} in the simulator")
    learned.close()
    simulator.close()
