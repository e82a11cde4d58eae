"""MosaicMemory: immutable keyframes, recalled as Warped-RoPE patches and as a Warped Latent.

The operators follow MosaicMem, *Hybrid Spatial Memory for Controllable Video World Models*
(arXiv 2603.17117): lift patches into 3D, recall those that a new view should show, place them by where
they land. Reading (`recall`) and writing (`remember`) are two verbs; writing returns a new memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from mosaic_gym.geometry.camera import check_rigid, rescale_intrinsics
from mosaic_gym.memory.batching import for_all
from mosaic_gym.memory.files import load_with_metadata, save_with_metadata
from mosaic_gym.memory.keyframe import TENSOR_FIELDS, Keyframe, gathered, padded
from mosaic_gym.memory.retrieval import Selection, select
from mosaic_gym.memory.warp import Warped, fill_holes, warp_frames

FORMAT = "mosaic-memory-2"
EVEN_COST = 0.3
"""At this `source_cost` memory and map are off by about as much. Squared errors that are independent are least between
the two at shares of 1 / (1 + cost / this): measured on 210 held-out steps, from 0.1 to 5, and flat from 0.1 to 0.4."""


@runtime_checkable
class KeyframeCodec(Protocol):
    """What memory needs of a codec: see `model/codec.py`."""

    channels: int
    stride: int
    image_stride: int
    instants: slice

    def keyframe_image(self, latents: Tensor) -> Tensor: ...

    def from_keyframe_images(self, warped_frames: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class MosaicMemory:
    """What one episode has seen. Forks share the keyframes.

    Attributes:
        keyframes: oldest first.
        capacity: how many are kept; 0 is a world without memory, 1 remembers the last frame only.
        made_with: fingerprint of the codec and the atlas that keyframes were made with; empty where nobody said.
    """

    keyframes: tuple[Keyframe, ...] = ()
    capacity: int = 512
    made_with: str = ""

    def __len__(self) -> int:
        return len(self.keyframes)

    def update(self, keyframe: Keyframe) -> MosaicMemory:
        """A memory that also holds `keyframe`; when full, the most redundant older one goes."""
        keyframes = (*self.keyframes, keyframe)
        if self.capacity == 0:
            return self
        while len(keyframes) > self.capacity:  # spliced or edited, there may be many too many
            gone = _most_redundant(keyframes)
            keyframes = keyframes[:gone] + keyframes[gone + 1 :]
        return replace(self, keyframes=keyframes)

    def edited(self, chosen: dict[int, Tensor], transform: Tensor | None, keep_original: bool = False) -> MosaicMemory:
        """Moves, duplicates or removes patches. An edited scene is no longer the map's: its places are forgotten.

        Args:
            chosen: bool `[v, u]` masks of the patches meant, by keyframe index.
            transform: E `[4, 4]`, world from world, in metres; None removes the patches.
            keep_original: leave the patches where they are as well (a duplicate).

        Raises:
            IndexError: an index is not that of a keyframe. ValueError: a mask that is not bool `[v, u]`, an E that is
                not rigid, or an original that would be kept of what is removed.
        """
        if transform is None and keep_original:
            raise ValueError("transform=None removes patches, and keep_original=True leaves them: give one of the two")
        transform = None if transform is None else check_rigid(transform)
        keyframes = [replace(keyframe, place=torch.zeros_like(keyframe.place)) for keyframe in self.keyframes]
        copies = []
        for index, mask in chosen.items():
            if not 0 <= index < len(keyframes):
                raise IndexError(f"memory has keyframes 0 to {len(keyframes) - 1}; there is no {index} to edit")
            if mask.dtype != torch.bool or mask.shape != keyframes[index].alive.shape:
                expected = f"bool of shape {tuple(keyframes[index].alive.shape)}"
                raise ValueError(f"the mask of keyframe {index} is {expected}; got {mask.dtype} {tuple(mask.shape)}")
            if transform is not None:
                copies.append(keyframes[index].keeping(mask).moved(transform))
            if not keep_original:
                keyframes[index] = keyframes[index].keeping(~mask)
        return replace(self, keyframes=(*keyframes, *copies))

    def spliced(self, other: MosaicMemory, transform: Tensor) -> MosaicMemory:
        """This memory with another scene's set into it, moved by `transform` `[4, 4]` (world from its world).

        Raises:
            ValueError: a transform that is not rigid, or a memory made with another codec or atlas.
        """
        transform = check_rigid(transform)
        other.check_made_with(self.made_with)
        return replace(self, keyframes=(*self.keyframes, *(keyframe.moved(transform) for keyframe in other.keyframes)))

    def check_made_with(self, fingerprint: str) -> None:
        """Raises ValueError if this memory is of another codec or atlas than those of the fingerprint."""
        if self.made_with and fingerprint and self.made_with != fingerprint:
            raise ValueError(
                "the memory was made with another codec or atlas, and means nothing here; load it in its own checkpoint"
            )

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a file must hold: tensors by name, and what JSON can say."""
        named = {}
        for index, keyframe in enumerate(self.keyframes):
            for name in TENSOR_FIELDS:
                named[f"{index}.{name}"] = getattr(keyframe, name).contiguous()
        steps = [keyframe.step for keyframe in self.keyframes]
        return named, {"capacity": self.capacity, "steps": steps, "made_with": self.made_with}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], told: dict[str, Any]) -> MosaicMemory:
        """The memory that `tensors` described, bit for bit.

        Raises:
            ValueError: something of it is missing.
        """
        try:
            keyframes = tuple(
                Keyframe(**{name: tensors[f"{index}.{name}"] for name in TENSOR_FIELDS}, step=step)
                for index, step in enumerate(told["steps"])
            )
            return MosaicMemory(keyframes, told["capacity"], told.get("made_with", ""))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the memory is damaged (it lacks {error}); save it again") from error

    def save(self, path: Path | str) -> None:
        """Writes all keyframes into one safetensors file."""
        tensors, told = self.tensors()
        save_with_metadata(tensors, path, {"format": FORMAT, **told})

    @staticmethod
    def load(path: Path | str) -> MosaicMemory:
        """Reads what `save` wrote, bit for bit.

        Raises:
            FileNotFoundError: no such file. ValueError: not a memory, truncated, or of another version.
        """
        return MosaicMemory.from_tensors(*load_with_metadata(path, (FORMAT,), "memory"))


