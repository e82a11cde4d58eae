"""Plans in the dream, acts in the engine: CEM or MPPI over imagined futures, towards a goal image.

    python agents/planner.py [--method mppi] [--memory place] [--episodes 40]

Prints the share of return episodes (wander, then come home) that ended at home, in the engine: with memory; for a
planner that forgets all frames but the last, and still knows places; and for one that forgets both. (How it plans
is `mosaic_gym.Planner`; `mosaic-gym evaluate transfer` measures it on the same episodes.)
"""

import argparse

import gymnasium as gym
import numpy as np

from mosaic_gym import Planner, Search, make_world

FIRST_SEED = 2_000_009
"""Of the episodes, counted up by tens: held out from the recording."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=("cem", "mppi"), default="cem")
    parser.add_argument("--memory", choices=("on", "place", "off", "all"), default="all")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--steps", type=int, default=24, help="an episode's limit")
    asked = parser.parse_args()
    faces = {"task": "return", "observation": "dict", "action_space": "continuous"}
    env = gym.make("MosaicWorldReal-v0", max_episode_steps=asked.steps, **faces)
    dream = make_world("mosaic")
    for memory in ("on", "place", "off") if asked.memory == "all" else (asked.memory,):
        came = []
        for index in range(asked.episodes):
            seed = FIRST_SEED + 10 * index
            planner = Planner(dream, Search(asked.method), memory, seed)
            gained_m, home = planner.play(env, seed)
            came.append(home)
            print(f"episode {index + 1}: {'home' if home else 'lost'}, return {gained_m:.1f}", flush=True)
        print(f"memory {memory}: home {np.mean(came):.2f} of {len(came)} episodes", flush=True)
    env.close()
