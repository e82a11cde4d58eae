"""The ViZDoom game behind `DoomWorld`: opening it, and reading frames, depth, poses and labels from it.

Doom's axes are x east, y north, z up in map units, with angles in degrees counter-clockwise from
east. Ours are x right, y down, z forward in metres: (x, y, z) of the world is (x, -z, y) of Doom
over 32, and a heading of 90 degrees is our yaw 0.
"""

from __future__ import annotations

import re
import tempfile
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import vizdoom

from mosaic_gym.geometry.control import Pose, yaw_of
from mosaic_gym.processes import Guard, child_ids
from mosaic_gym.worlds.maps.layout import BODY_RADIUS, EYE_HEIGHT, UNITS_PER_M
from mosaic_gym.worlds.maps.level import LEVEL
from mosaic_gym.worlds.maps.levels import GeneratedLevels

SCENARIOS = ("my_way_home", "health_gathering_supreme", "take_cover", "freedoom1", "freedoom2")
"""The scenarios by name. The last two take a map: `freedoom1:E1M1`, `freedoom2:MAP01`."""

_BUTTONS = ("MOVE_FORWARD_BACKWARD_DELTA", "MOVE_LEFT_RIGHT_DELTA", "TURN_LEFT_RIGHT_DELTA")
_VARIABLES = (
    "CAMERA_POSITION_X",
    "CAMERA_POSITION_Y",
    "CAMERA_POSITION_Z",
    "CAMERA_ANGLE",
    "VELOCITY_X",
    "VELOCITY_Y",
    "POSITION_Z",
    "ITEMCOUNT",
)
_SCREEN_SIZES = ((192, 256), (240, 320), (300, 400), (384, 512), (480, 640), (600, 800), (768, 1024), (960, 1280))
_PIXEL_ASPECT = 1.2  # Doom's pixels at 4:3 are a fifth taller than wide, at every resolution
_MIN_OVERSAMPLING = 2  # one screen pixel per frame pixel would alias
_OPENING = threading.Lock()  # one game is opened at a time, so a new child process belongs to it


@dataclass(frozen=True)
class Crop:
    """How a frame is cut from the game's screen: centred, then averaged in square blocks.

    Attributes:
        screen_height, screen_width: the screen, pixels, always 4:3.
        height, width: the frame, pixels.
        factor: screen pixels along each side of a frame pixel.
    """

    screen_height: int
    screen_width: int
    height: int
    width: int
    factor: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the screen inside the crop."""
        rows, columns = self.height * self.factor, self.width * self.factor
        top, left = (self.screen_height - rows) // 2, (self.screen_width - columns) // 2
        return slice(top, top + rows), slice(left, left + columns)

    @property
    def image_from_camera(self) -> np.ndarray:
        """K `[3, 3]` float64 in pixels of the frame: the screen spans 90 degrees horizontally."""
        focal_px = self.screen_width / 2 / self.factor
        return np.array(
            [[focal_px, 0.0, self.width / 2], [0.0, focal_px * _PIXEL_ASPECT, self.height / 2], [0.0, 0.0, 1.0]]
        )

    def shrink_frame(self, screen: np.ndarray) -> np.ndarray:
        """uint8 `[height, width, 3]` from the screen's uint8 `[screen_height, screen_width, 3]`."""
        # Sums of long rows, because NumPy is slow on short inner axes: first of `factor` rows, then of as many pixels
        # from each place on, of which every `factor`-th is used.
        factor, area, window = self.factor, self.factor**2, screen[self.window]
        rows = np.add(window[::factor], window[1::factor], dtype=np.uint16)  # there are at least `_MIN_OVERSAMPLING`
        for index in range(2, factor):
            rows += window[index::factor]
        rows = rows.ravel()
        last = len(rows) - 3 * (factor - 1)
        sums = rows.copy()
        for index in range(1, factor):
            sums[:last] += rows[3 * index : last + 3 * index]
        blocks, frame = sums.reshape(self.height, self.width, -1), np.empty((self.height, self.width, 3), np.uint16)
        for channel in range(3):
            frame[..., channel] = blocks[..., channel]
        frame += area // 2
        frame //= area
        return frame.astype(np.uint8)

    def shrink_depth(self, depth: np.ndarray) -> np.ndarray:
        """The median of every block `[height, width]`. An average would mix the depths on both sides of an edge.

        Args:
            depth: of the crop, `[height * factor, width * factor]`.
        """
        blocks = self._blocks(depth).transpose(0, 2, 1, 3).reshape(self.height, self.width, -1)
        middle = blocks.shape[-1] // 2
        return np.partition(blocks, middle, axis=-1)[..., middle]

    def _blocks(self, image: np.ndarray) -> np.ndarray:
        return image.reshape(self.height, self.factor, self.width, self.factor, *image.shape[2:])


