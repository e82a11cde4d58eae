"""The explorer that records generated maps: it walks from room to room through doorways, and comes back.

It uses the truth about the map (`layout`), which is data collection; no model is given it. In front of a doorway the
explorer turns first. Then it walks through the middle, keeps away from walls, glances to a side while it walks on,
looks around in some rooms, picks up what it sees, and walks against doors until they are open.
"""

from __future__ import annotations

import numpy as np

from mosaic_gym.geometry.control import FRAMES_PER_STEP, yaw_of
from mosaic_gym.worlds.doom import DoomState, DoomWorld
from mosaic_gym.worlds.explorer import Drive
from mosaic_gym.worlds.maps.layout import Layout
from mosaic_gym.worlds.maps.ways import FloorGrid, Place, linked_rooms
from mosaic_gym.worlds.protocol import View

ARRIVED_M = 1.2
"""A place nearer than this is reached, metres."""
STUCK_STEPS = 10
"""A way is given up after so many steps without motion. A door takes three to open."""
FREE_SQUARES = 4
"""Clearance that the explorer keeps where there is room for it, squares of the grid."""
NEAR_PICKUP_M = 6.0
"""A pickup in view is fetched up to this distance, metres."""
PACE_M = 0.85
"""Average distance that the explorer walks in a step, metres."""
DOOR_M = 4.0
"""Distance that it would walk in the time that a closed door takes, metres."""
LONGEST_TOUR = 7
"""Rooms that it plans ahead."""
ROAMING = 0.77
"""Share of the episodes that first visit new rooms, and only then go back and look around more often."""
ENOUGH_ROOMS = 0.6
"""Share of the map's rooms after which those episodes go back."""


