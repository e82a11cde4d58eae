"""The policies that are compared: PPO that sees images, goal and its own way since the start, and scripted rivals.

Actions are drawn by what each is: a function from stacked observations to actions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from torch import nn

from mosaic_gym.data.explore import steer_towards_depth
from mosaic_gym.geometry.control import ACTIONS

DISCOUNT = 0.95
SCAN = 16
"""Directions in which a policy is told how near things are."""
OPTIMIZER = "optimizer."
"""Before the names of the optimiser's tensors in a policy's file."""
Choose = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Actions `[b]` for stacked observations."""


class WayFromStart(VecEnvWrapper):
    """`pose` as a body without a map knows it: since its episode began, from its own steps.

    It becomes `[5]`: metres to the right of the start and ahead of it (over 5), sine and cosine of the heading, and
    metres moved by the last step.
    """

    def __init__(self, venv: VecEnv) -> None:
        way = spaces.Box(-np.inf, np.inf, (5,), np.float32)
        super().__init__(venv, spaces.Dict({**venv.observation_space.spaces, "pose": way}))

    def reset(self) -> dict[str, np.ndarray]:
        """Begins all episodes."""
        seen = self.venv.reset()
        self._first, self._last = seen["pose"].copy(), seen["pose"].copy()
        return self._shown(seen, slice(None))

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Moves all; the last view of an ended episode is told from its own start."""
        seen, rewards, dones, infos = self.venv.step_wait()
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = self._shown(infos[i]["terminal_observation"], i)
            self._first[i] = self._last[i] = seen["pose"][i]
        shown = self._shown(seen, slice(None))
        self._last = seen["pose"].copy()
        return shown, rewards, dones, infos

    def _shown(self, seen: dict[str, np.ndarray], rows: Any) -> dict[str, np.ndarray]:
        pose = seen["pose"]
        start_from_camera = np.linalg.inv(self._first[rows]) @ pose
        moved_m = np.linalg.norm(pose[..., :3, 3] - self._last[rows][..., :3, 3], axis=-1)
        x, z = start_from_camera[..., 0, 3], start_from_camera[..., 2, 3]
        way = [x / 5.0, z / 5.0, start_from_camera[..., 0, 2], start_from_camera[..., 2, 2], moved_m]
        return {**seen, "pose": np.stack(way, axis=-1).astype(np.float32)}


class Eyes(BaseFeaturesExtractor):
    """Image, goal and depth, one above the other in one small network.

    Beside it, so that they need not be dug out of a convolution first: how near things are around the horizon, `SCAN`
    numbers from left to right, as a range scanner would tell it, and the way from the start.
    """

    def __init__(self, space: spaces.Dict, features: int = 128) -> None:
        super().__init__(space, features + SCAN + space["pose"].shape[0])
        self.see = nn.Sequential(
            nn.Conv2d(7, 16, 6, stride=3), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(features), nn.ReLU(),
        )  # fmt: skip
        self.see(torch.zeros(1, 7, *space["image"].shape[1:]))

    def forward(self, seen: dict[str, torch.Tensor]) -> torch.Tensor:
        # Stable-Baselines3 has already put channels first and scaled to [0, 1].
        near = torch.exp(-seen["depth"][:, None] / 3.0)  # 1 at the eye, 0 far away
        height = near.shape[2]
        scan = nn.functional.adaptive_max_pool2d(near[:, :, height * 15 // 32 : height * 17 // 32], (1, SCAN))
        seen_all = self.see(torch.cat([seen["image"], seen["goal"], near], dim=1))
        return torch.cat([seen_all, scan.flatten(1), seen["pose"]], dim=1)


def make_policy(env: VecEnv, rollout: int, seed: int) -> PPO:
    """PPO, from nothing, on an environment that shows the way from the start.

    Args:
        rollout: steps of every member between updates.
    """
    # Metres and bonus together make values of ten: unscaled, the critic's gradient drowns the actor's.
    scaled = VecNormalize(env, norm_obs=False, gamma=DISCOUNT)
    kwargs = {"features_extractor_class": Eyes, "share_features_extractor": False, "net_arch": [64]}
    batch = min(128, rollout * env.num_envs)
    return PPO(
        "MultiInputPolicy", scaled, n_steps=rollout, batch_size=batch, n_epochs=10, learning_rate=7e-4, ent_coef=0.003,
        gamma=DISCOUNT, gae_lambda=0.9, seed=seed, device="cpu", policy_kwargs=kwargs,
    )  # fmt: skip


def train(model: PPO, steps: int, keep: Path, count: int) -> None:
    """Trains, with a bar, and keeps `count` policies from the first to the last, closer early on, as safetensors.

    Cut off, it goes on from the last policy kept, with its optimiser; episodes and the scale of rewards begin anew.
    """
    from safetensors.torch import save_file
    from tqdm import tqdm

    marks = (steps * np.linspace(0, 1, count) ** 2).round().astype(int).tolist()
    keep.mkdir(parents=True, exist_ok=True)
    done = max((index for index in range(count) if (keep / f"{index}.safetensors").is_file()), default=None)
    if done is not None:
        model.num_timesteps = load_policy(model, keep / f"{done}.safetensors")
        del marks[: done + 1]

    class Keeper(BaseCallback):
        def _on_training_start(self) -> None:
            self.bar = tqdm(total=steps, unit="step", mininterval=2.0, desc=keep.name)

        def _on_step(self) -> bool:
            self.bar.n = min(self.num_timesteps, steps)
            self.bar.update(0)
            return True

        def _on_rollout_start(self) -> None:
            self._keep()

        def _on_training_end(self) -> None:
            self._keep()
            self.bar.close()

        def _keep(self) -> None:
            while marks and self.num_timesteps >= marks[0]:
                tensors = {name: value.clone() for name, value in self.model.policy.state_dict().items()}
                for index, state in self.model.policy.optimizer.state_dict()["state"].items():
                    tensors |= {f"{OPTIMIZER}{index}.{name}": value.clone() for name, value in state.items()}
                told = {"num_timesteps": str(self.num_timesteps)}
                save_file(tensors, keep / f"{count - len(marks)}.safetensors", metadata=told)
                marks.pop(0)

    model.learn(steps - model.num_timesteps, callback=Keeper(), reset_num_timesteps=False)


def load_policy(model: PPO, path: Path) -> int:
    """Gives the model the policy in a file, with its optimiser; returns the steps it has trained for."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = file.metadata() or {}
    model.policy.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(OPTIMIZER)})
    optimizer = model.policy.optimizer.state_dict()
    optimizer["state"] = {}
    for name, value in tensors.items():
        if name.startswith(OPTIMIZER):
            index, key = name.removeprefix(OPTIMIZER).split(".")
            optimizer["state"].setdefault(int(index), {})[key] = value
    model.policy.optimizer.load_state_dict(optimizer)
    return int(told.get("num_timesteps", 0))


