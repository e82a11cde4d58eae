"""Drawing a floor plan from a seed: a grid of rooms, corridors between them, pillars, niches, doors and things.

Every draw comes from one `random.Random` that is seeded with text, so that a map depends on its seed and options alone:
not on the machine, on hashing, or on maps drawn before.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from mosaic_gym.validation import Flag, Whole, validate
from mosaic_gym.worlds.maps.plan import Bounds, Plan, Point, Space, Thing, bounds_of, is_free, rectangle
from mosaic_gym.worlds.maps.themes import HELDOUT_THEMES, THEMES

SPLITS = ("train", "heldout", "heldout-themes")
CELL = 352
"""Side of a grid cell, map units. Every occupied cell holds one room."""
BAND = 80
"""Every room covers the middle of its cell by so much to each side, so that a straight corridor joins neighbours."""
STEP = 16
"""Walls stand at multiples of this from the least place that they can have."""
BORDER = 32
"""Distance of a room from the border of its cell, map units."""
WIDTHS = (96, 112, 128, 160)
"""Widths of corridors and doorways, map units. A body is 32 wide."""
GRIDS = ((3, 2), (2, 3), (3, 3), (4, 2), (2, 4), (4, 3), (3, 4))
LEAST_ROOMS = 6
DOOR_DEPTH = 16
CLEARANCE = 64
"""Free way around pillars."""
DARK = 96
"""Light of a room after its light went out."""
PICKUPS = (2014, 2015)
"""The simulator's numbers of a health bonus and an armor bonus."""
MONSTERS = (3004, 3001, 3002)
"""The simulator's numbers of a zombie, an imp and a demon."""
START = 1
"""The simulator's number of a player's start."""


@dataclass(frozen=True)
class MapOptions:
    """The things that a map has.

    Attributes:
        pickups: things to gather; each gives a reward of 1 and is gone for good.
        doors: whether half of the corridors have a door, which opens when the body walks against it and stays open.
        monsters: that walk to and fro in their rooms. They do not attack.
        lights: whether the light of some rooms goes out when the body enters them.
    """

    pickups: Annotated[int, Whole(0, 40)] = 8
    doors: Annotated[bool, Flag()] = True
    monsters: Annotated[int, Whole(0, 12)] = 2
    lights: Annotated[bool, Flag()] = True

    def __post_init__(self) -> None:
        validate(self)


def map_seed(episode_seed: int, split: str) -> int:
    """The seed of the map that an episode plays: every seed has a map of its own in each split.

    Seeds of `heldout` end in 9, those of `train` in any other digit; `heldout-themes` has maps of its own.
    """
    if split == "train":
        return episode_seed + episode_seed // 9
    return 10 * episode_seed + 9 if split == "heldout" else episode_seed