def choose_crop(height: int, width: int) -> Crop:
    """The smallest screen of which `(height, width)` is a whole fraction that fills it in one direction.

    Raises:
        ValueError: no screen has such a fraction.
    """
    for screen_height, screen_width in _SCREEN_SIZES:
        factor = min(screen_height // max(height, 1), screen_width // max(width, 1))
        touches = factor * height == screen_height or factor * width == screen_width
        if min(height, width) > 0 and factor >= _MIN_OVERSAMPLING and touches:
            return Crop(screen_height, screen_width, height, width, factor)
    raise ValueError(
        f"no screen of the simulator can be averaged down to {height}x{width}; sizes that work are whole fractions of "
        "192x256, 240x320, 300x400 or 480x640 on one side, such as 64x64, 48x64, 96x96 or 128x128"
    )


def check_scenario(scenario: str) -> tuple[str, str]:
    """Splits a scenario into its name and its map ("" without one).

    Raises:
        ValueError: it is not one of `SCENARIOS`, or has no such map.
    """
    name, _, map_name = scenario.partition(":")
    if name not in SCENARIOS or (map_name and not _is_map(name, map_name)):
        known = ", ".join(SCENARIOS)
        raise ValueError(f"unknown scenario {scenario!r}; known: {known} (a map: freedoom1:E1M1, freedoom2:MAP01)")
    return name, map_name


def open_game(
    scenario: str, crop: Crop, timeout_tics: int | None, level: Path | None = None
) -> tuple[vizdoom.DoomGame, Guard]:
    """Starts ViZDoom without a window, its view bob removed; the buttons are velocity changes and a turn.

    Args:
        scenario: one of `SCENARIOS`, for Freedoom with an optional map after a colon.
        crop: decides the size of the screen.
        timeout_tics: tics after which the game ends an episode; None uses the scenario's own limit.
        level: WAD file of a generated level, which then takes the scenario's place.

    Returns:
        The running game, and the guard of its process. ViZDoom's process does not notice when its parent is killed;
        the guard ends it then. Release the guard after closing the game.
    """
    game = vizdoom.DoomGame()
    if level is not None:
        game.set_doom_game_path(str(Path(vizdoom.__file__).parent / "freedoom2.wad"))  # which has the textures
        game.set_doom_scenario_path(str(level))
        game.set_doom_map(LEVEL)
    else:
        name, map_name = check_scenario(scenario)
        game.load_config(str(Path(vizdoom.scenarios_path) / f"{name}.cfg"))
        if name.startswith("freedoom"):
            game.set_doom_map((map_name or ("E1M1" if name == "freedoom1" else "MAP01")).lower())
    # Without this, ViZDoom writes its settings into the current folder.
    game.set_doom_config_path(str(Path(tempfile.gettempdir()) / "mosaic_gym_vizdoom.ini"))
    game.set_window_visible(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{crop.screen_width}X{crop.screen_height}"))
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_depth_buffer_enabled(level is None)  # a generated level's depth is computed
    game.set_objects_info_enabled(level is not None)
    game.set_labels_buffer_enabled(True)
    game.set_sectors_info_enabled(True)
    for unused in (game.set_automap_buffer_enabled, game.set_audio_buffer_enabled):
        unused(False)
    for overlay in ("hud", "weapon", "crosshair", "messages", "screen_flashes"):
        getattr(game, f"set_render_{overlay}")(False)
    game.set_available_buttons([getattr(vizdoom.Button, button) for button in _BUTTONS])
    game.set_available_game_variables([getattr(vizdoom.GameVariable, variable) for variable in _VARIABLES])
    if timeout_tics is not None:
        game.set_episode_timeout(timeout_tics)
    mark = f"mosaic-gym-{uuid.uuid4().hex}"
    game.add_game_args(f"+movebob 0 +sv_cheats 1 -{mark}")  # `warp`, which places the body, counts as a cheat
    if Path("/proc/self").is_dir():
        guard = Guard(mark=mark)
        game.init()
        return game, guard
    with _OPENING:
        before = child_ids("vizdoom")
        game.init()
        return game, Guard(child_ids("vizdoom") - before)


def _is_map(name: str, map_name: str) -> bool:
    pattern = r"E[1-4]M[1-9]" if name == "freedoom1" else r"MAP(0[1-9]|[12]\d|3[0-2])" if name == "freedoom2" else ""
    return bool(pattern) and re.fullmatch(pattern, map_name.upper()) is not None


@dataclass(frozen=True)
class Surfaces:
    """The flat surfaces of a map: coarse depths are snapped to them, and bodies stand on them.

    ViZDoom's depth buffer has 256 levels, one every 22 cm. Where a pixel shows a surface of the map, the exact depth
    of the surface replaces the reading. Things have the reading of the buffer.

    Attributes:
        walls: `[n, 2, 2]`, both ends of every blocking line, map units.
        ceiling: the height of the ceilings, map units; None if sectors differ in it.
        outlines: `[n, 2, 2]` for every sector, both ends of its lines, map units.
        floors: the height of every sector's floor, map units.
    """

    walls: np.ndarray
    ceiling: float | None
    outlines: tuple[np.ndarray, ...]
    floors: tuple[float, ...]

    @staticmethod
    def of(state: vizdoom.GameState) -> Surfaces:
        """The surfaces of the current map."""
        lines = [line for sector in state.sectors for line in sector.lines if line.is_blocking]
        walls = np.unique([(line.x1, line.y1, line.x2, line.y2) for line in lines], axis=0).reshape(-1, 2, 2)
        ceilings = {sector.ceiling_height for sector in state.sectors}
        outlines = tuple(
            np.array([(line.x1, line.y1, line.x2, line.y2) for line in sector.lines]).reshape(-1, 2, 2)
            for sector in state.sectors
        )
        floors = tuple(float(sector.floor_height) for sector in state.sectors)
        return Surfaces(walls, ceilings.pop() if len(ceilings) == 1 else None, outlines, floors)

    def wall_depths(self, x: float, y: float, yaw_rad: float, slopes: np.ndarray) -> np.ndarray:
        """Perpendicular depth `[columns]` of the nearest wall in every column, map units; inf where none is.

        Args:
            x, y: of the camera, map units.
            yaw_rad: our heading (0 looks along Doom's y).
            slopes: `[columns]`, rightward over forward along each column's ray.
        """
        offset = self.walls - (x, y)
        across = offset @ (np.cos(yaw_rad), -np.sin(yaw_rad))  # [n, 2], to the right of the camera
        ahead = offset @ (np.sin(yaw_rad), np.cos(yaw_rad))
        ahead, across = ahead[(ahead > 0).any(axis=1)], across[(ahead > 0).any(axis=1)]
        run_across, run_ahead = across[:, 1] - across[:, 0], ahead[:, 1] - ahead[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            along = (slopes[:, None] * ahead[:, 0] - across[:, 0]) / (run_across - slopes[:, None] * run_ahead)
            depth = ahead[:, 0] + along * run_ahead
            hit = (along >= -1e-6) & (along <= 1 + 1e-6) & (depth > 1)
        return np.where(hit, depth, np.inf).min(axis=1, initial=np.inf)

    def eye_heights(self, x: float, y: float) -> set[float]:
        """Possible eye heights of a body that stands at a place, map units; empty where no body fits.

        A body fits inside a sector, clear of blocking lines, and stands on the highest floor under it. (ViZDoom places
        a body anywhere, also in walls and outside the map, where it cannot move.)
        """
        if _meets_body(self.walls, x, y).any():
            return set()
        inside = [_is_inside(outline, x, y) for outline in self.outlines]
        if not any(inside):
            return set()
        under = zip(self.outlines, self.floors, inside, strict=True)
        return {floor + EYE_HEIGHT for outline, floor, within in under if within or _meets_body(outline, x, y).any()}


def _meets_body(lines: np.ndarray, x: float, y: float) -> np.ndarray:
    """Which lines `[n, 2, 2]` intersect a body at a place, bool `[n]`; map units."""
    # A body is a square box. A line misses it if the line lies beyond one side of the box, or if all four corners of
    # the box lie on one side of the line.
    (x1, y1), (x2, y2) = (lines - (x, y)).transpose(1, 2, 0)
    beyond = np.minimum(np.abs(x1), np.abs(x2)) * (np.sign(x1) == np.sign(x2)) >= BODY_RADIUS
    beyond |= np.minimum(np.abs(y1), np.abs(y2)) * (np.sign(y1) == np.sign(y2)) >= BODY_RADIUS
    run_x, run_y = x2 - x1, y2 - y1
    aside = np.abs(run_x * y1 - run_y * x1) >= BODY_RADIUS * (np.abs(run_x) + np.abs(run_y))
    return ~(beyond | aside)


def _is_inside(outline: np.ndarray, x: float, y: float) -> bool:
    """Whether a place is inside the outline `[n, 2, 2]` of a sector; map units (even-odd rule)."""
    (x1, y1), (x2, y2) = outline.transpose(1, 2, 0)
    crossed = (y1 > y) != (y2 > y)
    where = x1[crossed] + (y - y1[crossed]) / (y2 - y1)[crossed] * (x2 - x1)[crossed]
    return np.count_nonzero(where > x) % 2 == 1


# Fitted on analytic distances of 15,600 wall and 100,000 floor pixels. ViZDoom rounds walls and floors differently, by
# six units.
_UNITS_PER_LEVEL, _NEAREST_WALL, _NEAREST_FLOOR = 7.136, 8.64, 14.64
_SNAP = 6.0
_OWN_LABELS = {"DoomPlayer", "Self"}


@dataclass(frozen=True)
class Sight:
    """A camera on a generated level: the few numbers of a game's state that depth is computed from.

    Attributes:
        x, y, eye: the camera's place and height over the floor, map units.
        yaw_rad: our heading (0 looks along Doom's y).
        ceilings: present height of each sector's ceiling, map units.
        label_values: uint8 `[H, W]`, the label of the thing at each pixel centre, 0 for none; None without things.
        things: (label, x, y) of every thing in view, map units.
    """

    x: float
    y: float
    eye: float
    yaw_rad: float
    ceilings: list[float]
    label_values: np.ndarray | None
    things: list[tuple[int, float, float]]


class GameReader:
    """Reads frames, depth in metres and labels from the state of a game."""

    def __init__(self, crop: Crop):
        self.crop = crop
        rows, columns = crop.window
        focal_px = crop.screen_width / 2
        self._slopes = (np.arange(columns.start, columns.stop) + 0.5 - crop.screen_width / 2) / focal_px
        below = np.arange(rows.start, rows.stop) + 0.5 - crop.screen_height / 2
        self._falls = below / (focal_px * _PIXEL_ASPECT)  # downward over forward along each row's rays
        k = crop.image_from_camera
        self._pixel_slopes = (np.arange(crop.width) + 0.5 - k[0, 2]) / k[0, 0]  # the same at the frame's pixel centres
        self._pixel_falls = (np.arange(crop.height) + 0.5 - k[1, 2]) / k[1, 1]

    def frame(self, state: vizdoom.GameState) -> np.ndarray:
        """uint8 `[H, W, 3]`."""
        return self.crop.shrink_frame(state.screen_buffer)

    def depth_m(self, state: vizdoom.GameState, surfaces: Surfaces) -> np.ndarray:
        """float32 `[H, W]`, perpendicular depth, metres, snapped to the map's surfaces."""
        x, y, camera_height, _, _, _, foot_height, _ = state.game_variables
        levels = state.depth_buffer[self.crop.window].astype(np.float32) * _UNITS_PER_LEVEL
        depth = levels + _NEAREST_WALL
        yaw_rad = yaw_of(pose_of(state).world_from_camera)
        wall = surfaces.wall_depths(x, y, yaw_rad, self._slopes)[None].astype(np.float32)
        depth = np.where(np.abs(depth - wall) < _SNAP, wall, depth)
        flat = levels + _NEAREST_FLOOR
        drops = np.where(self._falls > 0, camera_height - foot_height, np.inf)
        if surfaces.ceiling is not None:
            drops = np.where(self._falls < 0, camera_height - surfaces.ceiling, drops)
        plane = (drops / self._falls)[:, None].astype(np.float32)
        is_flat = (np.abs(flat - plane) < _SNAP) & (plane < wall)
        depth = np.where(is_flat, plane, depth)
        return self.crop.shrink_depth(depth) / np.float32(UNITS_PER_M)

    def sight(self, state: vizdoom.GameState) -> Sight:
        """What the depth of a generated level is computed from."""
        x, y, eye, angle_deg = state.game_variables[:4].tolist()
        middle = slice(self.crop.factor // 2, None, self.crop.factor)
        things = [
            (label.value, label.object_position_x, label.object_position_y)
            for label in state.labels
            if label.object_name not in _OWN_LABELS
        ]
        ceilings = [sector.ceiling_height for sector in state.sectors]
        values = state.labels_buffer[self.crop.window][middle, middle].copy() if things else None
        return Sight(x, y, eye, np.deg2rad(90.0 - angle_deg), ceilings, values, things)

    def level_depths_m(self, sights: Sequence[Sight], levels: GeneratedLevels) -> np.ndarray:
        """float32 `[sights, H, W]`, perpendicular depth at pixel centres on a generated level, metres; exact.

        Spaces are ray-cast. A thing is a flat picture that faces the camera, as far away as its place.
        """
        x, y, eye, yaw_rad = np.array([(sight.x, sight.y, sight.eye, sight.yaw_rad) for sight in sights]).T
        ceilings = np.array([sight.ceilings for sight in sights])
        depths = levels.raycaster.depth(x, y, eye, yaw_rad, self._pixel_slopes, self._pixel_falls, ceilings)
        for sight, depth in zip(sights, depths, strict=True):
            for value, thing_x, thing_y in sight.things:
                distance = (thing_x - sight.x) * np.sin(sight.yaw_rad) + (thing_y - sight.y) * np.cos(sight.yaw_rad)
                depth[sight.label_values == value] = max(distance, 1.0)
        return (depths / UNITS_PER_M).astype(np.float32)

    def labels(self, state: vizdoom.GameState) -> tuple[str, ...]:
        """Names of the things in the frame, sorted, without the player."""
        values = state.labels_buffer[self.crop.window]
        names: set[str] = set()
        for label in state.labels:
            name = label.object_name
            if name not in _OWN_LABELS and name not in names and (values == label.value).any():
                names.add(name)
        return tuple(sorted(names))


def pose_of(state: vizdoom.GameState) -> Pose:
    """The camera's pose and the body's velocity, metres and metres per tic."""
    x, y, z, angle_deg, velocity_x, velocity_y, *_ = state.game_variables.tolist()
    yaw_rad = np.deg2rad(90.0 - angle_deg)
    cosine, sine = float(np.cos(yaw_rad)), float(np.sin(yaw_rad))
    world_from_camera = np.array(
        [
            [cosine, 0.0, sine, x / UNITS_PER_M],
            [0.0, 1.0, 0.0, -z / UNITS_PER_M],
            [-sine, 0.0, cosine, y / UNITS_PER_M],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )
    return Pose(world_from_camera, np.array([velocity_x / UNITS_PER_M, 0.0, velocity_y / UNITS_PER_M]))
