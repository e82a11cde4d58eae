"""MosaicMemory: the memory of one episode, an immutable value.

The method is MosaicMem, *Hybrid Spatial Memory for Controllable Video World Models* (arXiv 2603.17117):

- `keyframe.lift`: a latent frame and its depth become a keyframe, patches placed in 3D;
- `MosaicMemory.update`: adds it to the memory (a new value);
- `retrieval.retrieve`: what the keyframes show in a new view, as Warped-RoPE patches and as a Warped Latent;
- `MosaicMemory.edit` and `splice`: move, duplicate or remove patches, and join scenes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mosaic_gym.deprecation import renamed_method
from mosaic_gym.geometry.camera import check_rigid, check_similarity
from mosaic_gym.memory.files import load_with_metadata, save_with_metadata
from mosaic_gym.memory.keyframe import OPTIONAL_FIELDS, TENSOR_FIELDS, Keyframe, stack_geometry

FORMAT = "mosaic-memory-2"


@dataclass(frozen=True)
class MosaicMemory:
    """The keyframes of one episode. Forks share them.

    Attributes:
        keyframes: oldest first.
        capacity: the most keyframes that are stored; 0 is a world without memory, 1 stores the last frame only.
        made_with: fingerprint of the codec and the atlas that the keyframes were made with; empty if unknown.
    """

    keyframes: tuple[Keyframe, ...] = ()
    capacity: int = 512
    made_with: str = ""

    def __len__(self) -> int:
        return len(self.keyframes)

    def update(self, keyframe: Keyframe, label: str = "") -> MosaicMemory:
        """A memory that also holds `keyframe`, under a label. A full one drops its most redundant older keyframe."""
        keyframes = (*self.keyframes, keyframe.labelled(label) if label else keyframe)
        if self.capacity == 0:
            return self
        while len(keyframes) > self.capacity:  # after an edit or a splice there may be far more than `capacity`
            dropped = _most_redundant(keyframes)
            keyframes = keyframes[:dropped] + keyframes[dropped + 1 :]
        return replace(self, keyframes=keyframes)

    def edit(
        self, masks: Mapping[int, Tensor | np.ndarray], transform: Any | None, keep_original: bool = False
    ) -> MosaicMemory:
        """Moves, duplicates or removes patches (MosaicMem, arXiv 2603.17117, memory editing).

        E is composed into the warp, so culling, occlusion, coordinates and values follow. All keyframes lose their
        place on the atlas's map, which does not show the edited scene.

        Args:
            masks: by keyframe index, the patches to edit: bool `[v, u]`.
            transform: E `[4, 4]`, world from world, in metres: a rotation and a translation, after an enlargement by
                one factor if its 3x3 part is a multiple of a rotation. None removes the patches.
            keep_original: leave the patches where they are as well (a duplicate).

        Raises:
            IndexError: an index is not that of a keyframe. ValueError: a mask that is not bool `[v, u]`, an E that is
                no rotation, translation and enlargement, or `keep_original` together with the removal of patches.
        """
        if transform is None and keep_original:
            raise ValueError("transform=None removes patches, and keep_original=True leaves them: pass one of the two")
        rigid, factor = (None, 1.0) if transform is None else check_similarity(transform)
        keyframes = [replace(keyframe, place=torch.zeros_like(keyframe.place)) for keyframe in self.keyframes]
        copies = []
        for index, mask in masks.items():
            if not 0 <= index < len(keyframes):
                raise IndexError(f"memory has keyframes 0 to {len(keyframes) - 1}; there is no {index} to edit")
            mask = _checked_mask(index, mask, keyframes[index])
            if rigid is not None:
                copies.append(keyframes[index].masked(mask).transformed(rigid, factor))
            if not keep_original:
                keyframes[index] = keyframes[index].masked(~mask)
        return replace(self, keyframes=(*keyframes, *copies))

    def splice(self, other: MosaicMemory, transform: Any) -> MosaicMemory:
        """This memory joined with another scene's, which `transform` `[4, 4]` (world from its world) moves.

        MosaicMem (arXiv 2603.17117, memory editing) stitches scenes in this way.

        Raises:
            TypeError: `other` is no memory. ValueError: a transform that is not rigid, or a memory made with another
                codec or atlas or at another size.
        """
        if not isinstance(other, MosaicMemory):
            raise TypeError(f"the memory to splice in is a MosaicMemory; got {type(other).__name__}")
        transform = check_rigid(transform)
        other.check_made_with(self.made_with)
        for keyframe in other.keyframes[:1]:
            if self.keyframes and keyframe.shapes != self.keyframes[0].shapes:
                raise ValueError(
                    "the memories have keyframes of different sizes (latent, depth, patches): "
                    f"{self.keyframes[0].shapes} and {keyframe.shapes}; splice memories of the same checkpoint"
                )
        return replace(self, keyframes=(*self.keyframes, *(key.transformed(transform) for key in other.keyframes)))

    def check_made_with(self, fingerprint: str) -> None:
        """Raises ValueError if this memory is of another codec or atlas than those of the fingerprint."""
        if self.made_with and fingerprint and self.made_with != fingerprint:
            raise ValueError(
                "the memory was made with another codec or atlas, so its latents cannot be decoded here; load it with "
                "the checkpoint that it was made with"
            )

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a file has to hold: tensors by name, and metadata for JSON."""
        tensors = {}
        for index, keyframe in enumerate(self.keyframes):
            for name, value in keyframe.tensors.items():
                tensors[f"{index}.{name}"] = value.contiguous()
        steps = [keyframe.step for keyframe in self.keyframes]
        edited = [index for index, keyframe in enumerate(self.keyframes) if keyframe.edited]
        labels = [keyframe.label for keyframe in self.keyframes]
        return tensors, {"capacity": self.capacity, "steps": steps, "edited": edited, "labels": labels,
                         "made_with": self.made_with}  # fmt: skip

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> MosaicMemory:
        """The memory that `tensors` described, bit for bit.

        Raises:
            ValueError: a part is missing, or the parts do not fit together.
        """
        try:
            steps = metadata["steps"]
            edited, labels = (
                metadata.get("edited", ()),
                metadata.get("labels", [""] * len(steps)),
            )  # older files lack both
            keyframes = tuple(
                Keyframe(**_keyframe_tensors(tensors, index), step=step, edited=index in edited, label=label)
                for index, (step, label) in enumerate(zip(steps, labels, strict=True))
            )
            memory = MosaicMemory(keyframes, metadata["capacity"], metadata.get("made_with", ""))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the memory is damaged (it lacks {error}); save it again") from error
        for index, keyframe in enumerate(keyframes):
            if keyframe.shapes != keyframes[0].shapes or keyframe.alive.dtype != torch.bool:
                raise ValueError(
                    f"the memory is damaged (keyframe {index} has shapes {keyframe.shapes} and a mask of "
                    f"{keyframe.alive.dtype}; expected {keyframes[0].shapes} and torch.bool); save it again"
                )
        return memory

    def save(self, path: Path | str) -> None:
        """Writes all keyframes into one safetensors file."""
        tensors, metadata = self.tensors()
        save_with_metadata(tensors, path, {"format": FORMAT, **metadata})

    @staticmethod
    def load(path: Path | str) -> MosaicMemory:
        """Reads what `save` wrote, bit for bit.

        Raises:
            FileNotFoundError: no such file. ValueError: not a memory, truncated, or of another version.
        """
        return MosaicMemory.from_tensors(*load_with_metadata(path, (FORMAT,), "memory"))

    remember = renamed_method("remember", "update")  # old spelling
    edited = renamed_method("edited", "edit", chosen="masks")
    spliced = renamed_method("spliced", "splice")


