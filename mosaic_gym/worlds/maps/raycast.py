"""Exact depth of a map: a ray for each pixel, followed from space to space until it meets a wall, floor or ceiling.

The simulator's depth buffer has 256 levels, 22 cm apart, and its walls are wrong where textures are scaled. Walls,
openings, floors and ceilings are known exactly, so their depth is computed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mosaic_gym.worlds.maps.plan import Plan, bounds_of, edges_of, is_inside

OUTSIDE = -1
FAR = 1e6
"""More than the size of a map, map units."""


class Raycaster:
    """Depth of the spaces of a plan.

    Args:
        plan: the map. Heights of ceilings are passed to `depth`, because doors move.
    """

    def __init__(self, plan: Plan):
        edges = edges_of(plan)
        self._a = np.array([edge.a for edge in edges], dtype=np.float64).T
        self._b = np.array([edge.b for edge in edges], dtype=np.float64).T
        self._front = np.array([edge.front for edge in edges])
        self._back = np.array([OUTSIDE if edge.back is None else edge.back for edge in edges])
        self._outlines = [(bounds_of(space.outline), space.outline) for space in plan.spaces]

    def space_at(self, x: float, y: float) -> int:
        """The index of the space at a point, map units; `OUTSIDE` for none."""
        for index, ((west, south, east, north), outline) in enumerate(self._outlines):
            if west <= x < east and south <= y < north and (len(outline) == 4 or is_inside(outline, x, y)):
                return index
        return OUTSIDE

    def depth(
        self,
        x: ArrayLike,
        y: ArrayLike,
        eye: ArrayLike,
        yaw_rad: ArrayLike,
        slopes: np.ndarray,
        falls: np.ndarray,
        ceilings: np.ndarray,
    ) -> np.ndarray:
        """Perpendicular depth `[..., rows, columns]` of one camera, or of several at once, map units.

        A ray that leaves the map has the depth inf.

        Args:
            x, y: `[...]`, the cameras' places; eye: their heights over the floor, map units.
            yaw_rad: headings; 0 looks along the map's y axis, positive turns right.
            slopes: `[columns]`, rightward over forward along each column's rays.
            falls: `[rows]`, downward over forward along each row's rays.
            ceilings: `[..., spaces]`, present heights, map units.
        """
        x, y, eye, yaw_rad = (np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in (x, y, eye, yaw_rad))
        above = np.full((len(x), np.shape(ceilings)[-1] + 1), -np.inf)  # the last is `OUTSIDE`: no ray gets there
        above[:, :-1] = np.asarray(ceilings) - eye[:, None]
        ends, ceilings_before, steepest = self._crossings(x, y, yaw_rad, slopes, above)
        # Rays of a column pass one edge after the other, up to the first that is too low for them. So the number of
        # edges that a ray passes says which edge it may meet, and which ceiling in front of it.
        rises, rays = -falls[:, None], len(x) * len(slopes)
        passed = np.zeros((len(x), len(falls), len(slopes)), dtype=np.int8)
        for least in steepest:
            passed += (rises <= least.reshape(len(x), 1, -1)).view(np.int8)
        where = passed * np.intp(rays)
        where += np.arange(rays).reshape(len(x), 1, -1)
        end, height = ends.take(where), ceilings_before.take(where)
        np.copyto(height, eye[:, None, None], where=rises <= 0)  # rays that fall meet the floor
        with np.errstate(divide="ignore", invalid="ignore"):
            height /= np.abs(rises)
        depth = np.where(end < np.inf, np.minimum(height, end), np.inf)
        return depth.reshape(*np.shape(ceilings)[:-1], len(falls), len(slopes))

    def _crossings(
        self, x: np.ndarray, y: np.ndarray, yaw_rad: np.ndarray, slopes: np.ndarray, above: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The edges that every column's rays cross, nearest first, the columns of all cameras side by side.

        Args:
            x, y, yaw_rad: `[cameras]`.
            above: `[cameras, spaces + 1]`, heights of the ceilings over the eye.

        Returns:
            `[edges + 1, columns]`, the distance of an edge, inf behind the last one; the same shape, the height over
            the eye of the ceiling in front of it; and `[edges, columns]`, how steeply, height over distance, a ray may
            rise at most to get past this edge and all before it.
        """
        (a_right, a_ahead), (b_right, b_ahead) = (_as_seen(ends, x, y, yaw_rad) for ends in (self._a, self._b))
        faces = a_right * b_ahead <= a_ahead * b_right  # the camera is in front
        # Edges in view only: not behind the cameras, nor wholly to the left or right of all rays; walls from the front.
        in_view = ((a_ahead > 0) | (b_ahead > 0)) & (faces | (self._back != OUTSIDE)[:, None])
        in_view &= (a_right >= slopes.min() * a_ahead) | (b_right >= slopes.min() * b_ahead)
        in_view &= (a_right <= slopes.max() * a_ahead) | (b_right <= slopes.max() * b_ahead)
        seen = np.flatnonzero(in_view.any(axis=1))
        # A ray crosses an edge whose ends lie on both sides of it. Edges that share an end agree on its side, so that
        # no ray slips through between them.
        sides = [
            right[seen, :, None] >= slopes * ahead[seen, :, None]
            for right, ahead in ((a_right, a_ahead), (b_right, b_ahead))
        ]
        edge, ray = np.nonzero((sides[0] != sides[1]).reshape(len(seen), -1))
        edge, camera, slope = seen[edge], ray // len(slopes), np.tile(slopes, len(x))[ray]
        where = edge * len(x) + camera
        a_right, a_ahead, b_right, b_ahead = (part.take(where) for part in (a_right, a_ahead, b_right, b_ahead))
        front, back, from_front = self._front[edge], self._back[edge], faces.take(where)
        before = above[camera, np.where(from_front, front, back)]
        room = np.minimum(before, above[camera, np.where(from_front, back, front)])
        with np.errstate(divide="ignore", invalid="ignore"):
            along = (slope * a_ahead - a_right) / ((b_right - a_right) - slope * (b_ahead - a_ahead))
            distance = a_ahead + along * (b_ahead - a_ahead)
            ends, ceilings, steepest = _nearest_first(ray, len(x) * len(slopes), distance, before, room / distance)
        steepest = np.minimum.accumulate(steepest[:-1])
        return ends, ceilings, steepest[(steepest > -np.inf).any(axis=1)]


