"""Recordings as a pretrained world remembers them: each step encoded, its depth estimated, and lifted, once.

At full size that takes longer than loading the model, so it is kept in the run's folder, an episode a file, for when
the run goes on; and processes that train together share the work out. On several machines they need a folder that all
of them see, as for going on with a run.
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
from mosaic_gym.training.run import exact_products
from mosaic_gym.training.samples import Remembered
from mosaic_gym.worlds.mosaic import MosaicWorld

FORMAT = "lifted-1"
"""Of what is kept: another where a step is lifted otherwise."""
FOLDER = "lifted"
"""Of a run's folder: what is kept of the episodes."""
PARTIAL = ".partial"
"""How the name of a file ends that is not whole yet."""
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


def build_all_memories(
    world: MosaicWorld, store: EpisodeStore, indices: Sequence[int], folder: Path, accelerator: Accelerator
) -> dict[int, Remembered]:
    """These episodes, as `remember` has them: read from the folder what lies there, made and kept there what does not.

    Every process has to call it. Each makes its share, then reads those of the others, and makes what it does not find
    (a shared folder may be late).

    Raises:
        ValueError: a file of the folder is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        for left in folder.glob(f"*{PARTIAL}"):  # by a run that was cut off
            left.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    how = fingerprint_of((world.model.codec, world.model.depth), _told(world))
    mine = indices[accelerator.process_index :: accelerator.num_processes]
    bar = tqdm(mine, desc="lifting episodes", unit="episode", disable=not accelerator.is_main_process)
    made = {index: _kept(world, store, index, folder, how) for index in bar}
    accelerator.wait_for_everyone()
    # In one order, whoever made them: it is drawn from by number.
    return {index: made.get(index) or _kept(world, store, index, folder, how) for index in indices}


def _told(world: MosaicWorld) -> str:
    """By what else than weights a step is lifted."""
    model, codec, depth = world.model, world.model.codec, world.model.depth
    told = {name: getattr(model.settings, name) for name in ("height", "width", "image_from_camera")}
    told |= {name: getattr(depth, name, None) for name in ("inverse", "median_depth_m")}
    told |= {"format": FORMAT, "patch_grid": world.patch_grid, "vae": dict(codec.vae.config)}
    # A depth model of Hugging Face's is configured, and sees pictures through a processor that is, too.
    configured = getattr(getattr(depth, "model", None), "config", None), getattr(depth, "processor", None)
    told["depth"] = [*map(str, configured)]
    return json.dumps(told, default=str, sort_keys=True)


def _recorded(store: EpisodeStore, index: int) -> bytes:
    """All that a recording says of what is lifted."""
    episode, digest = store.load(index), hashlib.sha256(json.dumps(store.told(index), sort_keys=True).encode())
    for name in ("frames", "world_from_camera"):
        digest.update(np.ascontiguousarray(episode[name].numpy()))
    return digest.digest()


def _kept(world: MosaicWorld, store: EpisodeStore, index: int, folder: Path, how: str) -> Remembered:
    """One episode, from its file; made, and written there, if there is none that was made so."""
    key = hashlib.sha256(how.encode() + _recorded(store, index)).hexdigest()
    path = folder / f"{store.folders[index].name}-{key[:16]}.safetensors"
    if path.exists():
        try:
            memory = MosaicMemory.load(path)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, and the episode is encoded anew") from error
    else:
        memory = remember(world, store, index)
        fresh = path.with_name(f"{path.name}.{uuid4().hex}{PARTIAL}")  # whole under its name, whoever else makes it
        try:
            memory.save(fresh)
            fresh.rename(path)
        finally:
            fresh.unlink(missing_ok=True)
    keyframes = [keyframe.to(world.device) for keyframe in memory.keyframes]
    return Remembered(keyframes, store.captions(index))
