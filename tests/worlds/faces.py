"""Worlds seen through a vector face, so that what is asked of a world can be asked of the face.

A state is then what the face's snapshots hold, and stepping it is restoring it there and stepping the face.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from mosaic_gym.envs.members import Members
from mosaic_gym.envs.sb3 import MosaicVecEnv
from mosaic_gym.envs.snapshot import Snapshot
from mosaic_gym.envs.vector_env import WorldVectorEnv
from mosaic_gym.geometry.control import Pose
from mosaic_gym.worlds.protocol import Start, View, World

FACES = {"action_space": "continuous", "observation": "dict"}


@dataclass(frozen=True)
class Kept:
    """A member's present: a snapshot of it, None where there are none, and what the protocol asks of a state."""

    snapshot: Snapshot | None
    pose: Pose
    step_index: int


class ThroughFace:
    """A forkable world through `WorldVectorEnv` (`gymnasium`) or `MosaicVecEnv` (`sb3`).

    Args:
        make: makes the world.
        face: which.
    """

    forkable = True

    def __init__(self, make: Callable[[], World], face: str) -> None:
        self.world, self.face = make(), face
        for name in ("control", "height", "width", "image_from_camera", "fingerprint"):
            setattr(self, name, getattr(self.world, name))
        self.of = cache(self._open)

    def _open(self, count: int) -> WorldVectorEnv | MosaicVecEnv:
        members = Members(self.world, count, **FACES)
        return WorldVectorEnv(members) if self.face == "gymnasium" else MosaicVecEnv(members)

    def start(self, start: Start) -> tuple[Kept, View]:
        env, given = self.of(1), {"image": start.image, "pose": start.world_from_camera, "prompt": start.prompt}
        options = {name: value for name, value in given.items() if value is not None}
        if self.face == "gymnasium":
            seen, _ = env.reset(seed=start.seed, options=options)
        else:
            env.seed(start.seed)
            env.set_options(options)
            seen = env.reset()
        (kept,), (view,) = self._shown(env, seen)
        return kept, view

    def step(self, states: Sequence[Kept], actions: np.ndarray) -> tuple[list[Kept], list[View]]:
        env = self.of(len(states))
        if self.face == "gymnasium":
            env.restore([state.snapshot for state in states])
            seen, _, terminated, truncated, _ = env.step(actions)
            over = terminated | truncated
        else:
            for i, state in enumerate(states):
                env.env_method("restore", state.snapshot, indices=[i])
            seen, _, over, _ = env.step(actions)
        assert not over.any(), "an episode that ends would be another one now"
        return self._shown(env, seen)

    def _shown(self, env: Any, seen: dict[str, np.ndarray]) -> tuple[list[Kept], list[View]]:
        snapshots = env.snapshot() if self.face == "gymnasium" else env.env_method("snapshot")
        episodes = [snapshot.episode for snapshot in snapshots]
        for i, episode in enumerate(episodes):
            np.testing.assert_array_equal(seen["image"][i], episode.view.frames[-1])
            np.testing.assert_allclose(seen["pose"][i], episode.state.pose.world_from_camera, atol=1e-5)
        kept = [Kept(one, one.episode.state.pose, one.episode.state.step_index) for one in snapshots]
        return kept, [episode.view for episode in episodes]

    def pack(self, state: Kept) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The face's own file, as bytes; and the world's tensors, which tell what is shared."""
        env = self.of(1)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "kept"
            if self.face == "gymnasium":
                env.restore([state.snapshot])
                env.save(path)
            else:
                env.env_method("restore", state.snapshot)
                env.env_method("save", path)
            file = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        return {**self.world.pack(state.snapshot.episode.state)[0], "file": file}, {}

    def unpack(self, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> Kept:
        env = self.of(1)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "kept"
            path.write_bytes(tensors["file"].numpy().tobytes())
            if self.face == "gymnasium":
                seen, _ = env.load(path)
            else:
                ((one, _),) = env.env_method("load", path)
                seen = {name: value[None] for name, value in one.items()}
        (kept,), _ = self._shown(env, seen)
        return kept

    def close(self) -> None:
        self.world.close()


class SimulatorThroughFace:
    """The registered engine through Gymnasium's `SyncVectorEnv` or Stable-Baselines3's `DummyVecEnv`, one body each."""

    forkable = False

    def __init__(self, face: str) -> None:
        self.face, self.latest = face, None
        if face == "gymnasium":
            self.env = gym.make_vec("MosaicWorldReal-v0", num_envs=1, vectorization_mode="sync", **FACES)
            self.inner = self.env.envs[0].unwrapped
        else:
            self.env = DummyVecEnv([lambda: gym.make("MosaicWorldReal-v0", **FACES)])
            self.inner = self.env.envs[0].unwrapped
        for name in ("control", "height", "width", "image_from_camera", "fingerprint"):
            setattr(self, name, getattr(self.inner.world, name))

    def start(self, start: Start) -> tuple[Kept, View]:
        if self.face == "gymnasium":
            seen, _ = self.env.reset(seed=[start.seed])
        else:
            self.env.seed(start.seed)
            seen = self.env.reset()
        return self._shown(seen)

    def step(self, states: Sequence[Kept], actions: np.ndarray) -> tuple[list[Kept], list[View]]:
        if states[0] is not self.latest:
            self._ask("snapshot")  # to go back one needs one
        seen = self.env.step(actions.astype(np.float32))[0]
        kept, view = self._shown(seen)
        return [kept], [view]

    def pack(self, state: Kept) -> Any:
        self._ask("save", "nowhere")

    def _ask(self, method: str, *arguments: Any) -> Any:
        if self.face == "gymnasium":
            return self.env.call(method, *arguments)
        return self.env.env_method(method, *arguments)

    def _shown(self, seen: dict[str, np.ndarray]) -> tuple[Kept, View]:
        view, state = self.inner.view, self.inner.state
        np.testing.assert_array_equal(seen["image"][0], view.frames[-1])
        self.latest = Kept(None, state.pose, state.step_index)
        return self.latest, view

    def close(self) -> None:
        self.env.close()
