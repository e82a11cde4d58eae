"""The learned world: a video diffusion transformer with spatial memory.

Open this file first. `MosaicWorld.see_chunk` is the method in one reading: picture the map, recall, denoise,
decode, estimate depth, remember. `step` puts control in front of it. How memory is read and written is told in
`remembering.py`, how an episode begins in `beginning.py`, what comes out of a step in `showing.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose, check_action, control_from_settings
from mosaic_gym.memory.mosaic import Retrieved
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.device import check_device, out_of_memory_guard
from mosaic_gym.model.sampler import denoise, step_noise
from mosaic_gym.worlds.beginning import Beginning
from mosaic_gym.worlds.protocol import View, check_temperature
from mosaic_gym.worlds.remembering import Remembering
from mosaic_gym.worlds.showing import Showing
from mosaic_gym.worlds.state import Keeping, LatentObservation, WorldState


class MosaicWorld(Beginning, Remembering, Showing, Keeping):
    """The World protocol over a `WorldModel`; batched over states, one network call for all.

    Args:
        model: the networks.
        device: where they run.
        denoising_steps: None for the number the checkpoint ships with.
        capacity: keyframes an episode keeps; None for the checkpoint's, 0 for no memory, 1 for the last frame only.
        network: False shows what transformer and detail network are given, and leaves them out.
        atlas: False leaves out the atlas; without both, what is seen is the warped memory alone (the baseline to beat).
        collision: whether the body stops at lifted geometry, and at the map's walls, and slides along them.
        temperature: of the draw of rewards and ends; 0 takes the likelier.

    Attributes:
        k: `[3, 3]`, K in pixels of the frames, on the device.
        patch_grid: rows and columns of patches in a latent frame.

    Raises:
        ValueError: denoising_steps below 1, a negative capacity or temperature, or CUDA was asked for and is absent.
    """

    forkable = True

    def __init__(
        self,
        model: WorldModel,
        device: str = "cpu",
        denoising_steps: int | None = None,
        capacity: int | None = None,
        network: bool = True,
        atlas: bool = True,
        collision: bool = True,
        temperature: float = 1.0,
    ):
        self.device = check_device(device)
        settings = model.settings
        with out_of_memory_guard("the networks' weights"):
            self.model = model.to(device)
        for part in (model.depth, model.refiner):
            if isinstance(part, torch.nn.Module):  # small convolutions are a tenth faster so
                part.to(memory_format=torch.channels_last)
        self.denoising_steps = settings.denoising_steps if denoising_steps is None else denoising_steps
        if capacity is not None and capacity < 0:
            raise ValueError(f"capacity is 0, for no memory, or more; got {capacity}")
        if self.denoising_steps < 1:
            raise ValueError(f"denoising_steps is at least 1; got {denoising_steps}")
        self.capacity = settings.capacity if capacity is None else capacity
        self.network = network
        self.atlas = model.atlas if atlas else None
        self.collision = collision
        self.temperature = check_temperature(temperature)
        self.control = control_from_settings(settings.control)
        self.height, self.width = settings.height, settings.width
        self.image_from_camera = np.array(settings.image_from_camera)
        self.k = torch.tensor(settings.image_from_camera, dtype=torch.float32, device=self.device)
        codec = model.codec
        rows, columns = self.height // codec.stride, self.width // codec.stride
        self._latent_shape = (codec.channels, rows, columns)
        self._patch = model.transformer.config.patch_size[1]
        self.patch_grid = (rows // self._patch, columns // self._patch)
        self._image_cells = (self.height // codec.image_stride, self.width // codec.image_stride)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path = "doom-tiny",
        device: str = "cpu",
        denoising_steps: int | None = None,
        memory: bool = True,
        collision: bool = True,
        temperature: float = 1.0,
        size: tuple[int, int] | None = None,
        loading: Mapping[str, Any] | None = None,
    ) -> MosaicWorld:
        """Loads a checkpoint as `WorldModel.from_pretrained` does; `memory=False` is the world that forgets."""
        check_device(device)  # before gigabytes are read
        model = WorldModel.from_pretrained(checkpoint, size, loading)
        capacity = None if memory else 0
        return cls(model, device, denoising_steps, capacity, collision=collision, temperature=temperature)

    @property
    def fingerprint(self) -> str:
        """Of the checkpoint, and of whatever else a state's future depends on, where that is not the usual."""
        settings = self.model.settings
        asked = {
            "capacity": (self.capacity, settings.capacity),
            "denoising_steps": (self.denoising_steps, settings.denoising_steps),
            "network": (self.network, True),
            "atlas": (self.atlas is not None, self.model.atlas is not None),
            "collision": (self.collision, True),
            "temperature": (self.temperature, 1.0),
        }
        unusual = [f"{name}={own}" for name, (own, usual) in asked.items() if own != usual]
        return ";".join([self.model.fingerprint, *unusual])

    @property
    def has_rewards(self) -> bool:
        """Whether rewards and ends are predicted."""
        return self.model.reward_heads is not None

    def step(self, states: Sequence[WorldState], actions: np.ndarray) -> tuple[list[WorldState], list[View]]:
        """Moves every body by its action `[b, 3]` and shows what it sees there.

        Raises:
            ValueError: wrong number of actions, or one that is NaN or out of range; nothing has moved then.
        """
        return self.see(states, self.move(states, actions))

    def move(self, states: Sequence[WorldState], actions: np.ndarray) -> list[list[Pose]]:
        """The four poses that its action leads each body to, past what memory and map know to stand in the way.

        Args:
            actions: `[b, 3]`.

        Raises:
            ValueError: as `step` does.
        """
        if len(actions) != len(states) or not len(states):
            raise ValueError(f"{len(states)} states take {len(states)} actions, at least one; got {len(actions)}")
        checked = [check_action(action) for action in actions]
        poses = [state.pose for state in states]
        if not self.collision:
            return [self.control.advance(*each) for each in zip(poses, checked, strict=True)]
        obstacles = self.obstacles(states)
        return [self.control.advance(*each) for each in zip(poses, checked, obstacles, strict=True)]

    def see(self, states: Sequence[WorldState], poses: Sequence[Sequence[Pose]]) -> tuple[list[WorldState], list[View]]:
        """One step along given cameras: four poses for every state."""
        futures, views = self.see_chunk(states, poses)
        return futures, [shown[0] for shown in views]

    @torch.no_grad()
    def see_chunk(
        self, states: Sequence[WorldState], poses: Sequence[Sequence[Pose]]
    ) -> tuple[list[WorldState], list[list[View]]]:
        """Some steps at once along given cameras, `4 * t` poses for every state, as one clip.

        Memory is read before the clip and written behind it (the paper's rollout: 80 new frames, then an update). The
        latent frames between are made together, or by a causal network one after the other.

        Returns:
            The states behind the clip, and for each of them its `t` views.

        Raises:
            ValueError: poses of another number of bodies, or that are no whole number of steps, the same for all; or
                frames that are no numbers, as damaged or too coarse weights make them.
        """
        if len(poses) != len(states):
            raise ValueError(f"{len(states)} states take the poses of {len(states)} bodies; got those of {len(poses)}")
        cameras = self._cameras(poses)  # [b, t, 4, 4, 4]
        retrieved = self.retrieve(states, cameras, self.pictures(states, cameras))
        futures, made = list(states), []
        for view, here, ahead in self._in_turn(retrieved, cameras, poses):
            latents = self.denoised(futures, view, here)  # [b, t, c, h, w]
            latents, frames, streams = self._decode(futures, latents, view)  # [b, t, 4, 3, H, W]
            futures = self._carried_on(futures, ahead, latents, frames, here, streams)
            made.append((latents, frames))
        latents, frames = made[0] if len(made) == 1 else (torch.cat(each, dim=1) for each in zip(*made, strict=True))
        depth_m = self._estimate_depth(frames, retrieved)
        memories = self._remember(states, latents, depth_m, cameras, retrieved)
        outcomes = self._outcomes(states, frames)
        futures = [replace(future, memory=kept[-1]) for future, kept in zip(futures, memories, strict=True)]
        return futures, self._shown(memories, poses, frames, depth_m, retrieved.coverage, outcomes)

    def _in_turn(
        self, retrieved: Retrieved, cameras: Tensor, poses: Sequence[Sequence[Pose]]
    ) -> Iterator[tuple[Retrieved, Tensor, Sequence[Sequence[Pose]]]]:
        """The parts of a clip that are made together: what is recalled for them, their cameras, and poses.

        They are all of it, or single latent frames for a causal network: it has learnt to make one behind clean ones.
        """
        t = cameras.shape[1]
        if t == 1 or not self.model.transformer.config.causal:
            yield retrieved, cameras, poses
            return
        for k in range(t):
            ahead = [each[FRAMES_PER_STEP * k : FRAMES_PER_STEP * (k + 1)] for each in poses]
            yield retrieved.views(slice(k, None, t)), cameras[:, k : k + 1], ahead

    @torch.no_grad()
    def foresee(
        self, states: Sequence[WorldState], actions: np.ndarray
    ) -> tuple[list[WorldState], list[LatentObservation]]:
        """One step in latents alone, for planners: nothing is decoded, touched up, lifted or remembered.

        Args:
            states: as `step` takes them; actions `[b, 3]`.
        """
        if self.model.codec.restarts:
            raise RuntimeError(
                "this world begins every step from its last frame and cannot be rolled in latents alone; ask for pixels"
            )
        poses = self.move(states, actions)
        cameras = self._cameras(poses)
        retrieved = self.retrieve(states, cameras, self.pictures(states, cameras))
        latents = self.denoised(states, retrieved, cameras)
        streams = [state.stream for state in states]
        futures = [self._moved_on(*each) for each in zip(states, poses, latents, cameras, streams, strict=True)]
        coverage = retrieved.coverage.tolist()
        return futures, [LatentObservation(latents[i, 0], coverage[i]) for i in range(len(states))]

    @torch.no_grad()
    def denoised(self, states: Sequence[WorldState], retrieved: Retrieved, cameras: Tensor) -> Tensor:
        """The latents `[b, t, c, h, w]` of the states' next views from cameras `[b, t, 4, 4, 4]`."""
        b, t = cameras.shape[:2]
        if not self.network:
            return retrieved.conditioning_latent.unflatten(0, (b, t))
        return self._sample(
            torch.stack([state.history for state in states]),
            torch.stack([state.history_cameras for state in states]),
            retrieved,
            cameras,
            torch.stack([state.text for state in states]),
            [(state.seed, state.step_index + k) for state in states for k in range(t)],
        )

    @out_of_memory_guard("the transformer")
    def _sample(
        self,
        history: Tensor,
        history_cameras: Tensor,
        retrieved: Retrieved,
        cameras: Tensor,
        text: Tensor,
        clocks: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Latents `[b, t, c, h, w]`; the noise of each is drawn from its (seed, step)."""
        b, t = cameras.shape[:2]
        noise = step_noise(*zip(*clocks, strict=True), self._latent_shape).to(self.device).unflatten(0, (b, t))
        settings = self.model.settings
        unwanted = None
        if settings.guidance != 1.0:
            unwanted = self._unwanted.expand(b, -1, -1)
        return denoise(
            self.model.transformer,
            self.model.scheduler,
            noise,
            history,
            history_cameras,
            retrieved,
            cameras,
            self.k.expand(b, 3, 3),
            (self.height, self.width),
            text,
            self.denoising_steps,
            unwanted,
            settings.guidance,
        )

    @cached_property
    def _unwanted(self) -> Tensor:
        return self.model.text_encoder.encode([self.model.settings.negative_prompt])

    @out_of_memory_guard("decoding frames")
    def _decode(
        self, states: Sequence[WorldState], latents: Tensor, retrieved: Retrieved
    ) -> tuple[Tensor, Tensor, list[tuple[Any, ...]]]:
        """Latents, the frames `[b, t, 4, 3, H, W]` they hold, and where every clip's decoding then stands."""
        streams = [state.stream for state in states]
        frames = []
        for latent in latents.unbind(1):
            shown, streams = self.model.codec.decode_next(latent, streams)
            frames.append(shown)
        frames = torch.stack(frames, dim=1)
        if not self.network or self.model.refiner is None:
            return latents, frames, streams
        flat = frames.flatten(0, 1)
        # What no screen can show must not be remembered either: on the way it would grow.
        told = retrieved.warped_frames, retrieved.pictures, retrieved.warp_uncertainty, retrieved.memory_weight
        touched = self.model.refiner(flat, *told).clamp(-1.0, 1.0)
        return self.model.codec.encode(touched).view_as(latents), touched.view_as(frames), streams

    @out_of_memory_guard("encoding the last frame")
    def _carried_on(
        self,
        states: Sequence[WorldState],
        poses: Sequence[Sequence[Pose]],
        latents: Tensor,
        frames: Tensor,
        cameras: Tensor,
        streams: list[tuple[Any, ...]],
    ) -> list[WorldState]:
        """The states behind new latents `[b, t, c, h, w]`, as the next step is to be predicted from.

        A model that was trained to continue an image is given one: the last frame begins a clip of its own.
        """
        if self.model.codec.restarts:
            images = self.model.codec.encode(frames[:, -1])
            latents, streams = images[:, None], self.model.codec.begin(images)
            cameras = cameras[:, -1:, -1:].expand(-1, -1, FRAMES_PER_STEP, -1, -1)
        return [self._moved_on(*each) for each in zip(states, poses, latents, cameras, streams, strict=True)]

    def _moved_on(
        self, state: WorldState, poses: Sequence[Pose], latents: Tensor, cameras: Tensor, stream: tuple[Any, ...]
    ) -> WorldState:
        """The state some steps later, its memory as it was; latents `[t, c, h, w]` are what its future is made from."""
        return replace(
            state,
            pose=poses[-1],
            history=self._latest(state.history, latents),
            history_cameras=self._latest(state.history_cameras, cameras),
            step_index=state.step_index + len(poses) // FRAMES_PER_STEP,
            stream=stream,
        )

    def _latest(self, before: Tensor, new: Tensor) -> Tensor:
        """As many of `[t, ...]` and what came behind it as a history holds; nothing else is kept in memory with it."""
        new = new[-self.model.settings.history :]
        left = self.model.settings.history - len(new)
        return torch.cat([before[max(len(before) - left, 0) :], new])

    @torch.no_grad()
    def prompted(self, state: WorldState, prompt: str) -> WorldState:
        """The same state, its future conditioned on another prompt.

        Raises:
            ValueError: a prompt that is too long.
        """
        return replace(state, prompt=prompt, text=self.model.text_encoder.encode([prompt])[0])

    def close(self) -> None:
        """Nothing is held outside Python; here for the protocol."""

    def _cameras(self, poses: Sequence[Sequence[Pose]]) -> Tensor:
        """`[b, t, 4, 4, 4]`."""
        if len({len(each) for each in poses}) != 1 or len(poses[0]) % FRAMES_PER_STEP or not poses[0]:
            counts = [len(each) for each in poses]
            raise ValueError(f"every state takes {FRAMES_PER_STEP} poses a step, all as many steps; got {counts} poses")
        stacked = np.array([[pose.world_from_camera for pose in each] for each in poses])
        cameras = torch.tensor(stacked, dtype=torch.float32, device=self.device)
        return cameras.unflatten(1, (-1, FRAMES_PER_STEP))
