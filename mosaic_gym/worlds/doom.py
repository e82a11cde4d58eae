"""The true world: ViZDoom behind the same protocol as the learned one.

The body is driven tic by tic, in closed loop, towards the poses that `Control` foresees, so that
an action means the same here and in a learned world; only walls make a difference. A tic is a
video frame. There is one true present: a state can be stepped while it is the latest, not later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import vizdoom

from mosaic_gym.geometry.control import FRAMES_PER_STEP, Control, Pose, check_action, check_level, check_pose, yaw_of
from mosaic_gym.worlds.doom_game import SCENARIOS, UNITS_PER_M, Eye, Surfaces, choose_crop, open_game, pose_of
from mosaic_gym.worlds.protocol import StaleStateError, Start, View

_DEAF_TICS = 16  # the engine ignores input in the first 14 tics of some scenarios
_STRONGEST_PUSH = 50  # the engine's cap on a movement button, in 1/32 map units per tic
_BRAKING = 1.0  # map units per tic squared that the body can surely brake by
_LANDING_TICS = 2  # a body that was put somewhere stands on its feet after so many
_PUT_M = 0.02  # how near a given camera counts as reached
_BLOCKED_M = 0.01  # further than this from the foreseen pose, something stood in the way


@dataclass(frozen=True)
class DoomState:
    """Where the engine was after a step.

    Attributes:
        pose: of the camera, and the body's velocity; true, not foreseen.
        step_index: steps made since the start.
        seed: of the episode.
        moment: which present of the engine this was; only the latest can be stepped.
    """

    pose: Pose
    step_index: int
    seed: int
    moment: int


@dataclass(frozen=True)
class _Sight:
    """What one tic shows: uint8 `[H, W, 3]`, float32 `[H, W]` metres, and names."""

    pose: Pose
    frame: np.ndarray
    depth_m: np.ndarray
    labels: tuple[str, ...]


def _game_seed(seed: int) -> int:
    """The engine's seeds have 31 bits; larger ones are spread over them."""
    return seed if 0 <= seed < 2**31 else int(np.random.SeedSequence(seed).generate_state(1)[0]) % 2**31


