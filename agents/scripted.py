"""A scripted explorer: walks towards the deepest part of the view, and turns in front of walls.

    python agents/scripted.py [--real] [--steps 200]

Prints the return on the explore task: square metres of surface seen for the first time. Compare it with random actions:
`agents/random_walk.py`.
"""

import argparse

import gymnasium as gym
import numpy as np

from mosaic_gym import ACTIONS, steer_towards_depth

ACTION_VECTORS = np.array(list(ACTIONS.values()))


class Explorer:
    """Continues a turn in the direction it started in: in a corner the deeper side alternates between left and right.

    Args:
        seed: of the noise in its heading.
    """

    def __init__(self, seed: int) -> None:
        self.rng, self.last = np.random.default_rng(seed), ACTION_VECTORS[0]

    def choose(self, observation: dict[str, np.ndarray]) -> int:
        """The discrete action that is nearest to the action vector of `steer_towards_depth`."""
        action = steer_towards_depth(observation["depth"], self.rng)
        turning = action[0] == 0.0 and self.last[0] == 0.0 and self.last[2] != 0.0
        self.last = self.last if turning else action
        return int(np.square(ACTION_VECTORS - self.last).sum(-1).argmin())


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
