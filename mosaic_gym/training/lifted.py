"""Recordings as a pretrained world remembers them: each step encoded, its depth estimated, and lifted, once.

At full size that takes longer than loading the model, so it is kept in the run's folder, an episode a file, for when
the run goes on; and processes that train together share the work out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.model.codec import frames_to_float
from mosaic_gym.model.parts import fingerprint_of
from mosaic_gym.training.run import exact_products
from mosaic_gym.training.samples import Remembered
from mosaic_gym.worlds.mosaic import MosaicWorld

FOLDER = "lifted"
"""Of a run's folder: what is kept of the episodes."""
ENCODED_PX = 2_000_000
"""Pixels of a recording that are encoded at once, a step counted as one frame: 8 steps at 352x640."""


def resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames uint8 `[..., 4, H, W, 3]` as `[..., 4, 3, *size]` in [-1, 1]."""
    frames = frames_to_float(frames)
    flat = F.interpolate(frames.flatten(0, -4), size=size, mode="bicubic", antialias=True, align_corners=False)
    return flat.clamp(-1, 1).view(*frames.shape[:-2], *size)


@exact_products()
@torch.no_grad()
def remember(world: MosaicWorld, store: EpisodeStore, index: int) -> MosaicMemory:
    """One episode as keyframes of true latents and estimated depth, each encoded behind the frame before it."""
    episode = store.load(index)
    recorded = episode["frames"]
    cameras = episode["world_from_camera"][:].clone().to(world.device)  # a plain tensor, not the file
    together = max(1, ENCODED_PX // (world.height * world.width))
    keyframes = []
    for steps in torch.arange(len(recorded)).split(together):
        first, last = int(steps[0]), int(steps[-1])
        frames = resized(recorded[max(first - 1, 0) : last + 1], (world.height, world.width)).to(world.device)
        latents = [] if first else [world.model.codec.encode(frames[:1])]
        if len(frames) > 1:
            latents.append(world.model.codec.encode(frames[1:], frames[:-1, -1]))
        seen = frames[-len(steps) :, -1]
        depth_m = world.model.depth.estimate(seen, world.k.expand(len(seen), 3, 3))
        true = torch.zeros(len(steps), *world.patch_grid, device=world.device)
        # Joined they are whole; a slice would keep alive what was encoded in front of it.
        keyframes += world.lift(torch.cat(latents), depth_m, cameras[first : last + 1], true, steps.tolist())
    return MosaicMemory(tuple(keyframes), capacity=len(keyframes))


def remember_all_of(
    world: MosaicWorld, store: EpisodeStore, indices: Sequence[int], folder: Path, accelerator: Accelerator
) -> dict[int, Remembered]:
    """These episodes, as `remember` has them: read from the folder what lies there, made and kept there what does not.

    Every process has to call it. Each makes its share, then reads those of the others, and makes what it does not find:
    a machine that shares no files with theirs has all to make.

    Raises:
        ValueError: a file of the folder is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = fingerprint_of((world.model.codec, world.model.depth), _told(world))
    mine = indices[accelerator.process_index :: accelerator.num_processes]
    bar = tqdm(mine, desc="lifting episodes", unit="episode", disable=not accelerator.is_main_process)
    made = {index: _kept(world, store, index, folder, weights) for index in bar}
    accelerator.wait_for_everyone()
    # In one order, whoever made them: it is drawn from by number.
    return {index: made.get(index) or _kept(world, store, index, folder, weights) for index in indices}


def _told(world: MosaicWorld) -> str:
    """By what else than weights a step is lifted."""
    model = world.model
    settings = {name: getattr(model.settings, name) for name in ("height", "width", "image_from_camera")}
    depth = {name: getattr(model.depth, name, None) for name in ("inverse", "median_depth_m")}
    return json.dumps({**settings, **depth, "patch_grid": world.patch_grid})


def _kept(world: MosaicWorld, store: EpisodeStore, index: int, folder: Path, weights: str) -> Remembered:
    """One episode, from its file; made, and written there, if there is none that was made so."""
    recorded = json.dumps(store.told(index), sort_keys=True)
    made_with = hashlib.sha256((weights + recorded).encode()).hexdigest()
    path = folder / f"{store.folders[index].name}-{made_with[:16]}.safetensors"
    if path.exists():
        try:
            memory = MosaicMemory.load(path)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, and the episode is encoded anew") from error
    else:
        memory = remember(world, store, index)
        # Whole under its name; and written by whom is told, for machines may share files and not know it.
        fresh = path.with_name(f"{path.name}.{os.getpid()}.partial")
        memory.save(fresh)
        fresh.rename(path)
    keyframes = [keyframe.to(world.device) for keyframe in memory.keyframes]
    return Remembered(keyframes, store.captions(index))
