"""PPO on image, goal, depth and odometry: its network, training with checkpoints, and files of policies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from safetensors import safe_open
from safetensors.torch import save_file
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn
from tqdm import tqdm

DISCOUNT = 0.95
SCAN = 16
"""Number of directions of the range scan."""
SCAN_SCALE_M = 3.0
"""Depth at which nearness is 1/e, metres."""
OPTIMIZER = "optimizer."
"""Prefix of the optimizer's tensors in a policy's file."""


class ImageAndScanExtractor(BaseFeaturesExtractor):
    """Features of image, goal and depth from one small CNN, with a range scan and the odometry beside them.

    The scan holds the nearest surface in `SCAN` directions along the horizon, from left to right, as a range scanner
    measures it. A policy uses it without having to learn it through convolutions.
    """

    def __init__(self, space: spaces.Dict, features: int = 128) -> None:
        super().__init__(space, features + SCAN + space["pose"].shape[0])
        self.see = nn.Sequential(  # name in files
            nn.Conv2d(7, 16, 6, stride=3), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(features), nn.ReLU(),
        )  # fmt: skip
        self.see(torch.zeros(1, 7, *space["image"].shape[1:]))

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        # Stable-Baselines3 has put channels first and scaled images to [0, 1].
        nearness = torch.exp(-observations["depth"][:, None] / SCAN_SCALE_M)  # 1 at the camera, 0 far away
        height = nearness.shape[2]
        horizon = nearness[:, :, height * 15 // 32 : height * 17 // 32]
        scan = nn.functional.adaptive_max_pool2d(horizon, (1, SCAN))
        features = self.see(torch.cat([observations["image"], observations["goal"], nearness], dim=1))
        return torch.cat([features, scan.flatten(1), observations["pose"]], dim=1)


def make_ppo(env: VecEnv, rollout: int, seed: int) -> PPO:
    """PPO with random weights, for an environment that observes odometry (`RelativePose`).

    Args:
        rollout: steps of every member between updates.
    """
    # Rewards in metres and the bonus give values of about ten. Without normalization, the critic's gradient would
    # dominate the actor's.
    normalized = VecNormalize(env, norm_obs=False, gamma=DISCOUNT)
    policy_kwargs = {
        "features_extractor_class": ImageAndScanExtractor,
        "share_features_extractor": False,
        "net_arch": [64],
    }
    batch = min(128, rollout * env.num_envs)
    return PPO(
        "MultiInputPolicy", normalized, n_steps=rollout, batch_size=batch, n_epochs=10, learning_rate=7e-4,
        ent_coef=0.003, gamma=DISCOUNT, gae_lambda=0.9, seed=seed, device="cpu", policy_kwargs=policy_kwargs,
    )  # fmt: skip


class PolicyCheckpoints(BaseCallback):
    """Saves policies at given steps, and shows a progress bar.

    Args:
        steps: of the whole training.
        folder: for the files `0.safetensors`, `1.safetensors`, and so on.
        marks: the step of each file, in order.
        first: number of the first file to write; earlier ones exist.
    """

    def __init__(self, steps: int, folder: Path, marks: list[int], first: int) -> None:
        super().__init__()
        self.steps, self.folder, self.marks, self.next = steps, folder, marks, first

    def _on_training_start(self) -> None:
        self.bar = tqdm(total=self.steps, unit="step", mininterval=2.0, desc=self.folder.name)

    def _on_step(self) -> bool:
        self.bar.n = min(self.num_timesteps, self.steps)
        self.bar.update(0)
        return True

    def _on_rollout_start(self) -> None:
        self._save_due()

    def _on_training_end(self) -> None:
        self._save_due()
        self.bar.close()

    def _save_due(self) -> None:
        while self.next < len(self.marks) and self.num_timesteps >= self.marks[self.next]:
            save_policy(self.model, self.folder / f"{self.next}.safetensors")
            self.next += 1


def train(model: PPO, steps: int, folder: Path, count: int) -> None:
    """Trains with a progress bar and saves `count` policies from the first to the last, more densely early on.

    Interrupted training continues from the last saved policy and its optimizer. Episodes and the scale of rewards start
    again.
    """
    marks = (steps * np.linspace(0, 1, count) ** 2).round().astype(int).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    saved = [index for index in range(count) if (folder / f"{index}.safetensors").is_file()]
    if saved:
        model.num_timesteps = load_policy(model, folder / f"{saved[-1]}.safetensors")
    callback = PolicyCheckpoints(steps, folder, marks, first=saved[-1] + 1 if saved else 0)
    model.learn(steps - model.num_timesteps, callback=callback, reset_num_timesteps=False)


def save_policy(model: PPO, path: Path) -> None:
    """Writes the policy and its optimizer as safetensors, with the number of steps it was trained for."""
    tensors = {name: value.clone() for name, value in model.policy.state_dict().items()}
    for index, state in model.policy.optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}{index}.{name}": value.clone() for name, value in state.items()}
    save_file(tensors, path, metadata={"num_timesteps": str(model.num_timesteps)})


def load_policy(model: PPO, path: Path) -> int:
    """Loads a policy and its optimizer into the model; returns the number of steps it was trained for."""
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    model.policy.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(OPTIMIZER)})
    optimizer = model.policy.optimizer.state_dict()
    optimizer["state"] = {}
    for name, value in tensors.items():
        if name.startswith(OPTIMIZER):
            index, key = name.removeprefix(OPTIMIZER).split(".")
            optimizer["state"].setdefault(int(index), {})[key] = value
    model.policy.optimizer.load_state_dict(optimizer)
    return int(metadata.get("num_timesteps", 0))
