"""Selecting and changing parts of a memory (MosaicMem, arXiv 2603.17117, memory editing).

A `Selection` says which patches of which keyframes. Every function returns a new memory; the given one does not change.

    chair = select_on_screen(memory, (20, 24, 44, 40), view.world_from_camera[-1], K, (64, 64))
    memory = move(memory, chair, (1.0, 0.0, 0.0))     # one metre along the world's x axis
    memory = remove(memory, chair)                    # the next views generate what is behind it
    memory = splice_beside(memory, other, "right")    # two worlds side by side

The world's axes are x right, y down, z forward, in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mosaic_gym.geometry.camera import in_view, invert_pose, transform_and_project
from mosaic_gym.memory.keyframe import Keyframe
from mosaic_gym.memory.mosaic import MosaicMemory

OCCLUSION_CELL_PX = 4.0
"""Patches that land in one square of the screen hide each other; this is its side."""
OCCLUSION_TOLERANCE = 0.15
"""A patch is hidden by one that is nearer than this share of its depth ..."""
OCCLUSION_TOLERANCE_M = 0.3
"""... and than this."""
SIDES = {"left": (0, -1.0), "right": (0, 1.0), "above": (1, -1.0), "below": (1, 1.0), "ahead": (2, 1.0),
         "behind": (2, -1.0)}  # fmt: skip
"""Axis and direction of the sides on which another world can stand."""


@dataclass(frozen=True)
class Selection:
    """Patches of a memory.

    Attributes:
        masks: for each keyframe of the memory, bool `[v, u]`.
    """

    masks: tuple[Tensor, ...]

    def __len__(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks)

    def __or__(self, other: Selection) -> Selection:
        return self._combined(other, torch.logical_or)

    def __and__(self, other: Selection) -> Selection:
        return self._combined(other, torch.logical_and)

    def __sub__(self, other: Selection) -> Selection:
        return self._combined(other, lambda one, two: one & ~two)

    def _combined(self, other: Selection, operator: Callable[[Tensor, Tensor], Tensor]) -> Selection:
        if len(self.masks) != len(other.masks):
            raise ValueError(
                f"the selections are of memories with {len(self.masks)} and {len(other.masks)} keyframes; combine "
                "selections of the same memory"
            )
        return Selection(tuple(operator(one, two) for one, two in zip(self.masks, other.masks, strict=True)))


# Selecting


def select_all(memory: MosaicMemory) -> Selection:
    """Every patch."""
    return Selection(tuple(keyframe.alive.clone() for keyframe in memory.keyframes))


def select_steps(memory: MosaicMemory, first: int, last: int) -> Selection:
    """The patches of keyframes that were made in steps `first` to `last`, both included."""
    return _select(memory, lambda keyframe: torch.full_like(keyframe.alive, first <= keyframe.step <= last))


def select_labelled(memory: MosaicMemory, text: str) -> Selection:
    """The patches whose label contains a text, in upper or lower case. A patch's label is the prompt under which it was
    generated or observed.

    Raises:
        ValueError: an empty text.
    """
    if not text.strip():
        raise ValueError("the text that labels contain is empty; select_all selects every patch")
    text = text.lower()
    return _select(memory, lambda keyframe: torch.full_like(keyframe.alive, text in keyframe.label.lower()))


def select_in_box(
    memory: MosaicMemory, low_m: Sequence[float], high_m: Sequence[float], world_from_box: np.ndarray | None = None
) -> Selection:
    """The patches whose centres are in a box.

    Args:
        low_m, high_m: two opposite corners (x, y, z), metres.
        world_from_box: rigid `[4, 4]`, for a box that is turned; None for one along the world's axes.

    Raises:
        ValueError: a corner that is not three finite numbers, or `low_m` above `high_m`.
    """
    corners = np.array([low_m, high_m], dtype=float)
    if corners.shape != (2, 3) or not np.isfinite(corners).all() or (corners[0] > corners[1]).any():
        raise ValueError(
            f"a box has a low and a high corner (x, y, z) in metres, low not above high; got {low_m}, {high_m}"
        )
    box_from_world = np.eye(4) if world_from_box is None else np.linalg.inv(np.asarray(world_from_box, dtype=float))

    def inside(keyframe: Keyframe) -> Tensor:
        low, high, matrix = (keyframe.points_m.new_tensor(part) for part in (*corners, box_from_world))
        points_m = keyframe.points_m @ matrix[:3, :3].T + matrix[:3, 3]
        return ((points_m >= low) & (points_m <= high)).all(-1)

    return _select(memory, inside)


def select_on_screen(
    memory: MosaicMemory,
    box: tuple[float, float, float, float],
    world_from_camera: np.ndarray | Tensor,
    image_from_camera: np.ndarray | Tensor,
    size: tuple[int, int],
) -> Selection:
    """The patches that a view shows in a rectangle, without those that nearer patches hide.

    Args:
        box: (top, left, bottom, right), pixels.
        world_from_camera: `[4, 4]`, metres; image_from_camera: K `[3, 3]` of frames of `size` (height, width).

    Raises:
        ValueError: a rectangle without an area.
    """
    top, left, bottom, right = box
    if not (bottom > top and right > left):
        raise ValueError(f"a rectangle is (top, left, bottom, right) in pixels with an area; got {box}")
    if not memory.keyframes:
        return Selection(())
    points_m = torch.stack([keyframe.points_m for keyframe in memory.keyframes])  # [k, v, u, 3]
    alive = torch.stack([keyframe.alive for keyframe in memory.keyframes])
    camera, k = (torch.as_tensor(matrix).to(points_m) for matrix in (world_from_camera, image_from_camera))
    uv, z = transform_and_project(points_m.reshape(1, -1, 3).transpose(1, 2), invert_pose(camera)[None], k)
    uv, z = uv[0], z[0]
    seen = in_view(uv, z, size) & alive.flatten()
    columns = int(np.ceil(size[1] / OCCLUSION_CELL_PX))
    column, row = (uv.where(seen, 0.0) / OCCLUSION_CELL_PX).long()
    cell = row * columns + column
    nearest = z.new_full((int(cell.max()) + 1,), torch.inf).scatter_reduce(0, cell[seen], z[seen], "amin")
    visible = seen & (z <= nearest[cell] * (1 + OCCLUSION_TOLERANCE) + OCCLUSION_TOLERANCE_M)
    inside = (uv[0] >= left) & (uv[0] < right) & (uv[1] >= top) & (uv[1] < bottom)
    return Selection(tuple((visible & inside).view_as(alive)))


def centre_m(memory: MosaicMemory, selection: Selection) -> np.ndarray:
    """The mean `[3]` of the selected patches' centres, metres.

    Raises:
        ValueError: nothing is selected, or a selection of another memory.
    """
    _check(memory, selection)
    rows = zip(memory.keyframes, selection.masks, strict=True)
    return torch.cat([keyframe.points_m[mask] for keyframe, mask in rows]).double().mean(0).cpu().numpy()


# Changing. Each raises ValueError for an empty selection, and for one of another memory.


def move(memory: MosaicMemory, selection: Selection, by_m: Sequence[float]) -> MosaicMemory:
    """The patches moved by (x, y, z) metres along the world's axes."""
    return _edit(memory, selection, translation(by_m))


