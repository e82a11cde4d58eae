"""Exact depth of a map: a ray for each pixel, followed from space to space until it meets a wall, floor or ceiling.

The simulator's depth buffer has 256 levels, 22 cm apart, and its walls are wrong where textures are scaled. Walls,
openings, floors and ceilings are known exactly, so their depth is computed.
"""

from __future__ import annotations

import numpy as np

from mosaic_gym.worlds.maps.plan import Plan, edges_of

OUTSIDE = -1


class Raycaster:
    """Depth of the spaces of a plan.

    Args:
        plan: the map. Heights of ceilings are passed to `depth`, because doors move.
    """

    def __init__(self, plan: Plan):
        edges = edges_of(plan)
        self._a = np.array([edge.a for edge in edges], dtype=np.float64)
        self._b = np.array([edge.b for edge in edges], dtype=np.float64)
        self._front = np.array([edge.front for edge in edges])
        self._back = np.array([OUTSIDE if edge.back is None else edge.back for edge in edges])
        outlines = [np.array(space.outline, dtype=np.float64) for space in plan.spaces]
        self._sides = np.concatenate([np.hstack([ring, np.roll(ring, -1, axis=0)]) for ring in outlines]).T
        self._latest: tuple[tuple[float, float] | None, int] = None, OUTSIDE
        self._owners = np.repeat(np.arange(len(outlines)), [len(ring) for ring in outlines])

    def space_at(self, x: float, y: float) -> int:
        """The index of the space at a point, map units; `OUTSIDE` for none."""
        if self._latest[0] == (x, y):
            return self._latest[1]
        x1, y1, x2, y2 = self._sides
        crossed = np.flatnonzero((y1 > y) != (y2 > y))
        x1, y1, x2, y2 = x1[crossed], y1[crossed], x2[crossed], y2[crossed]
        to_the_right = crossed[x1 + (y - y1) / (y2 - y1) * (x2 - x1) > x]
        inside = np.flatnonzero(np.bincount(self._owners[to_the_right]) % 2)
        self._latest = (x, y), int(inside[0]) if len(inside) else OUTSIDE
        return self._latest[1]

    def depth(
        self,
        x: float,
        y: float,
        eye: float,
        yaw_rad: float,
        slopes: np.ndarray,
        falls: np.ndarray,
        ceilings: np.ndarray,
    ) -> np.ndarray:
        """Perpendicular depth `[rows, columns]`, map units; inf where a ray leaves the map.

        Args:
            x, y: the camera's place; eye: its height over the floor, map units.
            yaw_rad: heading; 0 looks along the map's y axis, positive turns right.
            slopes: `[columns]`, rightward over forward along each column's rays.
            falls: `[rows]`, downward over forward along each row's rays.
            ceilings: `[spaces]`, present heights, map units.
        """
        edges, crossings = self._crossings(x, y, yaw_rad, slopes)
        heights = np.append(np.asarray(ceilings, dtype=np.float64), 0.0)
        space = np.full(len(slopes), self.space_at(x, y))
        if ((heights > 0) & (heights < eye)).any():  # the lower edge of a moving door stops rays that fall
            return self._follow(edges, crossings, space, eye, falls, heights)
        # All other openings let rays that fall through: they end at the floor or at the first wall or closed door.
        depth, falling = np.empty((len(falls), len(slopes))), falls > 0
        depth[~falling] = self._follow(edges, crossings, space, eye, falls[~falling], heights)
        solid = (self._back[edges] == OUTSIDE) | (heights[self._back[edges]] <= 0) | (heights[self._front[edges]] <= 0)
        wall = np.where(solid, crossings, np.inf).min(axis=1, initial=np.inf)
        depth[falling] = np.minimum(eye / falls[falling][:, None], wall)
        depth[falling] = np.where(np.isfinite(wall), depth[falling], np.inf)
        return depth

    def _follow(
        self,
        edges: np.ndarray,
        crossings: np.ndarray,
        space: np.ndarray,
        eye: float,
        falls: np.ndarray,
        heights: np.ndarray,
    ) -> np.ndarray:
        """Depth `[rows, columns]` of rays that are followed from edge to edge.

        Args:
            edges, crossings: of `_crossings`.
            space: `[columns]`, index of the space where each column's rays start.
            heights: `[spaces + 1]`, of the ceilings; the last is 0.
        """
        fall = falls[:, None]
        depth = np.full((len(falls), len(space)), np.inf)
        flying = np.ones(depth.shape, dtype=bool)
        with np.errstate(divide="ignore", invalid="ignore"):
            to_floor = np.where(fall > 0, eye / fall, np.inf)
            for k in range(edges.shape[1]):
                edge, distance = edges[:, k], crossings[:, k]
                bounds = np.isfinite(distance) & ((self._front[edge] == space) | (self._back[edge] == space))
                # 1. The floor or ceiling of the present space, if a ray meets it before the edge.
                plane = np.where(fall < 0, (heights[space] - eye) / -fall, to_floor)
                meets = flying & bounds & (plane <= distance)
                depth[meets] = plane[meets]
                flying &= ~meets
                # 2. The edge: a wall, or the part of it above an opening.
                behind = np.where(self._front[edge] == space, self._back[edge], self._front[edge])
                closed = (behind == OUTSIDE) | (eye - fall * distance > heights[behind])
                meets = flying & bounds & closed
                depth[meets] = np.broadcast_to(distance, depth.shape)[meets]
                flying &= ~meets
                if not flying.any():
                    break
                # 3. On through the opening.
                space = np.where(bounds & (behind != OUTSIDE), behind, space)
        return depth

    def _crossings(self, x: float, y: float, yaw_rad: float, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The edges that every column's rays cross, nearest first, and how far away: `[columns, edges]` each."""
        right, ahead = np.array([np.cos(yaw_rad), -np.sin(yaw_rad)]), np.array([np.sin(yaw_rad), np.cos(yaw_rad)])
        from_a, from_b = self._a - (x, y), self._b - (x, y)
        a_right, a_ahead, b_right, b_ahead = from_a @ right, from_a @ ahead, from_b @ right, from_b @ ahead
        # Edges in view only: not behind the camera, nor wholly to the left or right of all rays.
        left, right_most = slopes.min(), slopes.max()
        near = (a_ahead > 0) | (b_ahead > 0)
        near &= (a_right >= left * a_ahead) | (b_right >= left * b_ahead)
        near = np.flatnonzero(near & ((a_right <= right_most * a_ahead) | (b_right <= right_most * b_ahead)))
        a_right, a_ahead, b_right, b_ahead = a_right[near], a_ahead[near], b_right[near], b_ahead[near]
        slope = slopes[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            along = (slope * a_ahead - a_right) / ((b_right - a_right) - slope * (b_ahead - a_ahead))
            distance = a_ahead + along * (b_ahead - a_ahead)
            hit = (along >= -1e-9) & (along <= 1 + 1e-9) & (distance > 1e-6)
        distance = np.where(hit, distance, np.inf)
        count = max(int(hit.sum(1).max(initial=0)), 1)
        order = np.argsort(distance, axis=1)[:, :count]
        return near[order], np.take_along_axis(distance, order, axis=1)
