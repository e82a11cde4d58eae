"""A scripted explorer: walks towards the deepest part of the view, and turns in front of walls.

    python agents/scripted.py [--real] [--steps 200]

Prints the return on the explore task: square metres of surface seen for the first time. Compare it with random actions:
`agents/random_walk.py`.
"""

import argparse

import gymnasium as gym
import numpy as np

from mosaic_gym import ACTIONS, DepthWalker

ACTION_VECTORS = np.array(list(ACTIONS.values()))


class Explorer:
    """The discrete actions that are nearest to those of `DepthWalker`.

    Args:
        seed: of the noise in its heading.
    """

    def __init__(self, seed: int) -> None:
        self.walker = DepthWalker(np.random.default_rng(seed))

    def choose(self, observation: dict[str, np.ndarray]) -> int:
        """The discrete action for an observation with depth."""
        action = self.walker.act(observation["depth"])
        return int(np.square(ACTION_VECTORS - action).sum(-1).argmin())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="store_true", help="in the simulator instead of the learned world")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    env = gym.make("MosaicWorldReal-v0" if options.real else "MosaicWorld-v0", observation="dict")
    agent = Explorer(seed=0)
    observation, _ = env.reset(seed=0)
    total = 0.0
    for _ in range(options.steps):
        observation, reward, terminated, truncated, _ = env.step(agent.choose(observation))
        total += reward
        if terminated or truncated:
            observation, _ = env.reset()
    env.close()
    print(f"explorer: {total:.0f} square metres in {options.steps} steps (random: python agents/random_walk.py)")
