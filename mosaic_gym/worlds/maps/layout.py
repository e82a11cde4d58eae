"""The truth about a generated map, in metres and in our axes: for figures and pictures, never for a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mosaic_gym.worlds.maps.plan import Plan, Point, Thing, is_inside, meets_pillar

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


def layout_of(plan: Plan) -> Layout:
    """The layout of a plan at the start: doors are closed, lights are on, and pickups are there."""
    spaces, doors = [], []
    for space in plan.spaces:
        outline_m = _metres(space.outline)
        if space.kind == "door":
            doors.append(DoorLayout(outline_m, space.rooms, is_open=False))
            continue
        pillars_m = tuple(_metres(pillar) for pillar in space.pillars)
        parts = outline_m, pillars_m, space.ceiling / UNITS_PER_M, space.rooms, space.light
        spaces.append(RoomLayout(space.kind, space.theme, *parts, is_dark=False))
    things = tuple(
        ThingLayout(
            thing.kind, NAMES.get(thing.number, thing.kind), _metres((thing.x, thing.y)), thing.room, is_there=True
        )
        for thing in plan.things
    )
    return Layout(plan.seed, tuple(spaces), tuple(doors), things, plan.links)


def layout_after(
    layout: Layout,
    plan: Plan,
    ceilings: Sequence[float],
    entered: Collection[int],
    objects: Collection[tuple[str, float, float]],
) -> Layout:
    """The layout at present. What has not changed is shared with the layout at the start.

    Args:
        layout: at the start, from `layout_of`.
        plan: of the same map.
        ceilings: present height of each space's ceiling, map units.
        entered: indices of the rooms in which the body has been.
        objects: (name, x, y) of what the map holds at present, map units.
    """
    spaces = list(layout.spaces)
    for index in entered:
        if (dark := plan.spaces[index].dark) is not None:
            spaces[index] = replace(spaces[index], light=dark, is_dark=True)
    heights = [height for space, height in zip(plan.spaces, ceilings, strict=True) if space.kind == "door"]
    doors = tuple(
        replace(door, is_open=True) if height > BODY_HEIGHT else door
        for door, height in zip(layout.doors, heights, strict=True)
    )
    things = tuple(_thing_after(*pair, objects) for pair in zip(layout.things, plan.things, strict=True))
    return Layout(plan.seed, tuple(spaces), doors, things, plan.links)


def _thing_after(before: ThingLayout, thing: Thing, objects: Collection[tuple[str, float, float]]) -> ThingLayout:
    """A thing at present.

    A pickup stays at its place until it is taken; a monster is the nearest of its kind to where it started.
    """
    if thing.kind == "pickup":
        return before if (before.name, thing.x, thing.y) in objects else replace(before, is_there=False)
    if thing.kind == "monster":
        places = [(x, y) for name, x, y in objects if name == before.name]
        nearest = min(places, key=lambda place: abs(place[0] - thing.x) + abs(place[1] - thing.y), default=None)
        return replace(before, is_there=False) if nearest is None else replace(before, place_m=_metres(nearest))
    return before


NAMES = {2014: "HealthBonus", 2015: "ArmorBonus", 3004: "Zombieman", 3001: "DoomImp", 3002: "Demon"}
"""The simulator's names of things, which labels use, by number."""


def _metres(outline: Sequence[Point] | Sequence[float]) -> np.ndarray:
    return np.array(outline, dtype=np.float64) / UNITS_PER_M


EYE_HEIGHT = 41.0
"""Height of a body's eyes over the floor, map units."""
BODY_HEIGHT = 56.0
"""A door is open when a body fits under it, map units."""
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
