"""A generated map from above as a grid of squares: what each belongs to, where a body has room, and ways through it.

For recordings and pictures: the ways use the truth about a map, which no model is given.
"""

from __future__ import annotations

import heapq
import math

import numpy as np

from mosaic_gym.worlds.maps.layout import Layout

SQUARE_M = 0.25
"""Side of a square: the largest that all walls of the generator fall on."""
STRIDE = 2
"""Ways lead over every second square in both directions."""
BODY_SQUARES = 2
"""Squares from the middle of a body to its side, 0.5 m."""
COMFORT_SQUARES = 6
"""Clearance beyond this makes a way no better, squares."""
INSIDE_M = 2.0
"""A way into a room ends so far behind its doorway."""
OUTSIDE = -1

Place = tuple[float, float]
"""(x, z), metres."""


class FloorGrid:
    """The floor of a map in squares of `SQUARE_M`.

    Args:
        layout: the map; closed doors count as open, because they open when a body walks against them.

    Attributes:
        space: int16 `[n_z, n_x]`, index into `layout.spaces`; `OUTSIDE` in walls, pillars and doors.
        clearance: `[n_z, n_x]`, squares to the nearest wall, pillar or prop, at most `COMFORT_SQUARES`.
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        corners = np.concatenate([space.outline_m for space in layout.spaces])
        self._origin_m = corners.min(0) - 1.0
        n_x, n_z = np.ceil((corners.max(0) + 1.0 - self._origin_m) / SQUARE_M).astype(int)
        self.space = np.full((n_z, n_x), OUTSIDE, dtype=np.int16)
        for index, space in enumerate(layout.spaces):
            self._paint(self.space, space.outline_m, index)
            for pillar_m in space.pillars_m:
                self._paint(self.space, pillar_m, OUTSIDE)
        free = self.space != OUTSIDE
        for door in layout.doors:
            self._paint(free, door.outline_m, True)
        for thing in layout.things:
            if thing.kind == "prop":
                (column, row), reach = self._square(thing.place_m), BODY_SQUARES
                free[row - reach : row + reach, column - reach : column + reach] = False
        self.clearance = np.zeros(free.shape, dtype=np.int8)
        for _ in range(COMFORT_SQUARES):
            self.clearance += free
            around = np.pad(free, 1)
            rows = around[:-2] & around[1:-1] & around[2:]
            free = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]

    def _paint(self, target: np.ndarray, outline_m: np.ndarray, value: int | bool) -> None:
        """Sets the squares whose middle is inside an outline `[n, 2]` (even-odd rule)."""
        (left, low), (right, high) = self._square(outline_m.min(0)), self._square(outline_m.max(0) - 1e-6)
        x = self._origin_m[0] + (np.arange(left, right + 1) + 0.5) * SQUARE_M
        z = (self._origin_m[1] + (np.arange(low, high + 1) + 0.5) * SQUARE_M)[:, None]
        inside = np.zeros((len(z), len(x)), dtype=bool)
        for (x1, z1), (x2, z2) in zip(outline_m, np.roll(outline_m, -1, axis=0), strict=True):
            if x1 == x2:  # a ray to the right meets only the lines along z
                inside ^= (x < x1) & (z > min(z1, z2)) & (z < max(z1, z2))
        target[low : high + 1, left : right + 1][inside] = value

    def _square(self, place_m: np.ndarray | Place) -> tuple[int, int]:
        """Column and row of the square at a place."""
        (x_m, z_m), (origin_x_m, origin_z_m) = place_m, self._origin_m.tolist()
        return math.floor((x_m - origin_x_m) / SQUARE_M), math.floor((z_m - origin_z_m) / SQUARE_M)

    def spaces_at(self, places_m: np.ndarray) -> np.ndarray:
        """Indices `[n]` of the spaces at places `[n, 2]`; `OUTSIDE` where there is none."""
        column, row = np.floor((places_m - self._origin_m) / SQUARE_M).astype(int).T
        inside = (column >= 0) & (row >= 0) & (column < self.space.shape[1]) & (row < self.space.shape[0])
        n_z, n_x = self.space.shape
        return np.where(inside, self.space[row.clip(0, n_z - 1), column.clip(0, n_x - 1)], OUTSIDE)

    def room_at(self, place_m: Place) -> int | None:
        """The index of the room, niche included, at a place; None in corridors, doors and outside."""
        column, row = self._square(place_m)
        n_z, n_x = self.space.shape
        index = int(self.space[row, column]) if 0 <= column < n_x and 0 <= row < n_z else OUTSIDE
        space = None if index == OUTSIDE else self.layout.spaces[index]
        return None if space is None or space.kind == "corridor" else space.rooms[0]

    def clearance_on(self, start_m: Place, end_m: Place) -> int:
        """The least clearance, squares, on the straight line between two places."""
        start, end = np.asarray(start_m), np.asarray(end_m)
        count = max(int(np.hypot(*(end - start)) / (SQUARE_M / 2)), 1)
        places = start + np.linspace(0, 1, count + 1)[:, None] * (end - start)
        column, row = np.floor((places - self._origin_m) / SQUARE_M).astype(int).T
        return int(self.clearance[row, column].min())

    def way(self, start_m: Place, end_m: Place) -> list[Place]:
        """The places of a short way that keeps away from walls, both ends included (A*).

        Returns:
            The end alone where no way is found.
        """
        cost = 1.0 + 1.5 * np.maximum(COMFORT_SQUARES - self.clearance[::STRIDE, ::STRIDE].astype(float), 0.0)
        closed = self.clearance[::STRIDE, ::STRIDE] < BODY_SQUARES
        first, last = (tuple(index // STRIDE for index in self._square(place)) for place in (start_m, end_m))
        front, reached, before = [(0.0, first)], {first: 0.0}, {}
        while front:
            _, square = heapq.heappop(front)
            if square == last:
                break
            column, row = square
            for right, up, length in _NEIGHBOURS:
                other = column + right, row + up
                if closed[other[1], other[0]] and other != last:
                    continue
                sum_m = reached[square] + length * cost[other[1], other[0]]
                if sum_m < reached.get(other, np.inf):
                    reached[other], before[other] = sum_m, square
                    remaining = np.hypot(other[0] - last[0], other[1] - last[1])
                    heapq.heappush(front, (sum_m + remaining, other))
        if last not in reached:
            return [end_m]
        squares = [last]
        while squares[-1] in before:
            squares.append(before[squares[-1]])
        middles = (np.array(squares[::-1]) * STRIDE + 0.5) * SQUARE_M + self._origin_m
        return [*(tuple(place) for place in middles[1:-1].tolist()), end_m]

    def entry(self, room: int, other: int) -> Place:
        """A free place in a room behind its doorway to another, linked room."""
        link = tuple(sorted((room, other)))
        parts = [space.outline_m for space in self.layout.spaces if space.kind == "corridor" and space.rooms == link]
        corners = np.concatenate(parts)
        low, high = corners.min(0), corners.max(0)
        middle, room_m = (low + high) / 2, self.layout.rooms[room].outline_m
        axis = 0 if room_m[:, 0].min() >= high[0] or room_m[:, 0].max() <= low[0] else 1
        place = middle.copy()
        after = room_m[:, axis].min() >= high[axis]
        place[axis] = high[axis] + INSIDE_M if after else low[axis] - INSIDE_M
        return self.free_place_near(tuple(place.tolist()), room)

    def free_place_near(self, place_m: Place, room: int) -> Place:
        """The place itself, or the nearest one of a room where a body stands with some room around it."""
        column, row = self._square(place_m)
        if self.space[row, column] == room and self.clearance[row, column] > BODY_SQUARES + 1:
            return place_m
        rows, columns = np.nonzero((self.space == room) & (self.clearance > BODY_SQUARES + 1))
        nearest = int(np.argmin((columns - column) ** 2 + (rows - row) ** 2))
        x, z = (np.array([columns[nearest], rows[nearest]]) + 0.5) * SQUARE_M + self._origin_m
        return float(x), float(z)


_NEIGHBOURS = [(i, j, float(np.hypot(i, j))) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]


def linked_rooms(layout: Layout) -> list[list[int]]:
    """For each room the rooms that a corridor joins to it."""
    linked: list[list[int]] = [[] for _ in layout.rooms]
    for a, b in layout.links:
        linked[a].append(b)
        linked[b].append(a)
    return linked
