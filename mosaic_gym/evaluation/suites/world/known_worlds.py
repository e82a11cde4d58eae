"""Worlds whose answer is known, by which the figures are calibrated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from mosaic_gym.evaluation.suites.world.rollouts import Rollout
from mosaic_gym.geometry.control import FRAMES_PER_STEP, Control, Pose
from mosaic_gym.memory.pictures import depth_channel
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.codec import frames_to_float, frames_to_uint8
from mosaic_gym.worlds.protocol import View

BLUR_PX = 1.0
NOISE_LEVELS = 12.0
WALL_M = 1.0
NEIGHBORS = 12
"""Training walks whose frames a regressing world averages."""

Change = Callable[[np.ndarray], np.ndarray]


def changed(rollout: Rollout, change: Change) -> Rollout:
    """A roll-out of the simulator whose generated frames, uint8 `[n, H, W, 3]`, are changed; depth stays exact."""
    names = "seen", "seen_before", "invented", "invented_before", "again", "walk"
    return replace(rollout, **{name: change(getattr(rollout, name)) for name in names})


def blurred(frames: np.ndarray) -> np.ndarray:
    """Frames blurred by a Gaussian of `BLUR_PX`."""
    offsets = torch.arange(-3.0, 4.0)
    line = torch.exp(-(offsets**2) / (2 * BLUR_PX**2))
    window = (torch.outer(line, line) / line.sum() ** 2).expand(3, 1, 7, 7)
    pixels = torch.tensor(frames).permute(0, 3, 1, 2).float()
    smooth = F.conv2d(F.pad(pixels, [3] * 4, mode="replicate"), window, groups=3)
    return smooth.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def noisy(frames: np.ndarray) -> np.ndarray:
    """Frames with Gaussian noise of `NOISE_LEVELS` grey levels."""
    rng = np.random.default_rng(int(frames.sum(dtype=np.int64)))  # other noise for other frames
    return (frames + rng.normal(0, NOISE_LEVELS, frames.shape)).round().clip(0, 255).astype(np.uint8)


def through_codec(model: WorldModel) -> Change:
    """Encodes and decodes each frame: as a clip at rest, or for a codec of color and depth with estimated depth."""
    codec, batch = model.codec, 32

    @torch.no_grad()
    def change(frames: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(frames), batch):
            pixels = torch.tensor(frames[start : start + batch])
            if codec.has_depth:
                decoded = _decode_pictures(model, pixels)
            else:
                clips = frames_to_float(pixels[:, None].repeat(1, FRAMES_PER_STEP, 1, 1, 1))
                latents = codec.encode(clips)
                decoded = codec.decode_next(latents, codec.start_clips(latents))[0][:, -1]
            parts.append(frames_to_uint8(decoded).numpy())
        return np.concatenate(parts)

    return change


def _decode_pictures(model: WorldModel, pixels: torch.Tensor) -> torch.Tensor:
    """The colors `[n, 3, H, W]` that a codec of color and depth keeps of frames uint8 `[n, H, W, 3]`."""
    colors = frames_to_float(pixels)
    k = torch.tensor(model.settings.image_from_camera, dtype=torch.float32)
    depth_m = model.depth.estimate(colors, k.expand(len(colors), 3, 3))
    latents = model.codec.encode_pictures(torch.cat([colors, depth_channel(depth_m)[:, None]], 1))
    return model.codec.decode_pictures(latents)[:, :3]


@dataclass(frozen=True)
class Canned:
    """The state of a world of given pictures.

    Attributes:
        pose: of the body.
        step: since the start.
        frame, depth_m: of the start, uint8 `[H, W, 3]` and `[H, W]`.
        seed: of the episode.
    """

    pose: Pose
    step: int
    frame: np.ndarray
    depth_m: np.ndarray
    seed: int


Picture = Callable[[Canned], tuple[np.ndarray, np.ndarray]]
"""The frame and depth of a state after its step."""


class CannedWorld:
    """A world that shows the pictures that a function makes. Its body has no obstacles.

    Args:
        fingerprint: of the pictures.
        picture: makes them.
        k: `[3, 3]`, K in pixels.
        control: the kinematics of its body.
    """

    takes_prompts = has_memory = False

    def __init__(self, fingerprint: str, picture: Picture, k: np.ndarray, control: Control):
        self.fingerprint, self.picture, self.k, self.control = fingerprint, picture, k, control

    def start(
        self, frame: np.ndarray, pose: Pose, prompt: str, seed: int, index: int, depth_m: np.ndarray
    ) -> tuple[Canned, np.ndarray]:
        """See `WorldUnderTest`."""
        return Canned(pose, 0, frame, depth_m, 1_000_003 * seed + index), depth_m

    def observe(self, state: Canned, frames: np.ndarray, poses: Sequence[Pose]) -> Canned:
        """The state at the last camera; the frames are not used."""
        return replace(state, pose=poses[-1])

    def without_memory(self, state: Canned) -> Canned:
        """The same state: there is no memory."""
        return state

    def generate(self, states: Sequence[Canned], poses: Sequence[Sequence[Pose]]) -> tuple[list[Canned], list[View]]:
        """See `WorldUnderTest`."""
        rows = zip(states, poses, strict=True)
        after = [replace(state, pose=path[-1], step=state.step + 1) for state, path in rows]
        views = []
        for state, path in zip(after, poses, strict=True):
            frame, depth_m = self.picture(state)
            cameras = np.stack([pose.world_from_camera for pose in path])
            views.append(View(np.repeat(frame[None], FRAMES_PER_STEP, 0), depth_m, cameras, self.k))
        return after, views

    def step(self, states: Sequence[Canned], actions: np.ndarray) -> tuple[list[Canned], list[View]]:
        """See `WorldUnderTest`."""
        rows = zip(states, actions, strict=True)
        return self.generate(states, [self.control.advance(state.pose, action) for state, action in rows])


def frozen(state: Canned) -> tuple[np.ndarray, np.ndarray]:
    """The start's picture for ever."""
    return state.frame, state.depth_m


