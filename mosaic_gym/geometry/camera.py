"""Pinhole cameras as tensors.

Conventions, here and everywhere: OpenCV axes (x right, y down, z forward), metres, and pixel
centres at half-integers: the centre of the top-left pixel is (0.5, 0.5). Under that rule an
image plane of another size has K multiplied by the ratio of the sizes, with no offset.

Legend of shape comments in the whole package: `b` batch, `t` latent frames, `f` video frames,
`s` source keyframes, `n` patches or tokens, `c h w` latent channels and grid, `H W` pixels,
`d` width of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mosaic_gym.geometry.control import rigidity_fault
from mosaic_gym.validation import is_finite

NEAREST_M = 0.05
"""Points that are no farther in front of a camera than this, in metres, are out of view."""


def rescale_intrinsics(
    image_from_camera: Float[Tensor, "... 3 3"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "... 3 3"]:
    """K for the same view on another grid.

    Args:
        image_from_camera: `[..., 3, 3]`, K in cells of the old grid.
        old, new: (height, width) of both grids.
    """
    scale = new[1] / old[1], new[0] / old[0], 1.0
    return image_from_camera * _cached(_column)(scale, image_from_camera.dtype, image_from_camera.device)


def _cached(constant: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The cached function, or the plain one while `torch.compile` traces: there a cache is a risk without a gain."""
    return constant.__wrapped__ if torch.compiler.is_compiling() else constant


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # an inference tensor in the cache would block the gradients of later callers
def _column(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[n, 1]`, cached: sending it to an accelerator waits for the accelerator each time."""
    return torch.tensor(numbers, dtype=dtype, device=device)[:, None]


def check_intrinsics(image_from_camera: Any) -> tuple[tuple[float, ...], ...]:
    """K in pixels as plain rows, `[3, 3]`.

    Args:
        image_from_camera: rows of numbers, or an array.

    Raises:
        ValueError: another shape than [3, 3], entries that are not finite, a skew, or a focal length of 0 or less.
    """
    expected = "image_from_camera is K in pixels, finite rows [fx, 0, cx], [0, fy, cy], [0, 0, 1], fx and fy above 0"
    try:
        rows = tuple(tuple(row) for row in image_from_camera)
    except TypeError as error:
        raise ValueError(f"{expected}; got {image_from_camera!r}") from error
    if [len(row) for row in rows] != [3, 3, 3] or not all(is_finite(value) for row in rows for value in row):
        raise ValueError(f"{expected}; got {image_from_camera!r}")
    (fx, skew, _), (slant, fy, _), last = rows
    if skew or slant or last != (0, 0, 1) or min(fx, fy) <= 0:
        raise ValueError(f"{expected}; got {image_from_camera!r}")
    return tuple(tuple(value if isinstance(value, int) else float(value) for value in row) for row in rows)


def invert_pose(b_from_a: Float[Tensor, "... 4 4"]) -> Float[Tensor, "... 4 4"]:
    """a_from_b `[..., 4, 4]` of a rigid transform, exactly orthogonal where the input is."""
    rotation = b_from_a[..., :3, :3].transpose(-1, -2)
    top = torch.cat([rotation, -(rotation @ b_from_a[..., :3, 3:])], -1)
    return torch.cat([top, b_from_a[..., 3:, :]], -2)  # 0 0 0 1, as of every rigid transform


def check_rigid(b_from_a: Any) -> Float[Tensor, "4 4"]:
    """A transform, as float32 `[4, 4]`, metres; on the device of a tensor, else on the CPU.

    Args:
        b_from_a: `[4, 4]`, a tensor, an array or rows of numbers.

    Raises:
        ValueError: no numbers, another shape, numbers that are not finite, or no rotation and translation over a last
            row 0 0 0 1.
    """
    expected = "a rigid transform is a finite rotation and translation [4, 4] over a last row 0 0 0 1"
    if isinstance(b_from_a, Tensor):
        matrix = b_from_a.detach().to(torch.float32)
    else:
        try:
            array = np.asarray(b_from_a)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{expected}; got {type(b_from_a).__name__}: {error}") from error
        if array.dtype.kind not in "iuf":
            raise ValueError(f"{expected}; got {type(b_from_a).__name__}, which is no array of numbers")
        matrix = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if matrix.shape != (4, 4) or not matrix.isfinite().all():
        raise ValueError(f"{expected}; got shape {tuple(matrix.shape)}: {matrix.tolist()}")
    if (fault := rigidity_fault(matrix.double().cpu().numpy())) is not None:
        raise ValueError(f"{expected}; {fault}; got {matrix.tolist()}")
    return matrix


def check_similarity(b_from_a: Any) -> tuple[Float[Tensor, "4 4"], float]:
    """A rigid transform after an enlargement around the origin: the rigid part, as `check_rigid`, and the factor.

    Raises:
        ValueError: as `check_rigid`, for a matrix whose 3x3 part is no multiple of a rotation by a factor above 0.
    """
    try:
        array = (
            b_from_a.detach().cpu().double().numpy() if isinstance(b_from_a, Tensor) else np.asarray(b_from_a, float)
        )
        usable = array.shape == (4, 4) and np.isfinite(array).all()
        determinant = np.linalg.det(array[:3, :3]) if usable else 0.0
    except (TypeError, ValueError):
        return check_rigid(b_from_a), 1.0  # which names what is wrong
    factor = float(np.cbrt(determinant))
    if not (0.0 < factor < np.inf) or abs(factor - 1.0) < 1e-4:
        return check_rigid(b_from_a), 1.0
    rigid = array.copy()
    rigid[:3, :3] /= factor
    return check_rigid(rigid), factor


def cell_centres(height: int, width: int, like: Tensor) -> Float[Tensor, "h w 2"]:
    """`[height, width, 2]`: (u, v) of every cell's centre, the first at (0.5, 0.5). Cached: do not write into it."""
    return _cached(_cell_centres)(height, width, like.dtype, like.device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _cell_centres(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    v = torch.arange(height, dtype=dtype, device=device) + 0.5
    u = torch.arange(width, dtype=dtype, device=device) + 0.5
    grid_v, grid_u = torch.meshgrid(v, u, indexing="ij")
    return torch.stack([grid_u, grid_v], dim=-1)


def transform_and_project(
    points_m: Float[Tensor, "... 3 n"], b_from_a: Float[Tensor, "... 4 4"], image_from_camera: Float[Tensor, "... 3 3"]
) -> tuple[Float[Tensor, "... 2 n"], Float[Tensor, "... n"]]:
    """Projects points `[..., 3, n]` in camera a's axes into camera b: uv `[..., 2, n]` in cells and z in metres.

    Equals `project(transform(...))` with coordinates on the second-last axis and in few operations: it runs for every
    point in memory at every step.
    """
    image_from_a = image_from_camera @ b_from_a[..., :3, :]  # [..., 3, 4]
    homogeneous = image_from_a[..., :3] @ points_m + image_from_a[..., 3:]
    z_m = homogeneous[..., 2:, :]
    return homogeneous[..., :2, :] / z_m.clamp_min(1e-6), z_m.squeeze(-2)


def in_view(uv: Float[Tensor, "... 2 n"], z_m: Float[Tensor, "... n"], grid: tuple[int, int]) -> Bool[Tensor, "... n"]:
    """Which points are on the image of a camera, and in front of it by more than `NEAREST_M`.

    Args:
        uv: `[..., 2, n]`, in cells; z_m: `[..., n]`, metres.
        grid: (height, width) of the image, cells.
    """
    u, v = ((uv >= 0) & (uv < extent(*grid, uv))).unbind(-2)
    return u & v & (z_m > NEAREST_M)


def extent(height: int, width: int, like: Tensor) -> Float[Tensor, "2 1"]:
    """`[2, 1]`: (width, height) of an image, to compare uv `[..., 2, n]` with. Cached: do not write into it."""
    return _cached(_column)((width, height), like.dtype, like.device)


def unproject(
    depth_m: Float[Tensor, "... h w"], image_from_camera: Float[Tensor, "... 3 3"]
) -> Float[Tensor, "... h w 3"]:
    """Points `[..., h, w, 3]` in the camera's axes, metres, one for each cell centre.

    Args:
        depth_m: `[..., h, w]`, perpendicular depth (z), metres.
        image_from_camera: `[..., 3, 3]`, K in cells of that grid.
    """
    height, width = depth_m.shape[-2:]
    centres = cell_centres(height, width, depth_m)
    focal = torch.stack([image_from_camera[..., 0, 0], image_from_camera[..., 1, 1]], dim=-1)
    centre = image_from_camera[..., :2, 2]
    slopes = (centres - centre[..., None, None, :]) / focal[..., None, None, :]
    return torch.cat([slopes * depth_m[..., None], depth_m[..., None]], dim=-1)


def transform(b_from_a: Float[Tensor, "... 4 4"], points_m: Float[Tensor, "... n 3"]) -> Float[Tensor, "... n 3"]:
    """Points `[..., n, 3]` in the axes of b, given those of a and `b_from_a` `[..., 4, 4]`."""
    return points_m @ b_from_a[..., :3, :3].transpose(-1, -2) + b_from_a[..., None, :3, 3]


def project(
    points_m: Float[Tensor, "... n 3"], image_from_camera: Float[Tensor, "... 3 3"]
) -> tuple[Float[Tensor, "... n 2"], Float[Tensor, "... n"]]:
    """Projects points in the camera's axes onto its image.

    Args:
        points_m: `[..., n, 3]`, metres.
        image_from_camera: `[..., 3, 3]`, K in cells.

    Returns:
        uv `[..., n, 2]` in cells, real-valued and never rounded, and z `[..., n]` in metres. The coordinates of points
        at or behind the camera (z <= 0) are meaningless: test z first.
    """
    depth_m = points_m[..., 2]
    safe = depth_m.clamp_min(1e-6)[..., None]
    focal = torch.stack([image_from_camera[..., 0, 0], image_from_camera[..., 1, 1]], dim=-1)
    centre = image_from_camera[..., :2, 2]
    uv = points_m[..., :2] / safe * focal[..., None, :] + centre[..., None, :]
    return uv, depth_m


def place_of(world_from_camera: Float[Tensor, "... 4 4"]) -> Float[Tensor, "... 3"]:
    """Places of level cameras `[..., 4, 4]`: (x, z, heading) `[..., 3]`, metres and radians; heading as yaw."""
    heading = torch.atan2(world_from_camera[..., 0, 2], world_from_camera[..., 2, 2])
    return torch.stack([world_from_camera[..., 0, 3], world_from_camera[..., 2, 3], heading], -1)


def carried(
    places: Float[Tensor, "... 3"], here: Float[Tensor, "... 3"], there: Float[Tensor, "... 3"]
) -> Float[Tensor, "... 3"]:
    """Places `[..., 3]` moved by the level motion that takes `here` to `there`."""
    turn = there[..., 2] - here[..., 2]
    x, z = (places[..., :2] - here[..., :2]).unbind(-1)
    sine, cosine = turn.sin(), turn.cos()
    moved = torch.stack([cosine * x + sine * z, cosine * z - sine * x], -1) + there[..., :2]
    return torch.cat([moved, (places[..., 2] + turn)[..., None]], -1)