def duplicate(memory: MosaicMemory, selection: Selection, by_m: Sequence[float]) -> MosaicMemory:
    """A copy of the patches, (x, y, z) metres away."""
    return _edit(memory, selection, translation(by_m), keep_original=True)


def rotate(memory: MosaicMemory, selection: Selection, angle_rad: float) -> MosaicMemory:
    """The patches turned to the right, as seen by a body, around the vertical axis through their centre."""
    sine, cosine = np.sin(angle_rad), np.cos(angle_rad)
    turn = np.array([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])
    return _edit(memory, selection, _about(centre_m(memory, selection), turn))


def scale(memory: MosaicMemory, selection: Selection, factor: float) -> MosaicMemory:
    """The patches enlarged around their centre, or made smaller by a factor below 1.

    Raises:
        ValueError: a factor that is not above 0.
    """
    if not 0 < factor < np.inf:
        raise ValueError(f"the factor is a number above 0; got {factor}")
    return _edit(memory, selection, _about(centre_m(memory, selection), factor * np.eye(3)))


def transform(memory: MosaicMemory, selection: Selection, world_from_world: np.ndarray) -> MosaicMemory:
    """The patches moved by a transform `[4, 4]` of the world, metres: rotation, translation, enlargement."""
    return _edit(memory, selection, world_from_world)


def remove(memory: MosaicMemory, selection: Selection) -> MosaicMemory:
    """The memory without the patches. The next views generate what stands there instead."""
    return _edit(memory, selection, None)


def forget(memory: MosaicMemory, before_step: int) -> MosaicMemory:
    """The memory without the keyframes of steps before `before_step`."""
    return replace(memory, keyframes=tuple(k for k in memory.keyframes if k.step >= before_step))


def extract(memory: MosaicMemory, selection: Selection) -> MosaicMemory:
    """A memory of the selected patches alone, to splice into another scene."""
    _check(memory, selection)
    rows = zip(memory.keyframes, selection.masks, strict=True)
    return replace(memory, keyframes=tuple(keyframe.masked(mask) for keyframe, mask in rows if bool(mask.any())))