def _most_redundant(keyframes: Sequence[Keyframe]) -> int:
    """The index of the keyframe, never the newest, whose view is nearest to another's.

    Of the two views that are most alike, the one with more generations behind it goes, then the older. Before any other
    goes the oldest that was drawn by heart, which can be drawn again, then the oldest of which edits left no patch.
    """
    for index, keyframe in enumerate(keyframes[:-1]):
        if keyframe.is_from_atlas:
            return index
    _, _, alive, poses = gathered(keyframes, keyframes[0].alive.numel())
    empty = (~alive.any(1))[:-1].nonzero().flatten().tolist()
    if empty:
        return empty[0]
    distance_m = torch.cdist(poses[:, :3, 3], poses[:, :3, 3])
    turned = 1.0 - (poses[:, :3, 2] @ poses[:, :3, 2].T)
    apart = distance_m + 4.0 * turned
    apart.fill_diagonal_(torch.inf)
    apart[:, -1] = torch.inf  # being like the newest is what every recent frame is
    apart[-1] = torch.inf
    if len(keyframes) == 2:
        return 0
    closest = int(apart.argmin())
    one, other = divmod(closest, len(keyframes))
    generations = [float(keyframes[index].generation.mean()) for index in (one, other)]
    if generations[0] == generations[1]:
        return min(one, other)
    return one if generations[0] > generations[1] else other


@dataclass(frozen=True)
class Retrieved:
    """What a batch of memories gives for a batch of views; the network's input, and what is worth reporting.

    Attributes:
        warped: `[b, c, h, w]`, the Warped Latent.
        warped_share: `[b, h, w]`, covered share of each of its cells, in the frames that it shows.
        covered: `[b, m, h, w]`: covered share of every quarter of a cell for each of the four frames, and generations.
        patches: `[b, n, c * p * p]`, p cells wide and high; patch_uv: `[b, n, 2]` in cells; patch_cameras:
            `[b, n, 4, 4, 4]`; patch_exists: bool `[b, n]`.
        coverage: `[b]`, share of the views' pixels that memory covers.
        generation: `[b, v, u]`, of the last frame: what was sampled, 0 where true or where nothing is covered.
        depth_m: `[b, H, W]`, memory's surface in the last camera, metres; inf where none.
        pixels_covered: bool `[b, 4, H, W]` on the grid of the stills.
        stills: `[b, 4, c, H, W]`, what the Warped Latent was made of, holes filled.
        doubt: `[b, 4, H, W]`: 0 where a still is a remembered one's cell, unmoved; 1 where it moved by a cell or more,
            or where nothing is covered.
        reliance: `[b, 4, H, W]`, how much memory is to be relied on beside the map, 1 to 0 where nothing is covered.
        pictures: `[b, 4, c, H, W]`, the same views as the map is known by heart; where it is not, the stills.
        conditioning_latent: `[b, c, h, w]`, latent fused from memory and map; without a map, the Warped Latent.
    """

    warped: Tensor
    warped_share: Tensor
    covered: Tensor
    patches: Tensor
    patch_uv: Tensor
    patch_cameras: Tensor
    patch_exists: Tensor
    coverage: Tensor
    generation: Tensor
    depth_m: Tensor
    pixels_covered: Tensor
    warped_frames: Tensor
    warp_uncertainty: Tensor
    memory_weight: Tensor
    pictures: Tensor
    conditioning_latent: Tensor

    def views(self, chosen: slice) -> Retrieved:
        """What is recalled for some of the views."""
        return Retrieved(**{each.name: getattr(self, each.name)[chosen] for each in fields(self)})