def wall(state: Canned) -> tuple[np.ndarray, np.ndarray]:
    """A flat wall right in front, whose texture is the middle of the start's picture, enlarged four times."""
    height, width = state.depth_m.shape
    middle = state.frame[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8]
    return middle.repeat(4, 0).repeat(4, 1), np.full_like(state.depth_m, WALL_M)


class Playback:
    """Plays a walk of the training maps, whatever the action.

    Args:
        frames, depth_m: `[maps, n, H, W, 3]` and `[maps, n, H, W]`.
    """

    def __init__(self, frames: np.ndarray, depth_m: np.ndarray):
        self.frames, self.depth_m = frames, depth_m

    def __call__(self, state: Canned) -> tuple[np.ndarray, np.ndarray]:
        walk, step = state.seed % len(self.frames), state.step % self.frames.shape[1]
        return self.frames[walk, step], self.depth_m[walk, step]


class Regression:
    """The limit of a network trained by squared error: the mean of the frames that followed similar pictures.

    The frame after n steps is the mean over the `NEIGHBORS` training walks whose starts look most like the given
    picture (nearest-neighbor regression on 16 x 16 pixels).

    Args:
        frames, depth_m: as those of `Playback`.
    """

    def __init__(self, frames: np.ndarray, depth_m: np.ndarray):
        self.frames, self.depth_m = frames, depth_m
        self.starts = np.stack([_small(walk[0]) for walk in frames])
        self.known: dict[tuple[int, float], np.ndarray] = {}

    def __call__(self, state: Canned) -> tuple[np.ndarray, np.ndarray]:
        key = state.seed, float(state.frame.sum())
        if key not in self.known:
            distance = ((self.starts - _small(state.frame)) ** 2).mean((1, 2, 3))
            self.known[key] = distance.argsort()[:NEIGHBORS]
        walks, step = self.known[key], state.step % self.frames.shape[1]
        mean = self.frames[walks, step].astype(np.float32).mean(0)
        return mean.round().astype(np.uint8), self.depth_m[walks, step].mean(0)


def _small(frame: np.ndarray) -> np.ndarray:
    """A frame averaged to 16 x 16."""
    height, width, _ = frame.shape
    return frame.reshape(16, height // 16, 16, width // 16, 3).astype(np.float32).mean((1, 3))
