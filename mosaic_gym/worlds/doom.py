"""The simulator: ViZDoom behind the same protocol as the learned world.

A closed-loop controller drives the body, tic by tic, to the poses that `Control` predicts, so that an action has the
same effect here and in a learned world, except at walls. A tic is a video frame. The simulator cannot go back: only its
latest state can be stepped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import vizdoom

from mosaic_gym.geometry.control import (
    FRAMES_PER_STEP,
    Control,
    Pose,
    check_action,
    check_level,
    check_pose,
    check_poses,
    yaw_of,
)
from mosaic_gym.validation import Whole, check
from mosaic_gym.worlds.doom_game import (
    SCENARIOS,
    UNITS_PER_M,
    GameReader,
    Sight,
    Surfaces,
    choose_crop,
    open_game,
    pose_of,
)
from mosaic_gym.worlds.maps.layout import Layout, standing_heights
from mosaic_gym.worlds.maps.level import LEVEL
from mosaic_gym.worlds.maps.levels import SCENARIO as ROOMS
from mosaic_gym.worlds.maps.levels import GeneratedLevels
from mosaic_gym.worlds.maps.plan import Plan
from mosaic_gym.worlds.maps.rooms import MapOptions
from mosaic_gym.worlds.protocol import StaleStateError, Start, View

_UNRESPONSIVE_TICS = 16  # ViZDoom ignores input in the first 14 tics of some scenarios
_MAX_PUSH = 50  # ViZDoom's limit on a movement button, in 1/32 map units per tic
_BRAKING = 1.0  # map units per tic squared by which the body can always brake
_LANDING_TICS = 2  # after so many, a placed body stands on the floor
_PLACEMENT_TOLERANCE_M = 0.02  # a body that stands nearer than this to a requested camera has reached it
_BLOCKED_M = 0.01  # a body further than this from the predicted pose was stopped by an obstacle


@dataclass(frozen=True)
class DoomState:
    """The simulator's state after a step.

    Attributes:
        pose: the true pose of the camera, and the body's velocity.
        step_index: steps since the start.
        seed: of the episode.
        moment: counts the states of a simulator; only the latest can be stepped.
    """

    pose: Pose
    step_index: int
    seed: int
    moment: int


@dataclass(frozen=True)
class _Tic:
    """What is read of the game after one tic.

    Attributes:
        pose: of the camera.
        frame: uint8 `[H, W, 3]`.
        depth_m: float32 `[H, W]`, metres; None on generated levels, where it is computed for all tics of a step.
        sight: on generated levels, what depth is computed from.
    """

    pose: Pose
    frame: np.ndarray
    depth_m: np.ndarray | None = None
    sight: Sight | None = None


def _game_seed(seed: int) -> int:
    """ViZDoom's seeds have 31 bits; larger ones are hashed into them."""
    return seed if seed < 2**31 else int(np.random.SeedSequence(seed).generate_state(1)[0]) % 2**31