class DoomWorld:
    """A Doom map as a world (the `World` protocol), one state at a time.

    Args:
        scenario: `my_way_home`, `health_gathering_supreme`, `take_cover`, or a Freedoom map such as
            `freedoom1:E1M1` or `freedoom2:MAP01` (without a map: the first).
        height: of the frames, pixels.
        width: of the frames, pixels. Whatever the engine's 4:3 screen shows beyond is cropped.
        control: the kinematics that actions mean.
        timeout_tics: video frames after which the game ends an episode by itself (`terminated`);
            None keeps the scenario's own limit, 0 sets none.

    Raises:
        ValueError: an unknown scenario, or a size that no screen has.
    """

    forkable = False

    def __init__(
        self,
        scenario: str = "my_way_home",
        height: int = 64,
        width: int = 64,
        control: Control = Control(),
        timeout_tics: int | None = None,
    ):
        if not isinstance(scenario, str):
            raise ValueError(f"scenario is a name, one of {', '.join(SCENARIOS)}; got {scenario!r}")
        crop = choose_crop(height, width)
        self.scenario = scenario
        self.control = control
        self.height = height
        self.width = width
        self.image_from_camera = crop.image_from_camera
        self._eye = Eye(crop)
        self._game: vizdoom.DoomGame | None = open_game(scenario, crop, timeout_tics)
        self._surfaces: Surfaces | None = None
        self._sight: _Sight | None = None
        self._moment = 0
        self._ended = True

    def start(self, start: Start) -> tuple[DoomState, View]:
        """A new episode drawn from `start.seed`, or from the given camera: four frames from a body at rest.

        Raises:
            ValueError: an image, prompt or memory is given, or a camera where no body can stand, or not at the height
                of its eyes: the running episode goes on then. Or the engine does not let the body stay there: then it
                is over, and another start may follow.
        """
        for name in ("image", "prompt", "memory"):
            if getattr(start, name) is not None:
                raise ValueError(f"the engine cannot start from a given {name}: it shows its own map")
        asked = None
        if start.world_from_camera is not None:
            asked = check_level(check_pose(start.world_from_camera), "the simulator's camera")
        game = self._open_game()
        if asked is not None and self._surfaces is not None:
            self._check_place(asked)  # before anything moves: the engine could not go back
        self._moment += 1
        game.set_seed(_game_seed(start.seed))
        game.new_episode()
        game.make_action([0, 0, 0], _DEAF_TICS)
        if game.is_episode_finished():
            raise RuntimeError(self._too_short())
        self._surfaces = Surfaces.of(game.get_state())
        self._sight = None
        if asked is not None:
            self._put(asked)
        self._ended = False
        rest = [Pose(pose_of(game.get_state()).world_from_camera)] * FRAMES_PER_STEP
        begun = self._drive(rest, step_index=0, seed=start.seed)
        if self._ended:
            raise RuntimeError(self._too_short())
        return begun

    def step(self, states: Sequence[DoomState], actions: np.ndarray) -> tuple[list[DoomState], list[View]]:
        """Moves the body by an action; there is one body, so one state and one action.

        Args:
            states: the latest, alone.
            actions: `[1, 3]` (forward, strafe right, turn right), each in [-1, 1].

        Raises:
            ValueError: another number of states or actions, or one that is NaN or out of range; nothing has moved then.
            StaleStateError: a state that is not the latest. RuntimeError: the episode has ended, or the world is
                closed.
        """
        if len(states) != 1 or np.shape(actions) != (1, 3):
            raise ValueError(
                f"the engine has one body: step takes one state and actions of shape (1, 3); "
                f"got {len(states)} states and shape {np.shape(actions)}"
            )
        action = check_action(actions[0])
        state = self._check_present(states[0])
        foreseen = self.control.advance(state.pose, action)
        after, view = self._drive(foreseen, state.step_index + 1, state.seed, action)
        return [after], [view]

    def follow(self, state: DoomState, poses: Sequence[Pose]) -> tuple[DoomState, View]:
        """One step along four given poses, as nearly as the body's strength and the walls allow.

        The pose's velocities are ignored: what counts is to stand there, tic by tic. Backwards along
        a path that was walked freely and ended at rest, the body stays within 2 mm.

        Args:
            state: the latest.
            poses: four, in order, metres.

        Raises:
            ValueError: another number of poses. StaleStateError: a state that is not the latest. RuntimeError: the
                episode has ended, or the world is closed.
        """
        state = self._check_present(state)
        if len(poses) != FRAMES_PER_STEP:
            raise ValueError(f"a step follows {FRAMES_PER_STEP} poses; got {len(poses)}")
        return self._drive(list(poses), state.step_index + 1, state.seed)

    @property
    def fingerprint(self) -> str:
        return f"doom:{self.scenario}:{self.height}x{self.width}"

    def pack(self, state: DoomState) -> tuple[dict[str, Any], dict[str, Any]]:
        """Refused: the engine's saves do not replay like the run they were taken from."""
        raise RuntimeError("the engine's state cannot be packed; start anew with the same seed and actions")

    def unpack(self, tensors: Mapping[str, Any], about: dict[str, Any]) -> DoomState:
        """Refused, as `pack` is."""
        raise RuntimeError("the engine's state cannot be unpacked; start anew with the same seed and actions")

    def close(self) -> None:
        """Ends the engine's process; safe to call twice."""
        if self._game is not None:
            self._game.close()
            self._game = None

    def _too_short(self) -> str:
        return f"{self.scenario} ended before the body could move; give a longer timeout_tics"

    def _open_game(self) -> vizdoom.DoomGame:
        if self._game is None:
            raise RuntimeError("this DoomWorld is closed; make a new one")
        return self._game

    def _check_place(self, pose: Pose) -> None:
        """Raises ValueError unless a body can stand behind a camera, by what the map says."""
        x, height_m, y = pose.world_from_camera[:3, 3] * (UNITS_PER_M, 1.0, UNITS_PER_M)
        place = f"x {x / UNITS_PER_M:.2f}, z {y / UNITS_PER_M:.2f} m of {self.scenario}"
        heights_m = sorted(-eyes / UNITS_PER_M for eyes in self._surfaces.eye_heights(x, y))
        if not heights_m:
            raise ValueError(f"no body can stand at {place}: it is off the map, or in a wall")
        if min(abs(height_m - there_m) for there_m in heights_m) > _PUT_M:
            known = " or ".join(f"{there_m:.3f}" for there_m in heights_m)
            raise ValueError(f"the eyes of a body at {place} are at y = {known} m, not {height_m:.3f}")

    def _put(self, pose: Pose) -> None:
        """Puts the body at a pose, at rest."""
        self._check_place(pose)
        game = self._open_game()
        asked_m = pose.world_from_camera[:3, 3]
        place = f"x {asked_m[0]:.2f}, z {asked_m[2]:.2f} m of {self.scenario}"
        self._ended = True  # until the body stands there
        x, y = (round(metres * UNITS_PER_M) for metres in asked_m[[0, 2]])  # it takes whole units only
        game.send_game_command(f"warp {x} {y}")
        for _ in range(_LANDING_TICS):
            game.make_action([0, 0, 0])
        for _ in range(2):
            self._drive([pose] * FRAMES_PER_STEP, step_index=0, seed=0)
        if self._ended:
            raise ValueError(f"an episode ends at once at {place}; start anew")
        stood_m = pose_of(game.get_state()).world_from_camera[:3, 3]
        missed_m = np.abs(stood_m - asked_m).max()
        if missed_m > _PUT_M:
            self._ended = True
            stood = f"x {stood_m[0]:.2f}, y {stood_m[1]:.3f}, z {stood_m[2]:.2f} m"
            raise ValueError(f"a body put at {place} came to stand {missed_m:.3f} m away, at {stood}; start anew")

    def _check_present(self, state: DoomState) -> DoomState:
        self._open_game()
        if state.moment != self._moment:
            raise StaleStateError(
                f"the engine has moved past step {state.step_index} of seed {state.seed} and cannot return to it; "
                "step the latest state, or start anew with the same seed and actions"
            )
        if self._ended:
            raise RuntimeError("the episode has ended (View.terminated); call start for a new one")
        return state

    def _drive(
        self, targets: list[Pose], step_index: int, seed: int, action: np.ndarray | None = None
    ) -> tuple[DoomState, View]:
        """Four tics towards four poses; with an action, obstructed targets are foreseen anew."""
        game = self._open_game()
        sights, reward = [], 0.0
        for tic in range(FRAMES_PER_STEP):
            if not game.is_episode_finished():
                before = pose_of(game.get_state())
                reward += game.make_action(_buttons(before, targets, tic))
            if not game.is_episode_finished():
                self._sight = self._look(game.get_state())
            if self._sight is None:
                raise RuntimeError(self._too_short())
            sights.append(self._sight)
            missed_m = (self._sight.pose.world_from_camera - targets[tic].world_from_camera)[[0, 2], 3]
            if action is not None and np.hypot(*missed_m) > _BLOCKED_M:
                targets[tic + 1 :] = self.control.advance(self._sight.pose, action)[: FRAMES_PER_STEP - 1 - tic]
        self._moment += 1
        self._ended = game.is_episode_finished()
        view = View(
            frames=np.stack([sight.frame for sight in sights]),
            depth_m=self._sight.depth_m,
            world_from_camera=np.stack([sight.pose.world_from_camera for sight in sights]),
            image_from_camera=self.image_from_camera,
            labels=self._sight.labels,
            reward=reward,
            terminated=self._ended,
            all_depth_m=np.stack([sight.depth_m for sight in sights]),
        )
        return DoomState(self._sight.pose, step_index, seed, self._moment), view

    def _look(self, state: vizdoom.GameState) -> _Sight:
        eye = self._eye
        return _Sight(pose_of(state), eye.frame(state), eye.depth_m(state, self._surfaces), eye.labels(state))


