"""Keyframes, which memory holds, and the lifting of latent frames into them.

A patch is what one token of the network spans: one latent cell of a keyframe, or a square of cells where the network's
tokens are larger.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from mosaic_gym.geometry.camera import rescale_intrinsics, transform, unproject

FROM_ATLAS = -1.0
"""The trust of a place whose keyframe image the atlas generated, so that the place was known before."""
ASSUMED = 2.0**-30
"""The trust of a place that is only the atlas's best guess: far below that of any place that it matched."""


@dataclass(frozen=True)
class Keyframe:
    """One latent frame with its geometry. It is never changed after it is made, and forks share it.

    Attributes:
        latent: `[c, h, w]`.
        depth_m: `[H, W]` on the grid of the codec's keyframe images, perpendicular depth of the last video frame.
        world_from_camera: float32 `[4, 4, 4]`, the cameras of the four video frames; the last is the keyframe image's.
        generation: `[v, u]` on the grid of patches: 0 for an observed patch, else one more than that of the patches it
            was generated from.
        alive: bool `[v, u]`: false for patches that an edit removed.
        step: the environment step that made it.
        points_m: `[v, u, 3]` patch centres in the world, metres. Derived from the rest; see also `geometry`.
        place: `[4]`, (x, z, heading, trust): where on the atlas's map the keyframe image was taken, and how reliable
            that is. The trust is `ASSUMED` for a best guess, `FROM_ATLAS` for an image that the atlas generated there;
            all are 0 if the place is unknown.
        image: `[3, H, W]`, colors in [-1, 1] of the last video frame, for memories that hold pictures beside latents
            (`pictures.py`); None for those that decode latents.
        written: bool `[H, W]`, the pixels of `image` that are new in this keyframe; None together with `image`.
        edited: whether an edit put it where it is. Such a keyframe hides all that is behind it, see `warp.overlay`.
        label: the prompt under which it was generated or observed.
    """

    latent: Tensor
    depth_m: Tensor
    world_from_camera: Tensor
    generation: Tensor
    alive: Tensor
    step: int
    points_m: Tensor
    place: Tensor
    image: Tensor | None = None
    written: Tensor | None = None
    edited: bool = False
    label: str = ""

    @cached_property
    def place_values(self) -> tuple[float, ...]:
        """`place` as plain numbers; cached, since fetching them waits for an accelerator."""
        return tuple(self.place.tolist())

    @property
    def trust(self) -> float:
        """How reliable its place on the map is; above 0 if it was matched or assumed."""
        return self.place_values[3]

    @property
    def is_from_atlas(self) -> bool:
        """Whether the atlas generated it; the atlas can then generate that view again."""
        return self.trust == FROM_ATLAS

    @cached_property
    def geometry(self) -> Tensor:
        """`[5 * v * u + 16]`, what selection reads, in one row: x, y, z, generation and alive of every patch, and the
        keyframe image's camera."""
        cells = self.points_m.movedim(-1, 0).flatten(), self.generation.flatten(), self.alive.flatten()
        return torch.cat([*cells, self.world_from_keyframe.flatten()])

    @property
    def world_from_keyframe(self) -> Tensor:
        """`[4, 4]`, the camera of the last video frame."""
        return self.world_from_camera[-1]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of `latent`, `depth_m` and `alive`, which are equal for all keyframes of one memory."""
        return tuple(self.latent.shape), tuple(self.depth_m.shape), tuple(self.alive.shape)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the keyframe by name; those that it does not have are left out."""
        values = {name: getattr(self, name) for name in TENSOR_FIELDS}
        return {name: value for name, value in values.items() if value is not None}

    def labelled(self, label: str) -> Keyframe:
        """The same keyframe with another label."""
        keyframe = copy.copy(self)  # with what is cached
        object.__setattr__(keyframe, "label", label)
        return keyframe

    def to(self, device: torch.device) -> Keyframe:
        """The same keyframe on a device; itself, if it is there already."""
        if self.latent.device == device:
            return self
        return replace(self, **{name: value.to(device) for name, value in self.tensors.items()})

    def transformed(self, edit: Tensor, factor: float = 1.0) -> Keyframe:
        """The same patches elsewhere: composes the edit transform E `[4, 4]` (world from world) into the warp.

        A factor enlarges the world around its origin first: depth and the cameras' positions are multiplied by it.
        Cameras and points move together, so culling, occlusion, coordinates and values all follow (MosaicMem,
        arXiv 2603.17117, editing). The place on the map is dropped: moved patches are no longer where the map has them.
        """
        edit = edit.to(self.points_m.device)
        cameras, points_m, depth_m = self.world_from_camera, self.points_m, self.depth_m
        if factor != 1.0:
            cameras = cameras.clone()
            cameras[:, :3, 3] *= factor
            points_m, depth_m = points_m * factor, depth_m * factor
        return replace(
            self,
            world_from_camera=edit @ cameras,
            points_m=transform(edit, points_m.flatten(0, 1)).view_as(points_m),
            depth_m=depth_m,
            edited=True,
            place=torch.zeros_like(self.place),
        )

    def masked(self, mask: Tensor) -> Keyframe:
        """The same keyframe with only the patches of `mask`, bool `[v, u]`, alive."""
        return replace(self, alive=self.alive & mask.to(self.alive.device))


