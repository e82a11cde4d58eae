"""The learned world: a video diffusion transformer with spatial memory.

Open this file first. `MosaicWorld.step` is the method: control moves the camera (`advance`), then `generate_clip`
retrieves patches from memory, samples latents, decodes frames, and updates memory. The details are plain functions of
`spatial_memory.py`, `generation.py`, `observation.py`, `initialization.py` and `serialization.py`.

Terms:
- A *step* is one latent frame: four video frames, each with a camera. A *clip* is one or more steps.
- A *state* (`WorldState`) is one episode at one step. It is never changed; stepping returns a new one.
- A *view* (`View`) is what a step returns: four frames, the last one's depth, cameras, reward and termination.
- *Memory* holds keyframes. A *keyframe* is one latent frame with its four cameras and the last one's depth; each of
  its cells is a *patch* in 3D. *Coverage* is the share of a view's pixels that memory covers.
- The *atlas* is a network with the map of the one recorded level. Where an episode is located on that map, it fills
  what memory does not cover, and adds walls to the obstacles. Worlds without an atlas work too.
- The *history* is the latest latent frames, which condition the transformer. The *stream* is the decoder's cache.
- With a codec that *restarts* (image-to-video models), every step is a new clip from the last frame.
- With a codec that *has depth*, depth is generated with color, and a step is in `picture_steps.py`.
- An action is `[forward, strafe right, turn right]`, each in [-1, 1].

Shapes: `b` states, `t` steps, `c h w` a latent frame, `H W` pixels. Cameras `[b, t, 4, 4, 4]` are four matrices
world_from_camera a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mosaic_gym.deprecation import renamed_method
from mosaic_gym.geometry.control import (
    FRAMES_PER_STEP,
    Pose,
    check_action,
    check_pose,
    control_from_settings,
    is_level,
    pose_at,
)
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.memory.retrieval import Retrieved
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.codec import frames_to_uint8
from mosaic_gym.model.device import check_device, out_of_memory_guard, without_autocast
from mosaic_gym.validation import Number, Whole, check
from mosaic_gym.worlds import generation, initialization, observation, picture_steps, serialization, spatial_memory
from mosaic_gym.worlds.protocol import Start, View
from mosaic_gym.worlds.state import LatentObservation, WorldState, advance_state

Poses = Sequence[Sequence[Pose]]
"""For every state its poses, in order."""


class MosaicWorld:
    """Implements `World` with the networks of a `WorldModel`; many states are stepped as one batch.

    Args:
        model: the networks and their settings.
        device: where they run.
        denoising_steps: of the sampler; None for the checkpoint's number.
        capacity: keyframes that an episode keeps; None for the checkpoint's number, 0 for no memory, 1 for the last
            frame alone.
        network: False leaves out the transformer and the refiner, and shows their inputs (a baseline).
        atlas: False leaves out the atlas; without network and atlas, frames are the warped memory alone (a baseline).
        collision: whether the body stops at lifted geometry and at the map's walls, and slides along them.
        temperature: of the draw of predicted rewards and terminations; 0 takes the more likely value.

    Raises:
        ValueError: an argument out of range, or a device that torch does not have.
        MemoryError: the device has too little memory for the weights.
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
        settings = model.settings
        self.device = check_device(device)
        denoising_steps = check("denoising_steps", denoising_steps, Whole(1), optional=True)
        capacity = check("capacity", capacity, Whole(0), optional=True)
        self.temperature = float(check("temperature", temperature, Number(0.0)))
        self.denoising_steps = settings.denoising_steps if denoising_steps is None else denoising_steps
        self.capacity = settings.capacity if capacity is None else capacity
        self.network, self.collision = network, collision
        with out_of_memory_guard("the networks' weights"):
            self.model = model.to(device)
        for part in (model.depth, model.refiner):
            if isinstance(part, torch.nn.Module):  # small convolutions run a tenth faster in this layout
                part.to(memory_format=torch.channels_last)
        self.atlas = model.atlas if atlas else None
        self.control = control_from_settings(settings.control)
        self.height, self.width = settings.height, settings.width
        self.image_from_camera = np.array(settings.image_from_camera)
        self.layout = spatial_memory.frame_layout(model, self.device)

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
        """Loads a checkpoint as `WorldModel.from_pretrained` does; `memory=False` makes a world without memory."""
        check_device(device)  # before gigabytes are read
        model = WorldModel.from_pretrained(checkpoint, size, loading)
        capacity = None if memory else 0
        return cls(model, device, denoising_steps, capacity, collision=collision, temperature=temperature)

    # Stepping

    def step(self, states: Sequence[WorldState], actions: np.ndarray) -> tuple[list[WorldState], list[View]]:
        """Moves every body by its action `[b, 3]`, and generates its next view.

        Raises:
            ValueError: wrong number of actions, or one that is NaN or out of range.
        """
        return self.generate(states, self.advance(states, actions))

    def advance(self, states: Sequence[WorldState], actions: np.ndarray) -> list[list[Pose]]:
        """The four poses that each action `[b, 3]` leads to, stopped by obstacles; ValueError as in `step`."""
        if len(actions) != len(states) or not len(states):
            raise ValueError(f"expected one action for each of {len(states)} states, at least one; got {len(actions)}")
        actions = [check_action(action) for action in actions]
        obstacles = self.obstacles(states) if self.collision else [None] * len(states)
        rows = zip(states, actions, obstacles, strict=True)
        return [self.control.advance(state.pose, action, obstacles_m) for state, action, obstacles_m in rows]

    def generate(self, states: Sequence[WorldState], poses: Poses) -> tuple[list[WorldState], list[View]]:
        """One step along known cameras: four poses for every state."""
        after, views = self.generate_clip(states, poses)
        return after, [clip[0] for clip in views]

    @without_autocast
    def generate_clip(self, states: Sequence[WorldState], poses: Poses) -> tuple[list[WorldState], list[list[View]]]:
        """`t` steps along known cameras as one clip, `4 * t` poses for every state.

        Memory is read before the clip and written after it (MosaicMem rolls out 80 frames, then updates). The latent
        frames of a clip are sampled together, or one after the other by a causal transformer.

        Returns:
            The states after the clip, and for each of them its `t` views.

        Raises:
            ValueError: a number of poses that is no whole number of steps, the same for all states; a pose that is NaN,
                infinite or no rigid transform; or a network that returns NaN.
        """
        generation.check_paths(poses, len(states))
        if self.model.codec.has_depth:
            return picture_steps.generate_pictures(self.model, self.layout, states, poses, self._picture_options)
        model, memories = self.model, [state.memory for state in states]
        # Retrieve: the patches of memory that the next views show.
        cameras = generation.camera_tensor(poses, self.device)  # [b, t, 4, 4, 4]
        retrieved = self.retrieve(states, cameras, self.map_views(states, cameras, poses))
        # Sample latents; decode frames and depth.
        after, clips = list(states), []
        parts = generation.causal_parts(retrieved, cameras, poses, model.transformer.config.causal)
        for part, part_cameras, part_poses in parts:
            latents = self.sample(after, part, part_cameras)  # [b, t, c, h, w]
            streams = [state.stream for state in after]
            latents, frames, streams = generation.decode_frames(model, latents, part, streams, refine=self.network)
            after = generation.condition_next_step(model, after, part_poses, latents, frames, part_cameras, streams)
            clips.append((latents, frames))  # frames [b, t, 4, 3, H, W]
        latents, frames = (rows[0] if len(rows) == 1 else torch.cat(rows, dim=1) for rows in zip(*clips, strict=True))
        depth_m = spatial_memory.estimate_depth(model.depth, frames, retrieved, self.layout.intrinsics)
        # Update memory: lift the new frames into keyframes.
        steps = [state.step_index for state in states]
        updated = spatial_memory.update_memories(
            memories, latents, depth_m, cameras, retrieved, steps, self.layout, [state.prompt for state in states],
            locates=self.atlas is not None,
        )  # fmt: skip
        after = [replace(state, memory=rows[-1]) for state, rows in zip(after, updated, strict=True)]
        # Views, with predicted rewards and terminations.
        seeds = [state.seed for state in states]
        outcomes = observation.sample_outcomes(model.reward_heads, frames, seeds, steps, self.temperature)
        views = observation.make_views(
            updated, poses, frames, depth_m, retrieved.coverage, outcomes, self.image_from_camera, self.atlas
        )
        return after, views

    @without_autocast
    def step_latents(
        self, states: Sequence[WorldState], actions: np.ndarray
    ) -> tuple[list[WorldState], list[LatentObservation]]:
        """One step in latent space, for planners; actions `[b, 3]`. No frame is decoded, and memory stays as it is.

        Raises:
            RuntimeError: a world that conditions every step on its last decoded frame.
        """
        if self.model.codec.restarts:
            raise RuntimeError(
                "this world starts every step from its last frame and has no rollout in latents alone; ask for pixels"
            )
        poses = self.advance(states, actions)
        cameras = generation.camera_tensor(poses, self.device)
        if self.model.codec.has_depth:
            inputs = self.model, self.layout, states, cameras[:, 0], self._picture_options
            latents, covered = picture_steps.sample_step_latents(*inputs)
            streams = [()] * len(states)  # no picture belongs to a latent that was not decoded
        else:
            retrieved = self.retrieve(states, cameras, self.map_views(states, cameras, poses))
            latents, covered = self.sample(states, retrieved, cameras), retrieved.coverage
            streams = [state.stream for state in states]
        rows = zip(states, poses, latents, cameras, streams, strict=True)
        after = [advance_state(*row, self.model.settings.history) for row in rows]
        return after, [LatentObservation(latents[i, 0], share) for i, share in enumerate(covered.tolist())]

    # Parts of a step that training, evaluation and planning use too

    @without_autocast
    def obstacles(self, states: Sequence[WorldState]) -> list[np.ndarray]:
        """Points (x, z) `[n, 2]`, metres, that each state's body cannot pass."""
        inputs = [state.memory for state in states], [state.pose for state in states]
        return spatial_memory.find_obstacles(*inputs, self.control, self.atlas, self.image_from_camera, self.device)

    def map_views(
        self, states: Sequence[WorldState], cameras: Tensor, poses: Poses | None = None
    ) -> list[Tensor | None]:
        """The `b * t` views of cameras `[b, t, 4, 4, 4]` as the atlas draws them, `[4, 3, H, W]` in [-1, 1], or None.

        Args:
            poses: the same cameras; the atlas draws nothing for a state whose poses tilt. None if all are level.
        """
        level = [all(is_level(pose.world_from_camera) for pose in path) for path in poses or [()] * len(states)]
        memories = [state.memory for state in states]
        return spatial_memory.draw_map_views(self.atlas, memories, cameras, self.layout.intrinsics, level)

    def retrieve(
        self, states: Sequence[WorldState], cameras: Tensor, map_views: Sequence[Tensor | None] | None = None
    ) -> Retrieved:
        """Retrieves from memory for the `b * t` views from cameras `[b, t, 4, 4, 4]`, metres."""
        return spatial_memory.retrieve_views(
            [state.memory for state in states],
            cameras,
            self.layout,
            self.model.codec,
            self.model.settings.max_sources,
            self.model.settings.max_patches,
            map_views,
            has_atlas=self.atlas is not None,
        )

    @torch.no_grad()
    def sample(self, states: Sequence[WorldState], retrieved: Retrieved, cameras: Tensor) -> Tensor:
        """The latents `[b, t, c, h, w]` of the states' next views from cameras `[b, t, 4, 4, 4]`."""
        b, t = cameras.shape[:2]
        if not self.network:
            return retrieved.conditioning_latent.unflatten(0, (b, t))
        return generation.sample_latents(
            self.model, self.layout, states, retrieved, cameras, self.denoising_steps, self._negative_text
        )

    @property
    def _picture_options(self) -> picture_steps.PictureOptions:
        denoising_steps = self.denoising_steps if self.network else None
        return picture_steps.PictureOptions(denoising_steps, self.temperature, self._negative_text)

    @cached_property
    def _negative_text(self) -> Tensor | None:
        settings = self.model.settings
        return self.model.text_encoder.encode([settings.negative_prompt]) if settings.guidance != 1.0 else None

    @without_autocast
    def coverage_mask(self, state: WorldState, poses: Sequence[Pose]) -> np.ndarray:
        """The pixels that memory covers in views from four poses, bool `[4, H, W]`."""
        cameras = generation.camera_tensor([poses], self.device)
        if not self.model.codec.has_depth:
            return self.retrieve([state], cameras).pixels_covered[0].cpu().numpy()
        every = cameras[0, 0][:, None].expand(-1, FRAMES_PER_STEP, -1, -1)  # each frame's camera as a last one
        retrieved = picture_steps.retrieve_step(self.model, self.layout, [state] * FRAMES_PER_STEP, every)
        return retrieved.covered.cpu().numpy()

    # Starting an episode

    @without_autocast
    def start(self, start: Start) -> tuple[WorldState, View]:
        """A new episode: a body at rest, whose first view is the start's image, or one of the checkpoint's by the seed.

        Without a prompt, an image of the checkpoint has its own caption, and an image of the user's has the empty
        prompt. With a memory and no image, the body rests at the start's pose, or where the memory ends, and the first
        view is generated from memory.

        Raises:
            ValueError: an image of the wrong shape or dtype, a pose that is no rigid transform, a prompt that is too
                long, a memory of another codec or atlas, or an image beside a memory without its pose.
            TypeError: a memory that is not a MosaicMemory.
        """
        memory = self._check_memory(start.memory)
        pose = None if start.world_from_camera is None else check_pose(start.world_from_camera)
        if len(memory) and start.image is None:
            return self._start_in_memory(memory, pose, start.prompt or "", start.seed)
        if len(memory) and pose is None:
            raise ValueError("an image beside a memory needs options['pose']: where in that memory it was taken")
        image, prompt = initialization.first_image(
            self.model, self.layout, start, self.denoising_steps, self._negative_text
        )
        poses = [pose or pose_at(0.0, 0.0, 0.0, 0.0)] * FRAMES_PER_STEP
        frames = np.repeat(image[None], FRAMES_PER_STEP, axis=0)
        state, depth_m = self._start_from(frames, poses, start.seed, prompt, memory)
        depth_m, coverage = depth_m.float().cpu().numpy(), float(self.capacity > 0)  # the frame is in memory, if any
        view = observation.make_view(state.memory, poses, frames, depth_m, coverage, self.image_from_camera, self.atlas)
        return state, view

    @without_autocast
    def start_from_frames(self, frames: np.ndarray, poses: Sequence[Pose], seed: int, prompt: str) -> WorldState:
        """A state whose memory holds four true frames (uint8 `[4, H, W, 3]`) from four poses.

        Raises:
            ValueError: frames of another shape or dtype, not four usable poses, or a prompt that is too long.
        """
        frames = initialization.check_frames(frames, poses, self.layout.frame_size)
        return self._start_from(frames, poses, seed, prompt, self._check_memory(None))[0]

    @out_of_memory_guard("encoding observed frames")
    @without_autocast
    def observe(self, state: WorldState, frames: np.ndarray, poses: Sequence[Pose]) -> WorldState:
        """The state after four true frames (uint8 `[4, H, W, 3]`) from four poses, as a robot's camera delivers them.

        Poses may have pitch and roll; later steps keep them.

        Raises:
            ValueError: frames of another shape or dtype, or not four usable poses; the given state is unchanged.
        """
        frames = initialization.check_frames(frames, poses, self.layout.frame_size)
        inputs = state, frames, poses, generation.camera_tensor([poses], self.device)
        return initialization.observe_true_frames(self.model, self.layout, self.atlas, *inputs)

    def _check_memory(self, memory: MosaicMemory | None) -> MosaicMemory:
        fingerprint, shape = self.model.memory_fingerprint, self.layout.latent_shape
        return initialization.check_memory(memory, self.capacity, fingerprint, shape, self.layout.intrinsics.device)

    @torch.no_grad()
    def _start_in_memory(
        self, memory: MosaicMemory, pose: Pose | None, prompt: str, seed: int
    ) -> tuple[WorldState, View]:
        """A body at rest in a memory. Its first view is generated, because no true frame shows it."""
        last = memory.keyframes[-1]
        pose = Pose(last.world_from_keyframe.double().cpu().numpy()) if pose is None else pose
        latents, cameras = last.latent[None], last.world_from_camera[None]
        if self.model.codec.restarts:  # a clip starts with a single image
            cameras = cameras[:, -1:].expand(-1, FRAMES_PER_STEP, -1, -1)
        state = initialization.state_at_rest(self.model, pose, latents, cameras, memory, prompt, seed)
        state = replace(state, step_index=initialization.FIRST_FRAME_STEP)  # which keys the noise of the first view
        (state,), (view,) = self.generate([state], [[pose] * FRAMES_PER_STEP])
        memory = initialization.renumber(state.memory, initialization.FIRST_FRAME_STEP + 1, 0)
        # No action has been taken, so there is no reward and no termination yet.
        return replace(state, memory=memory, step_index=0), replace(view, reward=0.0, terminated=False)

    @out_of_memory_guard("encoding the first frame")
    @torch.no_grad()
    def _start_from(
        self, frames: np.ndarray, poses: Sequence[Pose], seed: int, prompt: str, memory: MosaicMemory
    ) -> tuple[WorldState, Tensor]:
        """The state after checked first frames, and the depth `[H, W]` of the last one, metres."""
        cameras = generation.camera_tensor([poses], self.device)
        return initialization.start_from_true_frames(
            self.model, self.layout, self.atlas, memory, frames, poses, cameras, prompt, seed
        )

    # States

    @property
    def fingerprint(self) -> str:
        """The checkpoint's fingerprint, then each argument that differs from its default, since it changes futures."""
        settings = self.model.settings
        arguments = {
            "capacity": (self.capacity, settings.capacity),
            "denoising_steps": (self.denoising_steps, settings.denoising_steps),
            "network": (self.network, True),
            "atlas": (self.atlas is not None, self.model.atlas is not None),
            "collision": (self.collision, True),
            "temperature": (self.temperature, 1.0),
        }
        changed = [f"{name}={value}" for name, (value, default) in arguments.items() if value != default]
        return ";".join([self.model.fingerprint, *changed])

    @property
    def has_rewards(self) -> bool:
        """Whether the checkpoint predicts rewards and terminations."""
        return self.model.reward_heads is not None

    @without_autocast
    def with_prompt(self, state: WorldState, prompt: str) -> WorldState:
        """The same state, with its future conditioned on another prompt; ValueError for one that is too long."""
        return replace(state, prompt=prompt, text=self.model.text_encoder.encode([prompt])[0])

    def with_memory(self, state: WorldState, memory: MosaicMemory) -> WorldState:
        """The same state with another memory, such as an edited one; raises as `start` for one that does not fit."""
        return replace(state, memory=self._check_memory(memory))

    @without_autocast
    def current_frame(self, state: WorldState) -> np.ndarray:
        """The latest frame of a state, uint8 `[H, W, 3]`."""
        return frames_to_uint8(self.model.codec.last_frame(state.history[-1], state.stream)).cpu().numpy()

    def pack(self, state: WorldState) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A state as contiguous tensors by name, and as metadata that JSON can hold."""
        return serialization.pack_state(state)

    def unpack(self, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> WorldState:
        """The state that `pack` described, bit for bit."""
        return serialization.unpack_state(tensors, metadata, self.device)

    def close(self) -> None:
        """Does nothing: the networks are freed with the object. The World protocol has it."""

    see_chunk = renamed_method("see_chunk", "generate_clip")  # old spelling
    begin = renamed_method("begin", "start_from_frames")  # old spelling