class RoomExplorer(Drive):
    """Explores a generated map with its layout.

    Args:
        world: a simulator with generated maps.
        state, view: of a new episode.
        steps: views to collect, including the first.
        rng: of all random choices.

    Attributes:
        layouts: the truth at every view.
    """

    def __init__(self, world: DoomWorld, state: DoomState, view: View, steps: int, rng: np.random.Generator):
        super().__init__(world, state, view, steps, rng)
        self.layouts: list[Layout] = [world.layout()]
        self.grid = FloorGrid(self.layouts[0])
        self._entries: dict[tuple[int, int], Place] = {}
        self.linked = linked_rooms(self.layouts[0])
        self.room = self.layouts[0].room_at(*self.place_m)
        self.previous: int | None = None
        self.entered = [self.room]
        self.roams = rng.random() < ROAMING

    @property
    def place_m(self) -> Place:
        """Where the body is, (x, z), metres."""
        camera = self.views[-1].world_from_camera[-1]
        return float(camera[0, 3]), float(camera[2, 3])

    @property
    def yaw_rad(self) -> float:
        """Where the body looks."""
        return yaw_of(self.views[-1].world_from_camera[-1])

    @property
    def is_roaming(self) -> bool:
        """Whether new rooms come first."""
        return self.roams and len(self.entered) < ENOUGH_ROOMS * len(self.linked)

    def act(self, forward: float, strafe: float, turn: float) -> None:
        """One step of the simulator; none if the episode is complete."""
        if self.done:
            return
        was_dark = self._is_dark()
        # The float32 action that is stored is also the one applied, so that a replay gives the same frames.
        super().act(*np.array([forward, strafe, turn], dtype=np.float32).astype(np.float64).tolist())
        self.layouts.append(self.layouts[-1] if self.views[-1].terminated else self.world.layout())
        room = self.grid.room_at(self.place_m)
        if room is not None and room != self.room:
            self.previous, self.room = self.room, room
            self.entered += [room] if room not in self.entered else []
        if self._is_dark() and not was_dark and self.rng.random() < 0.5:
            for _ in range(int(self.rng.integers(1, 4))):
                self.act(0.0, 0.0, 0.0)

    def explore(self) -> None:
        """Steps until the episode is complete."""
        while not self.done:
            self.fetch_pickups()
            busy = self.is_roaming
            choice = self.rng.random()
            if choice < (0.03 if busy else 0.4):
                self.look_around()
            elif choice < (0.06 if busy else 0.5):
                self.try_actions()
            self.go_to_room(self._choose_room())

    def look_around(self) -> None:
        """Turns one way, stays for a moment, and mostly turns back."""
        angle_rad = self.rng.choice([-1.0, 1.0]) * self.rng.uniform(1.0, 2.6)
        self.turn(angle_rad)
        if self.rng.random() < 0.7:
            self.act(0.0, 0.0, 0.0)
            self.turn(-angle_rad)

    def go_to_room(self, room: int) -> None:
        """Walks through the doorway to a linked room, and in some cases glances to a side on the way."""
        glance_rad = 0.0
        if self.rng.random() < (0.85 if self.is_roaming else 0.7):
            glance_rad = float(self.rng.choice([-1.0, 1.0]) * self.rng.uniform(1.7, 2.7))
        self.walk_to(self._entry(room, self.room)[0], glance_rad)

    def fetch_pickups(self) -> None:
        """Walks over the nearest pickup that stands in view in this room."""
        if not any("Bonus" in label for label in self.views[-1].labels):
            return
        near = []
        for thing in self.layouts[-1].things:
            if thing.kind == "pickup" and thing.is_there and thing.room == self.room:
                distance_m, angle_rad = self._towards(tuple(thing.place_m.tolist()))
                if distance_m < NEAR_PICKUP_M and abs(angle_rad) < 0.6:
                    near.append((distance_m, tuple(thing.place_m.tolist())))
        if near and self.rng.random() < 0.8:
            self.walk_to(min(near)[1], reach_m=0.5)

    def walk_to(self, goal_m: Place, glance_rad: float = 0.0, reach_m: float = ARRIVED_M) -> None:
        """Walks along a way of the grid until the goal is near, or the body is stuck.

        Args:
            glance_rad: how far to turn the view aside while the body walks on, and back; 0 for none.
        """
        way, idle = self.grid.way(self.place_m, goal_m), 0
        if self.is_roaming is False:
            self._face(way)
        glance = self._glance(glance_rad)
        while way and idle < STUCK_STEPS and not self.done:
            before_m = np.array(self.place_m)
            way = self._rest_of(way)
            distance_m, angle_rad = self._towards(way[0])
            if len(way) == 1 and distance_m < reach_m:
                return
            self._walk(distance_m if len(way) == 1 else np.inf, angle_rad, next(glance, 0.0))
            idle = idle + 1 if np.hypot(*(self.place_m - before_m)) < 0.05 else 0

    def _face(self, way: list[Place]) -> None:
        """Turns towards the first part of a way that is far enough to look at."""
        way = self._rest_of(list(way))
        _, angle_rad = self._towards(way[0])
        if abs(angle_rad) > 0.8:
            self.turn(float(angle_rad))

    def _glance(self, angle_rad: float):
        """For the steps of a walk: how far the view is turned away from the way, radians."""
        if angle_rad == 0.0:
            return
        yield from np.zeros(int(self.rng.integers(0, 5)))
        yield from np.full(int(abs(angle_rad) / self._step_rad) + int(self.rng.integers(0, 3)), angle_rad)

    def _rest_of(self, way: list[Place]) -> list[Place]:
        """The rest of a way: from the farthest place that can be walked to in a straight line."""
        here = self.place_m
        for wanted in (FREE_SQUARES, FREE_SQUARES - 1):
            for index in range(min(len(way), 24) - 1, -1, -1):
                if self.grid.clearance_on(here, way[index]) >= wanted:
                    return way[index:]
        return way[1:] if len(way) > 1 and np.hypot(*np.subtract(way[0], here)) < 0.6 else way

    def _walk(self, distance_m: float, angle_rad: float, aside_rad: float) -> None:
        """A step towards a place at an angle from the view, which turns to it, or to an angle beside it."""
        turn = float(np.clip((angle_rad + aside_rad) / self._step_rad, -1.0, 1.0))
        if aside_rad == 0.0 and abs(angle_rad) > 2.0:
            self.act(0.0, 0.0, turn)
            return
        angle_rad -= turn * self._step_rad * 0.6  # the view turns during the step
        velocity_m = self.state.pose.velocity_m
        yaw_rad = self.yaw_rad + turn * self._step_rad * 0.6
        sideways_m = velocity_m[0] * np.cos(yaw_rad) - velocity_m[2] * np.sin(yaw_rad)
        ahead_m = velocity_m[0] * np.sin(yaw_rad) + velocity_m[2] * np.cos(yaw_rad)
        pace_m = min(0.26, distance_m / 8)
        push = np.array([pace_m * np.cos(angle_rad) - ahead_m, pace_m * np.sin(angle_rad) - sideways_m])
        push += 0.09 * np.array([ahead_m, sideways_m])  # friction over a frame
        push /= FRAMES_PER_STEP * 0.6 * self.world.control.forward_acceleration_m
        push += pace_m * 3.6 * np.array([np.cos(angle_rad), np.sin(angle_rad)])
        self.act(*(push / max(1.0, float(np.abs(push).max()))).tolist(), turn)

    @property
    def _step_rad(self) -> float:
        return FRAMES_PER_STEP * self.world.control.turn_rad

    def _towards(self, place_m: Place) -> tuple[float, float]:
        """Distance of a place, metres, and its angle to the right of the view."""
        right_m, ahead_m = place_m[0] - self.place_m[0], place_m[1] - self.place_m[1]
        angle_rad = np.arctan2(right_m, ahead_m) - self.yaw_rad
        return float(np.hypot(right_m, ahead_m)), float((angle_rad + np.pi) % (2 * np.pi) - np.pi)

    def _choose_room(self) -> int:
        """The next room: on the tour with the most new rooms; after enough rooms, often the one before."""
        if not self.is_roaming and self.rng.random() < 0.65:
            return self.previous if self.previous in self.linked[self.room] else self._any_room()
        budget_m = PACE_M * (self.steps - len(self.views))
        tour = self._best_tour(self.place_m, [self.room], frozenset(self.entered), budget_m)[1]
        return tour[1] if len(tour) > 1 else self._any_room()

    def _best_tour(
        self, place_m: Place, tour: list[int], entered: frozenset[int], budget_m: float
    ) -> tuple[tuple[int, float], list[int]]:
        """The tour that enters the most new rooms, and among those the shortest, with (new rooms, metres left)."""
        best = (len(entered), budget_m), tour
        if len(tour) > LONGEST_TOUR:
            return best
        for room in self.linked[tour[-1]]:
            if len(tour) > 1 and room == tour[-2]:
                continue
            entry_m, doors = self._entry(room, tour[-1])
            left_m = budget_m - np.hypot(*np.subtract(entry_m, place_m)) - DOOR_M * doors
            if left_m < 0 or (room in entered and room in tour):
                continue
            score, found = self._best_tour(entry_m, [*tour, room], entered | {room}, left_m)
            if score > best[0] and score[0] > best[0][0] or (score[0] == best[0][0] > len(entered) and score > best[0]):
                best = score, found
        return best

    def _entry(self, room: int, other: int) -> tuple[Place, int]:
        """Where a room is entered from another one, and how many closed doors stand on the way there."""
        if (room, other) not in self._entries:
            self._entries[room, other] = self.grid.entry(room, other)
        doors = sum(not door.is_open and set(door.rooms) == {room, other} for door in self.layouts[-1].doors)
        return self._entries[room, other], doors

    def _any_room(self) -> int:
        return int(self.rng.choice(self.linked[self.room]))

    def _is_dark(self) -> bool:
        return self.room is not None and self.layouts[-1].spaces[self.room].is_dark
