"""The truth about a generated map, in metres and in our axes: for figures and pictures, never for a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mosaic_gym.worlds.maps.plan import Plan, Point, is_inside, meets_pillar

UNITS_PER_M = 32.0
"""The simulator's map units in a metre."""


@dataclass(frozen=True)
class RoomLayout:
    """A room, corridor or niche.

    Attributes:
        kind: `room`, `corridor` or `niche`.
        theme: name of its look.
        outline_m: `[n, 2]`, (x, z) of its corners, clockwise from above, metres.
        pillars_m: outlines of its pillars, `[4, 2]` each.
        ceiling_m: height over the floor.
        rooms: indices of the rooms that it is, belongs to or joins.
        light: 0 to 255, at present.
        is_dark: whether its light has gone out.
    """

    kind: str
    theme: str
    outline_m: np.ndarray
    pillars_m: tuple[np.ndarray, ...]
    ceiling_m: float
    rooms: tuple[int, ...]
    light: int
    is_dark: bool


@dataclass(frozen=True)
class DoorLayout:
    """A door between two rooms: its outline (x, z) `[4, 2]`, metres, and whether it is open at present."""

    outline_m: np.ndarray
    rooms: tuple[int, ...]
    is_open: bool


@dataclass(frozen=True)
class ThingLayout:
    """A thing: `start`, `prop`, `pickup` or `monster`, its name, present place (x, z) `[2]` in metres, and its room.

    `is_there` is False for a pickup that was taken.
    """

    kind: str
    name: str
    place_m: np.ndarray
    room: int
    is_there: bool


@dataclass(frozen=True)
class Layout:
    """A map and its present state.

    Attributes:
        seed: of the map.
        spaces: rooms first, by index; then corridors and niches.
        doors, things: see their classes.
        links: pairs of rooms that a corridor joins.
    """

    seed: int
    spaces: tuple[RoomLayout, ...]
    doors: tuple[DoorLayout, ...]
    things: tuple[ThingLayout, ...]
    links: tuple[tuple[int, int], ...]

    @property
    def rooms(self) -> tuple[RoomLayout, ...]:
        """The rooms alone."""
        return tuple(space for space in self.spaces if space.kind == "room")

    def room_at(self, x_m: float, z_m: float) -> int | None:
        """The index of the room, niche included, at a place; None in corridors, doors and outside."""
        for space in self.spaces:
            if space.kind != "corridor" and is_inside(space.outline_m, x_m, z_m):
                return space.rooms[0]
        return None


def layout_of(
    plan: Plan,
    ceilings: Sequence[float] | None = None,
    went_dark: Sequence[bool] | None = None,
    objects: Sequence[tuple[str, float, float]] | None = None,
) -> Layout:
    """The layout of a plan, at the start or at present.

    Args:
        plan: the map.
        ceilings: present height of each space's ceiling, map units; None for closed doors.
        went_dark: for each space, whether its light has gone out; None for none.
        objects: (name, x, y) of what the map holds at present, map units; None for what the plan has.
    """
    ceilings = [space.ceiling for space in plan.spaces] if ceilings is None else ceilings
    went_dark = [False] * len(plan.spaces) if went_dark is None else went_dark
    spaces, doors = [], []
    for space, height, is_dark in zip(plan.spaces, ceilings, went_dark, strict=True):
        outline_m = _metres(space.outline)
        if space.kind == "door":
            doors.append(DoorLayout(outline_m, space.rooms, height > 56))  # a body is 56 high
            continue
        pillars_m = tuple(_metres(pillar) for pillar in space.pillars)
        light = space.dark if is_dark else space.light
        parts = outline_m, pillars_m, height / UNITS_PER_M, space.rooms, light, is_dark
        spaces.append(RoomLayout(space.kind, space.theme, *parts))
    return Layout(plan.seed, tuple(spaces), tuple(doors), _things(plan, objects), plan.links)


def _things(plan: Plan, objects: Sequence[tuple[str, float, float]] | None) -> tuple[ThingLayout, ...]:
    things = []
    for thing in plan.things:
        x, y, name, is_there = thing.x, thing.y, NAMES.get(thing.number, thing.kind), True
        if objects is not None and thing.kind in ("pickup", "monster"):
            # A monster is the nearest of its kind to where it started; a pickup stays at its place until it is taken.
            same = [(px, py) for kind, px, py in objects if kind == name]
            nearest = min(same, key=lambda place: abs(place[0] - thing.x) + abs(place[1] - thing.y), default=None)
            if thing.kind == "monster" and nearest is not None:
                x, y = nearest
            is_there = nearest is not None and (
                thing.kind == "monster" or abs(nearest[0] - x) + abs(nearest[1] - y) < 1
            )
        place_m = np.array([x, y]) / UNITS_PER_M
        things.append(ThingLayout(thing.kind, name, place_m, thing.room, is_there))
    return tuple(things)


NAMES = {2014: "HealthBonus", 2015: "ArmorBonus", 3004: "Zombieman", 3001: "DoomImp", 3002: "Demon"}
"""The simulator's names of things, which labels use, by number."""


def _metres(outline: Sequence[Point]) -> np.ndarray:
    return np.array(outline, dtype=np.float64) / UNITS_PER_M


EYE_HEIGHT = 41.0
"""Height of a body's eyes over the floor, map units."""
BODY_RADIUS = 15.0
"""Half of the side of a body's box, map units, less the unit by which walls can be entered."""


def standing_heights(plan: Plan, x: float, y: float) -> set[float]:
    """The height of the eyes of a body at a place, map units; empty where no body fits."""
    return {EYE_HEIGHT} if _is_standable(plan, x, y, BODY_RADIUS) else set()


def _is_standable(plan: Plan, x: float, y: float, margin: float) -> bool:
    """Whether a body fits at a place: within open spaces, clear of walls, pillars and props."""
    corners = [(x + dx, y + dy) for dx in (-margin, margin) for dy in (-margin, margin)]
    open_spaces = [space for space in plan.spaces if space.kind != "door"]
    if not all(any(is_inside(space.outline, *corner) for space in open_spaces) for corner in corners):
        return False
    if any(meets_pillar(space, x, y, margin) for space in open_spaces):
        return False
    props = (thing for thing in plan.things if thing.kind == "prop")
    return all(max(abs(prop.x - x), abs(prop.y - y)) >= 2 * margin for prop in props)
