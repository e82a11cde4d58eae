"""Learned worlds under test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mosaic_gym.geometry.control import Pose
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.protocol import Start, View
from mosaic_gym.worlds.state import WorldState


class LearnedWorld:
    """A checkpoint as a `WorldUnderTest`.

    Args:
        model: the checkpoint.
        denoising_steps: None for the shipped number.
        network: False for the warped memory alone, without atlas and transformer.
    """

    def __init__(self, model: WorldModel, denoising_steps: int | None = None, network: bool = True):
        self.world = MosaicWorld(model, denoising_steps=denoising_steps, network=network, atlas=network)
        self.fingerprint = self.world.fingerprint
        self.takes_prompts, self.has_memory = network, network
        encoder = getattr(model.text_encoder, "config", None)
        self.prompt_bytes: int | None = getattr(encoder, "length", None)  # longer captions are cut off

    def start(
        self, frame: np.ndarray, pose: Pose, prompt: str, seed: int, index: int, depth_m: np.ndarray
    ) -> tuple[WorldState, np.ndarray]:
        """See `WorldUnderTest`; true depth is not read."""
        seed = 2 * index + seed
        prompt = prompt.encode()[: self.prompt_bytes].decode(errors="ignore")
        start = Start(seed, image=frame, world_from_camera=pose.world_from_camera, prompt=prompt)
        state, view = self.world.start(start)
        return state, view.depth_m

    def observe(self, state: WorldState, frames: np.ndarray, poses: Sequence[Pose]) -> WorldState:
        """See `WorldUnderTest`."""
        return self.world.observe(state, frames, poses)

    def without_memory(self, state: WorldState) -> WorldState:
        """See `WorldUnderTest`."""
        return replace(state, memory=MosaicMemory(capacity=0))

    def generate(
        self, states: Sequence[WorldState], poses: Sequence[Sequence[Pose]]
    ) -> tuple[list[WorldState], list[View]]:
        """See `WorldUnderTest`."""
        return self.world.generate(states, poses)

    def step(self, states: Sequence[WorldState], actions: np.ndarray) -> tuple[list[WorldState], list[View]]:
        """See `WorldUnderTest`."""
        return self.world.step(states, actions)
