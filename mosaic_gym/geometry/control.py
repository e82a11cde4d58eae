"""Control: from an action to the four cameras of one environment step.

A body walks with momentum, as Doom's does: every video frame the velocity is damped by
`friction` and pushed by the action's thrust, in the direction the body faces after its turn.

World axes follow the OpenCV camera at rest: x right, y down, z forward; metres and radians.
Yaw is the heading about the y axis: 0 faces +z, positive turns right (towards +x).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import numpy as np

from mosaic_gym.deprecation import renamed_arguments
from mosaic_gym.validation import Number, validate

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


@dataclass(frozen=True)
class Pose:
    """Where a body is and how it moves.

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
    """Heading in radians of a level camera `[4, 4]`: the inverse of `yaw_matrix`."""
    return float(np.arctan2(world_from_camera[0, 2], world_from_camera[2, 2]))


def pose_at(x_m: float, y_m: float, z_m: float, yaw_rad: float) -> Pose:
    """A body at rest at a place (metres, y down) with a heading (radians)."""
    world_from_camera = np.eye(4)
    world_from_camera[:3, :3] = yaw_matrix(yaw_rad)
    world_from_camera[:3, 3] = (x_m, y_m, z_m)
    return Pose(world_from_camera)


NAMES_IN_FILES = {"forward_acceleration_m": "thrust_forward_m", "strafe_acceleration_m": "thrust_strafe_m"}
"""Fields of `Control` whose names in checkpoints differ from the attribute's."""


@renamed_arguments(**{written: name for name, written in NAMES_IN_FILES.items()})
@dataclass(frozen=True)
class Control:
    """The kinematics shared by every world. The defaults are Doom's walking body.

    Doom adds `forwardmove / 32` map units to the velocity each tic (25 forward, 24 sideways),
    moves by it, and then multiplies it by 0xE800 / 0x10000. A metre is 32 map units, and a
    video frame is one tic.

    Raises:
        ValueError: a value that is no finite number, 0 or more, or a friction of 1 or more: a body would never rest.
    """

    forward_acceleration_m: Annotated[float, Number(0.0)] = 25 / 32 / 32
    """Velocity added each video frame by a full forward action, metres per frame."""
    strafe_acceleration_m: Annotated[float, Number(0.0)] = 24 / 32 / 32
    """Velocity added each video frame by a full sideways action, metres per frame."""
    turn_rad: Annotated[float, Number(0.0)] = float(np.deg2rad(2.5))
    """Heading added each video frame by a full turn, radians."""
    friction: Annotated[float, Number(0.0, below=1.0)] = 0xE800 / 0x10000
    """What is left of the velocity from one video frame to the next."""
    radius_m: Annotated[float, Number(0.0)] = 0.5
    """How near the body's middle comes to what stands in its way, metres (16 map units)."""

    def __post_init__(self) -> None:
        validate(self)

    def reach_m(self, pose: Pose) -> float:
        """How far from here a step can bring the body's rim at most, metres: what is farther does not matter to it."""
        speed_m, way_m = float(np.linalg.norm(pose.velocity_m)), 0.0
        for _ in range(FRAMES_PER_STEP):
            speed_m += float(np.hypot(self.forward_acceleration_m, self.strafe_acceleration_m))
            way_m += speed_m
            speed_m *= self.friction
        return way_m + self.radius_m

    def advance(self, pose: Pose, action: np.ndarray, obstacles_m: np.ndarray | None = None) -> list[Pose]:
        """The four poses of one step, in order.

        Args:
            pose: the body before the step.
            action: `[3]` (forward, strafe right, turn right), each in [-1, 1].
            obstacles_m: `[n, 2]` places (x, z) that the body does not come nearer to than its radius, metres; it
                slides along them. None where nothing stands in the way.

        Returns:
            Four poses; the last is where the body stands after the step.
        """
        poses = []
        yaw_rad = yaw_of(pose.world_from_camera)
        velocity_m = pose.velocity_m
        world_from_camera = pose.world_from_camera
        for _ in range(FRAMES_PER_STEP):
            yaw_rad += self.turn_rad * float(action[2])
            rotation = yaw_matrix(yaw_rad)
            pushed_m = (
                self.strafe_acceleration_m * float(action[1]),
                0.0,
                self.forward_acceleration_m * float(action[0]),
            )
            moved_m = velocity_m + rotation @ np.array(pushed_m)
            if obstacles_m is not None:
                moved_m = slide(world_from_camera[:3, 3], moved_m, obstacles_m, self.radius_m)
            velocity_m = moved_m * self.friction
            world_from_camera = world_from_camera.copy()
            world_from_camera[:3, :3] = rotation
            world_from_camera[:3, 3] += moved_m
            poses.append(Pose(world_from_camera, velocity_m))
        return poses


