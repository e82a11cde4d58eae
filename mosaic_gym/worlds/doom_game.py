"""The engine behind `DoomWorld`: opening a ViZDoom game, and reading what it shows.

Doom's axes are x east, y north, z up in map units, with angles in degrees counter-clockwise from
east. Ours are x right, y down, z forward in metres: (x, y, z) of the world is (x, -z, y) of Doom
over 32, and a heading of 90 degrees is our yaw 0.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import vizdoom

from mosaic_gym.geometry.control import Pose, pose_at, yaw_of

UNITS_PER_M = 32.0
"""Doom's map units in a metre."""

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
)
_SCREEN_SIZES = ((192, 256), (240, 320), (300, 400), (384, 512), (480, 640), (600, 800), (768, 1024), (960, 1280))
_PIXEL_ASPECT = 1.2  # Doom's pixels at 4:3 are a fifth taller than wide, whatever the resolution
_BODY_RADIUS = 15.0  # map units; the engine's is 16, and a body that touches a wall is at most a unit inside that
_EYES = 41.0  # map units, above the floor a body stands on
_LEAST_OVERSAMPLING = 2  # one engine pixel a picture pixel would alias


@dataclass(frozen=True)
class Crop:
    """How a picture is cut from the engine's screen: centred, then averaged in square blocks.

    Attributes:
        screen_height, screen_width: the screen, pixels, always 4:3.
        height, width: the picture, pixels.
        factor: screen pixels along each side of a picture pixel.
    """

    screen_height: int
    screen_width: int
    height: int
    width: int
    factor: int

    @property
    def window(self) -> tuple[slice, slice]:
        """The part of the screen that is kept: rows and columns."""
        rows, columns = self.height * self.factor, self.width * self.factor
        top, left = (self.screen_height - rows) // 2, (self.screen_width - columns) // 2
        return slice(top, top + rows), slice(left, left + columns)

    @property
    def image_from_camera(self) -> np.ndarray:
        """K `[3, 3]` float64 in pixels of the picture: the screen spans 90 degrees across."""
        focal_px = self.screen_width / 2 / self.factor
        return np.array(
            [[focal_px, 0.0, self.width / 2], [0.0, focal_px * _PIXEL_ASPECT, self.height / 2], [0.0, 0.0, 1.0]]
        )

    def shrink_frame(self, screen: np.ndarray) -> np.ndarray:
        """uint8 `[height, width, 3]` from the screen's uint8 `[screen_height, screen_width, 3]`."""
        rows = screen[self.window].reshape(self.height, self.factor, -1)
        # Added slice by slice: numpy's own sum over short inner axes takes four times as long.
        columns = sum(rows[:, index].astype(np.uint16) for index in range(self.factor))
        columns = columns.reshape(self.height, self.width, self.factor, 3)
        sums = sum(columns[:, :, index] for index in range(self.factor))
        area = self.factor**2
        return ((sums + area // 2) // area).astype(np.uint8)

    def shrink_depth(self, depth: np.ndarray) -> np.ndarray:
        """The median of every block `[height, width]`: an average would invent depths at edges.

        Args:
            depth: of the window, `[height * factor, width * factor]`.
        """
        blocks = self._blocks(depth).transpose(0, 2, 1, 3).reshape(self.height, self.width, -1)
        middle = blocks.shape[-1] // 2
        return np.partition(blocks, middle, axis=-1)[..., middle]

    def _blocks(self, image: np.ndarray) -> np.ndarray:
        return image.reshape(self.height, self.factor, self.width, self.factor, *image.shape[2:])


def choose_crop(height: int, width: int) -> Crop:
    """The smallest engine screen of which `(height, width)` is a whole fraction, touching two sides."""
    for screen_height, screen_width in _SCREEN_SIZES:
        factor = min(screen_height // max(height, 1), screen_width // max(width, 1))
        touches = factor * height == screen_height or factor * width == screen_width
        if min(height, width) > 0 and factor >= _LEAST_OVERSAMPLING and touches:
            return Crop(screen_height, screen_width, height, width, factor)
    raise ValueError(
        f"no engine screen can be averaged down to {height}x{width}; sizes that work are whole fractions of "
        "192x256, 240x320, 300x400 or 480x640 on one side, such as 64x64, 48x64, 96x96 or 128x128"
    )


def check_scenario(scenario: str) -> tuple[str, str]:
    """The name of a scenario, and its map if one is given.

    Raises:
        ValueError: it is none of `SCENARIOS`, or has no such map.
    """
    name, _, map_name = scenario.partition(":")
    if name not in SCENARIOS or (map_name and not _is_map(name, map_name)):
        known = ", ".join(SCENARIOS)
        raise ValueError(f"unknown scenario {scenario!r}; known: {known} (a map: freedoom1:E1M1, freedoom2:MAP01)")
    return name, map_name


def open_game(scenario: str, crop: Crop, timeout_tics: int | None) -> vizdoom.DoomGame:
    """A running game without a window, driven by thrusts and turns, its view bob removed.

    Args:
        scenario: one of `SCENARIOS`, for Freedoom with an optional map after a colon.
        crop: what will be cut from its screen.
        timeout_tics: tics after which the game ends an episode; None keeps the scenario's own.
    """
    name, map_name = check_scenario(scenario)
    game = vizdoom.DoomGame()
    game.load_config(str(Path(vizdoom.scenarios_path) / f"{name}.cfg"))
    if name.startswith("freedoom"):
        game.set_doom_map((map_name or ("E1M1" if name == "freedoom1" else "MAP01")).lower())
    # Else the engine leaves its settings in whatever folder it is started from.
    game.set_doom_config_path(str(Path(tempfile.gettempdir()) / "mosaic_gym_vizdoom.ini"))
    game.set_window_visible(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{crop.screen_width}X{crop.screen_height}"))
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_depth_buffer_enabled(True)
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
    game.add_game_args("+movebob 0 +sv_cheats 1")  # `warp`, which puts the body somewhere, counts as a cheat
    game.init()
    return game


def _is_map(name: str, map_name: str) -> bool:
    pattern = r"E[1-4]M[1-9]" if name == "freedoom1" else r"MAP(0[1-9]|[12]\d|3[0-2])" if name == "freedoom2" else ""
    return bool(pattern) and re.fullmatch(pattern, map_name.upper()) is not None


@dataclass(frozen=True)
class Surfaces:
    """The flat surfaces of a map: coarse depths are snapped to them, and bodies stand on them.

    The engine's depth buffer has 256 levels, one every 22 cm. Where the map says which surface a
    pixel shows, the surface's own depth takes the reading's place; things keep their reading.

    Attributes:
        walls: `[n, 2, 2]`, both ends of every blocking line, map units.
        ceiling: the height every sector's ceiling has, or None where they differ.
        outlines: `[n, 2, 2]` for every sector, both ends of its lines, map units.
        floors: the height of every sector's floor, map units.
    """

    walls: np.ndarray
    ceiling: float | None
    outlines: tuple[np.ndarray, ...]
    floors: tuple[float, ...]

    @staticmethod
    def of(state: vizdoom.GameState) -> Surfaces:
        """The surfaces of the map that is being played."""
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
            x, y: where the camera is, map units.
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
        """How high the eyes of a body may be that stands at a place, map units; empty where no body fits.

        It fits inside a sector of the map, clear of what blocks, and stands on the highest floor under it. (The engine
        itself puts a body anywhere, into walls and beyond the map, where it is then stuck.)
        """
        if _meets_body(self.walls, x, y).any():
            return set()
        inside = [_is_inside(outline, x, y) for outline in self.outlines]
        if not any(inside):
            return set()
        under = zip(self.outlines, self.floors, inside, strict=True)
        return {floor + _EYES for outline, floor, within in under if within or _meets_body(outline, x, y).any()}


def _meets_body(lines: np.ndarray, x: float, y: float) -> np.ndarray:
    """Which lines `[n, 2, 2]` run through a body at a place, bool `[n]`; map units."""
    # A body is a square box. A line misses it if all of it lies beyond one side, or all four corners on one side of it.
    (x1, y1), (x2, y2) = (lines - (x, y)).transpose(1, 2, 0)
    beyond = np.minimum(np.abs(x1), np.abs(x2)) * (np.sign(x1) == np.sign(x2)) >= _BODY_RADIUS
    beyond |= np.minimum(np.abs(y1), np.abs(y2)) * (np.sign(y1) == np.sign(y2)) >= _BODY_RADIUS
    run_x, run_y = x2 - x1, y2 - y1
    aside = np.abs(run_x * y1 - run_y * x1) >= _BODY_RADIUS * (np.abs(run_x) + np.abs(run_y))
    return ~(beyond | aside)


def _is_inside(outline: np.ndarray, x: float, y: float) -> bool:
    """Whether a place is inside a sector; map units."""
    (x1, y1), (x2, y2) = outline.transpose(1, 2, 0)
    crossed = (y1 > y) != (y2 > y)
    where = x1[crossed] + (y - y1[crossed]) / (y2 - y1)[crossed] * (x2 - x1)[crossed]
    return np.count_nonzero(where > x) % 2 == 1  # a ray from inside leaves its outline once more than it enters


# Fitted on analytic distances of 15,600 wall and 100,000 floor pixels: walls and floors are
# rounded differently by the engine, by six units.
_UNITS_PER_LEVEL, _NEAREST_WALL, _NEAREST_FLOOR = 7.136, 8.64, 14.64
_SNAP = 6.0


class Eye:
    """Reads the engine's state as pictures, depths in metres, poses and names."""

    def __init__(self, crop: Crop):
        self.crop = crop
        rows, columns = crop.window
        focal_px = crop.screen_width / 2
        self._slopes = (np.arange(columns.start, columns.stop) + 0.5 - crop.screen_width / 2) / focal_px
        below = np.arange(rows.start, rows.stop) + 0.5 - crop.screen_height / 2
        self._falls = below / (focal_px * _PIXEL_ASPECT)  # downward over forward along each row's rays

    def frame(self, state: vizdoom.GameState) -> np.ndarray:
        """uint8 `[H, W, 3]`."""
        return self.crop.shrink_frame(state.screen_buffer)

    def depth_m(self, state: vizdoom.GameState, surfaces: Surfaces) -> np.ndarray:
        """float32 `[H, W]`, perpendicular depth, metres, snapped to the map's surfaces."""
        x, y, camera_height, _, _, _, foot_height = state.game_variables
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

    def labels(self, state: vizdoom.GameState) -> tuple[str, ...]:
        """Names of the things in the picture, sorted, without the body's own."""
        seen = set(np.unique(state.labels_buffer[self.crop.window]).tolist())
        names = {label.object_name for label in state.labels if label.value in seen}
        return tuple(sorted(names - {"DoomPlayer", "Self"}))


def pose_of(state: vizdoom.GameState) -> Pose:
    """The camera's pose and the body's velocity, metres and metres per tic."""
    x, y, z, angle_deg, velocity_x, velocity_y, _ = state.game_variables
    place = pose_at(x / UNITS_PER_M, -z / UNITS_PER_M, y / UNITS_PER_M, np.deg2rad(90.0 - angle_deg))
    return Pose(place.world_from_camera, np.array([velocity_x, 0.0, velocity_y]) / UNITS_PER_M)
