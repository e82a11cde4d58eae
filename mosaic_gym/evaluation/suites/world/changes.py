"""Things that change and must stay changed: a pickup that is taken, and a door that is opened.

The body starts in front of a pickup or of a closed door, which the start's picture shows. It walks over the one, or
through the other, stands for a while with its back to the place, turns round, and looks at it. The world under test is
given the start and is driven along these cameras.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mosaic_gym.evaluation.metrics.intervals import LEAST_MAPS, bootstrap_maps
from mosaic_gym.evaluation.net import KINDS, EvaluationNet
from mosaic_gym.evaluation.suites.world.scenes import clean_depth
from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose, pose_at
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.maps.layout import EYE_HEIGHT, UNITS_PER_M, Layout, layout_of
from mosaic_gym.worlds.maps.rooms import MapOptions, draw_plan, map_seed
from mosaic_gym.worlds.maps.ways import OUTSIDE, FloorGrid, Place
from mosaic_gym.worlds.protocol import Start, View
from mosaic_gym.worlds.room_captions import caption_steps

PICKUP, DOOR = "pickup", "door"
LEAST_CASES = 50
BEFORE_M, BEHIND_M = {PICKUP: 2.8, DOOR: 2.2}, {PICKUP: 1.6, DOOR: 2.6}
"""The body starts so far in front of the place, and stands so far behind it, metres."""
FREE_SQUARES = 3
"""Clearance of the way, squares of the grid."""
PACE = 0.6
WALK_STEPS, REST_STEPS = 22, 8
PICKUP_M = 0.25
"""The middle of a pickup is so far above the floor, metres."""
NEARBY_PX = 6.0
"""A pickup is looked for within so many pixels of its place."""
BONUSES = [KINDS.index(name) for name in ("HealthBonus", "ArmorBonus")]
THERE = 0.5
"""From this probability on, the evaluation net names a thing at a place."""
OPEN = 1.2
"""A door is open where depth at its middle is so many times its distance."""


@dataclass(frozen=True)
class Change:
    """A true episode in which something changes; `n` steps, the start included.

    Attributes:
        index: of the map.
        kind: `pickup` or `door`.
        prompt: caption of the start.
        start: uint8 `[H, W, 3]`; start_depth: `[H, W]`, metres.
        cameras: `[n, 4, 4, 4]`; the first four are the start's.
        end, end_depth: the true last frame, which looks at the place again.
        start_pixel, end_pixel: (column, row) of the place in both frames: of a pickup's middle, or of a door at the
            height of the eyes.
        distance_m: of the place from the last camera.
    """

    index: int
    kind: str
    prompt: str
    start: np.ndarray
    start_depth: np.ndarray
    cameras: np.ndarray
    end: np.ndarray
    end_depth: np.ndarray
    start_pixel: np.ndarray
    end_pixel: np.ndarray
    distance_m: float


@dataclass(frozen=True)
class ChangeRollout:
    """The last frame of a world that was driven along a change, uint8 `[H, W, 3]`, and its depth, metres."""

    index: int
    end: np.ndarray
    end_depth: np.ndarray


def find_change(world: DoomWorld, split: str, index: int, kind: str) -> Change | None:
    """The first change of a kind that works out on a map; None if there is none.

    Args:
        world: the simulator of the split, with things that change.
    """
    seed = map_seed(index, split)
    layout = layout_of(draw_plan(seed, split, MapOptions()))
    for pose, place in _starts(layout, FloorGrid(layout), kind, np.random.default_rng([index, 5])):
        try:
            state, view = world.start(Start(index, world_from_camera=pose.world_from_camera, map_seed=seed))
        except ValueError:  # no body can stand there
            continue
        if not _is_before(view, kind):
            continue
        views = _walk_over(world, state, view, place, BEHIND_M[kind])
        if _is_after(views, kind):
            return _change_of(index, kind, views, place, caption_steps(views[:1], [layout])[0].text)
    return None


def _starts(layout: Layout, grid: FloorGrid, kind: str, rng: np.random.Generator) -> Iterator[tuple[Pose, Place]]:
    """Poses in front of places, with a free way to behind them."""
    before_m, behind_m = BEFORE_M[kind], BEHIND_M[kind]
    candidates: list[tuple[np.ndarray, float]] = []
    if kind == DOOR:
        for door in layout.doors:
            extent = np.ptp(door.outline_m, axis=0)
            yaw_rad = np.pi / 2 if extent[0] < extent[1] else 0.0
            candidates += [(door.outline_m.mean(0), yaw_rad), (door.outline_m.mean(0), yaw_rad + np.pi)]
    else:
        places = [thing.place_m for thing in layout.things if thing.kind == "pickup"]
        candidates = [(place, yaw) for place in places for yaw in np.arange(8) * np.pi / 4]
    for i in rng.permutation(len(candidates)):
        place, yaw_rad = candidates[i]
        ahead = np.array([np.sin(yaw_rad), np.cos(yaw_rad)])
        first, last = place - before_m * ahead, place + behind_m * ahead
        if (grid.spaces_at(np.stack([first, last])) == OUTSIDE).any():
            continue
        if grid.clearance_on(tuple(first), tuple(last)) >= FREE_SQUARES:
            yield pose_at(first[0], -EYE_HEIGHT / UNITS_PER_M, first[1], yaw_rad), (float(place[0]), float(place[1]))


def _is_before(view: View, kind: str) -> bool:
    if kind == PICKUP:
        return any("Bonus" in label for label in view.labels)
    height, width = view.depth_m.shape
    return bool(view.depth_m[height // 2, width // 2] < BEFORE_M[DOOR] * 1.05)


def _is_after(views: Sequence[View], kind: str) -> bool:
    if kind == PICKUP:
        return sum(view.reward for view in views) >= 1 and not any("Bonus" in label for label in views[-1].labels)
    height, width = views[-1].depth_m.shape
    return bool(views[-1].depth_m[height // 2, width // 2] > BEHIND_M[DOOR] * 1.4)


def _walk_over(world: DoomWorld, state: Any, view: View, place: Place, behind_m: float) -> list[View]:
    """The views of a walk over a place, a rest behind it, and a turn by half a circle."""
    views = [view]
    origin = view.world_from_camera[-1, [0, 2], 3]
    far_m = float(np.hypot(*(np.array(place) - origin))) + behind_m - 0.8  # the body glides on
    actions = [np.array([PACE, 0.0, 0.0])] * WALK_STEPS
    turns = round(np.pi / (FRAMES_PER_STEP * world.control.turn_rad))
    for action in (*actions, *[np.zeros(3)] * REST_STEPS, *[np.array([0.0, 0.0, 1.0])] * turns):
        walked_m = np.hypot(*(views[-1].world_from_camera[-1, [0, 2], 3] - origin))
        if action[0] > 0 and walked_m >= far_m:
            continue
        (state,), (view,) = world.step([state], action[None])
        views.append(view)
    return views


def _change_of(index: int, kind: str, views: Sequence[View], place: Place, prompt: str) -> Change:
    below_m = EYE_HEIGHT / UNITS_PER_M - PICKUP_M if kind == PICKUP else 0.0
    (start_pixel, _), (end_pixel, distance_m) = (_pixel_of(place, below_m, view) for view in (views[0], views[-1]))
    cameras = np.stack([view.world_from_camera for view in views])
    start, end = ((view.frames[-1], clean_depth(view.depth_m)) for view in (views[0], views[-1]))
    return Change(index, kind, prompt, *start, cameras, *end, start_pixel, end_pixel, distance_m)


def _pixel_of(place: Place, below_m: float, view: View) -> tuple[np.ndarray, float]:
    """(column, row) of a place in the last frame of a view, so far below the eyes, and its depth, metres."""
    camera, k = view.world_from_camera[-1], view.image_from_camera
    offset = np.array([place[0], camera[1, 3], place[1]]) - camera[:3, 3]
    right, _, ahead = camera[:3, :3].T @ offset
    scale = 1 / max(ahead, 0.1)
    return np.array([k[0, 0] * right * scale + k[0, 2], k[1, 1] * below_m * scale + k[1, 2]]), float(ahead)


def true_change_rollout(change: Change) -> ChangeRollout:
    """What the simulator does along a change: the truth."""
    return ChangeRollout(change.index, change.end, change.end_depth)


def roll_out_changes(world: Any, changes: Sequence[Change]) -> list[ChangeRollout]:
    """A world (`WorldUnderTest`) driven along changes, as one batch."""
    states = [
        world.start(change.start, Pose(change.cameras[0, -1]), change.prompt, 0, change.index, change.start_depth)[0]
        for change in changes
    ]
    ends: list[View | None] = [None] * len(changes)
    for step in range(1, max(len(change.cameras) for change in changes)):
        active = [i for i, change in enumerate(changes) if step < len(change.cameras)]
        poses = [[Pose(camera) for camera in changes[i].cameras[step]] for i in active]
        after, views = world.generate([states[i] for i in active], poses)
        for i, state, view in zip(active, after, views, strict=True):
            states[i], ends[i] = state, view
    return [
        ChangeRollout(change.index, view.frames[-1], clean_depth(view.depth_m))
        for change, view in zip(changes, ends, strict=True)
    ]


def change_figure(changes: Sequence[Change], rollouts: Sequence[ChangeRollout], net: EvaluationNet) -> dict[str, Any]:
    """`taken_stays_gone` or `door_stays_open`: the share of changes that are still there at the second look.

    A taken pickup is gone where the evaluation net names none at its place in the last frame; cases count if it names
    the one in the start's picture. (Anywhere in the frame it names one in 20 % of the true frames without any, at the
    place in 2 %.) A door is open where the median depth around its middle is `OPEN` times its distance. `truth` beside
    it: the share by the same rule in the true last frames.
    """
    stays, true, maps = [], [], []
    for change, rollout in zip(changes, rollouts, strict=True):
        if change.kind == PICKUP and not _is_pickup_at(change.start_pixel, change.start, net):
            continue
        stays.append(_stays(change, rollout, net))
        true.append(_stays(change, true_change_rollout(change), net))
        maps.append(change.index)
    if len(stays) < LEAST_CASES or len(set(maps)) < LEAST_MAPS:
        reason = f"undefined: {len(stays)} cases, and the figure needs {LEAST_CASES}; use more --paths"
        return {"value": None, "low": None, "high": None, "cases": len(stays), "reason": reason}
    share = bootstrap_maps(np.array(stays, dtype=np.float64), np.array(maps))
    return {**share, "cases": len(stays), "truth": float(np.mean(true)), "reason": None}


def _stays(change: Change, rollout: ChangeRollout, net: EvaluationNet) -> bool:
    if change.kind == PICKUP:
        return not _is_pickup_at(change.end_pixel, rollout.end, net)
    column, row = (int(value) for value in change.end_pixel)
    middle = rollout.end_depth[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
    return bool(middle.size and np.median(middle) > OPEN * change.distance_m)


def _is_pickup_at(pixel: np.ndarray, frame: np.ndarray, net: EvaluationNet) -> bool:
    return bool(net.kinds_at(frame, pixel, NEARBY_PX)[BONUSES].max() >= THERE)
