"""A recording encoded once by a codec: latents, patch centres and prompts beside the recorded pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.camera import rescale_intrinsics, transform, unproject
from mosaic_gym.memory.keyframe import median_per_cell
from mosaic_gym.model.parts import fingerprint_of
from mosaic_gym.model.rgbd_codec import RGBDCodec
from mosaic_gym.model.text import ByteTextEncoder
from mosaic_gym.training.pictures import RecordedPictures, read_pictures

FORMAT = "encoded-1"
"""Version of the stored latents; a change in how a step is encoded needs another."""
CHUNK = 32
"""Pictures that are encoded together: more of them leave a processor's cache."""


@dataclass(frozen=True)
class EncodedRecording:
    """`n` recorded steps as a generative model is trained on them.

    Attributes:
        recorded: frames, depth, cameras, rewards, captions.
        latents: float16 `[n, c, h, w]`.
        points_m: float32 `[n, 3, v * u]`, patch centres in the world, metres.
        prompts: uint16-valued int16 `[n, l]`, byte tokens of the captions.
        step_of: `[n]`, the index of each step in its episode.
        patch: latent cells along each side of a patch.
    """

    recorded: RecordedPictures
    latents: Tensor
    points_m: Tensor
    prompts: Tensor
    step_of: Tensor
    patch: int

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str) -> EncodedRecording:
        """The same on a device, so that sampling needs no transfers."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value.to(device) for name, value in moved.items() if isinstance(value, Tensor)}
        inner = {f.name: getattr(self.recorded, f.name) for f in fields(self.recorded)}
        recorded = replace(
            self.recorded, **{name: value.to(device) for name, value in inner.items() if isinstance(value, Tensor)}
        )
        return replace(self, recorded=recorded, **tensors)


def encode_recording(
    store: EpisodeStore,
    codec: RGBDCodec,
    text_encoder: ByteTextEncoder,
    folder: Path,
    patch: int,
    limit: int | None = None,
) -> EncodedRecording:
    """Reads a recording and encodes it, or loads the latents that the folder holds of the same codec and recording.

    Args:
        text_encoder: whose tokens prompts become; its weights are not used.
        folder: for `latents-*.npy`.
        patch: latent cells along each side of a patch.
        limit: the number of episodes; None for all.

    Raises:
        ValueError: a recording without depth, or a caption that is too long.
    """
    recorded = read_pictures(store, limit)
    key = fingerprint_of((codec,), json.dumps([FORMAT, store.fingerprint, len(recorded)]))[:16]
    path = folder / f"latents-{key}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_latents(recorded, codec, path)
    latents = torch.from_numpy(np.load(path))
    lengths = recorded.first.diff()
    return EncodedRecording(
        recorded=recorded,
        latents=latents,
        points_m=_patch_centres(recorded, tuple(size // patch for size in latents.shape[-2:])),
        prompts=text_encoder.tokenize(recorded.captions).to(torch.int16),
        step_of=torch.cat([torch.arange(int(length)) for length in lengths]),
        patch=patch,
    )


@torch.no_grad()
def _write_latents(recorded: RecordedPictures, codec: RGBDCodec, path: Path) -> None:
    device = codec.mean.device
    parts = []
    for index in tqdm(torch.arange(len(recorded)).split(CHUNK), desc="encoding", unit="batch", mininterval=2.0):
        pictures = recorded.pictures(index).to(device, memory_format=torch.channels_last)
        parts.append(codec.encode_pictures(pictures).half().cpu())
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.save(file, torch.cat(parts).numpy())
    partial.rename(path)


def _patch_centres(recorded: RecordedPictures, grid: tuple[int, int]) -> Tensor:
    """Centres `[n, 3, v * u]` of a grid of patches in the world, metres: the median depth of a patch, unprojected."""
    size = tuple(recorded.depth_m.shape[-2:])
    intrinsics = rescale_intrinsics(recorded.image_from_camera, size, grid)
    parts = []
    for index in torch.arange(len(recorded)).split(4096):
        depth_m = median_per_cell(recorded.depth_m[index].float(), grid)
        points = transform(recorded.cameras[index, -1], unproject(depth_m, intrinsics).flatten(1, 2))
        parts.append(points.transpose(1, 2).contiguous())
    return torch.cat(parts)
