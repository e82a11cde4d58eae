"""A scripted explorer: walks where the view is deep, turns where it is not. And its rival, chance.

    python agents/scripted.py [--real] [--steps 200]

Prints what each earned on the explore task: square metres of surface seen for the first time.
"""

import argparse

import gymnasium as gym
import numpy as np

from mosaic_gym import ACTIONS

NAMES = list(ACTIONS)
NEAR_M = 1.2


def explorer(seen: dict[str, np.ndarray], rng: np.random.Generator) -> int:
    """A discrete action, from the depth image at the height of the eye."""
    height, width = seen["depth"].shape
    horizon = seen["depth"][height * 15 // 32 : height * 17 // 32].mean(0)
    left, right = horizon[: width // 2].mean(), horizon[width // 2 :].mean()
    if horizon[3 * width // 8 : 5 * width // 8].min() < NEAR_M:
        return NAMES.index("turn_left" if left > right else "turn_right")
    deepest = np.argmax(horizon) / width + rng.normal(0.0, 0.15)
    if abs(deepest - 0.5) < 0.2:
        return NAMES.index("forward")
    return NAMES.index("forward_turn_left" if deepest < 0.5 else "forward_turn_right")


def chance(seen: dict[str, np.ndarray], rng: np.random.Generator) -> int:
    """Every action as likely."""
    return int(rng.integers(len(NAMES)))


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