def learnt(model: PPO, weights: Path, seed: int) -> Choose:
    """Draws actions from the policy in a file."""
    load_policy(model, weights)
    torch.manual_seed(seed)  # policies draw from the global generator
    return lambda seen: model.predict(seen, deterministic=False)[0]


def at_random(seed: int) -> Choose:
    """Every action as likely."""
    rng = np.random.default_rng(seed)
    return lambda seen: rng.integers(len(ACTIONS), size=len(seen["image"]))


def always(action: str, seed: int) -> Choose:
    """One of `ACTIONS`, whatever is seen."""
    return lambda seen: np.full(len(seen["image"]), list(ACTIONS).index(action))


def scripted(seed: int) -> Choose:
    """Where the view is deep, as the walks that drew the goals were made, whatever the goal shows."""
    rng = np.random.default_rng(seed)
    known = np.array(list(ACTIONS.values()))

    def choose(seen: dict[str, np.ndarray]) -> np.ndarray:
        action_vectors = np.stack([steer_towards_depth(depth_m, rng) for depth_m in seen["depth"]])
        return np.square(known - action_vectors[:, None]).sum(-1).argmin(-1)

    return choose


def dozing(share: float, seed: int) -> Choose:
    """The script, which stands still for this share of its steps."""
    script, rng = scripted(seed), np.random.default_rng(seed + 1)

    def choose(seen: dict[str, np.ndarray]) -> np.ndarray:
        return np.where(rng.random(len(seen["image"])) < share, list(ACTIONS).index("noop"), script(seen))

    return choose
