"""Episodes on disk: one folder each, with memory-mapped arrays. A folder has its final name only when it is complete.

ROOT/{train,heldout,heldout-themes}/SEED/
  *.memmap, meta.json   a TensorDict of batch size [S] (steps): see `EpisodeStore.load`
  episode.json          metadata: scenario, seed, K, label names, captions

Episodes of generated maps lie under the seed of their map, and their metadata has more: see `write_episode`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tensordict import TensorDict

FORMAT = "mosaic-episode-1"
SPLITS = ("train", "heldout", "heldout-themes")
SAME_IN_A_RECORDING = ("scenario", "image_from_camera", "split", "maps")
"""Metadata that all episodes of a recording have in common."""


class RecordedView(Protocol):
    """The stored parts of a step; a simulator's views have these attributes.

    Attributes:
        frames: uint8 `[4, H, W, 3]`.
        all_depth_m: `[4, H, W]`, metres.
        world_from_camera: `[4, 4, 4]`, metres.
        image_from_camera: `[3, 3]`, K in pixels.
        labels: names of the objects in view.
        reward, terminated: of the step.
    """

    @property
    def frames(self) -> np.ndarray: ...
    @property
    def all_depth_m(self) -> np.ndarray | None: ...
    @property
    def world_from_camera(self) -> np.ndarray: ...
    @property
    def image_from_camera(self) -> np.ndarray: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def reward(self) -> float: ...
    @property
    def terminated(self) -> bool: ...


def split_of(seed: int) -> str:
    """The split of an episode, by its seed alone: seeds that end in 9 are held out."""
    return "heldout" if seed % 10 == 9 else "train"


def episode_folder(root: Path, seed: int, split: str | None = None) -> Path:
    """The folder of the episode of a seed, or of a map's seed; None for the split that seed has by `split_of`."""
    return Path(root) / (split or split_of(seed)) / f"{seed:06d}"


def write_episode(
    root: Path,
    seed: int,
    scenario: str,
    views: Sequence[RecordedView],
    actions: np.ndarray,
    captions: Sequence[str],
    generated: Mapping[str, Any] | None = None,
) -> Path:
    """Writes one episode. The folder gets its final name when all is written; after an error nothing is left of it.

    Args:
        views: one per step; the first is the start's.
        actions: `[S, 3]`, the action that led to each view; zeros for the first.
        captions: one per step.
        generated: of a generated map, further metadata: `map_seed`, `split`, `maps` (the options of the map), and one
            entry per step in `themes`, `rooms` (None in corridors) and `events` (a list). The episode is stored in its
            split's folder under the map's seed. None for other scenarios.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    names = sorted({label for view in views for label in view.labels})
    labels = np.array([[name in view.labels for name in names] for view in views], dtype=np.uint8)
    arrays = {
        "frames": np.stack([view.frames for view in views]),
        "depth_m": np.stack([view.all_depth_m for view in views]).astype(np.float16),
        "world_from_camera": np.stack([view.world_from_camera for view in views]).astype(np.float32),
        "action": np.asarray(actions, dtype=np.float32),
        "reward": np.array([view.reward for view in views], dtype=np.float32),
        "terminated": np.array([view.terminated for view in views], dtype=bool),
        "labels": labels.reshape(len(views), len(names)),
    }
    metadata = {
        "format": FORMAT,
        "scenario": scenario,
        "seed": seed,
        "image_from_camera": views[0].image_from_camera.tolist(),
        "labels": names,
        "captions": list(captions),
        **(generated or {}),
    }
    folder = episode_folder(root, metadata.get("map_seed", seed), metadata.get("split"))
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_arrays(partial, arrays)
        (partial / "episode.json").write_text(json.dumps(metadata))
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays in the format of `TensorDict.memmap`, batch size `[S]`.

    Plain writes report a full disk as an OSError. `TensorDict.memmap` writes through a mapping of a sparse file, where
    a full disk ends the process by a signal.
    """
    meta: dict[str, Any] = {}
    for name, array in arrays.items():
        if array.size:
            with (folder / f"{name}.memmap").open("wb") as file:
                file.write(np.ascontiguousarray(array).data)
        dtype = f"torch.{array.dtype.name}"
        meta[name] = {"device": "cpu", "shape": list(array.shape), "dtype": dtype, "is_nested": False}
    meta |= {"shape": [len(arrays["action"])], "device": "cpu", "_type": "<class 'tensordict._td.TensorDict'>"}
    meta |= {"_format_version": 1, "_class": "tensordict:TensorDict"}
    (folder / "meta.json").write_text(json.dumps(meta))