def _nearest_first(ray: np.ndarray, rays: int, distance: np.ndarray, *values: np.ndarray) -> np.ndarray:
    """Tables of crossings: a row for the nearest edge of every ray, one for the next, and so on, and one with none.

    Args:
        ray: `[n]`, index of the ray that each crossing is on; crossings behind the camera are left out.
        rays: how many there are.
        distance: `[n]`.
        values: `[n]` each.

    Returns:
        `[1 + values, rows, rays]`: the distances, and the values; inf where a ray crosses fewer edges.
    """
    order = np.argsort(ray * FAR + distance)
    order = order[distance[order] > 1e-6]
    ray = ray[order]
    counts = np.bincount(ray, minlength=rays)
    row = np.arange(len(ray)) - (np.cumsum(counts) - counts)[ray]
    tables = np.full((1 + len(values), int(counts.max(initial=0)) + 1, rays), np.inf)
    for table, part in zip(tables, (distance, *values), strict=True):
        table[row, ray] = part[order]
    return tables


def _as_seen(points: np.ndarray, x: np.ndarray, y: np.ndarray, yaw_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far to the right of and how far ahead of cameras points `[2, points]` lie, `[points, cameras]` each."""
    east, north = points[0][:, None] - x, points[1][:, None] - y
    cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
    return east * cosine - north * sine, east * sine + north * cosine
