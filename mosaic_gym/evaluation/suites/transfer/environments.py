"""The vector environments of the benchmark: a task in the simulator or in the learned world, for PPO."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecTransposeImage

import mosaic_gym  # noqa: F401, registers the ids
from mosaic_gym.envs.sb3 import make_sb3
from mosaic_gym.envs.tasks import GoalTask, Task
from mosaic_gym.model.checkpoints import WorldSettings

MEMBERS = 16
"""Members of the learned world's vector environment."""
EPISODE_STEPS = 32
"""Time limit of an episode, steps."""
POSITION_SCALE_M = 5.0
"""Distance that becomes 1 in the observation, metres."""


class RelativePose(VecEnvWrapper):
    """Replaces `pose` by odometry since the start of the episode, which needs no map.

    It becomes `[5]`: metres to the right of the start and ahead of it (over 5), sine and cosine of the heading, and
    metres moved by the last step.
    """

    def __init__(self, venv: VecEnv) -> None:
        odometry = spaces.Box(-np.inf, np.inf, (5,), np.float32)
        super().__init__(venv, spaces.Dict({**venv.observation_space.spaces, "pose": odometry}))

    def reset(self) -> dict[str, np.ndarray]:
        """Starts all episodes."""
        observations = self.venv.reset()
        self._first, self._last = observations["pose"].copy(), observations["pose"].copy()
        return self._with_odometry(observations, slice(None))

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Steps all members. The terminal observation of an ended episode is relative to its own start."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = self._with_odometry(infos[i]["terminal_observation"], i)
            self._first[i] = self._last[i] = observations["pose"][i]
        relative = self._with_odometry(observations, slice(None))
        self._last = observations["pose"].copy()
        return relative, rewards, dones, infos

    def _with_odometry(self, observations: dict[str, np.ndarray], rows: Any) -> dict[str, np.ndarray]:
        pose = observations["pose"]
        start_from_camera = np.linalg.inv(self._first[rows]) @ pose
        moved_m = np.linalg.norm(pose[..., :3, 3] - self._last[rows][..., :3, 3], axis=-1)
        right, ahead = start_from_camera[..., 0, 3] / POSITION_SCALE_M, start_from_camera[..., 2, 3] / POSITION_SCALE_M
        odometry = [right, ahead, start_from_camera[..., 0, 2], start_from_camera[..., 2, 2], moved_m]
        return {**observations, "pose": np.stack(odometry, axis=-1).astype(np.float32)}


def open_simulator(settings: WorldSettings, task: Task | None = None, members: int = 1) -> VecEnv:
    """A task, by default the goal task, in the simulator that a checkpoint of these settings was trained on."""
    arguments = {"task": task or GoalTask(), "observation": "dict", "scenario": settings.scenario}
    arguments["resolution"] = [settings.height, settings.width]

    def make() -> gym.Env:
        return gym.make("MosaicWorldReal-v0", max_episode_steps=EPISODE_STEPS, **arguments)

    return RelativePose(VecTransposeImage(DummyVecEnv([make] * members)))


def open_learned_world(checkpoint: str, task: Task) -> VecEnv:
    """A task in the learned world, with `MEMBERS` members."""
    arguments = {"observation": "dict", "max_episode_steps": EPISODE_STEPS, "checkpoint": checkpoint}
    return RelativePose(VecTransposeImage(make_sb3(MEMBERS, task=task, **arguments)))