class DoomWorld:
    """A Doom map as a world (the `World` protocol), one state at a time.

    Args:
        scenario: `my_way_home`, `health_gathering_supreme`, `take_cover`; a Freedoom map such as `freedoom1:E1M1` or
            `freedoom2:MAP01` (without a map: the first); or `rooms`, where every episode plays a map generated from its
            seed, or `rooms:SEED` for one such map.
        height, width: of the frames, pixels. The rest of the simulator's 4:3 screen is cropped.
        control: the kinematics of actions.
        timeout_tics: video frames after which the game ends an episode by itself (`terminated`);
            None uses the scenario's own limit, 0 sets none.
        split: of generated maps: `train`, `heldout` or `heldout-themes`. None for `train`.
        maps: which things generated maps have. None for the defaults of `MapOptions`.

    Raises:
        ValueError: an unknown scenario or split; split or maps for another scenario than `rooms`; a size that no screen
            can be averaged down to; or a timeout that is not a whole number from 0.
    """

    forkable = False

    def __init__(
        self,
        scenario: str = "my_way_home",
        height: int = 64,
        width: int = 64,
        control: Control = Control(),
        timeout_tics: int | None = None,
        split: str | None = None,
        maps: MapOptions | None = None,
    ):
        if not isinstance(scenario, str):
            raise ValueError(f"scenario is a name, one of {', '.join((*SCENARIOS, ROOMS))}; got {scenario!r}")
        generated = scenario.partition(":")[0] == ROOMS
        if not generated and (split is not None or maps is not None):
            raise ValueError(f"split and maps are for the scenario {ROOMS!r}; {scenario!r} has one map: leave them out")
        timeout_tics = check("timeout_tics", timeout_tics, Whole(0), optional=True)
        crop = choose_crop(height, width)
        self.scenario = scenario
        self.control = control
        self.height = height
        self.width = width
        self.image_from_camera = crop.image_from_camera
        self._reader = GameReader(crop)
        self._game: vizdoom.DoomGame | None
        self._levels = GeneratedLevels(scenario, split or "train", maps or MapOptions()) if generated else None
        self._game, self._guard = open_game(scenario, crop, timeout_tics, self._levels and self._levels.path)
        self._surfaces: Surfaces | None = None
        self._tic: _Tic | None = None
        self._state: vizdoom.GameState | None = None
        self._moment = 0
        self._ended = True

    def start(self, start: Start) -> tuple[DoomState, View]:
        """A new episode, drawn from `start.seed` or at the given camera: four frames from a body at rest.

        Raises:
            ValueError: an image, prompt or memory is given; the seed is not a whole number from 0; the camera is not
                level, not at eye height, or where no body can stand; or there is a map seed, and no generated maps. The
                running episode continues after any of these.
                Or ViZDoom moves the body away from the requested place: then the episode is over, and another start may
                follow.
            RuntimeError: the world is closed, or the episode ended before the body could move.
        """
        for name in ("image", "prompt", "memory"):
            if getattr(start, name) is not None:
                raise ValueError(f"the simulator cannot start from a given {name}: it renders its own map")
        seed = check("the seed of a start", start.seed, Whole(0))
        requested = None
        if start.world_from_camera is not None:
            requested = check_level(check_pose(start.world_from_camera), "the simulator's camera")
        game, plan = self._open_game(), self._choose_map(start, seed)
        if requested is not None and (plan is not None or self._surfaces is not None):
            self._check_place(requested, plan)  # before anything moves, because the simulator cannot go back
        self._moment += 1
        game.set_seed(_game_seed(seed))
        if plan is not None:
            self._levels.load(plan)
            game.set_doom_map(LEVEL)
        game.new_episode()
        game.make_action([0, 0, 0], _UNRESPONSIVE_TICS)
        if game.is_episode_finished():
            raise RuntimeError(self._too_short())
        self._surfaces = Surfaces.of(game.get_state())
        self._tic = None
        if requested is not None:
            self._place_body(requested)
        self._ended = False
        rest = [Pose(pose_of(game.get_state()).world_from_camera)] * FRAMES_PER_STEP
        state, view = self._drive(rest, step_index=0, seed=seed)
        if self._ended:
            raise RuntimeError(self._too_short())
        return state, view

    def step(self, states: Sequence[DoomState], actions: np.ndarray) -> tuple[list[DoomState], list[View]]:
        """Moves the body by an action; there is one body, so one state and one action.

        Args:
            states: the latest, alone.
            actions: `[1, 3]` (forward, strafe right, turn right), each in [-1, 1].

        Raises:
            ValueError: another number of states or actions, or an action that is NaN or out of range. Nothing has moved
                then.
            StaleStateError: a state that is not the latest. RuntimeError: the episode has ended, or the world is
                closed.
        """
        if len(states) != 1 or np.shape(actions) != (1, 3):
            raise ValueError(
                f"the simulator has one body: step takes one state and actions of shape (1, 3); "
                f"got {len(states)} states and shape {np.shape(actions)}"
            )
        action = check_action(actions[0])
        state = self._check_present(states[0])
        targets = self.control.advance(state.pose, action)
        state, view = self._drive(targets, state.step_index + 1, state.seed, action)
        return [state], [view]

    def follow(self, state: DoomState, poses: Sequence[Pose]) -> tuple[DoomState, View]:
        """One step along four poses, as closely as the body's acceleration and the walls allow.

        The velocities of the poses are ignored. Following a free walk that ended at rest backwards, the body stays
        within 2 mm of it.

        Args:
            state: the latest.
            poses: four, in order, metres.

        Raises:
            ValueError: another number of poses, or one that is not finite, rigid and level; nothing has moved then.
            StaleStateError: a state that is not the latest. RuntimeError: the episode has ended, or the world is
                closed.
        """
        state = self._check_present(state)
        check_poses(poses)
        if len(poses) != FRAMES_PER_STEP:
            raise ValueError(f"a step follows {FRAMES_PER_STEP} poses; got {len(poses)}")
        targets = [check_level(pose, "the simulator's camera") for pose in poses]
        return self._drive(targets, state.step_index + 1, state.seed)

    @property
    def fingerprint(self) -> str:
        maps = "" if self._levels is None else f":{self._levels.description}"
        return f"doom:{self.scenario}{maps}:{self.height}x{self.width}"

    @property
    def has_generated_maps(self) -> bool:
        """Whether episodes play maps generated from seeds."""
        return self._levels is not None

    def layout(self) -> Layout:
        """The present truth of a generated map: rooms, doors and things, see `Layout`.

        Raises:
            RuntimeError: a scenario without generated maps, or no running episode.
        """
        if self._levels is None or self._ended:
            reason = "no episode is running" if self._levels is not None else f"{self.scenario} has no generated map"
            raise RuntimeError(f"there is no layout: {reason}")
        self._open_game()
        return self._levels.layout(self._state)

    def simulator_seconds(self, frames: int) -> float:
        """How long the simulator alone takes for some frames, with the same buffers; it ends the running episode.

        Raises:
            RuntimeError: the world is closed.
        """
        game, self._ended = self._open_game(), True
        started_s = time.perf_counter()
        for _ in range(frames):
            if game.is_episode_finished():
                game.new_episode()
            game.make_action([0, 0, 2.5])
            game.get_state()
        return time.perf_counter() - started_s

    def pack(self, state: DoomState) -> tuple[dict[str, Any], dict[str, Any]]:
        """Raises RuntimeError: a game loaded from ViZDoom's save files does not continue like the saved one."""
        raise RuntimeError("the simulator's state cannot be packed; start again with the same seed and actions")

    def unpack(self, tensors: Mapping[str, Any], metadata: dict[str, Any]) -> DoomState:
        """Raises RuntimeError, as `pack` does."""
        raise RuntimeError("the simulator's state cannot be unpacked; start again with the same seed and actions")

    def close(self) -> None:
        """Ends ViZDoom's process; safe to call twice."""
        if self._game is not None:
            self._game.close()
            self._game = None
            self._guard.release()
        if self._levels is not None:
            self._levels.close()

    def _too_short(self) -> str:
        return f"{self.scenario} ended before the body could move; give a longer timeout_tics"

    def _open_game(self) -> vizdoom.DoomGame:
        if self._game is None:
            raise RuntimeError("this DoomWorld is closed; make a new one")
        return self._game

    def _choose_map(self, start: Start, seed: int) -> Plan | None:
        """The generated map of an episode; None for other scenarios."""
        if self._levels is not None:
            return self._levels.plan_for(seed, start.map_seed)
        if start.map_seed is not None:
            raise ValueError(f"map_seed is for the scenario {ROOMS!r}, whose maps are generated; got {self.scenario!r}")
        return None

    def _check_place(self, pose: Pose, plan: Plan | None = None) -> None:
        """Raises ValueError unless the map has a floor for a body whose eyes are at this pose.

        Args:
            plan: the map, if it is a generated one that is not loaded yet.
        """
        x, height_m, y = pose.world_from_camera[:3, 3] * (UNITS_PER_M, 1.0, UNITS_PER_M)
        place = f"x {x / UNITS_PER_M:.2f}, z {y / UNITS_PER_M:.2f} m of {self.scenario}"
        heights = self._surfaces.eye_heights(x, y) if plan is None else standing_heights(plan, x, y)
        heights_m = sorted(-height / UNITS_PER_M for height in heights)
        if not heights_m:
            raise ValueError(f"no body can stand at {place}: it is off the map, or in a wall")
        if min(abs(height_m - possible_m) for possible_m in heights_m) > _PLACEMENT_TOLERANCE_M:
            known = " or ".join(f"{possible_m:.3f}" for possible_m in heights_m)
            raise ValueError(f"the eyes of a body at {place} are at y = {known} m, not {height_m:.3f}")

    def _place_body(self, pose: Pose) -> None:
        """Places the body at a pose, at rest."""
        self._check_place(pose)
        game = self._open_game()
        target_m = pose.world_from_camera[:3, 3]
        place = f"x {target_m[0]:.2f}, z {target_m[2]:.2f} m of {self.scenario}"
        self._ended = True  # until the body stands there
        x, y = (round(metres * UNITS_PER_M) for metres in target_m[[0, 2]])  # `warp` takes whole units only
        game.send_game_command(f"warp {x} {y}")
        for _ in range(_LANDING_TICS):
            game.make_action([0, 0, 0])
        for _ in range(2):
            self._drive([pose] * FRAMES_PER_STEP, step_index=0, seed=0)
        if self._ended:
            raise ValueError(f"an episode that starts at {place} ends at once; start again elsewhere")
        reached_m = pose_of(game.get_state()).world_from_camera[:3, 3]
        error_m = np.abs(reached_m - target_m).max()
        if error_m > _PLACEMENT_TOLERANCE_M:
            self._ended = True
            reached = f"x {reached_m[0]:.2f}, y {reached_m[1]:.3f}, z {reached_m[2]:.2f} m"
            raise ValueError(f"a body placed at {place} came to stand {error_m:.3f} m away, at {reached}; start again")

    def _check_present(self, state: DoomState) -> DoomState:
        self._open_game()
        if state.moment != self._moment:
            raise StaleStateError(
                f"the simulator has moved past step {state.step_index} of seed {state.seed} and cannot return to it; "
                "step the latest state, or start again with the same seed and actions"
            )
        if self._ended:
            raise RuntimeError("the episode has ended (View.terminated); call start for a new one")
        return state

    def _drive(
        self, targets: list[Pose], step_index: int, seed: int, action: np.ndarray | None = None
    ) -> tuple[DoomState, View]:
        """Four tics towards four poses. With an action, the targets after an obstacle are predicted again."""
        game, tics, reward = self._open_game(), [], 0.0
        for index in range(FRAMES_PER_STEP):
            if not game.is_episode_finished():
                before = pose_of(game.get_state()) if self._tic is None else self._tic.pose
                reward += game.make_action(_buttons(before, targets, index))
            if not game.is_episode_finished():
                self._state = None  # its memory is used again
                self._state = game.get_state()  # a copy of all buffers: once a tic
                self._tic = self._read_tic(self._state)
                reward += 0.0 if self._levels is None else self._levels.gather(self._state)
            if self._tic is None:
                raise RuntimeError(self._too_short())
            tics.append(self._tic)
            pose = self._tic.pose
            x_m, _, z_m = (pose.world_from_camera - targets[index].world_from_camera)[:3, 3].tolist()
            if action is not None and math.hypot(x_m, z_m) > _BLOCKED_M:
                targets[index + 1 :] = self.control.advance(pose, action)[: FRAMES_PER_STEP - 1 - index]
        self._moment += 1
        self._ended = game.is_episode_finished()
        if self._levels is None:
            depths_m = np.stack([tic.depth_m for tic in tics])
        else:
            depths_m = self._reader.level_depths_m([tic.sight for tic in tics], self._levels)
        view = View(
            frames=np.stack([tic.frame for tic in tics]),
            depth_m=depths_m[-1],
            world_from_camera=np.stack([tic.pose.world_from_camera for tic in tics]),
            image_from_camera=self.image_from_camera,
            labels=self._reader.labels(self._state),
            reward=reward,
            terminated=self._ended,
            all_depth_m=depths_m,
        )
        return DoomState(self._tic.pose, step_index, seed, self._moment), view

    def _read_tic(self, state: vizdoom.GameState) -> _Tic:
        pose, frame = pose_of(state), self._reader.frame(state)
        if self._levels is None:
            return _Tic(pose, frame, depth_m=self._reader.depth_m(state, self._surfaces))
        return _Tic(pose, frame, sight=self._reader.sight(state))


