"""The last picture of every recorded step, with depth and cameras, as tensors in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from mosaic_gym.data.episodes import EpisodeStore, split_of
from mosaic_gym.memory.pictures import depth_channel
from mosaic_gym.model.codec import frames_to_float


@dataclass(frozen=True)
class RecordedPictures:
    """`n` recorded steps of all episodes, in order.

    Attributes:
        frames: uint8 `[n, H, W, 3]`, the last frame of every step.
        depth_m: float16 `[n, H, W]`, metres.
        cameras: float32 `[n, 4, 4, 4]`, world_from_camera of the four frames, metres.
        rewards: float32 `[n]`; terminated: bool `[n]`.
        first: `[e + 1]`, index of the first step of every episode, then n.
        captions: one a step.
        image_from_camera: float32 `[3, 3]`, K in pixels.
    """

    frames: Tensor
    depth_m: Tensor
    cameras: Tensor
    rewards: Tensor
    terminated: Tensor
    first: Tensor
    captions: list[str]
    image_from_camera: Tensor

    def __len__(self) -> int:
        return len(self.frames)

    def pictures(self, index: Tensor) -> Tensor:
        """Pictures `[..., 4, H, W]` of steps: colors in [-1, 1] and the depth channel, on the device of the frames."""
        colors = frames_to_float(self.frames[index])
        return torch.cat([colors, depth_channel(self.depth_m[index])[..., None, :, :]], -3)


def check_held_out(store: EpisodeStore) -> None:
    """Raises ValueError if an episode to train on is held out: of another split than `train`, or by its seed."""
    for index in range(len(store)):
        metadata = store.metadata(index)
        split = metadata.get("split", split_of(metadata["seed"]))
        if split != "train":
            raise ValueError(
                f"{store.folders[index]} is an episode of the split {split}, which is held out to measure what was "
                "learned: move it out of the folder train"
            )


def read_pictures(store: EpisodeStore, limit: int | None = None) -> RecordedPictures:
    """Reads a recording; 2,000 episodes of 80 steps at 64x64 take 3.4 GB.

    Args:
        limit: the number of episodes; None for all.

    Raises:
        ValueError: a recording without depth, or a damaged episode.
    """
    count = len(store) if limit is None else min(limit, len(store))
    rows: dict[str, list[Tensor]] = {
        "frames": [],
        "depth_m": [],
        "world_from_camera": [],
        "reward": [],
        "terminated": [],
    }
    captions: list[str] = []
    for index in tqdm(range(count), desc="reading episodes", unit="episode", mininterval=2.0):
        episode = store.load(index)
        if "depth_m" not in episode.keys():
            raise ValueError(
                f"{store.folders[index]} has no depth, and this model generates depth with the picture: record depth, "
                "or estimate it first (mosaic_gym.model.depth)"
            )
        for name, parts in rows.items():
            value = episode[name]
            parts.append((value[:, -1] if name in ("frames", "depth_m") else value[:]).clone())
        captions += store.captions(index)
    lengths = torch.tensor([0] + [len(part) for part in rows["frames"]])
    frames, depth_m, cameras, rewards, terminated = (torch.cat(parts) for parts in rows.values())
    k = torch.as_tensor(store.image_from_camera, dtype=torch.float32)
    return RecordedPictures(frames, depth_m, cameras, rewards, terminated, lengths.cumsum(0), captions, k)
