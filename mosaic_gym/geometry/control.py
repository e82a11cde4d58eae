"""Control: from an action to the four cameras of one environment step.

A body walks with momentum, as Doom's player does: in every video frame the action's acceleration, along the heading
after the frame's turn, is added to the velocity, the body moves by it, and `friction` scales it down.

World axes follow the OpenCV camera at rest: x right, y down, z forward; metres and radians.
Yaw is the heading about the y axis: 0 faces +z, positive turns right (towards +x).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import numpy as np

from mosaic_gym.deprecation import renamed_arguments
from mosaic_gym.validation import Number, as_float64, validate

FRAMES_PER_STEP = 4
"""Video frames, and cameras, of one environment step (the codec's temporal stride)."""

ACTIONS: dict[str, tuple[float, float, float]] = {
    "noop": (0.0, 0.0, 0.0),
    "forward": (1.0, 0.0, 0.0),
    "backward": (-1.0, 0.0, 0.0),
    "left": (0.0, -1.0, 0.0),
    "right": (0.0, 1.0, 0.0),
    "turn_left": (0.0, 0.0, -1.0),
    "turn_right": (0.0, 0.0, 1.0),
    "forward_turn_left": (1.0, 0.0, -1.0),
    "forward_turn_right": (1.0, 0.0, 1.0),
}
"""The discrete actions, by name, as (forward, strafe right, turn right) in [-1, 1]."""

LEVEL_TOLERANCE = 1e-3
"""A camera whose rotation differs from a pure heading by no more than this, in any entry, counts as level."""

_EXPECTED_POSE = (
    "a pose is a finite world_from_camera of shape [4, 4], a rotation and a translation in metres over a last row "
    "0 0 0 1, with axes x right, y down, z forward"
)


@dataclass(frozen=True)
class Pose:
    """Where a body's camera is and how the body moves.

    Attributes:
        world_from_camera: `[4, 4]` float64, OpenCV axes, metres.
        velocity_m: `[3]` float64, metres per video frame, in the world's axes.
    """

    world_from_camera: np.ndarray
    velocity_m: np.ndarray = field(default_factory=lambda: np.zeros(3))


def yaw_matrix(yaw_rad: float) -> np.ndarray:
    """`[3, 3]` rotation of a level camera with heading `yaw_rad` (world from camera)."""
    cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.array([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])


def yaw_of(world_from_camera: np.ndarray) -> float:
    """Heading in radians of a camera `[4, 4]`: where its optical axis points over the ground.

    For a level camera this is the inverse of `yaw_matrix`. A camera that looks straight up or down has the heading of
    its x axis.
    """
    x, z = world_from_camera[0, 2], world_from_camera[2, 2]
    if abs(x) + abs(z) < 1e-6:
        x, z = -world_from_camera[2, 0], world_from_camera[0, 0]
    return float(np.arctan2(x, z))


def pose_at(x_m: float, y_m: float, z_m: float, yaw_rad: float) -> Pose:
    """A body at rest at a place (metres, y down) with a heading (radians)."""
    world_from_camera = np.eye(4)
    world_from_camera[:3, :3] = yaw_matrix(yaw_rad)
    world_from_camera[:3, 3] = (x_m, y_m, z_m)
    return Pose(world_from_camera)


NAMES_IN_FILES = {
    "forward_acceleration_m": "thrust_forward_m",  # name in files
    "strafe_acceleration_m": "thrust_strafe_m",  # name in files
}
"""Fields of `Control` whose names in checkpoints differ from the attribute's."""


@renamed_arguments(**{old: new for new, old in NAMES_IN_FILES.items()})  # old spelling
@dataclass(frozen=True)
class Control:
    """The kinematics shared by every world. The defaults are Doom's walking body.

    Doom adds `forwardmove / 32` map units to the velocity each tic (25 forward, 24 sideways),
    moves by it, and then multiplies it by 0xE800 / 0x10000. A metre is 32 map units, and a
    video frame is one tic.

    Raises:
        ValueError: a value that is not finite or negative, or a friction of 1 or more, with which a body never stops.
    """

    forward_acceleration_m: Annotated[float, Number(0.0)] = 25 / 32 / 32
    """Velocity added each video frame by a full forward action, metres per frame."""
    strafe_acceleration_m: Annotated[float, Number(0.0)] = 24 / 32 / 32
    """Velocity added each video frame by a full sideways action, metres per frame."""
    turn_rad: Annotated[float, Number(0.0)] = float(np.deg2rad(2.5))
    """Heading added each video frame by a full turn, radians."""
    friction: Annotated[float, Number(0.0, below=1.0)] = 0xE800 / 0x10000
    """The factor on the velocity from one video frame to the next."""
    radius_m: Annotated[float, Number(0.0)] = 0.5
    """The smallest distance between the body's axis and an obstacle, metres (16 map units)."""

    def __post_init__(self) -> None:
        validate(self)

    def reach_m(self, pose: Pose) -> float:
        """The farthest that the body's rim can be from here after one step, metres: only obstacles within it matter."""
        speed_m, distance_m = float(np.linalg.norm(pose.velocity_m)), 0.0
        for _ in range(FRAMES_PER_STEP):
            speed_m += float(np.hypot(self.forward_acceleration_m, self.strafe_acceleration_m))
            distance_m += speed_m
            speed_m *= self.friction
        return distance_m + self.radius_m

    def advance(self, pose: Pose, action: np.ndarray, obstacles_m: np.ndarray | None = None) -> list[Pose]:
        """The four poses of one step, in order.

        The camera turns about the world's y axis and moves horizontally, along its heading. A tilted camera keeps its
        pitch and roll.

        Args:
            pose: the body before the step.
            action: `[3]` (forward, strafe right, turn right), each in [-1, 1].
            obstacles_m: `[n, 2]` places (x, z) that the body does not come nearer to than its radius, metres; it
                slides along them. None where there are no obstacles.

        Returns:
            Four poses; the last is where the body stands after the step.
        """
        poses = []
        yaw_rad = yaw_of(pose.world_from_camera)
        tilt = None
        if not is_level(pose.world_from_camera):
            tilt = yaw_matrix(yaw_rad).T @ pose.world_from_camera[:3, :3]
        velocity_m = pose.velocity_m
        world_from_camera = pose.world_from_camera
        for _ in range(FRAMES_PER_STEP):
            yaw_rad += self.turn_rad * float(action[2])
            rotation = yaw_matrix(yaw_rad)
            acceleration_m = (
                self.strafe_acceleration_m * float(action[1]),
                0.0,
                self.forward_acceleration_m * float(action[0]),
            )
            movement_m = velocity_m + rotation @ np.array(acceleration_m)
            if obstacles_m is not None:
                movement_m = slide(world_from_camera[:3, 3], movement_m, obstacles_m, self.radius_m)
            velocity_m = movement_m * self.friction
            world_from_camera = world_from_camera.copy()
            world_from_camera[:3, :3] = rotation if tilt is None else rotation @ tilt
            world_from_camera[:3, 3] += movement_m
            poses.append(Pose(world_from_camera, velocity_m))
        return poses


def control_settings(control: Control) -> dict[str, float]:
    """The kinematics as a checkpoint's settings store them."""
    return {NAMES_IN_FILES.get(item.name, item.name): getattr(control, item.name) for item in fields(control)}


def control_from_settings(settings: Mapping[str, Any]) -> Control:
    """The kinematics that `control_settings` wrote.

    Raises:
        TypeError, ValueError: an unknown field, or a value out of range.
    """
    names = {name_in_file: name for name, name_in_file in NAMES_IN_FILES.items()}
    return Control(**{names.get(name, name): value for name, value in settings.items()})


def slide(position_m: np.ndarray, movement_m: np.ndarray, obstacles_m: np.ndarray, radius_m: float) -> np.ndarray:
    """A movement `[3]` beside obstacles, without the part of it that leads into them.

    A body that is already too near an obstacle (the map has changed) may move away, and may not come nearer.

    Args:
        position_m: `[3]`, where the body is, metres.
        movement_m: `[3]`, its unobstructed movement, metres.
        obstacles_m: `[n, 2]`, (x, z), metres.
    """
    offset_m = position_m[[0, 2]] - obstacles_m
    movement_m = movement_m.copy()
    for _ in range(3):  # a corner has two sides; the third pass checks that the result is free
        after_m = offset_m + movement_m[[0, 2]]
        distance_m = np.hypot(*after_m.T)
        entered = (distance_m < radius_m) & (distance_m < np.hypot(*offset_m.T))
        if not entered.any():
            return movement_m
        nearest = int(np.where(entered, distance_m, np.inf).argmin())
        normal = offset_m[nearest] / max(float(np.hypot(*offset_m[nearest])), 1e-9)
        movement_m[[0, 2]] -= min(float(movement_m[[0, 2]] @ normal), 0.0) * normal
    return np.zeros(3)


def check_action(action: np.ndarray) -> np.ndarray:
    """Returns `action` as float64 `[3]`; ValueError if it has another shape or numbers outside [-1, 1]."""
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (3,):
        raise ValueError(f"an action has shape (3,): forward, strafe, turn; got {action.shape}")
    if not np.isfinite(action).all() or np.abs(action).max() > 1 + 1e-6:
        raise ValueError(f"an action's numbers are finite and in [-1, 1]; got {action.tolist()}")
    return np.clip(action, -1.0, 1.0)


def check_pose(world_from_camera: Any) -> Pose:
    """A body at rest behind a camera.

    Args:
        world_from_camera: `[4, 4]`, OpenCV axes, world y down, metres; an array, a tensor or lists. Any pitch, and a
            roll below 90 degrees.

    Raises:
        ValueError: not a rigid, finite camera that is the right way up; the message names the likely mistake.
    """
    try:
        is_tensor = hasattr(world_from_camera, "detach")
        matrix = as_float64(world_from_camera) if is_tensor else np.asarray(world_from_camera)
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises the last for a list with gradients
        raise ValueError(f"{_EXPECTED_POSE}; got {type(world_from_camera).__name__}: {error}") from error
    if matrix.dtype.kind not in "iuf":
        raise ValueError(f"{_EXPECTED_POSE}; got {type(world_from_camera).__name__}, which is no array of numbers")
    matrix = np.array(matrix, dtype=np.float64)
    if (fault := _pose_fault(matrix)) is not None:
        raise ValueError(f"{_EXPECTED_POSE}; {fault}; got {matrix.tolist()}")
    return Pose(matrix)


def check_poses(poses: Sequence[Pose], name: str = "pose") -> None:
    """Raises ValueError unless every pose is a `Pose` that is finite, rigid and the right way up.

    Args:
        name: what the message calls a pose; the index of the first faulty one follows it.
    """
    if isinstance(poses, Pose):
        others = ["one Pose"]
    else:
        others = [f"a {type(pose).__name__} among them" for pose in poses if not isinstance(pose, Pose)]
    if others:
        raise ValueError(
            f"poses are a list of Pose objects, one for each frame; got {others[0]}: make one of a camera [4, 4] by "
            "Pose(world_from_camera), pose_from_opengl or another converter, and one of a place by "
            "pose_at(x_m, y_m, z_m, yaw_rad)"
        )
    shapes = {(np.shape(pose.world_from_camera), np.shape(pose.velocity_m)) for pose in poses}
    if shapes <= {((4, 4), (3,))} and _all_valid(poses):
        return
    for index, pose in enumerate(poses):
        try:
            check_pose(pose.world_from_camera)
            np.asarray(pose.world_from_camera)  # torch raises RuntimeError for a tensor with gradients
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{name} {index}: {error}") from error
        velocity_m = np.asarray(pose.velocity_m)
        if velocity_m.shape != (3,) or not np.isfinite(velocity_m).all():
            raise ValueError(f"{name} {index}: velocity_m has three finite numbers; got {velocity_m.tolist()}")


def is_level(world_from_camera: np.ndarray) -> bool:
    """Whether a rigid camera `[4, 4]` is turned about the world's y axis alone, within `LEVEL_TOLERANCE`."""
    difference = world_from_camera[:3, :3] - yaw_matrix(yaw_of(world_from_camera))
    return bool(np.abs(difference).max() <= LEVEL_TOLERANCE)


def check_level(pose: Pose, camera: str = "the camera") -> Pose:
    """Returns `pose`, for a camera that cannot pitch or roll.

    Args:
        camera: what the message calls it, such as "the simulator's camera".

    Raises:
        ValueError: the pose is pitched or rolled.
    """
    if is_level(pose.world_from_camera):
        return pose
    tilt = yaw_matrix(yaw_of(pose.world_from_camera)).T @ pose.world_from_camera[:3, :3]
    tilt_deg = np.rad2deg(np.arccos(np.clip((np.trace(tilt) - 1) / 2, -1.0, 1.0)))
    raise ValueError(
        f"{camera} is level: it turns about the world's y axis and cannot pitch or roll; got a pose tilted by "
        f"{tilt_deg:.1f} degrees: pass one without pitch and roll, world y down; got {pose.world_from_camera.tolist()}"
    )


def _all_valid(poses: Sequence[Pose]) -> bool:
    """Whether poses of the right shapes are all valid: all at once, since this runs at every observed step."""
    if not poses:
        return True
    try:
        matrices = np.stack([pose.world_from_camera for pose in poses]).astype(np.float64)
        velocities_m = np.stack([pose.velocity_m for pose in poses]).astype(np.float64)
    except (TypeError, ValueError, RuntimeError):
        return False
    if not (np.isfinite(matrices).all() and np.isfinite(velocities_m).all()):
        return False
    rotations = matrices[:, :3, :3]
    orthogonal = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max() < 1e-4
    return bool(
        orthogonal
        and (np.linalg.det(rotations) > 0).all()
        and (matrices[:, 3] == (0, 0, 0, 1)).all()
        and (rotations[:, 1, 1] >= 0).all()
    )


def _pose_fault(matrix: np.ndarray) -> str | None:
    """What is wrong with a float64 array as a world_from_camera, with the likely mistake; None if nothing is."""
    if matrix.shape == (3, 4):
        return "this one has shape (3, 4): append the last row 0 0 0 1"
    if matrix.shape != (4, 4):
        return f"this one has shape {matrix.shape}"
    if not np.isfinite(matrix).all():
        return "this one has NaN or infinite numbers, as trackers report when they have lost the camera: leave it out"
    if (fault := rigidity_fault(matrix)) is not None:
        return fault
    if matrix[1, 1] < -LEVEL_TOLERANCE:
        return (
            "this camera is upside down: its y axis points up in a world whose y axis points down. OpenGL, Blender and "
            "nerfstudio cameras have y up: convert them with pose_from_opengl. A camera_from_world matrix has to be "
            "inverted: pose_from_camera_from_world"
        )
    return None


def rigidity_fault(matrix: np.ndarray) -> str | None:
    """Why a finite `[4, 4]` is no rotation and translation over a last row 0 0 0 1; None if it is."""
    if not np.allclose(matrix[3], (0, 0, 0, 1)):
        if np.allclose(matrix[:3, 3], 0) and np.isclose(matrix[3, 3], 1):
            return "its translation is in the last row instead of the last column: pass its transpose"
        return f"its last row is {matrix[3].tolist()} instead of 0 0 0 1"
    rotation = matrix[:3, :3]
    gram, determinant = rotation @ rotation.T, np.linalg.det(rotation)
    if np.allclose(gram, np.eye(3), atol=1e-4):
        return None if determinant > 0 else "its rotation is mirrored (determinant -1): its axes are left-handed"
    if gram[0, 0] > 0 and np.allclose(gram / gram[0, 0], np.eye(3), atol=1e-4):
        return f"its rotation is scaled by {np.sqrt(gram[0, 0]):.4g}: divide the first three columns by that"
    return "its upper left [3, 3] is not a rotation; it may be multiplied by K: pass the camera's pose without K"