def draw_plan(seed: int, split: str = "train", options: MapOptions = MapOptions()) -> Plan:
    """The map of a map seed.

    Args:
        seed: 0 or more.
        split: `heldout-themes` draws other plans, in themes that no other split has.
        options: which things the map has.

    Raises:
        ValueError: an unknown split; the message lists the known ones.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the known ones are {', '.join(SPLITS)}")
    unseen = split == "heldout-themes"
    rng = random.Random(f"{'heldout-themes' if unseen else 'rooms'} {seed}")
    themes = [name for name in THEMES if (name in HELDOUT_THEMES) == unseen]
    cells = _draw_cells(rng)
    bounds = [_draw_bounds(rng, cell) for cell in cells]
    links = [(cells.index(a), cells.index(b)) for a, b in _draw_links(rng, cells)]
    openings: list[list[tuple[str, int, int]]] = [[] for _ in cells]
    room_themes = _draw_themes(rng, len(cells), links, themes)
    corridors = [
        space for link in links for space in _draw_corridor(rng, link, bounds, room_themes, openings, options.doors)
    ]
    rooms = [_draw_room(rng, i, bounds[i], room_themes[i], openings[i], options.lights) for i in range(len(cells))]
    niches = [niche for i, room in enumerate(rooms) for niche in _draw_niches(rng, i, room, openings[i])]
    things = _draw_things(rng, rooms, openings, options)
    return Plan(seed, (*rooms, *corridors, *niches), tuple(things), tuple(links))


def _draw_cells(rng: random.Random) -> list[Point]:
    """The occupied cells of a grid: connected, at least `LEAST_ROOMS`."""
    columns, rows = rng.choice(GRIDS)
    cells = [(i, j) for i in range(columns) for j in range(rows)]
    for _ in range(rng.randrange(len(cells) - LEAST_ROOMS + 1)):
        removed = rng.choice(cells)
        rest = [cell for cell in cells if cell != removed]
        if _is_connected(rest):
            cells = rest
    return cells


def _neighbours(cell: Point, cells: Sequence[Point]) -> list[Point]:
    i, j = cell
    return [other for other in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)) if other in cells]


def _is_connected(cells: Sequence[Point]) -> bool:
    reached, front = {cells[0]}, [cells[0]]
    while front:
        new = [other for other in _neighbours(front.pop(), cells) if other not in reached]
        reached.update(new)
        front += new
    return len(reached) == len(cells)


def _draw_bounds(rng: random.Random, cell: Point) -> Bounds:
    """The rectangle of a room: it covers the middle of its cell and stays away from its border."""
    sides = []
    for index in cell:
        middle = index * CELL + CELL // 2
        sides.append(rng.randrange(index * CELL + BORDER, middle - BAND + 1, STEP))
        sides.append(rng.randrange(middle + BAND, (index + 1) * CELL - BORDER + 1, STEP))
    west, east, south, north = sides
    return west, south, east, north


def _draw_links(rng: random.Random, cells: Sequence[Point]) -> list[tuple[Point, Point]]:
    """A spanning tree of the cells, and each further pair of neighbours with probability 0.4, which makes loops."""
    reached, links = [rng.choice(cells)], set()
    while len(reached) < len(cells):
        cell = rng.choice(reached)
        new = [other for other in _neighbours(cell, cells) if other not in reached]
        if new:
            reached.append(rng.choice(new))
            links.add((min(cell, reached[-1]), max(cell, reached[-1])))
    for cell in cells:
        for other in _neighbours(cell, cells):
            if cell < other and rng.random() < 0.4:
                links.add((cell, other))
    return sorted(links)


def _draw_themes(rng: random.Random, count: int, links: Sequence[tuple[int, int]], themes: Sequence[str]) -> list[str]:
    """A theme for every room, different from those of linked rooms where there are enough themes."""
    chosen: list[str] = []
    for room in range(count):
        taken = {chosen[a] for a, b in links if b == room and a < room} | {
            chosen[b] for a, b in links if a == room and b < room
        }
        chosen.append(rng.choice([theme for theme in themes if theme not in taken] or list(themes)))
    return chosen


def _draw_corridor(
    rng: random.Random,
    link: tuple[int, int],
    bounds: Sequence[Bounds],
    themes: Sequence[str],
    openings: Sequence[list[tuple[str, int, int]]],
    doors: bool,
) -> list[Space]:
    """The connection of two rooms: a corridor, or a doorway where they are near, perhaps with a door in its middle.

    The ends are noted in `openings` of both rooms, as (side, from, to).
    """
    a, b = link
    first, second = bounds[a], bounds[b]
    eastward = first[2] <= second[0]
    axis = 1 if eastward else 0  # along which the opening lies
    low, high = max(first[axis], second[axis]) + STEP, min(first[axis + 2], second[axis + 2]) - STEP
    width = min(rng.choice(WIDTHS), high - low)
    start = rng.randrange(low, high - width + 1, STEP)
    end = start + width
    theme = themes[rng.choice(link)]
    ceiling, light = rng.choice((80, 88, 96, 104)), rng.choice((128, 160, 192, 224))
    near, far = (first[2], second[0]) if eastward else (first[3], second[1])
    parts = [("corridor", near, far)]
    if doors and rng.random() < 0.5:
        middle = (near + far - DOOR_DEPTH) // 2
        parts = [
            ("corridor", near, middle),
            ("door", middle, middle + DOOR_DEPTH),
            ("corridor", middle + DOOR_DEPTH, far),
        ]
    openings[a].append(("E" if eastward else "N", start, end))
    openings[b].append(("W" if eastward else "S", start, end))
    spaces = []
    for kind, p, q in parts:
        outline = rectangle((p, start, q, end) if eastward else (start, p, end, q))
        spaces.append(Space(kind, outline, theme, 0 if kind == "door" else ceiling, light, link))
    return spaces


def _draw_room(
    rng: random.Random,
    index: int,
    bounds: Bounds,
    theme: str,
    openings: Sequence[tuple[str, int, int]],
    lights: bool,
) -> Space:
    """A room: its rectangle, perhaps without a corner, or perhaps with pillars."""
    outline, pillars = rectangle(bounds), _draw_pillars(rng, bounds)
    corner = rng.choice((None, None, "NE", "NW", "SE", "SW"))
    west, south, east, north = bounds
    width = rng.randrange(64, max((east - west) // 2 - 31, 65), STEP)
    height = rng.randrange(64, max((north - south) // 2 - 31, 65), STEP)
    if corner is not None and _corner_is_closed(bounds, corner, width, height, openings):
        outline, pillars = _without_corner(bounds, corner, width, height), ()
    light = rng.choice((144, 176, 208, 240))
    dark = DARK if rng.random() < 0.2 and lights else None
    return Space("room", outline, theme, rng.choice((112, 128, 144, 160, 176)), light, (index,), pillars, dark)


def _corner_is_closed(
    bounds: Bounds, corner: str, width: int, height: int, openings: Sequence[tuple[str, int, int]]
) -> bool:
    """Whether no opening lies within, or just beside, the part of the walls that a cut corner removes."""
    west, south, east, north = bounds
    for side, low, high in openings:
        if side == corner[1]:
            if high > north - height - STEP if corner[0] == "N" else low < south + height + STEP:
                return False
        elif side == corner[0]:
            if high > east - width - STEP if corner[1] == "E" else low < west + width + STEP:
                return False
    return True


def _without_corner(bounds: Bounds, corner: str, width: int, height: int) -> tuple[Point, ...]:
    """The outline of a rectangle that lacks a rectangular corner, clockwise."""
    west, south, east, north = bounds
    at = {"SW": (west, south), "NW": (west, north), "NE": (east, north), "SE": (east, south)}
    inner_x = east - width if corner[1] == "E" else west + width
    inner_y = north - height if corner[0] == "N" else south + height
    outline: list[Point] = []
    for name, point in at.items():
        if name != corner:
            outline.append(point)
            continue
        along_x, along_y = (inner_x, point[1]), (point[0], inner_y)
        vertical_first = name in ("NE", "SW")  # clockwise, one arrives at these corners along the x axis
        outline += [along_x, (inner_x, inner_y), along_y] if vertical_first else [along_y, (inner_x, inner_y), along_x]
    return tuple(outline)


def _draw_pillars(rng: random.Random, bounds: Bounds) -> tuple[tuple[Point, ...], ...]:
    """No pillar, one in the middle, two or four, square, with free way all around."""
    west, south, east, north = bounds
    half, count = rng.choice((16, 24)), rng.choice((0, 0, 1, 2, 4))
    x, y = (west + east) // 2, (south + north) // 2
    dx, dy = (east - west) // 4, (north - south) // 4
    centres = {
        0: [],
        1: [(x, y)],
        2: [(x - dx, y), (x + dx, y)],
        4: [(x + sx * dx, y + sy * dy) for sx in (-1, 1) for sy in (-1, 1)],
    }[count]
    gap_x = dx if count in (2, 4) else 2 * dx
    gap_y = dy if count == 4 else 2 * dy
    if min(gap_x, gap_y) - half < CLEARANCE:
        return ()
    return tuple(
        ((x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)) for x, y in centres
    )


def _draw_niches(rng: random.Random, index: int, room: Space, openings: Sequence[tuple[str, int, int]]) -> list[Space]:
    """Recesses in walls that have no opening; their ceiling is lower and their light brighter than the room's."""
    if len(room.outline) != 4:
        return []
    west, south, east, north = bounds_of(room.outline)
    niches = []
    for side in "NESW":
        if any(opening[0] == side for opening in openings) or rng.random() < 0.65:
            continue
        low, high = (west, east) if side in "NS" else (south, north)
        width, depth = rng.choice((48, 64, 96)), rng.choice((8, 16))
        start = rng.randrange(low + 32, high - 32 - width + 1, STEP)
        bounds = {
            "N": (start, north, start + width, north + depth),
            "S": (start, south - depth, start + width, south),
            "E": (east, start, east + depth, start + width),
            "W": (west - depth, start, west, start + width),
        }[side]
        ceiling, light = rng.choice((72, 88)), min(room.light + 32, 255)
        niches.append(Space("niche", rectangle(bounds), room.theme, ceiling, light, (index,)))
    return niches