def splice_beside(memory: MosaicMemory, other: MosaicMemory, side: str, gap_m: float = 0.0) -> MosaicMemory:
    """Two worlds joined: the other stands at a side of this one, so that their bounding boxes touch.

    Args:
        side: `left` or `right` (x), `above` or `below` (y), `ahead` or `behind` (z).
        gap_m: between the boxes; negative to let them overlap.

    Raises:
        ValueError: another side, a memory without patches, or one of another checkpoint.
    """
    if side not in SIDES:
        raise ValueError(f"the side is one of {', '.join(SIDES)}; got {side!r}")
    axis, direction = SIDES[side]
    (low, high), (other_low, other_high) = bounds_m(memory), bounds_m(other)
    by_m = np.zeros(3)
    by_m[axis] = high[axis] + gap_m - other_low[axis] if direction > 0 else low[axis] - gap_m - other_high[axis]
    return memory.splice(other, translation(by_m))


def bounds_m(memory: MosaicMemory) -> tuple[np.ndarray, np.ndarray]:
    """The low and the high corner `[3]` of the box around all patches, metres; ValueError without patches."""
    points_m = [keyframe.points_m[keyframe.alive] for keyframe in memory.keyframes]
    if not sum(map(len, points_m)):
        raise ValueError("the memory has no patches, so it has no bounds; step the world first")
    points = torch.cat(points_m).double().cpu().numpy()
    return points.min(0), points.max(0)


def translation(by_m: Sequence[float]) -> np.ndarray:
    """`[4, 4]` of a movement by (x, y, z), metres; ValueError unless they are three finite numbers."""
    by = np.asarray(by_m, dtype=float)
    if by.shape != (3,) or not np.isfinite(by).all():
        raise ValueError(f"a movement is three finite numbers (x, y, z) in metres; got {by_m}")
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return matrix


class EditHistory:
    """Edits that can be undone and redone, also after further steps.

    Keyframes that were made since an edit stay, whether it is undone or done again.
    """

    def __init__(self) -> None:
        self._undo: list[tuple[MosaicMemory, MosaicMemory]] = []
        self._redo: list[tuple[MosaicMemory, MosaicMemory]] = []

    def copy(self) -> EditHistory:
        """A history that goes on by itself; the memories in it are shared."""
        other = EditHistory()
        other._undo, other._redo = list(self._undo), list(self._redo)
        return other

    def record(self, before: MosaicMemory, after: MosaicMemory) -> None:
        """Adds an edit; forgets what was undone."""
        self._undo.append((before, after))
        self._redo.clear()

    def undo(self, memory: MosaicMemory) -> MosaicMemory:
        """The present memory without the latest edit; ValueError if there is none."""
        if not self._undo:
            raise ValueError("there is no edit to undo")
        self._redo.append(self._undo.pop())
        before, after = self._redo[-1]
        return _with_later(before, after, memory)

    def redo(self, memory: MosaicMemory) -> MosaicMemory:
        """The present memory with the edit that was undone last; ValueError if there is none."""
        if not self._redo:
            raise ValueError("there is no edit to redo")
        self._undo.append(self._redo.pop())
        before, after = self._undo[-1]
        return _with_later(after, before, memory)


def _with_later(memory: MosaicMemory, other: MosaicMemory, present: MosaicMemory) -> MosaicMemory:
    """The memory at one side of an edit, with the present keyframes that neither side has."""
    # Masking, moving and labelling a keyframe leave its latent the same object.
    known = {id(keyframe.latent) for keyframe in (*memory.keyframes, *other.keyframes)}
    later = tuple(keyframe for keyframe in present.keyframes if id(keyframe.latent) not in known)
    return replace(memory, keyframes=(*memory.keyframes, *later))


def _select(memory: MosaicMemory, choose: Callable[[Keyframe], Tensor]) -> Selection:
    return Selection(tuple(keyframe.alive & choose(keyframe) for keyframe in memory.keyframes))


def _check(memory: MosaicMemory, selection: Selection) -> None:
    if len(selection.masks) != len(memory):
        raise ValueError(
            f"the selection is of a memory with {len(selection.masks)} keyframes, this one has {len(memory)}; select "
            "again after a step or an edit"
        )
    if not len(selection):
        raise ValueError("nothing is selected: the rectangle, box or range of steps holds no patch")


def _edit(
    memory: MosaicMemory, selection: Selection, matrix: np.ndarray | None, keep_original: bool = False
) -> MosaicMemory:
    _check(memory, selection)
    masks = {index: mask for index, mask in enumerate(selection.masks) if bool(mask.any())}
    return memory.edit(masks, matrix, keep_original)


def _about(centre: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """`[4, 4]` of a linear map `[3, 3]` that leaves a point where it is."""
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre - linear @ centre
    return matrix
