"""Chance: every action as likely, whatever is seen. What any other agent is to be ahead of.

    python agents/random_walk.py [--real] [--steps 200]

Prints what it earned on the explore task: square metres of surface seen for the first time.
"""

import argparse

import gymnasium as gym

import mosaic_gym  # noqa: F401  (registers the worlds)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="store_true", help="in the engine instead of the dream")
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    env = gym.make("MosaicWorldReal-v0" if asked.real else "MosaicWorld-v0")
    env.action_space.seed(0)
    env.reset(seed=0)
    total = 0.0
    for _ in range(asked.steps):
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        total += reward
        if terminated or truncated:
            env.reset()
    env.close()
    print(f"chance: {total:.0f} square metres in {asked.steps} steps")
