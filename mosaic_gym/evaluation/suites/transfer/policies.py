"""The policies that are compared: trained PPO, and policies without training.

Each function takes a seed as its last argument and returns a policy: actions `[b]` for stacked observations.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from stable_baselines3 import PPO

from mosaic_gym.evaluation.suites.transfer.ppo import load_policy
from mosaic_gym.geometry.control import ACTIONS
from mosaic_gym.geometry.steering import DepthWalker

Policy = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Actions `[b]` for stacked observations."""
SeededPolicy = Callable[[int], Policy]
"""Makes a policy from the seed of its random choices."""


def trained_policy(model: PPO, weights: Path, seed: int) -> Policy:
    """Samples actions from the PPO policy in a file.

    Args:
        model: takes the policy's weights; the policy is usable until others are loaded into it.
    """
    load_policy(model, weights)
    torch.manual_seed(seed)  # Stable-Baselines3 samples from the global generator
    return lambda observations: model.predict(observations, deterministic=False)[0]


def random_policy(seed: int) -> Policy:
    """Every action with the same probability."""
    rng = np.random.default_rng(seed)
    return lambda observations: rng.integers(len(ACTIONS), size=len(observations["image"]))


def constant_policy(action: str, seed: int) -> Policy:
    """Always the same one of `ACTIONS`."""
    return lambda observations: np.full(len(observations["image"]), list(ACTIONS).index(action))


def scripted_policy(seed: int) -> Policy:
    """Walks toward the deepest part of the view, as the walks that set the goals do. It does not use the goal."""
    rng = np.random.default_rng(seed)
    known, walkers = np.array(list(ACTIONS.values())), []

    def act(observations: dict[str, np.ndarray]) -> np.ndarray:
        walkers.extend(DepthWalker(rng) for _ in range(len(observations["depth"]) - len(walkers)))
        action_vectors = np.stack([
            walker.act(depth_m) for walker, depth_m in zip(walkers, observations["depth"], strict=False)
        ])  # fmt: skip
        return np.square(known - action_vectors[:, None]).sum(-1).argmin(-1)

    return act


def idling_policy(share: float, seed: int) -> Policy:
    """The scripted policy, with a no-op on this share of its steps."""
    scripted, rng = scripted_policy(seed), np.random.default_rng(seed + 1)

    def act(observations: dict[str, np.ndarray]) -> np.ndarray:
        idle = rng.random(len(observations["image"])) < share
        return np.where(idle, list(ACTIONS).index("noop"), scripted(observations))

    return act
