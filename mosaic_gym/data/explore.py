"""Scripted walkers: one that goes where it is deep, and an explorer that goes and comes back.

The explorer gives memory something to be right about. It alternates four things: look around and back, wander through
the map, retrace the last walk backwards frame by frame, and turn round and walk home. Every discrete action and mixed
continuous ones occur.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mosaic_gym.geometry.control import ACTIONS, FRAMES_PER_STEP, Pose

if TYPE_CHECKING:
    from mosaic_gym.worlds.doom import DoomState, DoomWorld
    from mosaic_gym.worlds.protocol import View

STOPPING_STEPS = 6
"""Steps after which a walking body surely rests; a walk that ended at rest can be retraced exactly."""
NEAR_M = 1.2
"""A walker that is nearer than this to what stands before it turns, metres."""


def depth_at_eyes(depth_m: np.ndarray) -> np.ndarray:
    """How deep a view `[H, W]` is in every column `[W]` at the height of the eyes, metres."""
    height = depth_m.shape[0]
    return depth_m[height * 15 // 32 : height * 17 // 32].mean(0)


def before_m(columns: np.ndarray, share: int = 4) -> float:
    """What is nearest in the middle, one part in `share`, of `depth_at_eyes`, metres."""
    width = len(columns)
    return columns[(share - 1) * width // (2 * share) : (share + 1) * width // (2 * share)].min()


def steer_towards_depth(depth_m: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The next thrust of a walker that goes ahead where it is deep, and turns where it is not.

    Args:
        depth_m: `[H, W]`, what it sees, metres.
        rng: of its whims.

    Returns:
        `[3]`: forward, strafe right, turn right, each in [-1, 1].
    """
    columns = depth_at_eyes(depth_m)
    width = len(columns)
    if before_m(columns) < NEAR_M:
        deeper = "turn_left" if columns[: width // 2].mean() > columns[width // 2 :].mean() else "turn_right"
        return np.array(ACTIONS[deeper])
    whim = rng.normal(0.0, 0.25)
    side = float(np.argmax(columns)) / width * 2 - 1
    return np.array([1.0, 0.0, np.clip(side + whim, -1.0, 1.0)])


class Explorer:
    """Drives one episode of the engine and keeps what it saw.

    Args:
        world: the engine.
        state, view: of a fresh start.
        steps: views to collect, the first included.
        rng: of all choices.
    """

    def __init__(self, world: DoomWorld, state: DoomState, view: View, steps: int, rng: np.random.Generator):
        self.world, self.state, self.steps, self.rng = world, state, steps, rng
        self.views: list[View] = [view]
        self.actions: list[np.ndarray] = [np.zeros(3)]

    @property
    def done(self) -> bool:
        return len(self.views) >= self.steps or self.views[-1].terminated

    def explore(self) -> None:
        """Fills the episode."""
        while not self.done:
            choice = self.rng.random()
            if choice < 0.25:
                self.look_around()
            elif choice < 0.35:
                self.try_actions()
            else:
                first = len(self.views)
                self.wander(int(self.rng.integers(6, 24)))
                if self.rng.random() < 0.55:
                    self.retrace(first)
                elif self.rng.random() < 0.4:
                    self.turn(np.pi)

    def act(self, forward: float, strafe: float, turn: float) -> None:
        """One step of the engine, unless the episode is full."""
        if self.done:
            return
        action = np.array([forward, strafe, turn], dtype=np.float64)
        (self.state,), (view,) = self.world.step([self.state], action[None])
        self.views.append(view)
        self.actions.append(action)

    def turn(self, angle_rad: float) -> None:
        """Turns in place by about an angle, positive to the right."""
        per_step = FRAMES_PER_STEP * self.world.control.turn_rad
        for _ in range(round(abs(angle_rad) / per_step)):
            self.act(0.0, 0.0, float(np.sign(angle_rad)))

    def look_around(self) -> None:
        """Turns one way and, mostly, back."""
        angle_rad = self.rng.choice([-1.0, 1.0]) * self.rng.uniform(0.5, 2.8)
        self.turn(angle_rad)
        if self.rng.random() < 0.6:
            self.turn(-angle_rad)

    def try_actions(self) -> None:
        """A few single actions by name, held for a few steps each, or mixed ones."""
        for _ in range(int(self.rng.integers(1, 4))):
            named = list(ACTIONS.values())[int(self.rng.integers(len(ACTIONS)))]
            action = named if self.rng.random() < 0.6 else tuple(self.rng.uniform(-1, 1, 3))
            for _ in range(int(self.rng.integers(1, 4))):
                self.act(*action)

    def wander(self, steps: int, careful: bool = False) -> None:
        """Walks towards where the view is deep, with whims; before a wall, turns until the view is open again.

        Args:
            careful: keep well clear of walls, without whims or side steps: a walk that touched a wall was stopped
                faster than a body can start, so it cannot be retraced exactly.
        """
        whim, side, escaping = 0.0, float(self.rng.choice([-1.0, 1.0])), False
        for _ in range(steps):
            columns = depth_at_eyes(self.views[-1].depth_m)
            width = len(columns)
            ahead_m = before_m(columns, 2 if careful else 4)
            escaping = ahead_m < (3.0 if escaping else 2.0 if careful else NEAR_M)
            if escaping:
                self.act(0.0, 0.0, side)
                continue
            whim = 0.7 * whim + self.rng.normal(0.0, 0.25)
            deepest = float(np.argmax(columns + self.rng.normal(0.0, 0.5, width)) + 0.5) / width * 2 - 1
            if careful:
                self.act(0.6, 0.0, float(np.clip(deepest, -0.5, 0.5)))
                continue
            strafe = float(self.rng.choice([0.0, 0.0, 0.0, 0.0, -1.0, 1.0]))
            self.act(1.0, strafe, float(np.clip(1.5 * deepest + whim, -1.0, 1.0)))

    def retrace(self, first: int) -> None:
        """Comes to rest, then goes back over every pose since step `first`, in reverse."""
        for _ in range(STOPPING_STEPS):
            self.act(0.0, 0.0, 0.0)
        path = [Pose(camera) for view in self.views[first - 1 :] for camera in view.world_from_camera]
        path = path[-2::-1]  # the present pose is already reached
        for start in range(0, len(path) - FRAMES_PER_STEP + 1, FRAMES_PER_STEP):
            if self.done:
                return
            self.state, view = self.world.follow(self.state, path[start : start + FRAMES_PER_STEP])
            self.actions.append(self._effective_action(view))
            self.views.append(view)

    def _effective_action(self, view: View) -> np.ndarray:
        """The action that the control would need, on average, for what the body just did: nearest in [-1, 1]."""
        control = self.world.control
        before, after = self.views[-1].world_from_camera[-1], view.world_from_camera[-1]
        rotation = before[:3, :3].T @ after[:3, :3]
        turn = np.arctan2(rotation[0, 2], rotation[2, 2]) / (FRAMES_PER_STEP * control.turn_rad)
        pace_m = (before[:3, :3].T @ (after[:3, 3] - before[:3, 3])) / FRAMES_PER_STEP
        top_forward = control.forward_acceleration_m / (1 - control.friction)
        top_strafe = control.strafe_acceleration_m / (1 - control.friction)
        return np.clip(np.array([pace_m[2] / top_forward, pace_m[0] / top_strafe, turn]), -1.0, 1.0)
