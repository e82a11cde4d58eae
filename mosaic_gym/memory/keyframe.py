"""Keyframes: what memory is made of. A patch is what one token of the network spans: a cell of one keyframe, or a
square of cells where the network's tokens are larger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from mosaic_gym.geometry.camera import rescale_intrinsics, transform, unproject

FROM_ATLAS = -1.0
"""The trust of a place that a still was dreamt from, not recognised at."""
SUPPOSED = 2.0**-30
"""The trust of the place that a still was likest to and yet not recognised at: far less than recognising ever gives."""


@dataclass(frozen=True)
class Keyframe:
    """One remembered latent frame, never changed after it is made; forks share it.

    Attributes:
        latent: `[c, h, w]`.
        depth_m: `[H, W]` on the grid of the codec's stills, perpendicular depth of the last video frame.
        world_from_camera: float32 `[4, 4, 4]`, the four cameras; the last one is the still's.
        generation: `[v, u]` on the grid of patches: 0 where truly seen, else one more than what it was made from.
        alive: bool `[v, u]`: patches an edit took away are not.
        step: the environment step that made it.
        points_m: `[v, u, 3]` patch centres in the world, metres: derived, see also `geometry`.
        place: `[4]`, (x, z, heading, trust): where on the map that the model knows the still was recognised to be
            taken, and how much that is to be trusted, see `whereabouts.py`; a trust of `SUPPOSED` if it is only where
            the map is likest, of `FROM_ATLAS` for a still that was dreamt there; zeros if the place is not known.
    """

    latent: Tensor
    depth_m: Tensor
    world_from_camera: Tensor
    generation: Tensor
    alive: Tensor
    step: int
    points_m: Tensor
    place: Tensor

    @cached_property
    def place_values(self) -> tuple[float, ...]:
        """`place` as plain numbers: fetched once, for an accelerator is waited for each time."""
        return tuple(self.place.tolist())

    @property
    def trust(self) -> float:
        """How much its place on the map is to be trusted; above 0 if it was recognised, or supposed."""
        return self.place_values[3]

    @property
    def is_from_atlas(self) -> bool:
        """Whether it was dreamt where the place on the map was known: then the map is asked again, rather than it."""
        return self.trust == FROM_ATLAS

    @cached_property
    def geometry(self) -> Tensor:
        """`[5 * v * u + 16]`, what choosing needs of it in one row: x, y, z, generation and life of every patch, and
        the still's pose."""
        cells = self.points_m.movedim(-1, 0).flatten(), self.generation.flatten(), self.alive.flatten()
        return torch.cat([*cells, self.world_from_keyframe.flatten()])

    @property
    def world_from_keyframe(self) -> Tensor:
        """`[4, 4]`, the camera of the last video frame."""
        return self.world_from_camera[-1]

    def to(self, device: torch.device) -> Keyframe:
        """The same keyframe on a device; itself, if it is there already."""
        if self.latent.device == device:
            return self
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSOR_FIELDS})

    def moved(self, edit: Tensor) -> Keyframe:
        """The same patches elsewhere: composes the edit transform E `[4, 4]` (world from world) into the warp.

        Poses and points move together, so culling, occlusion, coordinates and values all follow. Moved patches are no
        longer where the map has them, so they say nothing of it.
        """
        edit = edit.to(self.points_m.device)
        return replace(
            self,
            world_from_camera=edit @ self.world_from_camera,
            points_m=transform(edit, self.points_m.flatten(0, 1)).view_as(self.points_m),
            place=torch.zeros_like(self.place),
        )

    def keeping(self, chosen: Tensor) -> Keyframe:
        """The same keyframe with only the chosen patches alive; `chosen` is bool `[v, u]`."""
        return replace(self, alive=self.alive & chosen.to(self.alive.device))


def median_per_cell(depth_m: Float[Tensor, "... H W"], grid: tuple[int, int]) -> Float[Tensor, "... h w"]:
    """`[h, w]` depth on a coarser grid: the (lower) median of each cell, so no edge is interpolated across."""
    height, width = grid
    rows, columns = depth_m.shape[-2] // height, depth_m.shape[-1] // width
    if (height * rows, width * columns) != tuple(depth_m.shape[-2:]):
        raise ValueError(f"a depth map of {tuple(depth_m.shape[-2:])} does not divide into {grid} cells")
    cells = depth_m.unflatten(-2, (height, rows)).unflatten(-1, (width, columns))
    return cells.transpose(-3, -2).flatten(-2).median(-1).values


def lift(
    latents: Float[Tensor, "n c h w"],
    depth_m: Float[Tensor, "n H W"],
    world_from_camera: Float[Tensor, "n 4 4 4"],
    image_from_camera: Float[Tensor, "3 3"],
    generation: Float[Tensor, "n v u"],
    steps: Sequence[int],
    places: Float[Tensor, "n 4"] | None = None,
) -> list[Keyframe]:
    """Lifts latent frames into patches in the world (MosaicMem, the lifting of Sec. 3).

    Args:
        latents: `[n, c, h, w]`.
        depth_m: `[n, H, W]` on the grid of the codec's stills, metres.
        world_from_camera: `[n, 4, 4, 4]`, metres.
        image_from_camera: `[3, 3]`, K in cells of the depth's grid.
        generation: `[n, v, u]`, on the grid of patches.
        steps: the environment step of each.
        places: `[n, 4]`, where in the map each still was taken or dreamt, see `Keyframe`; None if that is not known.

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
    together = latents, depth_m, world_from_camera, generation, alive, points_m, places
    trusts = places[:, 3].tolist()  # all at once, for an accelerator is waited for each time
    keyframes = []
    for i, step in enumerate(steps):
        # Each its own, as it will be saved: a view of the batch would keep the others alive.
        latent, depth, cameras, ages, living, points, place = (
            each[i].clone(memory_format=torch.contiguous_format) for each in together
        )
        keyframe = Keyframe(latent, depth, cameras, ages, living, step, points, place)
        keyframe.__dict__["trust"] = trusts[i]
        keyframes.append(keyframe)
    return keyframes


def padded(members: Sequence[Sequence[Keyframe]]) -> list[Keyframe]:
    """The keyframes of all members in one row, as many of each as the most has (at least one): members with fewer are
    filled up with one that is not alive."""
    most = max(map(len, members))
    if min(map(len, members)) == most:
        return [each for keyframes in members for each in keyframes]
    first = next(keyframes[0] for keyframes in members if keyframes)
    blank = replace(first, alive=torch.zeros_like(first.alive))
    return [each for keyframes in members for each in (*keyframes, *[blank] * (most - len(keyframes)))]


def gathered(keyframes: Sequence[Keyframe], cells: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What choosing needs of `k` keyframes of `cells` patches each, as `Keyframe.geometry` lays it out.

    In one piece, for a full memory has so many that gathering each of their tensors takes longer than everything else.

    Returns:
        Patch centres `[k, 3, cells]`, metres; generations and whether alive, `[k, cells]`; stills' poses `[k, 4, 4]`.
    """
    rows = torch.stack([keyframe.geometry for keyframe in keyframes])
    points, generation, alive, pose = rows.split((3 * cells, cells, cells, 16), dim=1)
    return points.unflatten(1, (3, cells)), generation, alive > 0, pose.unflatten(1, (4, 4))


TENSOR_FIELDS = tuple(field.name for field in fields(Keyframe) if field.name != "step")
"""What a saved keyframe holds, besides its step."""