def median_per_cell(depth_m: Float[Tensor, "... H W"], grid: tuple[int, int]) -> Float[Tensor, "... h w"]:
    """`[h, w]` depth on a coarser grid: the (lower) median of each cell, so no edge is interpolated across."""
    height, width = grid
    rows, columns = depth_m.shape[-2] // height, depth_m.shape[-1] // width
    if (height * rows, width * columns) != tuple(depth_m.shape[-2:]):
        raise ValueError(f"a depth map of {tuple(depth_m.shape[-2:])} does not divide into {grid} cells")
    cells = depth_m.unflatten(-2, (height, rows)).unflatten(-1, (width, columns))
    return cells.transpose(-3, -2).flatten(-2).median(-1).values


@torch.no_grad()
def lift(
    latents: Float[Tensor, "n c h w"],
    depth_m: Float[Tensor, "n H W"],
    world_from_camera: Float[Tensor, "n 4 4 4"],
    image_from_camera: Float[Tensor, "3 3"],
    generation: Float[Tensor, "n v u"],
    steps: Sequence[int],
    places: Float[Tensor, "n 4"] | None = None,
) -> list[Keyframe]:
    """Lifts latent frames into patches in the world (MosaicMem, arXiv 2603.17117, Sec. 3, lifting).

    A patch's centre is unprojected with the median depth of its cell.

    Args:
        latents: `[n, c, h, w]`.
        depth_m: `[n, H, W]` on the grid of the codec's keyframe images, metres.
        world_from_camera: `[n, 4, 4, 4]`, metres.
        image_from_camera: `[3, 3]`, K in cells of the depth's grid.
        generation: `[n, v, u]`, on the grid of patches.
        steps: the environment step of each frame.
        places: `[n, 4]`, where on the atlas's map each keyframe image was taken, see `Keyframe`; None if unknown.

    Raises:
        ValueError: the depth has NaN or values that are not positive.
    """
    if not bool((depth_m > 0).all()):
        raise ValueError("lifting needs a positive depth, in metres, in every cell; clamp or repair the estimate first")
    grid = (generation.shape[-2], generation.shape[-1])
    centre_m = median_per_cell(depth_m, grid)
    intrinsics = rescale_intrinsics(image_from_camera, tuple(depth_m.shape[-2:]), grid)
    points = unproject(centre_m, intrinsics)
    points_m = transform(world_from_camera[:, -1], points.flatten(1, 2)).view_as(points)
    alive = torch.ones(generation.shape, dtype=torch.bool, device=latents.device)
    places = points_m.new_zeros(len(points_m), 4) if places is None else places
    batch = latents, depth_m, world_from_camera, generation, alive, points_m, places
    place_values = places.tolist()  # in one transfer: each waits for an accelerator
    keyframes = []
    for i, step in enumerate(steps):
        # Cloned, since they are saved one by one and a view of the batch would keep the others in memory.
        latent, depth, cameras, generations, mask, points, place = (
            tensor[i].clone(memory_format=torch.contiguous_format) for tensor in batch
        )
        keyframe = Keyframe(latent, depth, cameras, generations, mask, step, points, place)
        keyframe.__dict__["place_values"] = tuple(place_values[i])
        keyframes.append(keyframe)
    return keyframes


def pad_members(members: Sequence[Sequence[Keyframe]]) -> list[Keyframe]:
    """The keyframes of all members of a batch in one row, equally many (at least one) of each member.

    Members with fewer are padded with a keyframe without living patches.
    """
    most = max(map(len, members))
    if min(map(len, members)) == most:
        return [keyframe for keyframes in members for keyframe in keyframes]
    first = next(keyframes[0] for keyframes in members if keyframes)
    blank = replace(first, alive=torch.zeros_like(first.alive))
    return [keyframe for keyframes in members for keyframe in (*keyframes, *[blank] * (most - len(keyframes)))]


def stack_geometry(keyframes: Sequence[Keyframe], cells: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What selection reads of `k` keyframes with `cells` patches each, see `Keyframe.geometry`.

    The rows are stacked at once: in a full memory, stacking field by field takes longer than all the rest.

    Returns:
        Patch centres `[k, 3, cells]`, metres; generation and alive, `[k, cells]`; keyframe images' cameras `[k, 4, 4]`.
    """
    rows = torch.stack([keyframe.geometry for keyframe in keyframes])
    points, generation, alive, cameras = rows.split((3 * cells, cells, cells, 16), dim=1)
    return points.unflatten(1, (3, cells)), generation, alive > 0, cameras.unflatten(1, (4, 4))


TENSOR_FIELDS = tuple(field.name for field in fields(Keyframe) if field.name not in ("step", "edited", "label"))
"""The tensors of a keyframe."""
OPTIONAL_FIELDS = ("image", "written")
"""Those of them that only memories of pictures have."""
