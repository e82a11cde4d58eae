"""Model-predictive control: plans in the learned world with CEM or MPPI, and acts in the simulator.

    python agents/planner.py [--method mppi] [--memory place] [--episodes 40]

The task is to return: a script wanders away from the start, and the agent has to come back. Prints the share of
episodes that ended at the start, for three planners: with memory; with the last frame and the location on the map only
(`place`); with the last frame only (`off`). `mosaic_gym.Planner` is the planner; `mosaic-gym evaluate transfer`
measures it on the same episodes.
"""

import argparse

import gymnasium as gym
import numpy as np

from mosaic_gym import Planner, Search, make_world

FIRST_SEED = 2_000_009
"""Seed of the first episode. Seeds grow by ten, so that all end in 9: none of them was recorded for training."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=("cem", "mppi"), default="cem")
    parser.add_argument("--memory", choices=("on", "place", "off", "all"), default="all")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--steps", type=int, default=24, help="limit of an episode")
    options = parser.parse_args()
    spaces = {"task": "return", "observation": "dict", "action_space": "continuous"}
    env = gym.make("MosaicWorldReal-v0", max_episode_steps=options.steps, **spaces)
    learned = make_world("mosaic")
    for memory in ("on", "place", "off") if options.memory == "all" else (options.memory,):
        successes = []
        for index in range(options.episodes):
            seed = FIRST_SEED + 10 * index
            planner = Planner(learned, Search(options.method), memory, seed)
            episode_return, success = planner.play(env, seed)
            successes.append(success)
            print(f"episode {index + 1}: {'home' if success else 'lost'}, return {episode_return:.1f}", flush=True)
        print(f"memory {memory}: home {np.mean(successes):.2f} of {len(successes)} episodes", flush=True)
    env.close()
