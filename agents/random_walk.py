"""Random actions: the baseline for every other agent.

    python agents/random_walk.py [--real] [--steps 200]

Prints the return on the explore task: square metres of surface seen for the first time.
"""

import argparse

import gymnasium as gym

import mosaic_gym  # noqa: F401  (registers the environments)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="store_true", help="in the simulator instead of the learned world")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    env = gym.make("MosaicWorldReal-v0" if options.real else "MosaicWorld-v0")
    env.action_space.seed(0)
    env.reset(seed=0)
    total = 0.0
    for _ in range(options.steps):
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        total += reward
        if terminated or truncated:
            env.reset()
    env.close()
    print(f"random: {total:.0f} square metres in {options.steps} steps")
