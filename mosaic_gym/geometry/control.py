"""Control: from an action to the four cameras of one environment step.

A body walks with momentum, as Doom's does: every video frame the velocity is damped by
`friction` and pushed by the action's thrust, in the direction the body faces after its turn.

World axes follow the OpenCV camera at rest: x right, y down, z forward; metres and radians.
Yaw is the heading about the y axis: 0 faces +z, positive turns right (towards +x).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

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


@dataclass(frozen=True)
class Control:
    """The kinematics shared by every world. The defaults are Doom's walking body.

    Doom adds `forwardmove / 32` map units to the velocity each tic (25 forward, 24 sideways),
    moves by it, and then multiplies it by 0xE800 / 0x10000. A metre is 32 map units, and a
    video frame is one tic.
    """

    thrust_forward_m: float = 25 / 32 / 32
    """Velocity added each video frame by a full forward action, metres per frame."""
    thrust_strafe_m: float = 24 / 32 / 32
    """Velocity added each video frame by a full sideways action, metres per frame."""
    turn_rad: float = float(np.deg2rad(2.5))
    """Heading added each video frame by a full turn, radians."""
    friction: float = 0xE800 / 0x10000
    """What is left of the velocity from one video frame to the next."""

    def advance(self, pose: Pose, action: np.ndarray) -> list[Pose]:
        """The four poses of one step, in order; nothing stands in the way.

        Args:
            pose: the body before the step.
            action: `[3]` (forward, strafe right, turn right), each in [-1, 1].

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
            thrust = (self.thrust_strafe_m * float(action[1]), 0.0, self.thrust_forward_m * float(action[0]))
            moved_m = velocity_m + rotation @ np.array(thrust)
            velocity_m = moved_m * self.friction
            world_from_camera = world_from_camera.copy()
            world_from_camera[:3, :3] = rotation
            world_from_camera[:3, 3] += moved_m
            poses.append(Pose(world_from_camera, velocity_m))
        return poses


def check_action(action: np.ndarray) -> np.ndarray:
    """Returns `action` as float64 `[3]`, or raises ValueError saying what is wrong with it."""
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (3,):
        raise ValueError(f"an action has shape (3,): forward, strafe, turn; got {action.shape}")
    if not np.isfinite(action).all() or np.abs(action).max() > 1 + 1e-6:
        raise ValueError(f"an action's numbers are finite and in [-1, 1]; got {action.tolist()}")
    return np.clip(action, -1.0, 1.0)