@torch.no_grad()
def retrieve(
    memories: Sequence[Sequence[Keyframe]],
    world_from_camera: Tensor,
    image_from_camera: Tensor,
    codec: KeyframeCodec,
    latent_shape: tuple[int, int, int],
    max_sources: int = 4,
    max_patches: int = 32,
    patch: int = 1,
    pictures: Sequence[Tensor | None] | None = None,
    supposed: Sequence[bool] | None = None,
) -> Retrieved:
    """Asks every memory what its next view should show, beside the map where that is known by heart.

    Pictures fill the holes of what memory shows, and each pixel is expected to lie between the two, by how much memory
    is to be relied on there. Without one, holes are filled from their edges.

    Args:
        memories: for each member of the batch, its keyframes (possibly none).
        world_from_camera: `[b, 4, 4, 4]`, the views' cameras, metres.
        image_from_camera: `[3, 3]`, K in pixels of the frames.
        codec: between latents and stills.
        latent_shape: (c, h, w).
        max_sources: keyframes that are warped; max_patches: patches that become tokens.
        patch: latent cells that a patch is wide and high.
        pictures: of every view, `[4, c, H, W]` in [-1, 1] on the grid of the stills, or None.
        supposed: whether the place that a picture was drawn from is only supposed. Then it fills holes, and has no say
            in what memory covers.
    """
    c, h, w = latent_shape
    b, f = world_from_camera.shape[:2]
    size = (h * codec.stride, w * codec.stride)
    cells = (size[0] // codec.image_stride, size[1] // codec.image_stride)
    grid = (h // patch, w // patch)
    patch_k = rescale_intrinsics(image_from_camera, size, grid)
    image_k = rescale_intrinsics(image_from_camera, size, cells)

    def choose(cameras: Tensor, keyframes: Sequence[Sequence[Keyframe]], afar: Sequence[bool]) -> Selection:
        return select(keyframes, cameras[:, [0, -1]], patch_k, grid, max_sources, max_patches, afar)

    def warp(cameras: Tensor, sources: Sequence[Sequence[Keyframe]]) -> Warped:
        return _warp(sources, cameras, image_k, codec, cells)

    pictures, supposed = pictures or [None] * b, supposed or [False] * b
    # A picture shows what was seen from afar, and better.
    afar = [picture is None or only for picture, only in zip(pictures, supposed, strict=True)]
    selection = for_all(choose, world_from_camera, memories, afar)
    sources = selection.sources.tolist()
    chosen = [
        [keyframes[index] for index in row if index >= 0] for keyframes, row in zip(memories, sources, strict=True)
    ]
    warped = for_all(warp, world_from_camera, chosen)
    memory_weight = (1.0 + warped.cost / EVEN_COST).reciprocal()
    by_heart = _behind(warped, pictures, supposed)
    warped_frames = torch.where(warped.covered[:, :, None], warped.warped_frames, by_heart)
    latent = conditioning_latent = codec.from_keyframe_images(warped_frames)
    if any(picture is not None for picture in pictures):
        conditioning_latent = codec.from_keyframe_images(torch.lerp(by_heart, warped_frames, memory_weight[:, :, None]))
    covered = warped.covered.to(warped_frames.dtype)
    per_cell = cells[0] // h
    quarters = F.pixel_unshuffle(F.interpolate(covered, size=(2 * h, 2 * w), mode="area"), 2)  # frame by frame
    generation = F.avg_pool2d(warped.generation * covered, per_cell)  # [b, f, h, w]
    age = generation.mean(1, keepdim=True)
    generation = F.avg_pool2d(generation[:, -1], patch) if patch > 1 else generation[:, -1]
    return Retrieved(
        warped=latent,
        warped_share=quarters.unflatten(1, (f, -1))[:, codec.instants].mean((1, 2)),
        covered=torch.cat([quarters, age.clamp_max(4.0) / 4.0], dim=1),
        **_gather_patches(memories, selection, c, patch, world_from_camera),
        coverage=covered.mean((1, 2, 3)),
        generation=generation,
        depth_m=warped.depth_m[:, -1],
        pixels_covered=warped.covered,
        warped_frames=warped_frames,
        warp_uncertainty=torch.where(warped.covered, warped.moved_px.clamp_max(1.0), 1.0),
        memory_weight=memory_weight,
        pictures=by_heart,
        conditioning_latent=conditioning_latent,
    )


def _behind(warped: Warped, pictures: Sequence[Tensor | None], supposed: Sequence[bool]) -> Tensor:
    """What lies behind memory, `[b, 4, c, H, W]`: the views' pictures; without one, the stills with filled holes, and
    of one that is only supposed, the stills with its picture in their holes."""
    unknown = [i for i, picture in enumerate(pictures) if picture is None]
    if len(unknown) == len(pictures):
        return fill_holes(warped.warped_frames, warped.covered)
    behind = warped.warped_frames.clone()
    if unknown:
        behind[unknown] = fill_holes(warped.warped_frames[unknown], warped.covered[unknown])
    for i, picture in enumerate(pictures):
        if picture is not None:
            behind[i] = torch.where(warped.covered[i][:, None], behind[i], picture) if supposed[i] else picture
    return behind


def _warp(
    chosen: Sequence[Sequence[Keyframe]],
    world_from_camera: Tensor,
    image_k: Tensor,
    codec: KeyframeCodec,
    cells: tuple[int, int],
) -> Warped:
    """Members with fewer sources than others are padded with keyframes that are not alive."""
    b, f = world_from_camera.shape[:2]
    s = max(len(sources) for sources in chosen)
    if s == 0:
        channels = codec.keyframe_image(world_from_camera.new_zeros(1, codec.channels, 1, 1)).shape[1]
        nothing = world_from_camera.new_zeros(b, f, *cells)
        warped_frames = nothing[:, :, None].expand(-1, -1, channels, -1, -1)
        return Warped(warped_frames, nothing.bool(), nothing, nothing + torch.inf, nothing, nothing + torch.inf)
    together = padded(chosen)
    images = codec.keyframe_image(torch.stack([keyframe.latent for keyframe in together]))
    magnify = images.shape[-1] // together[0].alive.shape[-1]

    def enlarge(cellwise: Tensor) -> Tensor:
        return cellwise.repeat_interleave(magnify, -1).repeat_interleave(magnify, -2).unflatten(0, (b, s))

    return warp_frames(
        images.unflatten(0, (b, s)),
        torch.stack([keyframe.depth_m for keyframe in together]).unflatten(0, (b, s)),
        enlarge(torch.stack([keyframe.generation for keyframe in together])),
        enlarge(torch.stack([keyframe.alive for keyframe in together])),
        torch.stack([keyframe.world_from_keyframe for keyframe in together]).unflatten(0, (b, s)),
        world_from_camera,
        image_k.expand(b, 3, 3),
    )


def _gather_patches(
    memories: Sequence[Sequence[Keyframe]],
    selection: Selection,
    channels: int,
    patch: int,
    world_from_camera: Tensor,
) -> dict[str, Tensor]:
    """The chosen patches as padded rows; padding takes the target's cameras, so that its numbers stay tame."""
    exists = selection.patch_exists
    which, cell = selection.patches.unbind(-1)
    rows = which.where(exists, -1).tolist()
    # Forks share keyframes; each is gathered once.
    used = {id(memories[i][index]): memories[i][index] for i, row in enumerate(rows) for index in row if index >= 0}
    cameras = world_from_camera[:, None].expand(-1, exists.shape[1], -1, -1, -1)
    if not used:
        patches = world_from_camera.new_zeros(*exists.shape, channels * patch * patch)
        return {"patches": patches, "patch_uv": selection.patch_uv, "patch_cameras": cameras, "patch_exists": exists}
    order = {key: position for position, key in enumerate(used)}
    position = torch.tensor(
        [[order[id(memories[i][index])] if index >= 0 else 0 for index in row] for i, row in enumerate(rows)],
        device=exists.device,
    )
    latents = torch.stack([keyframe.latent for keyframe in used.values()])
    latents = (F.pixel_unshuffle(latents, patch) if patch > 1 else latents).flatten(2)  # [k, c * p * p, v * u]
    theirs = torch.stack([keyframe.world_from_camera for keyframe in used.values()])[position]
    return {
        "patches": torch.where(exists[..., None], latents[position, :, cell], 0.0),
        "patch_uv": selection.patch_uv * patch,
        "patch_cameras": torch.where(exists[..., None, None, None], theirs, cameras),
        "patch_exists": exists,
    }