class EpisodeStore:
    """The recorded episodes of one split, read lazily.

    Args:
        root: the folder that `mosaic-gym record` wrote.
        split: "train" or "heldout"; of generated maps also "heldout-themes".

    Raises:
        ValueError: an unknown split; an episode in another format, or of another scenario, camera or options of
            generated maps than the first.
        FileNotFoundError: no episode of the split is recorded there.
    """

    def __init__(self, root: Path | str, split: str):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the known ones are {', '.join(SPLITS)}")
        complete = (path.parent for path in Path(root, split).glob("*/episode.json"))
        self.folders = sorted(folder for folder in complete if folder.suffix != ".partial")
        if not self.folders:
            raise FileNotFoundError(f"no {split} episodes under {root}; record some: mosaic-gym record --out {root}")
        self._metadata: dict[int, dict[str, Any]] = {}
        self.image_from_camera = np.array(self.metadata(0)["image_from_camera"])

    def __len__(self) -> int:
        return len(self.folders)

    def metadata(self, index: int) -> dict[str, Any]:
        """The content of episode.json: format, scenario, seed, K, label names, captions; see `write_episode`."""
        if index not in self._metadata:
            metadata = _read_metadata(self.folders[index])
            first = self.metadata(0) if index else metadata
            if any(metadata.get(name) != first.get(name) for name in SAME_IN_A_RECORDING):
                raise ValueError(
                    f"{self.folders[index]} is of another scenario or camera than {self.folders[0]}, or of another "
                    "split or other options of generated maps: put them in separate folders"
                )
            self._metadata[index] = metadata
        return self._metadata[index]

    def captions(self, index: int) -> list[str]:
        """One caption per step."""
        return self.metadata(index)["captions"]

    def load(self, index: int) -> TensorDict:
        """The memory-mapped episode, batch size [S].

        frames uint8 `[S, 4, H, W, 3]`; depth_m float16 `[S, 4, H, W]`, the simulator's, metres; world_from_camera
        float32 `[S, 4, 4, 4]`; action float32 `[S, 3]`, which led to the view; reward float32 `[S]`; terminated bool
        `[S]`; labels uint8 `[S, L]`, which of the named objects are in view.

        The tensors are mapped copy-on-write: writing to them changes this process's memory, never the file.

        Raises:
            ValueError: a damaged episode, or one that holds anything but arrays.
        """
        return _load_arrays(self.folders[index])

    @property
    def fingerprint(self) -> str:
        """A hash of the metadata of all episodes, to distinguish recordings.

        It does not read the arrays, because they are gigabytes. Recording the same seeds of the same scenario gives the
        same arrays, and nothing read through `load` can change them; files edited by other means are not noticed.
        """
        rows = [json.dumps(self.metadata(index), sort_keys=True) for index in range(len(self))]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def all(self, key: str, part: Any = ..., every: int = 1) -> torch.Tensor:
        """One tensor of every episode, concatenated along the steps, `[sum of S, ...]`, in memory; see `load`.

        Args:
            part: an index into each episode's tensor; only that part is read.
            every: take one episode out of so many.
        """
        return torch.cat([self.load(index)[key][part] for index in range(0, len(self), every)])


def read_episode(folder: Path | str) -> tuple[dict[str, Any], TensorDict]:
    """The metadata and the arrays of the episode in a folder, see `EpisodeStore.metadata` and `EpisodeStore.load`.

    Raises:
        ValueError: an episode in another format, or a damaged one. FileNotFoundError: no episode is there.
    """
    return _read_metadata(Path(folder)), _load_arrays(Path(folder))


def _read_metadata(folder: Path) -> dict[str, Any]:
    metadata = json.loads((folder / "episode.json").read_text(encoding="utf-8"))
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{folder} is not in the format {FORMAT}; record it again")
    return metadata


def _load_arrays(folder: Path) -> TensorDict:
    try:
        # Recordings are shared between users, and reading a pickle runs the code in it.
        return TensorDict.load_memmap(folder, allow_pickle=False, mode="r")
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(
            f"the episode in {folder} is damaged, or holds more than arrays ({error}); record it again"
        ) from error
