"""The scripted explorer that recordings are made with: it drives the simulator and comes back to places.

Training memory needs episodes that return to places. The explorer alternates four things: it looks around and back,
wanders through the map, retraces the last walk backwards frame by frame, and turns round to walk back. Every discrete
action occurs, and mixed continuous ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mosaic_gym.geometry.control import ACTIONS, FRAMES_PER_STEP, Pose
from mosaic_gym.geometry.steering import NEAR_M, clearance_m, depth_at_eye_height
from mosaic_gym.worlds.doom import DoomState, DoomWorld
from mosaic_gym.worlds.protocol import View

STOPPING_STEPS = 6
"""Steps without input after which a walking body is at rest. Only a walk that ends at rest can be retraced exactly."""


class Drive:
    """One episode of the simulator: what an explorer steps, with the views and actions that it collects.

    Args:
        world: the simulator.
        state, view: of a new episode.
        steps: views to collect, including the first.
        rng: of all random choices.
    """

    def __init__(self, world: DoomWorld, state: DoomState, view: View, steps: int, rng: np.random.Generator):
        self.world, self.state, self.steps, self.rng = world, state, steps, rng
        self.views: list[View] = [view]
        self.actions: list[np.ndarray] = [np.zeros(3)]

    @property
    def done(self) -> bool:
        """Whether the episode is complete, or the simulator has ended it."""
        return len(self.views) >= self.steps or self.views[-1].terminated

    def act(self, forward: float, strafe: float, turn: float) -> None:
        """One step of the simulator; none if the episode is complete."""
        if self.done:
            return
        action = np.array([forward, strafe, turn], dtype=np.float64)
        (self.state,), (view,) = self.world.step([self.state], action[None])
        self.views.append(view)
        self.actions.append(action)

    def turn(self, angle_rad: float) -> None:
        """Turns in place by an angle, rounded to whole steps; positive is to the right."""
        per_step = FRAMES_PER_STEP * self.world.control.turn_rad
        for _ in range(round(abs(angle_rad) / per_step)):
            self.act(0.0, 0.0, float(np.sign(angle_rad)))

    def try_actions(self) -> None:
        """One to three actions, each repeated for one to three steps: a discrete one, or a random continuous one."""
        for _ in range(int(self.rng.integers(1, 4))):
            named = list(ACTIONS.values())[int(self.rng.integers(len(ACTIONS)))]
            action = named if self.rng.random() < 0.6 else tuple(self.rng.uniform(-1, 1, 3))
            for _ in range(int(self.rng.integers(1, 4))):
                self.act(*action)


def reversed_steps(views: Sequence[View]) -> list[list[Pose]]:
    """The poses of a walk in reverse, four for each step, without the last one, at which the body stands."""
    path = [Pose(camera) for view in views for camera in view.world_from_camera][-2::-1]
    starts = range(0, len(path) - FRAMES_PER_STEP + 1, FRAMES_PER_STEP)
    return [path[start : start + FRAMES_PER_STEP] for start in starts]


class Explorer(Drive):
    """Explores any map by depth alone: looks around and back, wanders, retraces its walks, and turns round."""

    def explore(self) -> None:
        """Steps until the episode is complete."""
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

    def look_around(self) -> None:
        """Turns one way and, in six cases of ten, back."""
        angle_rad = self.rng.choice([-1.0, 1.0]) * self.rng.uniform(0.5, 2.8)
        self.turn(angle_rad)
        if self.rng.random() < 0.6:
            self.turn(-angle_rad)

    def wander(self, steps: int, careful: bool = False) -> None:
        """Walks towards the deepest part of the view with a noisy heading; before a wall, turns until the view is open.

        Args:
            careful: keep clear of walls, without noise or side steps. A wall stops the body faster than it can
                accelerate, so a walk that touched a wall cannot be retraced exactly.
        """
        noise, side, escaping = 0.0, float(self.rng.choice([-1.0, 1.0])), False
        for _ in range(steps):
            columns = depth_at_eye_height(self.views[-1].depth_m)
            width = len(columns)
            ahead_m = clearance_m(columns, 2 if careful else 4)
            escaping = ahead_m < (3.0 if escaping else 2.0 if careful else NEAR_M)
            if escaping:
                self.act(0.0, 0.0, side)
                continue
            noise = 0.7 * noise + self.rng.normal(0.0, 0.25)
            deepest = float(np.argmax(columns + self.rng.normal(0.0, 0.5, width)) + 0.5) / width * 2 - 1
            if careful:
                self.act(0.6, 0.0, float(np.clip(deepest, -0.5, 0.5)))
                continue
            strafe = float(self.rng.choice([0.0, 0.0, 0.0, 0.0, -1.0, 1.0]))
            self.act(1.0, strafe, float(np.clip(1.5 * deepest + noise, -1.0, 1.0)))

    def retrace(self, first: int) -> None:
        """Comes to rest, then follows every pose since step `first` in reverse."""
        for _ in range(STOPPING_STEPS):
            self.act(0.0, 0.0, 0.0)
        for poses in reversed_steps(self.views[first - 1 :]):
            if self.done:
                return
            self.state, view = self.world.follow(self.state, poses)
            self.actions.append(self._effective_action(view))
            self.views.append(view)

    def _effective_action(self, view: View) -> np.ndarray:
        """The action whose steady motion is nearest to what the body just did, clipped to [-1, 1]."""
        control = self.world.control
        before, after = self.views[-1].world_from_camera[-1], view.world_from_camera[-1]
        rotation = before[:3, :3].T @ after[:3, :3]
        turn = np.arctan2(rotation[0, 2], rotation[2, 2]) / (FRAMES_PER_STEP * control.turn_rad)
        pace_m = (before[:3, :3].T @ (after[:3, 3] - before[:3, 3])) / FRAMES_PER_STEP
        top_forward = control.forward_acceleration_m / (1 - control.friction)
        top_strafe = control.strafe_acceleration_m / (1 - control.friction)
        return np.clip(np.array([pace_m[2] / top_forward, pace_m[0] / top_strafe, turn]), -1.0, 1.0)