def _keyframe_tensors(tensors: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """The tensors of one keyframe by name; KeyError for one that every keyframe has and that is missing."""
    found = {name: tensors.get(f"{index}.{name}") for name in OPTIONAL_FIELDS}
    return {name: tensors[f"{index}.{name}"] for name in TENSOR_FIELDS if name not in OPTIONAL_FIELDS} | found


def _checked_mask(index: int, mask: Any, keyframe: Keyframe) -> Tensor:
    """The mask of a keyframe's patches as a tensor; ValueError unless it is bool `[v, u]`."""
    expected = f"the mask of keyframe {index} is bool of shape {tuple(keyframe.alive.shape)}"
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
        mask = torch.from_numpy(mask.copy(order="C"))  # a copy has no negative strides, which torch refuses
    if not isinstance(mask, Tensor):
        kind = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"{expected}; got {kind}")
    if mask.dtype != torch.bool or mask.shape != keyframe.alive.shape:
        raise ValueError(f"{expected}; got {mask.dtype} {tuple(mask.shape)}")
    return mask


def _most_redundant(keyframes: Sequence[Keyframe]) -> int:
    """The index of the keyframe to drop, never the newest.

    First the oldest that the atlas generated, since it can generate that view again; then the oldest whose patches
    edits have all removed. Otherwise one of the two whose cameras are most alike: that with more generations behind it,
    or the older.
    """
    for index, keyframe in enumerate(keyframes[:-1]):
        if keyframe.is_from_atlas:
            return index
    _, _, alive, cameras = stack_geometry(keyframes, keyframes[0].alive.numel())
    empty = (~alive.any(1))[:-1].nonzero().flatten().tolist()
    if empty:
        return empty[0]
    distance_m = torch.cdist(cameras[:, :3, 3], cameras[:, :3, 3])
    turned = 1.0 - (cameras[:, :3, 2] @ cameras[:, :3, 2].T)
    dissimilarity = distance_m + 4.0 * turned
    dissimilarity.fill_diagonal_(torch.inf)
    dissimilarity[:, -1] = torch.inf  # every recent frame is similar to the newest
    dissimilarity[-1] = torch.inf
    if len(keyframes) == 2:
        return 0
    pair = divmod(int(dissimilarity.argmin()), len(keyframes))
    generations = [float(keyframes[index].generation.mean()) for index in pair]
    if generations[0] == generations[1]:
        return min(pair)
    return pair[0] if generations[0] > generations[1] else pair[1]
