"""How episodes of the learned world begin: from an image, from the prompt alone, or from what was truly seen; and
where on the map its atlas recognises them to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose, check_pose, pose_at
from mosaic_gym.memory.keyframe import Keyframe
from mosaic_gym.memory.mosaic import MosaicMemory, retrieve
from mosaic_gym.memory.whereabouts import recognise
from mosaic_gym.model.codec import frames_to_float, frames_to_uint8
from mosaic_gym.model.depth import align_scale
from mosaic_gym.model.device import out_of_memory_guard
from mosaic_gym.worlds.protocol import Start, View
from mosaic_gym.worlds.state import WorldState

DEFAULT_PROMPT = "a photograph of a furnished room, seen at eye level"
"""What a world without start views begins with when nobody asks for anything."""
BEFORE = 2**32 - 1
"""The step whose noise makes a first frame: one that no episode comes to."""


class Beginning:
    """The half of `MosaicWorld` that comes before its first step; the attributes are that class's."""

    def start(self, start: Start) -> tuple[WorldState, View]:
        """A body at rest in front of a start image: the given one, or one of the checkpoint's, by seed.

        Without a prompt the checkpoint's image has its own caption, and a given one none: the prompt is empty. With a
        memory and no image the body rests in what is remembered, at the given camera or where the memory ends, and
        sees what the world makes of that.

        Raises:
            ValueError: an image of the wrong shape or dtype, a camera that is not [4, 4], a prompt that is too long, a
                memory of another checkpoint's codec or atlas, or an image beside a memory without its camera.
            TypeError: a memory that is not a MosaicMemory.
        """
        memory = self._checked_memory(start.memory)
        asked = None if start.world_from_camera is None else check_pose(start.world_from_camera)
        if len(memory) and start.image is None:
            return self._rest_in(memory, asked, start.prompt or "", start.seed)
        if len(memory) and asked is None:
            raise ValueError("an image beside a memory needs the pose that it was taken from: where is it in there?")
        image, prompt = self._first_sight(start)
        poses = [asked or pose_at(0.0, 0.0, 0.0, 0.0)] * FRAMES_PER_STEP
        frames = np.repeat(image[None], FRAMES_PER_STEP, axis=0)
        state, depth_m = self._begin(frames, poses, start.seed, prompt, memory)
        sees = float(self.capacity > 0)  # what is seen is remembered, by a world that remembers
        return state, self._view(state.memory, poses, frames, depth_m.float().cpu().numpy(), sees)

    @torch.no_grad()
    def _rest_in(self, memory: MosaicMemory, asked: Pose | None, prompt: str, seed: int) -> tuple[WorldState, View]:
        """A body at rest in a memory, and what it sees there: dreamt, for nobody has shown it."""
        last = memory.keyframes[-1]
        pose = Pose(last.world_from_keyframe.double().cpu().numpy()) if asked is None else asked
        latents, cameras = last.latent[None], last.world_from_camera[None]
        if self.model.codec.restarts:  # a clip begins with a still
            cameras = cameras[:, -1:].expand(-1, FRAMES_PER_STEP, -1, -1)
        before = self._at_rest(pose, latents, cameras, memory, prompt, seed)
        (state,), (view,) = self.see([replace(before, step_index=BEFORE)], [[pose] * FRAMES_PER_STEP])
        *kept, fresh = state.memory.keyframes
        memory = replace(state.memory, keyframes=(*kept, replace(fresh, step=0)))
        # Nobody has made a step that could be paid for, or end anything.
        return replace(state, memory=memory, step_index=0), replace(view, reward=0.0, terminated=False)

    def _first_sight(self, start: Start) -> tuple[np.ndarray, str]:
        """The first image, uint8 `[H, W, 3]`, and the prompt."""
        if start.image is not None:
            return self._checked_pixels("a start image", start.image), start.prompt or ""
        count = len(self.model.start_images)
        if not count:
            prompt = DEFAULT_PROMPT if start.prompt is None else start.prompt
            return self._pictured(prompt, start.seed), prompt
        drawn = int(np.random.default_rng(start.seed).integers(count))
        prompt = self.model.start_prompts[drawn] if start.prompt is None else start.prompt
        return self.model.start_images[drawn].numpy(), prompt

    @torch.no_grad()
    def _pictured(self, prompt: str, seed: int) -> np.ndarray:
        """A first frame made from the prompt alone, uint8 `[H, W, 3]`: a clip of one latent with nothing before it."""
        cameras = self._cameras([[pose_at(0.0, 0.0, 0.0, 0.0)] * FRAMES_PER_STEP])
        nothing = retrieve([()], cameras[0], self.k, self.model.codec, self._latent_shape, 0, 0, self._patch)
        empty = torch.zeros(1, 0, *self._latent_shape, device=self.device)
        text = self.model.text_encoder.encode([prompt])
        latents = self._sample(empty, cameras[:, :0], nothing, cameras, text, [(seed, BEFORE)])
        (stream,) = self.model.codec.begin(latents[:, 0])
        return frames_to_uint8(self.model.codec.present(latents[0, 0], stream)).cpu().numpy()

    @out_of_memory_guard("encoding what is seen")
    @torch.no_grad()
    def observe(self, state: WorldState, frames: np.ndarray, poses: Sequence[Pose]) -> WorldState:
        """The state after truly seeing four frames (uint8 `[4, H, W, 3]`) from four poses, as a robot would.

        Raises:
            ValueError: frames of another shape or dtype, or not four poses.
        """
        self._check_frames(frames, poses)
        cameras = self._cameras([poses])
        before = self.model.codec.present(state.history[-1], state.stream)[None]
        seen = self._float(frames)
        latents = self.model.codec.encode(seen, before)[None]  # [1, 1, c, h, w]
        streams = [state.stream]
        if not self.model.codec.restarts:  # else what is seen begins a clip of its own
            _, streams = self.model.codec.decode_next(latents[0], streams)
        keyframe, _ = self._lift_true(state, frames, latents[0], cameras[0], state.step_index + 1)
        (future,) = self._carried_on([state], [poses], latents, seen[None], cameras, streams)
        return replace(future, memory=state.memory.update(keyframe))

    @torch.no_grad()
    def begin(self, frames: np.ndarray, poses: Sequence[Pose], seed: int, prompt: str) -> WorldState:
        """A state that has truly seen four frames (uint8 `[4, H, W, 3]`) from four poses.

        Raises:
            ValueError: frames of another shape or dtype, not four poses, or a prompt that is too long.
        """
        self._check_frames(frames, poses)
        return self._begin(frames, poses, seed, prompt, self._checked_memory(None))[0]

    @out_of_memory_guard("encoding the first frame")
    @torch.no_grad()
    def _begin(
        self,
        frames: np.ndarray,
        poses: Sequence[Pose],
        seed: int,
        prompt: str,
        memory: MosaicMemory,
    ) -> tuple[WorldState, Tensor]:
        """The state, and the depth `[H, W]` of what it begins with, metres, on the scale of what memory knows."""
        latents = self.model.codec.encode(self._float(frames))  # [1, c, h, w]
        cameras = self._cameras([poses])[0]  # [1, 4, 4, 4]
        state = self._at_rest(poses[-1], latents, cameras, memory, prompt, seed)
        keyframe, depth_m = self._lift_true(state, frames, latents, cameras, 0)
        return replace(state, memory=memory.update(keyframe)), depth_m

    def _at_rest(
        self, pose: Pose, latents: Tensor, cameras: Tensor, memory: MosaicMemory, prompt: str, seed: int
    ) -> WorldState:
        """The state before a first step; latents `[1, c, h, w]` and cameras `[1, 4, 4, 4]` are all its history."""
        history = self.model.settings.history
        return WorldState(
            pose=pose,
            history=latents.expand(history, -1, -1, -1).clone(),
            history_cameras=cameras.expand(history, -1, -1, -1).clone(),
            memory=memory,
            prompt=prompt,
            text=self.model.text_encoder.encode([prompt])[0],
            seed=int(seed),
            step_index=0,
            stream=self.model.codec.begin(latents)[0],
        )

    def _lift_true(
        self, state: WorldState, frames: np.ndarray, latents: Tensor, cameras: Tensor, step: int
    ) -> tuple[Keyframe, Tensor]:
        """The keyframe of four frames that were truly seen, and the last one's depth `[H, W]`, metres, on the scale of
        what the state remembers.

        Args:
            frames: uint8 `[4, H, W, 3]`; latents `[1, c, h, w]` and cameras `[1, 4, 4, 4]` are theirs.
        """
        depth_m = self._estimate(frames)[None]
        if len(state.memory):
            depth_m = align_scale(depth_m, self.retrieve([state], cameras[None]).depth_m, self.model.depth.metric)
        true = torch.zeros(1, *self.patch_grid, device=self.device)
        place = self._recognise(frames, state.memory, cameras[0, -1])
        (keyframe,) = self.lift(latents, depth_m, cameras, true, [step], place)
        return keyframe, depth_m[0]

    def _checked_memory(self, memory: MosaicMemory | None) -> MosaicMemory:
        """A start's memory, as this world keeps it; an empty one for none.

        Raises:
            TypeError, ValueError: no memory, one that means nothing here, or one for a world that keeps none.
        """
        made_with = self.model.memory_fingerprint
        if memory is None:
            return MosaicMemory(capacity=self.capacity, made_with=made_with)
        if not isinstance(memory, MosaicMemory):
            kind = type(memory).__name__
            raise TypeError(f"a start memory is a MosaicMemory; got {kind}. Load it with MosaicMemory.load")
        memory.check_made_with(made_with)
        if len(memory) and self.capacity == 0:
            raise ValueError("this world keeps no memory (capacity 0), so none can be begun with; make it with memory")
        if len(memory) and memory.keyframes[0].latent.shape != self._latent_shape:
            shape = tuple(memory.keyframes[0].latent.shape)
            raise ValueError(f"the memory has latents {shape}, this checkpoint {self._latent_shape}: it is another's")
        # How much a world keeps is its own matter, and where; what was read from a file is on the CPU.
        keyframes = tuple(keyframe.to(self.k.device) for keyframe in memory.keyframes)
        return replace(memory, keyframes=keyframes, capacity=self.capacity, made_with=made_with)

    def _float(self, frames: np.ndarray) -> Tensor:
        """Frames uint8 `[4, H, W, 3]` as `[1, 4, 3, H, W]` in [-1, 1]."""
        return frames_to_float(torch.tensor(frames, device=self.device))[None]

    @out_of_memory_guard("the depth estimator")
    @torch.no_grad()
    def _estimate(self, frames: np.ndarray) -> Tensor:
        """Depth `[H, W]` of the last of four frames, metres."""
        last = frames_to_float(torch.tensor(frames[-1:], device=self.device)[None])[:, 0]
        return self.model.depth.estimate(last, self.k[None])[0]

    def _recognise(self, frames: np.ndarray, memory: MosaicMemory, camera: Tensor) -> Tensor | None:
        """Where on the map the last of four true frames, seen by `camera` `[4, 4]`, was taken, `[1, 4]`.

        None without an atlas, and for a memory that keeps nothing: knowing where one is, is remembering it.
        """
        if self.atlas is None or memory.capacity == 0:
            return None
        frame = self._float(frames)[0, -1]
        return recognise(self.atlas, self.model.codec, memory.keyframes, frame, camera, self.k)[None]

    def _check_frames(self, frames: np.ndarray, poses: Sequence[Pose]) -> None:
        self._checked_pixels("what is seen", frames, FRAMES_PER_STEP)
        if len(poses) != FRAMES_PER_STEP:
            raise ValueError(f"{FRAMES_PER_STEP} frames are seen from as many poses; got {len(poses)}")

    def _checked_pixels(self, what: str, pixels: np.ndarray, *count: int) -> np.ndarray:
        expected = (*count, self.height, self.width, 3)
        pixels = np.asarray(pixels)
        if pixels.dtype != np.uint8 or pixels.shape != expected:
            raise ValueError(f"{what} is uint8 of shape {expected}; got {pixels.dtype} of shape {pixels.shape}")
        return pixels
