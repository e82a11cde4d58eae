"""What can steer instead of the player: a scripted walker, or an agent that Stable-Baselines3 saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_gym.envs.spaces import action_vector_of, make_action_space
from mosaic_gym.geometry.steering import DepthWalker
from mosaic_gym.worlds.protocol import View

Policy = Callable[[View], np.ndarray]
"""The action vector `[3]` for a view."""


def load_policy(name: str, size: tuple[int, int], seed: int = 0) -> Policy:
    """A policy by its name.

    Args:
        name: `walk` for the scripted walker by depth, or the path of a Stable-Baselines3 agent (.zip).
        size: (height, width) of the world's frames.

    Raises:
        FileNotFoundError: no such file. ModuleNotFoundError: Stable-Baselines3 is not installed.
        ValueError: no agent, or one for other observations or actions than the window has.
    """
    if name == "walk":
        walker = DepthWalker(np.random.default_rng(seed), glance=0.05)
        return lambda view: walker.act(view.depth_m)
    if not Path(name).is_file():
        raise FileNotFoundError(f"there is no policy {name!r}: give `walk`, or the .zip of a Stable-Baselines3 agent")
    agent = _load_agent(name)
    shape = tuple(agent.observation_space.shape or ())
    channels_first = shape == (3, *size)
    if not channels_first and shape != (*size, 3):
        raise ValueError(
            f"the agent in {name} observes {agent.observation_space}; the window has images {(*size, 3)} alone"
        )
    spaces = [space for space in map(make_action_space, ("discrete", "continuous")) if space == agent.action_space]
    if not spaces:
        raise ValueError(f"the agent in {name} acts in {agent.action_space}; this environment has other actions")

    def act(view: View) -> np.ndarray:
        image = view.frames[-1]
        action, _ = agent.predict(image.transpose(2, 0, 1) if channels_first else image, deterministic=False)
        return action_vector_of(spaces[0], action.item() if spaces[0].shape == () else action)

    return act


def _load_agent(name: str) -> Any:
    try:
        from stable_baselines3 import A2C, DQN, PPO, SAC
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("an agent needs Stable-Baselines3: pip install mosaic-gym[rl]") from error
    problems = []
    for algorithm in (PPO, A2C, DQN, SAC):
        try:
            return algorithm.load(name, device="cpu")
        except Exception as error:  # each algorithm fails in another way on the file of another one
            problems.append(f"{algorithm.__name__}: {error}")
    raise ValueError(f"{name} is no agent of PPO, A2C, DQN or SAC ({problems[0]})")
