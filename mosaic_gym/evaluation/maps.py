"""`mosaic-gym maps`: draws a generated map from above, or the sheet of all themes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image

from mosaic_gym.evaluation.reports.map import map_picture, theme_sheet
from mosaic_gym.geometry.control import pose_at
from mosaic_gym.validation import Flag, OneOf, Whole, option, validate
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.maps.layout import EYE_HEIGHT, UNITS_PER_M, layout_of
from mosaic_gym.worlds.maps.plan import Plan, bounds_of, is_free
from mosaic_gym.worlds.maps.rooms import SPLITS, MapOptions, draw_plan
from mosaic_gym.worlds.maps.themes import HELDOUT_THEMES, THEMES
from mosaic_gym.worlds.protocol import Start


@dataclass(frozen=True)
class Config:
    """Draw a generated map from above, with its rooms, doors and things; or the sheet of all themes."""

    seed: Annotated[int, Whole(0)] = 0
    """Seed of the map; the same as `map_seed` and as SEED in `rooms:SEED`."""
    split: Annotated[str, OneOf(*SPLITS)] = "train"
    """`heldout-themes` draws other maps, in the themes that no other split has."""
    out: Path = Path("out/map.png")
    """File of the picture."""
    themes: Path | None = None
    """Draw the sheet of all themes to this file instead, one 64x64 frame of the simulator each."""
    episode: Path | None = None
    """Draw the path of this recorded episode (its folder) on its map, whose seed and split it has."""
    pickups: Annotated[int, Whole(0, 40)] = MapOptions.pickups
    """Things to gather."""
    doors: Annotated[bool, Flag()] = MapOptions.doors
    """Whether the map has doors."""
    monsters: Annotated[int, Whole(0, 12)] = MapOptions.monsters
    """Monsters that walk."""
    lights: Annotated[bool, Flag()] = MapOptions.lights
    """Whether the light of some rooms goes out."""

    def __post_init__(self) -> None:
        validate(self, option)


def draw(config: Config) -> Path:
    """Writes the picture; returns its file.

    Raises:
        ValueError: an episode of another scenario than `rooms`.
        OSError: the file cannot be written, or the episode cannot be read.
    """
    if config.themes is not None:
        return _save(theme_sheet(theme_frames()), config.themes)
    if config.episode is not None:
        return _save(map_picture(*_recorded(config.episode)), config.out)
    options = MapOptions(config.pickups, config.doors, config.monsters, config.lights)
    return _save(map_picture(layout_of(draw_plan(config.seed, config.split, options))), config.out)


def _recorded(folder: Path) -> tuple:
    from mosaic_gym.data.episodes import read_episode

    metadata, arrays = read_episode(folder)
    if "map_seed" not in metadata:
        raise ValueError(f"{folder} is an episode of {metadata['scenario']}, which has no generated map")
    plan = draw_plan(metadata["map_seed"], metadata["split"], MapOptions(**metadata["maps"]))
    return layout_of(plan), arrays["world_from_camera"][:, :, [0, 2], 3].reshape(-1, 2).numpy()


def theme_frames() -> dict[str, np.ndarray]:
    """One frame of the simulator for each theme, uint8 `[64, 64, 3]`: a bright room, seen from a side."""
    frames = {}
    for split in ("train", "heldout-themes"):
        options = MapOptions(pickups=0, doors=False, monsters=0, lights=False)
        with closing(DoomWorld("rooms", 64, 64, timeout_tics=0, split=split, maps=options)) as world:
            for theme in THEMES:
                if (theme in HELDOUT_THEMES) == (split == "heldout-themes"):
                    start = _start_in(theme, split, options)
                    frames[theme] = world.start(start)[1].frames[-1]
    return {theme: frames[theme] for theme in THEMES}


def _start_in(theme: str, split: str, options: MapOptions) -> Start:
    """A start at the side of the first bright room of a theme that has a prop; the camera looks at the prop."""
    for seed in range(1000):
        plan = draw_plan(seed, split, options)
        for thing in plan.things[1:]:
            room = plan.rooms[thing.room]
            if room.theme == theme and room.light >= 208 and not room.pillars and len(room.outline) == 4:
                return _facing(plan, thing.room, (thing.x, thing.y), seed)
    raise RuntimeError(f"no bright room of the theme {theme} in 1000 maps")


def _facing(plan: Plan, room: int, target: tuple[int, int], seed: int) -> Start:
    """A start in a corner of a room's free part, away from a place that it looks past."""
    west, south, east, north = bounds_of(plan.rooms[room].outline)
    places = [(x, y) for x in range(west + 40, east - 40, 16) for y in range(south + 40, north - 40, 16)]
    free = [place for place in places if is_free(plan.rooms[room], *place, 24)]
    x, y = max(free, key=lambda place: abs(place[0] - target[0]) + abs(place[1] - target[1]))
    yaw_rad = float(np.arctan2(target[0] - x, target[1] - y))
    pose = pose_at(x / UNITS_PER_M, -EYE_HEIGHT / UNITS_PER_M, y / UNITS_PER_M, yaw_rad)
    return Start(seed=0, map_seed=seed, world_from_camera=pose.world_from_camera)


def _save(picture: np.ndarray, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(file, optimize=True)
    print(file)
    return file