def _draw_things(
    rng: random.Random,
    rooms: Sequence[Space],
    openings: Sequence[Sequence[tuple[str, int, int]]],
    options: MapOptions,
) -> list[Thing]:
    """The start, props in corners, pickups and monsters, none too near to another."""
    order = rng.sample(range(len(rooms)), len(rooms))
    starts = (_draw_thing(rng, "start", START, room, rooms, (), 64) for room in order)
    things = [next(start for start in starts if start is not None)]
    for i, room in enumerate(rooms):
        west, south, east, north = bounds_of(room.outline)
        x, y = rng.choice([(x, y) for x in (west + 28, east - 28) for y in (south + 28, north - 28)])
        free = is_free(room, x, y, 16) and not _is_near_opening(x, y, room, openings[i])
        far = max(abs(x - things[0].x), abs(y - things[0].y)) >= 96
        if rng.random() < 0.7 and free and far:
            things.append(Thing("prop", THEMES[room.theme].prop, x, y, 0, i))
    for kind, numbers, count, clearance in (
        ("pickup", PICKUPS, options.pickups, 64),
        ("monster", MONSTERS, options.monsters, 128),
    ):
        for _ in range(count):
            thing = _draw_thing(rng, kind, rng.choice(numbers), rng.randrange(len(rooms)), rooms, things, clearance)
            if thing is not None:
                things.append(replace(thing, patrol=_draw_patrol(rng, thing, rooms)) if kind == "monster" else thing)
    return things


