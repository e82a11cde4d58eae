"""A scripted explorer: walks where the view is deep, turns where it is not. And its rival, chance.

    python agents/scripted.py [--real] [--steps 200]

Prints what each earned on the explore task: square metres of surface seen for the first time.
"""

import argparse

import gymnasium as gym
import numpy as np

from mosaic_gym import ACTIONS, thrust_towards_depth

THRUSTS = np.array(list(ACTIONS.values()))


def explorer(seen: dict[str, np.ndarray], rng: np.random.Generator) -> int:
    """The discrete action that is nearest to a walk towards where the depth image is deep."""
    wanted = thrust_towards_depth(seen["depth"], rng)
    return int(np.square(THRUSTS - wanted).sum(-1).argmin())


def chance(seen: dict[str, np.ndarray], rng: np.random.Generator) -> int:
    """Every action as likely."""
    return int(rng.integers(len(ACTIONS)))


def earn(env: gym.Env, choose, steps: int, seed: int) -> float:
    """The reward of some steps, over as many episodes as they take."""
    rng = np.random.default_rng(seed)
    seen, _ = env.reset(seed=seed)
    total = 0.0
    for _ in range(steps):
        seen, reward, terminated, truncated, _ = env.step(choose(seen, rng))
        total += reward
        if terminated or truncated:
            seen, _ = env.reset()
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="store_true", help="in the engine instead of the dream")
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    env = gym.make("MosaicWorldReal-v0" if asked.real else "MosaicWorld-v0", observation="dict")
    for name, choose in (("explorer", explorer), ("chance", chance)):
        print(f"{name}: {earn(env, choose, asked.steps, seed=0):.0f} square metres in {asked.steps} steps")
    env.close()
