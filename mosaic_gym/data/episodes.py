"""Episodes on disk: one folder each, memory-mapped TensorDicts, whole or not there.

ROOT/{train,heldout}/SEED/
  *.memmap, meta.json   the TensorDict, batch size [S] (steps): see `EpisodeStore.load`
  episode.json          what the numbers mean: scenario, seed, K, label names, captions
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDict

if TYPE_CHECKING:
    from mosaic_gym.worlds.protocol import View

FORMAT = "mosaic-episode-1"
SPLITS = ("train", "heldout")


def split_of(seed: int) -> str:
    """The split an episode belongs to, by its seed alone: every tenth is held out."""
    return "heldout" if seed % 10 == 9 else "train"


def episode_folder(root: Path, seed: int) -> Path:
    """Where the episode of a seed lies."""
    return Path(root) / split_of(seed) / f"{seed:06d}"


def write_episode(
    root: Path, seed: int, scenario: str, views: Sequence[View], actions: np.ndarray, captions: Sequence[str]
) -> Path:
    """Writes one episode; it appears under its name only when it is whole.

    Args:
        views: one a step; the first is the start's.
        actions: `[S, 3]`, the action that led to each view; zeros for the first.
        captions: one a step.
    """
    names = sorted({label for view in views for label in view.labels})
    labels = torch.tensor([[name in view.labels for name in names] for view in views], dtype=torch.uint8)
    steps = len(views)
    tensors = TensorDict(
        {
            "frames": torch.from_numpy(np.stack([view.frames for view in views])),
            "depth_m": torch.from_numpy(np.stack([view.all_depth_m for view in views])).half(),
            "world_from_camera": torch.from_numpy(np.stack([view.world_from_camera for view in views])).float(),
            "action": torch.from_numpy(np.asarray(actions, dtype=np.float32)),
            "reward": torch.tensor([view.reward for view in views], dtype=torch.float32),
            "terminated": torch.tensor([view.terminated for view in views]),
            "labels": labels.view(steps, len(names)),
        },
        batch_size=[steps],
    )
    told = {
        "format": FORMAT,
        "scenario": scenario,
        "seed": seed,
        "image_from_camera": views[0].image_from_camera.tolist(),
        "labels": names,
        "captions": list(captions),
    }
    folder = episode_folder(root, seed)
    fresh = folder.with_name(folder.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    tensors.memmap(str(fresh))
    (fresh / "episode.json").write_text(json.dumps(told))
    fresh.rename(folder)
    return folder


class EpisodeStore:
    """The recorded episodes of one split, read lazily.

    Args:
        root: the folder that `mosaic-gym record` wrote.
        split: "train" or "heldout".

    Raises:
        ValueError: an unknown split, an episode of another version, or of another scenario or camera than the first.
            FileNotFoundError: nothing is recorded there.
    """

    def __init__(self, root: Path | str, split: str):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; there are {list(SPLITS)}")
        whole = (path.parent for path in Path(root, split).glob("*/episode.json"))
        self.folders = sorted(folder for folder in whole if folder.suffix != ".partial")
        if not self.folders:
            raise FileNotFoundError(f"no {split} episodes under {root}; record some: mosaic-gym record --out {root}")
        self._told: dict[int, dict[str, Any]] = {}
        self.image_from_camera = np.array(self.told(0)["image_from_camera"])

    def __len__(self) -> int:
        return len(self.folders)

    def told(self, index: int) -> dict[str, Any]:
        """What episode.json says."""
        if index not in self._told:
            told = json.loads((self.folders[index] / "episode.json").read_text())
            if told.get("format") != FORMAT:
                raise ValueError(f"{self.folders[index]} is not of format {FORMAT}; record it again")
            first = self.told(0) if index else told
            if any(told[name] != first[name] for name in ("scenario", "image_from_camera")):
                raise ValueError(
                    f"{self.folders[index]} is of another scenario or camera than {self.folders[0]}: keep them apart"
                )
            self._told[index] = told
        return self._told[index]

    def captions(self, index: int) -> list[str]:
        """One caption a step."""
        return self.told(index)["captions"]

    def load(self, index: int) -> TensorDict:
        """The memory-mapped episode, batch size [S].

        frames uint8 `[S, 4, H, W, 3]`; depth_m float16 `[S, 4, H, W]`, the engine's, metres; world_from_camera float32
        `[S, 4, 4, 4]`; action float32 `[S, 3]`, which led here; reward float32 `[S]`; terminated bool `[S]`;
        labels uint8 `[S, L]`, which of the named objects are in sight.

        Raises:
            ValueError: a damaged episode, or one that holds anything but arrays.
        """
        folder = self.folders[index]
        try:
            # A recording may come from anybody, and reading a pickle is running what it says.
            return TensorDict.load_memmap(folder, allow_pickle=False)
        except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
            raise ValueError(
                f"the episode in {folder} is damaged, or holds more than arrays ({error}); record it again"
            ) from error

    @property
    def fingerprint(self) -> str:
        """Tells recordings apart: a hash of what is said of every episode."""
        told = [json.dumps(self.told(index), sort_keys=True) for index in range(len(self))]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()

    def all(self, key: str, part: Any = ..., every: int = 1) -> torch.Tensor:
        """One tensor of every episode, one behind the other, `[sum of S, ...]`, in memory; see `load`.

        Args:
            part: an index into each, so that no more than that is read.
            every: of how many episodes one is taken.
        """
        return torch.cat([self.load(index)[key][part] for index in range(0, len(self), every)])
