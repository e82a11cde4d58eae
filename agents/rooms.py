"""Generated maps as a benchmark of spatial memory: scores of random actions, scripts and PPO, as a table.

    python agents/rooms.py [--steps 100000] [--episodes 100] [--model out/rooms_ppo.zip]

PPO of Stable-Baselines3 trains on maps of `train`, a new one in every episode. It sees the last frame and has no
memory. Then all agents play the same maps of `train` and of `heldout`; PPO has played none of them. A score is the
number of pickups that an agent gathers in 128 steps. One script knows the map: what it gathers beyond the others is
what a map in memory is worth. Needs the extra `rl`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from mosaic_gym import ACTIONS, DepthWalker, RoomExplorer

ACTION_VECTORS = np.array(list(ACTIONS.values()))
TRAINING_SEED = 1_000_000
"""Maps of the scores are those of the first seeds; maps of training are those of this seed and others drawn from it."""
SCORED_STEPS = 128
"""Steps of an episode in which pickups are counted."""

Episode = Callable[[gym.Env, int], float]
"""Plays the episode of a seed, and returns what was gathered."""


class SmallCnn(BaseFeaturesExtractor):
    """Two convolutions and a linear layer: a fifth of the work of Stable-Baselines3's own network."""

    def __init__(self, space: gym.Space):
        super().__init__(space, features_dim=256)
        channels, height, width = space.shape
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(channels, 16, 8, stride=4, padding=2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 4, stride=2, padding=1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(height // 8 * (width // 8) * 32, 256),
            torch.nn.ReLU(),
        )

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """`[b, 256]` from `[b, 3, H, W]` in [0, 1]."""
        return self.layers(observation)


class Progress(BaseCallback):
    """Prints speed and score after every rollout."""

    def _on_training_start(self) -> None:
        self.started_s = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        rate = self.num_timesteps / (time.perf_counter() - self.started_s)
        scores = [episode["r"] for episode in self.model.ep_info_buffer] or [np.nan]
        print(f"PPO: {self.num_timesteps} steps, {rate:.0f} steps/s, {np.mean(scores):.2f} pickups", flush=True)


def make_env(split: str, observation: str = "image", steps: int = 256) -> gym.Env:
    """The benchmark: nine actions, a reward of 1 for each pickup; episodes of 256 steps, as registered, in training."""
    rooms = {"scenario": "rooms", "split": split, "task": "simulator", "observation": observation}
    return gym.make("MosaicWorldReal-v0", max_episode_steps=steps, **rooms)


def train_ppo(steps: int, members: int) -> PPO:
    """PPO, trained on `train`."""
    envs = make_vec_env(make_env, members, TRAINING_SEED, env_kwargs={"split": "train"})
    network = {"features_extractor_class": SmallCnn, "net_arch": []}
    model = PPO(
        "CnnPolicy", envs, n_steps=256, batch_size=512, n_epochs=3, learning_rate=5e-4, ent_coef=0.01, seed=0,
        policy_kwargs=network, device="cpu",
    )  # fmt: skip
    model.learn(steps, Progress())
    envs.close()
    return model


def play(env: gym.Env, seed: int, choose: Callable[[np.ndarray | dict[str, np.ndarray]], int]) -> float:
    """One episode of an agent that chooses an action for each observation."""
    observation, _ = env.reset(seed=seed)
    total, ended = 0.0, False
    while not ended:
        observation, reward, terminated, truncated, _ = env.step(choose(observation))
        total, ended = total + reward, terminated or truncated
    return total


def play_random(env: gym.Env, seed: int) -> float:
    """Every action is as likely as every other."""
    rng = np.random.default_rng(seed)
    return play(env, seed, lambda _: int(rng.integers(len(ACTIONS))))


def play_walk(env: gym.Env, seed: int) -> float:
    """A walk towards the deepest part of the view, see `agents/scripted.py`."""
    walker = DepthWalker(np.random.default_rng(seed))

    def choose(observation: dict[str, np.ndarray]) -> int:
        action = walker.act(observation["depth"])
        return int(np.square(ACTION_VECTORS - action).sum(-1).argmin())

    return play(env, seed, choose)


def play_ppo(model: PPO) -> Episode:
    """Actions drawn from the policy."""

    def episode(env: gym.Env, seed: int) -> float:
        torch.manual_seed(seed)
        return play(env, seed, lambda image: int(model.predict(image)[0]))

    return episode


def play_shortest_ways(env: gym.Env, seed: int) -> float:
    """Walks to the nearest of the pickups that are left on the map, until none is left, by continuous actions."""
    env.reset(seed=seed)
    inner = env.unwrapped
    explorer = RoomExplorer(inner.world, inner.state, inner.view, SCORED_STEPS + 1, np.random.default_rng(seed))
    while not explorer.done:
        left = [thing for thing in explorer.layouts[-1].things if thing.kind == "pickup" and thing.is_there]
        ways = [explorer.grid.way(explorer.place_m, tuple(thing.place_m.tolist())) for thing in left]
        if not ways:
            break
        lengths_m = [np.hypot(*np.diff([explorer.place_m, *way], axis=0).T).sum() for way in ways]
        explorer.walk_to(ways[int(np.argmin(lengths_m))][-1], reach_m=0.3)
    return sum(view.reward for view in explorer.views)


def score(name: str, episode: Episode, observation: str, episodes: int) -> str:
    """A row of the table: on each split, the mean over its first maps with a 95 % interval (normal)."""
    cells = []
    for split in ("train", "heldout"):
        env = make_env(split, observation, SCORED_STEPS)
        scores = [episode(env, seed) for seed in range(episodes)]
        env.close()
        cells.append(f"{np.mean(scores):.2f} ± {1.96 * np.std(scores, ddof=1) / np.sqrt(episodes):.2f}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Trains PPO, or loads it, and prints the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000, help="of PPO's training")
    parser.add_argument("--members", type=int, default=8, help="simulators that PPO trains in")
    parser.add_argument("--episodes", type=int, default=100, help="in each cell of the table, at least 2")
    parser.add_argument(
        "--model", type=Path, help="zip file to which PPO is written, or from which it is read if it exists"
    )
    options = parser.parse_args()
    if options.episodes < 2:
        parser.error(f"--episodes is at least 2, because an interval needs two scores; got {options.episodes}")
    torch.set_num_threads(1)
    if options.model is not None and options.model.exists():
        model = PPO.load(options.model, device="cpu")
    else:
        model = train_ppo(options.steps, options.members)
        if options.model is not None:
            model.save(options.model)
    agents = {
        "random": (play_random, "image"),
        "scripted walk by depth": (play_walk, "dict"),
        f"PPO, {model.num_timesteps:,} steps": (play_ppo(model), "image"),
        "shortest ways, knows the map": (play_shortest_ways, "image"),
    }
    print(
        f"| agent | `train`, {options.episodes} maps | `heldout`, {options.episodes} maps |\n|---|---|---|", flush=True
    )
    for name, (episode, observation) in agents.items():
        print(score(name, episode, observation, options.episodes), flush=True)


if __name__ == "__main__":
    main()
