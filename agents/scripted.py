"""A scripted explorer: walks where the view is deep, turns where it is not, and on until it is.

    python agents/scripted.py [--real] [--steps 200]

Prints what it earned on the explore task: square metres of surface seen for the first time. Its rival is chance, in
`agents/random_walk.py`.
"""

import argparse

import gymnasium as gym
import numpy as np

from mosaic_gym import ACTIONS, steer_towards_depth

ACTION_VECTORS = np.array(list(ACTIONS.values()))


class Explorer:
    """Remembers which way it turns: in a corner the deeper side is now this one, now that.

    Args:
        seed: of its whims.
    """

    def __init__(self, seed: int) -> None:
        self.rng, self.last = np.random.default_rng(seed), ACTION_VECTORS[0]

    def choose(self, seen: dict[str, np.ndarray]) -> int:
        """The discrete action that is nearest to a walk towards where the depth image is deep."""
        wanted = steer_towards_depth(seen["depth"], self.rng)
        turning = wanted[0] == 0.0 and self.last[0] == 0.0 and self.last[2] != 0.0
        self.last = self.last if turning else wanted
        return int(np.square(ACTION_VECTORS - self.last).sum(-1).argmin())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="store_true", help="in the engine instead of the dream")
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    env = gym.make("MosaicWorldReal-v0" if asked.real else "MosaicWorld-v0", observation="dict")
    agent = Explorer(seed=0)
    seen, _ = env.reset(seed=0)
    total = 0.0
    for _ in range(asked.steps):
        seen, reward, terminated, truncated, _ = env.step(agent.choose(seen))
        total += reward
        if terminated or truncated:
            seen, _ = env.reset()
    env.close()
    print(f"explorer: {total:.0f} square metres in {asked.steps} steps (chance: python agents/random_walk.py)")