def _buttons(pose: Pose, targets: Sequence[Pose], tic: int) -> list[float]:
    """Thrust forward, thrust right (1/32 units) and turn right (degrees) that lead to a target pose.

    A body that lags behind is brought back no faster than it can brake again.
    """
    target = targets[tic].world_from_camera
    yaw_rad = yaw_of(target)
    turn_rad = (yaw_rad - yaw_of(pose.world_from_camera) + np.pi) % (2 * np.pi) - np.pi
    velocity = pose.velocity_m[[0, 2]] * UNITS_PER_M
    missing = (target - pose.world_from_camera)[[0, 2], 3] * UNITS_PER_M
    right, forward = np.array([np.cos(yaw_rad), -np.sin(yaw_rad)]), np.array([np.sin(yaw_rad), np.cos(yaw_rad)])
    action_vector = 32 * (missing - velocity)
    if max(abs(action_vector @ forward), abs(action_vector @ right)) > _STRONGEST_PUSH:
        first, second = (targets[tic], targets[tic + 1]) if tic + 1 < len(targets) else (targets[tic - 1], targets[tic])
        pace = (second.world_from_camera - first.world_from_camera)[[0, 2], 3] * UNITS_PER_M
        lag = missing - pace
        distance = np.hypot(*lag)
        if distance > 0:
            missing = pace + lag * min(1.0, np.sqrt(2 * _BRAKING / distance))
        action_vector = 32 * (missing - velocity)
    pushes = np.clip(np.rint([action_vector @ forward, action_vector @ right]), -_STRONGEST_PUSH, _STRONGEST_PUSH)
    return [*pushes.tolist(), float(np.rad2deg(turn_rad))]