def _buttons(pose: Pose, targets: Sequence[Pose], tic: int) -> list[float]:
    """Pushes forward and right (changes of velocity, 1/32 units per tic) and a turn right (degrees) to a target pose.

    A body that lags behind catches up no faster than it can brake again.
    """
    target = targets[tic].world_from_camera
    yaw_rad = yaw_of(target)
    turn_rad = (yaw_rad - yaw_of(pose.world_from_camera) + math.pi) % (2 * math.pi) - math.pi
    sine, cosine = math.sin(yaw_rad), math.cos(yaw_rad)
    velocity_x, _, velocity_y = (pose.velocity_m * UNITS_PER_M).tolist()

    def pushes(x: float, y: float) -> tuple[float, float]:
        """Forward and right pushes for a movement in the next tic, map units."""
        push_x, push_y = 32 * (x - velocity_x), 32 * (y - velocity_y)
        return push_x * sine + push_y * cosine, push_x * cosine - push_y * sine

    x, y = _movement(pose.world_from_camera, target)
    push = pushes(x, y)
    if max(map(abs, push)) > _MAX_PUSH:
        first, second = (targets[tic], targets[tic + 1]) if tic + 1 < len(targets) else (targets[tic - 1], targets[tic])
        pace_x, pace_y = _movement(first.world_from_camera, second.world_from_camera)
        distance = math.hypot(x - pace_x, y - pace_y)
        share = min(1.0, math.sqrt(2 * _BRAKING / distance)) if distance > 0 else 1.0
        push = pushes(pace_x + (x - pace_x) * share, pace_y + (y - pace_y) * share)
    return [*(float(max(-_MAX_PUSH, min(_MAX_PUSH, round(part)))) for part in push), math.degrees(turn_rad)]


def _movement(start: np.ndarray, end: np.ndarray) -> tuple[float, float]:
    """How far one camera `[4, 4]` stands from another over the ground, along Doom's x and y, map units."""
    x_m, _, z_m = (end - start)[:3, 3].tolist()
    return x_m * UNITS_PER_M, z_m * UNITS_PER_M
