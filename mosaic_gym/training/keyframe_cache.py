"""Keyframes of recorded episodes for a pretrained world: each step is encoded, its depth estimated, and lifted, once.

At full size this takes longer than loading the model, so the keyframes are stored in the run's folder, one file for
each episode, for when the run resumes. Processes that train together divide the episodes among them. On several
machines they need a folder that all of them can read, as for resuming a run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.model.codec import frames_to_float
from mosaic_gym.model.parts import fingerprint_of
from mosaic_gym.training.precision import exact_products
from mosaic_gym.training.samples import LiftedEpisode
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.spatial_memory import lift_keyframes

FORMAT = "lifted-1"
"""Version of the stored keyframes; a change in how a step is lifted needs another."""
FOLDER = "lifted"
"""The folder of stored keyframes, inside a run's folder."""
PARTIAL = ".partial"
"""Suffix of a file that is still being written."""
CHUNK_PX = 2_000_000
"""Pixels of a recording that are encoded together, one frame counted for each step: 8 steps at 352x640."""


def resize_frames(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames uint8 `[..., 4, H, W, 3]` as `[..., 4, 3, *size]` in [-1, 1]."""
    frames = frames_to_float(frames)
    flat = F.interpolate(frames.flatten(0, -4), size=size, mode="bicubic", antialias=True, align_corners=False)
    return flat.clamp(-1, 1).view(*frames.shape[:-2], *size)


@exact_products()
@torch.no_grad()
def lift_episode(world: MosaicWorld, store: EpisodeStore, index: int) -> MosaicMemory:
    """One recorded episode as keyframes of true latents and estimated depth, each step encoded after the previous."""
    episode = store.load(index)
    recorded = episode["frames"]
    cameras = episode["world_from_camera"][:].clone().to(world.device)  # a plain tensor, not the file
    chunk = max(1, CHUNK_PX // (world.height * world.width))
    keyframes = []
    for steps in torch.arange(len(recorded)).split(chunk):
        first, last = int(steps[0]), int(steps[-1])
        frames = resize_frames(recorded[max(first - 1, 0) : last + 1], (world.height, world.width)).to(world.device)
        latents = [] if first else [world.model.codec.encode(frames[:1])]
        if len(frames) > 1:
            latents.append(world.model.codec.encode(frames[1:], frames[:-1, -1]))
        last_frames = frames[-len(steps) :, -1]
        depth_m = world.model.depth.estimate(last_frames, world.layout.intrinsics.expand(len(steps), 3, 3))
        generations = torch.zeros(len(steps), *world.layout.patch_grid, device=world.device)  # 0: nothing is generated
        # Concatenated latents are a tensor of their own; a slice would keep the whole chunk in memory.
        keyframes += lift_keyframes(
            torch.cat(latents), depth_m, cameras[first : last + 1], generations, steps.tolist(), world.layout
        )
    return MosaicMemory(tuple(keyframes), capacity=len(keyframes))


def load_or_lift_episodes(
    world: MosaicWorld, store: EpisodeStore, indices: Sequence[int], folder: Path, accelerator: Accelerator
) -> dict[int, LiftedEpisode]:
    """Recorded episodes as keyframes, by index: loaded from the folder, or lifted and stored there.

    Every process has to call it. Each lifts its share, then loads those of the others, and lifts what it does not find
    (a shared folder may be late).

    Raises:
        ValueError: a file of the folder is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        for interrupted in folder.glob(f"*{PARTIAL}"):
            interrupted.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    fingerprint = fingerprint_of((world.model.codec, world.model.depth), _lifting_settings(world))
    share = indices[accelerator.process_index :: accelerator.num_processes]
    bar = tqdm(share, desc="lifting episodes", unit="episode", disable=not accelerator.is_main_process)
    own = {index: _load_or_lift(world, store, index, folder, fingerprint) for index in bar}
    accelerator.wait_for_everyone()
    # In the same order in all processes: samples are drawn by position.
    return {index: own.get(index) or _load_or_lift(world, store, index, folder, fingerprint) for index in indices}


def _lifting_settings(world: MosaicWorld) -> str:
    """Everything besides weights that changes how a step is lifted, as JSON."""
    model, codec, depth = world.model, world.model.codec, world.model.depth
    settings = {name: getattr(model.settings, name) for name in ("height", "width", "image_from_camera")}
    settings |= {name: getattr(depth, name, None) for name in ("inverse", "median_depth_m")}
    settings |= {"format": FORMAT, "patch_grid": world.layout.patch_grid, "vae": dict(codec.vae.config)}
    # A Hugging Face depth model has a config, and an image processor with a config of its own.
    configs = getattr(getattr(depth, "model", None), "config", None), getattr(depth, "processor", None)
    settings["depth"] = [*map(str, configs)]
    return json.dumps(settings, default=str, sort_keys=True)


def _recording_digest(store: EpisodeStore, index: int) -> bytes:
    """A hash of everything recorded that is lifted."""
    episode, digest = store.load(index), hashlib.sha256(json.dumps(store.metadata(index), sort_keys=True).encode())
    for name in ("frames", "world_from_camera"):
        digest.update(np.ascontiguousarray(episode[name].numpy()))
    return digest.digest()


def _load_or_lift(world: MosaicWorld, store: EpisodeStore, index: int, folder: Path, fingerprint: str) -> LiftedEpisode:
    """One episode from its file; lifted, and stored, if there is none of the same recording and settings."""
    key = hashlib.sha256(fingerprint.encode() + _recording_digest(store, index)).hexdigest()
    path = folder / f"{store.folders[index].name}-{key[:16]}.safetensors"
    if path.exists():
        try:
            memory = MosaicMemory.load(path)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, and the episode is encoded again") from error
    else:
        memory = lift_episode(world, store, index)
        fresh = path.with_name(f"{path.name}.{uuid4().hex}{PARTIAL}")  # renamed when complete; others may write it too
        try:
            memory.save(fresh)
            fresh.rename(path)
        finally:
            fresh.unlink(missing_ok=True)
    keyframes = [keyframe.to(world.device) for keyframe in memory.keyframes]
    return LiftedEpisode(keyframes, store.captions(index))