def control_settings(control: Control) -> dict[str, float]:
    """The kinematics as a checkpoint's settings hold them."""
    return {NAMES_IN_FILES.get(row.name, row.name): getattr(control, row.name) for row in fields(control)}


def control_from_settings(settings: Mapping[str, Any]) -> Control:
    """The kinematics that `control_settings` wrote.

    Raises:
        TypeError, ValueError: an unknown field, or a value out of range.
    """
    names = {written: name for name, written in NAMES_IN_FILES.items()}
    return Control(**{names.get(name, name): value for name, value in settings.items()})


def slide(place_m: np.ndarray, moved_m: np.ndarray, obstacles_m: np.ndarray, radius_m: float) -> np.ndarray:
    """What is left of a movement `[3]` beside obstacles: it loses the part that leads into them.

    A body that already stands too near (its map has changed) may leave, and may not come nearer.

    Args:
        place_m: `[3]`, where the body is, metres.
        moved_m: `[3]`, where it would go from there, metres.
        obstacles_m: `[n, 2]`, (x, z), metres.
    """
    apart_m = place_m[[0, 2]] - obstacles_m
    moved_m = moved_m.copy()
    for _ in range(3):  # a corner has two sides; the third look finds out whether it holds
        after_m = apart_m + moved_m[[0, 2]]
        distance_m = np.hypot(*after_m.T)
        entered = (distance_m < radius_m) & (distance_m < np.hypot(*apart_m.T))
        if not entered.any():
            return moved_m
        nearest = int(np.where(entered, distance_m, np.inf).argmin())
        normal = apart_m[nearest] / max(float(np.hypot(*apart_m[nearest])), 1e-9)
        moved_m[[0, 2]] -= min(float(moved_m[[0, 2]] @ normal), 0.0) * normal
    return np.zeros(3)


def check_action(action: np.ndarray) -> np.ndarray:
    """Returns `action` as float64 `[3]`, or raises ValueError saying what is wrong with it."""
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (3,):
        raise ValueError(f"an action has shape (3,): forward, strafe, turn; got {action.shape}")
    if not np.isfinite(action).all() or np.abs(action).max() > 1 + 1e-6:
        raise ValueError(f"an action's numbers are finite and in [-1, 1]; got {action.tolist()}")
    return np.clip(action, -1.0, 1.0)


def is_rigid(matrix: np.ndarray) -> bool:
    """Whether a finite `[4, 4]` is a rotation and a translation over a last row 0 0 0 1."""
    rotation = matrix[:3, :3]
    turns = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4) and np.linalg.det(rotation) > 0
    return bool(turns and np.allclose(matrix[3], (0, 0, 0, 1)))


def check_pose(world_from_camera: np.ndarray) -> Pose:
    """A body at rest behind a level camera `[4, 4]`, metres; ValueError saying what is wrong with it otherwise."""
    expected = "a pose is a finite world_from_camera of shape [4, 4], metres"
    try:
        matrix = np.array(world_from_camera, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}; got {type(world_from_camera).__name__} that is no array of numbers") from error
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"{expected}; got shape {matrix.shape}: {matrix.tolist()}")
    if not is_rigid(matrix):
        raise ValueError(f"{expected}, a rotation and a place over a last row 0 0 0 1; got {matrix.tolist()}")
    if not np.allclose(matrix[:3, :3], yaw_matrix(yaw_of(matrix)), atol=1e-3):
        raise ValueError(f"{expected} and level, a turn about the y axis alone; got {matrix.tolist()}")
    return Pose(matrix)
