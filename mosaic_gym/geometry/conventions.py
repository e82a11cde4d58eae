"""Cameras of other programs as the `world_from_camera` of this package.

Here a camera has OpenCV axes (x right, y down, z forward), the world's y axis points down, and lengths are metres.
Every function returns `[4, 4]` float64, and raises ValueError for anything but finite numbers of the shape that it
names; the message says what the likely mistake is.

- `pose_from_opengl`: OpenGL, Blender, nerfstudio, NeRF. Camera x right, y up, z backward; world y up or z up.
- `pose_from_colmap`: COLMAP. Camera x right, y down, z forward, stored as camera_from_world; world up unknown.
- `pose_from_ros`: ROS. Body x forward, y left, z up, or an "_optical" frame; world x forward, z up.
- `pose_from_camera_from_world`: OpenCV extrinsics (world-to-camera) of a world whose y axis points down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mosaic_gym.geometry.control import rigidity_fault

_Y_UP = np.diag([1.0, -1.0, -1.0, 1.0])
"""Between (x right, y up, z backward) and (x right, y down, z forward); its own inverse."""
_OPENCV_FROM_Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])
"""From Blender's world (x right, y forward, z up) to this package's."""
_OPENCV_FROM_ROS = np.array([[0, -1.0, 0, 0], [0, 0, -1.0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1.0]])
"""From ROS (x forward, y left, z up) to this package's axes, for a body and for the world."""


def pose_from_opengl(world_from_camera: Any, *, world_up: Literal["y", "z"]) -> np.ndarray:
    """A camera with OpenGL axes (x right, y up, z backward): OpenGL, Blender, nerfstudio and NeRF's transforms.json.

    Sources: docs.nerf.studio "Data conventions" (camera axes, world z up); Blender's and OpenGL's manuals.

    Args:
        world_from_camera: `[4, 4]`, also called camera-to-world or c2w; metres.
        world_up: the world's axis that points up: "y" for OpenGL scenes (x right, z backward), "z" for Blender and
            nerfstudio (x right, y forward).
    """
    if world_up not in ("y", "z"):
        raise ValueError(f'world_up is "y" (OpenGL) or "z" (Blender, nerfstudio); got {world_up!r}')
    matrix = _rigid("world_from_camera", world_from_camera)
    return (_Y_UP if world_up == "y" else _OPENCV_FROM_Z_UP) @ matrix @ _Y_UP


def pose_from_colmap(qvec: Sequence[float], tvec: Sequence[float], metres_per_unit: float = 1.0) -> np.ndarray:
    """An image of COLMAP's images.txt: the camera_from_world that it stores, inverted.

    A reconstruction has neither a known up nor a known scale. Rotate it first so that its y axis points down (COLMAP's
    `model_orientation_aligner` aligns the axes), and pass the length of its unit.

    Source: colmap.github.io, "Output Format", images.txt.

    Args:
        qvec: `[4]`, QW, QX, QY, QZ: the rotation's quaternion, scalar first.
        tvec: `[3]`, TX, TY, TZ, in the reconstruction's units.
        metres_per_unit: length of a unit of the reconstruction.
    """
    if not (np.isfinite(metres_per_unit) and metres_per_unit > 0):
        raise ValueError(f"metres_per_unit is a finite number above 0; got {metres_per_unit!r}")
    w, x, y, z = _vector("qvec", qvec, 4)
    camera_from_world = _rigid_transform("qvec", (x, y, z, w), _vector("tvec", tvec, 3) * metres_per_unit)
    return _inverse(camera_from_world)


def pose_from_ros(
    position_m: Sequence[float], quaternion_xyzw: Sequence[float], *, optical: bool = False
) -> np.ndarray:
    """A ROS pose (geometry_msgs/Pose) in a world with x forward, y left and z up, metres.

    Source: ROS REP 103, "Standard Units of Measure and Coordinate Conventions".

    Args:
        position_m: `[3]`, x, y, z in the world.
        quaternion_xyzw: `[4]`, the orientation, scalar last as ROS has it.
        optical: whether the pose is of a camera's "_optical" frame (z forward, x right, y down). False for a body frame
            (x forward, y left, z up).
    """
    matrix = _rigid_transform("quaternion_xyzw", quaternion_xyzw, _vector("position_m", position_m, 3))
    return _OPENCV_FROM_ROS @ (matrix if optical else matrix @ _OPENCV_FROM_ROS.T)


def pose_from_camera_from_world(camera_from_world: Any) -> np.ndarray:
    """The inverse of an extrinsic matrix (world-to-camera, w2c, view matrix) with OpenCV axes and world y down, metres.

    Args:
        camera_from_world: `[4, 4]`, or `[3, 4]` without its last row.
    """
    matrix = _numbers("camera_from_world", camera_from_world)
    if matrix.shape == (3, 4):
        matrix = np.concatenate([matrix, [[0, 0, 0, 1]]])
    return _inverse(_rigid("camera_from_world", matrix))


def _rigid(name: str, matrix: Any) -> np.ndarray:
    """A rigid transform as float64 `[4, 4]`."""
    array = _numbers(name, matrix)
    if array.shape != (4, 4):
        raise ValueError(f"{name} is a matrix of shape [4, 4]; got shape {array.shape}")
    if (fault := rigidity_fault(array)) is not None:
        raise ValueError(f"{name} is a rotation and a translation [4, 4]; {fault}; got {array.tolist()}")
    return array


def _vector(name: str, values: Any, size: int) -> np.ndarray:
    array = _numbers(name, values)
    if array.shape != (size,):
        raise ValueError(f"{name} has {size} numbers; got shape {array.shape}")
    return array


def _numbers(name: str, values: Any) -> np.ndarray:
    """Finite numbers as float64."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises the last for a tensor with gradients
        raise ValueError(f"{name} is an array of numbers; got {type(values).__name__}: {error}") from error
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} is an array of numbers; got {type(values).__name__} of {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite numbers; got {array.tolist()}")
    return array.astype(np.float64)


def _rigid_transform(name: str, quaternion_xyzw: Any, translation: np.ndarray) -> np.ndarray:
    """`[4, 4]` of a unit quaternion, scalar last, and a translation."""
    quaternion = _vector(name, quaternion_xyzw, 4)
    length = np.linalg.norm(quaternion)
    if abs(length - 1.0) > 1e-2:
        raise ValueError(f"{name} is a unit quaternion; got {quaternion.tolist()}, of length {length:.4g}")
    x, y, z, w = quaternion / length
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = translation
    return matrix


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a rigid `[4, 4]`."""
    inverse = np.eye(4)
    inverse[:3, :3] = matrix[:3, :3].T
    inverse[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return inverse
