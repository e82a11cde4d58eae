"""The learned world: a video diffusion transformer with spatial memory.

Open this file first. `MosaicWorld.see` is the method in one reading: recall, denoise, decode, estimate
depth, remember. `step` puts control in front of it. Everything else here begins, saves and checks states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mosaic_gym.geometry.control import FRAMES_PER_STEP, Control, Pose, check_action, pose_at, yaw_matrix, yaw_of
from mosaic_gym.memory.keyframe import lift
from mosaic_gym.memory.mosaic import MosaicMemory, Recall, recall
from mosaic_gym.memory.obstacles import obstacles_near
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.codec import frames_to_float, frames_to_uint8
from mosaic_gym.model.depth import align_scale
from mosaic_gym.model.sampler import denoise, step_noise
from mosaic_gym.worlds.protocol import Start, View
from mosaic_gym.worlds.state import Glimpse, WorldState, load_state, pack_state, save_state, unpack_state


class MosaicWorld:
    """The World protocol over a `WorldModel`; batched over states, one network call for all.

    Args:
        model: the networks.
        device: where they run.
        denoising_steps: None for the number the checkpoint ships with.
        capacity: keyframes an episode keeps; None for the checkpoint's, 0 for no memory, 1 for the last frame only.
        network: False shows the warped memory alone, without the network (the baseline to beat).
        collision: whether the body stops at lifted geometry and slides along it.
        temperature: of the draw of rewards and ends; 0 takes the likelier.

    Raises:
        ValueError: denoising_steps below 1, a negative temperature, or CUDA was asked for and is absent.
    """

    forkable = True

    def __init__(
        self,
        model: WorldModel,
        device: str = "cpu",
        denoising_steps: int | None = None,
        capacity: int | None = None,
        network: bool = True,
        collision: bool = True,
        temperature: float = 1.0,
    ):
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device {device!r} was asked for and this torch sees no CUDA device; use device='cpu'")
        settings = model.settings
        self.model = model.to(device)
        self.device = torch.device(device)
        self.denoising_steps = settings.denoising_steps if denoising_steps is None else denoising_steps
        if self.denoising_steps < 1:
            raise ValueError(f"denoising_steps is at least 1; got {denoising_steps}")
        self.capacity = settings.capacity if capacity is None else capacity
        self.network = network
        self.collision = collision
        self.temperature = float(temperature)
        if not 0.0 <= self.temperature < np.inf:
            raise ValueError(f"temperature is 0 or more; got {temperature}")
        self.control = Control(**settings.control)
        self.height, self.width = settings.height, settings.width
        self.image_from_camera = np.array(settings.image_from_camera)
        self._k = torch.tensor(settings.image_from_camera, dtype=torch.float32, device=self.device)
        stride = model.codec.stride
        self._latent_shape = (model.codec.channels, self.height // stride, self.width // stride)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path = "doom-tiny",
        device: str = "cpu",
        denoising_steps: int | None = None,
        memory: bool = True,
        collision: bool = True,
        temperature: float = 1.0,
    ) -> MosaicWorld:
        """Loads a shipped checkpoint by name, or a folder; `memory=False` is the world that forgets."""
        model = WorldModel.from_pretrained(checkpoint)
        capacity = None if memory else 0
        return cls(model, device, denoising_steps, capacity, collision=collision, temperature=temperature)

    @property
    def fingerprint(self) -> str:
        """Of the checkpoint."""
        return self.model.fingerprint

    def step(self, states: Sequence[WorldState], actions: np.ndarray) -> tuple[list[WorldState], list[View]]:
        """Moves every body by its action `[b, 3]` and shows what it sees there.

        Raises:
            ValueError: wrong number of actions, or one that is NaN or out of range; nothing has moved then.
        """
        if len(actions) != len(states):
            raise ValueError(f"{len(states)} states take {len(states)} actions; got {len(actions)}")
        checked = [check_action(action) for action in actions]
        return self.see(states, [self.move(state, action) for state, action in zip(states, checked, strict=True)])

    def move(self, state: WorldState, action: np.ndarray) -> list[Pose]:
        """The four poses that an action `[3]` leads to, past what memory knows to stand in the way."""
        if not self.collision or not len(state.memory):
            return self.control.advance(state.pose, action)
        eye_m = state.pose.world_from_camera[:3, 3]
        return self.control.advance(state.pose, action, obstacles_near(state.memory.keyframes, eye_m))

    @torch.no_grad()
    def see(
        self, states: Sequence[WorldState], poses: Sequence[Sequence[Pose]]
    ) -> tuple[list[WorldState], list[View]]:
        """One step along given cameras: four poses for every state."""
        cameras = self._cameras(poses)  # [b, 4, 4, 4]
        recalled = self.recall(states, cameras)
        latents = self._denoise(states, recalled, cameras)
        latents, frames = self._decode(latents, recalled)
        depth_m = self._estimate_depth(frames, recalled)
        memories = self._remember(states, latents, depth_m, cameras, recalled)
        rewards, ends = self._outcomes(states, frames)

        pictures = frames_to_uint8(frames).cpu().numpy()
        coverage = recalled.coverage.tolist()
        futures, views = [], []
        for i, state in enumerate(states):
            future = replace(self._moved_on(state, poses[i], latents[i], cameras[i]), memory=memories[i])
            futures.append(future)
            view = self._view(future, poses[i], pictures[i], depth_m[i], coverage[i])
            views.append(replace(view, reward=rewards[i], terminated=ends[i]))
        return futures, views

    @torch.no_grad()
    def foresee(
        self, states: Sequence[WorldState], actions: np.ndarray
    ) -> tuple[list[WorldState], list[Glimpse]]:
        """One step in latents alone, for planners: nothing is decoded, touched up, lifted or remembered.

        Args:
            states: as `step` takes them; actions `[b, 3]`.
        """
        poses = [self.move(state, check_action(action)) for state, action in zip(states, actions, strict=True)]
        cameras = self._cameras(poses)
        recalled = self.recall(states, cameras)
        latents = self._denoise(states, recalled, cameras)
        futures = [self._moved_on(*each) for each in zip(states, poses, latents, cameras, strict=True)]
        coverage = recalled.coverage.tolist()
        return futures, [Glimpse(latents[i], coverage[i]) for i in range(len(states))]

    @torch.no_grad()
    def look(self, state: WorldState) -> np.ndarray:
        """The present frame of a state, uint8 `[H, W, 3]`."""
        return frames_to_uint8(self.model.codec.decode(state.history[-1:]))[0, -1].cpu().numpy()

    def covered(self, state: WorldState, poses: Sequence[Pose]) -> np.ndarray:
        """Which pixels memory has something to say about, bool `[4, H, W]`, in a next view from four given poses."""
        return self.recall([state], self._cameras([poses])).pixels_covered[0].cpu().numpy()

    def recall(self, states: Sequence[WorldState], cameras: Tensor) -> Recall:
        """What the states' memories give for their next cameras `[b, 4, 4, 4]`, metres."""
        settings = self.model.settings
        memories = [state.memory.keyframes for state in states]
        shape = self._latent_shape
        return recall(
            memories, cameras, self._k, self.model.codec, shape, settings.max_sources, settings.max_patches
        )

    def _denoise(self, states: Sequence[WorldState], recalled: Recall, cameras: Tensor) -> Tensor:
        if not self.network:
            return recalled.warped
        seeds, steps = [state.seed for state in states], [state.step_index for state in states]
        return denoise(
            self.model.transformer,
            self.model.scheduler,
            step_noise(seeds, steps, self._latent_shape).to(self.device),
            torch.stack([state.history for state in states]),
            torch.stack([state.history_cameras for state in states]),
            recalled,
            cameras,
            self._k.expand(len(states), 3, 3),
            (self.height, self.width),
            torch.stack([state.text for state in states]),
            self.denoising_steps,
        )

    def _decode(self, latents: Tensor, recalled: Recall) -> tuple[Tensor, Tensor]:
        """Frames `[b, 4, 3, H, W]`, touched up, and the latents that hold them."""
        frames = self.model.codec.decode(latents)
        if not self.network:
            return latents, frames
        frames = self.model.detail(frames, recalled.stills, recalled.doubt, recalled.pixels_covered)
        return self.model.codec.encode(frames), frames

    def _estimate_depth(self, frames: Tensor, recalled: Recall) -> Tensor:
        """Depth `[b, H, W]` of the last frames, metres, on the scale of what memory knows."""
        depth_m = self.model.depth.estimate(frames[:, -1].clamp(-1, 1), self._k.expand(len(frames), 3, 3))
        return align_scale(depth_m, recalled.depth_m)

    def _remember(
        self, states: Sequence[WorldState], latents: Tensor, depth_m: Tensor, cameras: Tensor, recalled: Recall
    ) -> list[MosaicMemory]:
        # A patch is one generation further from a true frame than what it was made from.
        generation = recalled.generation + 1.0
        return [
            state.memory.remember(
                lift(latents[i], depth_m[i], cameras[i], self._k, generation[i], state.step_index + 1)
            )
            for i, state in enumerate(states)
        ]

    def _outcomes(self, states: Sequence[WorldState], frames: Tensor) -> tuple[list[float], list[bool]]:
        """The game's own reward and end, as the heads believe, drawn from (seed, step)."""
        seeds, steps = [state.seed for state in states], [state.step_index for state in states]
        return self.model.outcome.draw(frames[:, -1].clamp(-1, 1), seeds, steps, self.temperature)

    def _moved_on(self, state: WorldState, poses: Sequence[Pose], latent: Tensor, cameras: Tensor) -> WorldState:
        """The state one step later, its memory as it was."""
        return replace(
            state,
            pose=poses[-1],
            history=torch.cat([state.history[1:], latent[None]]),
            history_cameras=torch.cat([state.history_cameras[1:], cameras[None]]),
            step_index=state.step_index + 1,
        )

    def start(self, start: Start) -> tuple[WorldState, View]:
        """A body at rest in front of a start image: the given one, or one of the checkpoint's, by seed.

        Raises:
            ValueError: an image of the wrong shape or dtype, a camera that is not [4, 4], a prompt that is too long.
            TypeError: a memory that is not a MosaicMemory.
        """
        rng = np.random.default_rng(start.seed)
        drawn = int(rng.integers(len(self.model.start_images)))
        image = self.model.start_images[drawn].numpy() if start.image is None else self._checked_image(start.image)
        prompt = self.model.start_prompts[drawn] if start.prompt is None else start.prompt
        pose = self._checked_pose(start.world_from_camera)
        poses = [pose] * FRAMES_PER_STEP
        frames = np.repeat(image[None], FRAMES_PER_STEP, axis=0)
        state = self._begin(frames, poses, start.seed, prompt, start.memory)
        depth_m = state.memory.keyframes[-1].depth_m if len(state.memory) else self._estimate(frames)
        return state, self._view(state, poses, frames, depth_m, 1.0)

    @torch.no_grad()
    def observe(self, state: WorldState, frames: np.ndarray, poses: Sequence[Pose]) -> WorldState:
        """The state after truly seeing four frames (uint8 `[4, H, W, 3]`) from four poses, as a robot would."""
        latent = self._encode(frames)
        cameras = self._cameras([poses])[0]
        depth_m = self._estimate(frames)
        if len(state.memory):
            depth_m = align_scale(depth_m[None], self.recall([state], cameras[None]).depth_m)[0]
        true = torch.zeros(latent.shape[-2:], device=self.device)
        keyframe = lift(latent, depth_m, cameras, self._k, true, state.step_index + 1)
        return replace(self._moved_on(state, poses, latent, cameras), memory=state.memory.remember(keyframe))

    @torch.no_grad()
    def begin(self, frames: np.ndarray, poses: Sequence[Pose], seed: int, prompt: str) -> WorldState:
        """A state that has truly seen four frames (uint8 `[4, H, W, 3]`) from four poses."""
        return self._begin(frames, poses, seed, prompt, None)

    def pack(self, state: WorldState) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A state as tensors by name and what JSON can say."""
        return pack_state(state)

    def unpack(self, tensors: Mapping[str, Tensor], about: dict[str, Any]) -> WorldState:
        """The state that `pack` described, bit for bit."""
        return unpack_state(tensors, about, self.device)

    def save_state(self, state: WorldState, path: Path | str) -> None:
        """Writes a state, its memory included, into one safetensors file."""
        save_state(state, path, self.model.fingerprint)

    def load_state(self, path: Path | str) -> WorldState:
        """Reads what `save_state` wrote; the future continues bit for bit.

        Raises:
            FileNotFoundError: no such file. ValueError: damaged, or a state of another checkpoint.
        """
        return load_state(path, self.model.fingerprint, self.device)

    def close(self) -> None:
        """Nothing is held outside Python; here for the protocol."""

    @torch.no_grad()
    def _begin(
        self, frames: np.ndarray, poses: Sequence[Pose], seed: int, prompt: str, memory: MosaicMemory | None
    ) -> WorldState:
        if memory is None:
            memory = MosaicMemory(capacity=self.capacity)
        elif not isinstance(memory, MosaicMemory):
            kind = type(memory).__name__
            raise TypeError(f"a start memory is a MosaicMemory; got {kind}. Load it with MosaicMemory.load")
        latent = self._encode(frames)
        if len(memory) and memory.keyframes[0].latent.shape != latent.shape:
            shape = tuple(memory.keyframes[0].latent.shape)
            raise ValueError(f"the memory has latents {shape}, this checkpoint {tuple(latent.shape)}: it is another's")
        cameras = self._cameras([poses])[0]
        true = torch.zeros(latent.shape[-2:], device=self.device)
        keyframe = lift(latent, self._estimate(frames), cameras, self._k, true, 0)
        history = self.model.settings.history
        return WorldState(
            pose=poses[-1],
            history=latent.expand(history, *latent.shape).clone(),
            history_cameras=cameras.expand(history, *cameras.shape).clone(),
            memory=memory.remember(keyframe),
            prompt=prompt,
            text=self.model.text_encoder.encode([prompt])[0],
            seed=int(seed),
            step_index=0,
        )

    def _encode(self, frames: np.ndarray) -> Tensor:
        return self.model.codec.encode(frames_to_float(torch.tensor(frames, device=self.device))[None])[0]

    @torch.no_grad()
    def _estimate(self, frames: np.ndarray) -> Tensor:
        """Depth `[H, W]` of the last of four frames, metres."""
        last = frames_to_float(torch.tensor(frames[-1:], device=self.device)[None])[:, 0]
        return self.model.depth.estimate(last, self._k[None])[0]

    def _cameras(self, poses: Sequence[Sequence[Pose]]) -> Tensor:
        stacked = np.array([[pose.world_from_camera for pose in four] for four in poses])
        return torch.tensor(stacked, dtype=torch.float32, device=self.device)

    def _view(
        self, state: WorldState, poses: Sequence[Pose], frames: np.ndarray, depth_m: Tensor, coverage: float
    ) -> View:
        return View(
            frames=frames,
            depth_m=depth_m.cpu().numpy().copy(),  # memory keeps the other; a view may be written to
            world_from_camera=np.array([pose.world_from_camera for pose in poses]),
            image_from_camera=self.image_from_camera,
            coverage=float(coverage),
            keyframes=len(state.memory),
        )

    def _checked_image(self, image: np.ndarray) -> np.ndarray:
        expected = (self.height, self.width, 3)
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.shape != expected:
            raise ValueError(f"a start image is uint8 of shape {expected}; got {image.dtype} of shape {image.shape}")
        return image

    def _checked_pose(self, world_from_camera: np.ndarray | None) -> Pose:
        if world_from_camera is None:
            return pose_at(0.0, 0.0, 0.0, 0.0)
        matrix = np.asarray(world_from_camera, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise ValueError(f"a start pose is a finite [4, 4] world_from_camera; got shape {matrix.shape}")
        if not np.allclose(matrix[:3, :3], yaw_matrix(yaw_of(matrix)), atol=1e-5):
            raise ValueError("a start pose's rotation must be a turn about the y axis alone: cameras are level")
        return Pose(matrix)