def _draw_patrol(rng: random.Random, monster: Thing, rooms: Sequence[Space]) -> tuple[Point, Point]:
    """Where a monster starts, and a free place of its room as far away as eight draws find."""
    draws = [_draw_thing(rng, "goal", 0, monster.room, rooms, (), 0) for _ in range(8)]
    places = [(monster.x, monster.y), *((draw.x, draw.y) for draw in draws if draw is not None)]
    return places[0], max(places, key=lambda place: abs(place[0] - monster.x) + abs(place[1] - monster.y))


def _draw_thing(
    rng: random.Random,
    kind: str,
    number: int,
    room: int,
    rooms: Sequence[Space],
    others: Sequence[Thing],
    clearance: int,
) -> Thing | None:
    """A thing at a free place of a room; None if 60 draws find none."""
    west, south, east, north = bounds_of(rooms[room].outline)
    for _ in range(60):
        x, y = rng.randrange(west + 40, east - 39, 8), rng.randrange(south + 40, north - 39, 8)
        apart = all(max(abs(other.x - x), abs(other.y - y)) >= clearance for other in others)
        if apart and is_free(rooms[room], x, y, 32):
            return Thing(kind, number, x, y, rng.randrange(0, 360, 15), room)
    return None


def _is_near_opening(x: int, y: int, room: Space, openings: Sequence[tuple[str, int, int]]) -> bool:
    """Whether a thing there would stand in the way through an opening."""
    west, south, east, north = bounds_of(room.outline)
    distance = {"N": north - y, "S": y - south, "E": east - x, "W": x - west}
    return any(
        distance[side] < 64 and low - 48 < (x if side in "NS" else y) < high + 48 for side, low, high in openings
    )
