"""Floor plans as data: spaces with outlines, and the things that stand in them.

Coordinates are the simulator's map units (32 to a metre), x to the east and y to the north. Floors are at height 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[int, int]
Bounds = tuple[int, int, int, int]
"""West, south, east and north of a rectangle."""


@dataclass(frozen=True)
class Space:
    """A part of a map with one floor and one ceiling.

    Attributes:
        kind: `room`, `corridor`, `niche` or `door`.
        outline: corners, clockwise.
        theme: name, see `themes.THEMES`.
        ceiling: height; a closed door's is 0.
        light: 0 to 255.
        rooms: index of the room that the space is or belongs to; of a corridor or door, those of the rooms it joins.
        pillars: outlines of the pillars inside it, counterclockwise.
        dark: light after the body has entered for the first time; None if it stays.
    """

    kind: str
    outline: tuple[Point, ...]
    theme: str
    ceiling: int
    light: int
    rooms: tuple[int, ...]
    pillars: tuple[tuple[Point, ...], ...] = ()
    dark: int | None = None


@dataclass(frozen=True)
class Thing:
    """Something that stands in a room.

    Attributes:
        kind: `start`, `prop`, `pickup` or `monster`.
        number: the simulator's number of it.
        x, y: where.
        angle_deg: heading, counterclockwise from east.
        room: index of the room.
        patrol: where a monster walks to and from; None for what stands still.
    """

    kind: str
    number: int
    x: int
    y: int
    angle_deg: int
    room: int
    patrol: tuple[Point, Point] | None = None


@dataclass(frozen=True)
class Plan:
    """A map: the first spaces are its rooms, in the order of their indices.

    Attributes:
        seed: that it was drawn from.
        spaces: rooms first, then corridors, doors and niches.
        things: the start first.
        links: pairs of rooms that a corridor joins.
    """

    seed: int
    spaces: tuple[Space, ...]
    things: tuple[Thing, ...]
    links: tuple[tuple[int, int], ...]

    @property
    def rooms(self) -> tuple[Space, ...]:
        """The rooms alone."""
        return tuple(space for space in self.spaces if space.kind == "room")


@dataclass(frozen=True)
class Edge:
    """A wall or an opening between two points.

    Attributes:
        a, b: its ends; the front space is on the right of the way from a to b.
        front: index of the space in front.
        back: index of the space behind; None for a wall.
    """

    a: Point
    b: Point
    front: int
    back: int | None


def rectangle(bounds: Bounds) -> tuple[Point, ...]:
    """The outline of a rectangle, clockwise."""
    west, south, east, north = bounds
    return ((west, south), (west, north), (east, north), (east, south))


def bounds_of(outline: Sequence[Point]) -> Bounds:
    """The smallest rectangle around an outline."""
    xs, ys = zip(*outline, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def is_inside(outline: Sequence[Point], x: float, y: float) -> bool:
    """Whether a point is inside an outline: a ray to the east crosses it an odd number of times."""
    inside = False
    for (x1, y1), (x2, y2) in zip(outline, (*outline[1:], outline[0]), strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
            inside = not inside
    return inside


def is_free(space: Space, x: float, y: float, margin: float) -> bool:
    """Whether a square around a point, `margin` to each side, is inside a space and clear of its pillars."""
    corners = [(x + dx, y + dy) for dx in (-margin, margin) for dy in (-margin, margin)]
    if not all(is_inside(space.outline, *corner) for corner in corners):
        return False
    return not meets_pillar(space, x, y, margin)


def meets_pillar(space: Space, x: float, y: float, margin: float) -> bool:
    """Whether a pillar of a space reaches into a square around a point, `margin` to each side."""
    for pillar in space.pillars:
        west, south, east, north = bounds_of(pillar)
        if west - margin < x < east + margin and south - margin < y < north + margin:
            return True
    return False


def edges_of(plan: Plan) -> list[Edge]:
    """All walls and openings of a plan. An outline is split where a corner of another one touches it.

    Two spaces that run along the same edge in opposite directions share an opening; any other edge is a wall.
    """
    rings = [(ring, i) for i, space in enumerate(plan.spaces) for ring in (space.outline, *space.pillars)]
    corners = sorted({point for ring, _ in rings for point in ring})
    spaces: dict[tuple[Point, Point], int] = {}
    for ring, i in rings:
        for a, b in zip(ring, (*ring[1:], ring[0]), strict=True):
            chain = [a, *_points_between(a, b, corners), b]
            spaces |= {(p, q): i for p, q in zip(chain, chain[1:], strict=False)}
    edges = []
    for (a, b), i in spaces.items():
        back = spaces.get((b, a))
        if back is None or a < b:
            edges.append(Edge(a, b, i, back))
    return edges


def _points_between(a: Point, b: Point, points: Sequence[Point]) -> list[Point]:
    """The points strictly between two others on an axis-aligned line, in order from a to b."""
    axis = 1 if a[0] == b[0] else 0
    low, high = sorted((a[axis], b[axis]))
    found = [point for point in points if point[1 - axis] == a[1 - axis] and low < point[axis] < high]
    return sorted(found, key=lambda point: abs(point[axis] - a[axis]))
