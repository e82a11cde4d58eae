"""The true views behind the figures: a look around, a walk away and back, and a free walk, on one map each.

The walk away and back is planned with the truth about the map; the world under test is driven along its cameras. The
free walk is steered by the depth of the world that walks. The first is on a still map, without pickups, doors, monsters
and lights, so that the truth at a place does not change; the second is on a map with all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_gym.evaluation.metrics.visibility import Covisibility
from mosaic_gym.evaluation.true_frames import theme_shares
from mosaic_gym.geometry.control import FRAMES_PER_STEP, Control, Pose
from mosaic_gym.geometry.steering import DepthWalker
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.explorer import STOPPING_STEPS, reversed_steps
from mosaic_gym.worlds.maps.rooms import MapOptions, map_seed
from mosaic_gym.worlds.maps.ways import FloorGrid
from mosaic_gym.worlds.protocol import Start, View
from mosaic_gym.worlds.room_captions import caption_steps
from mosaic_gym.worlds.room_explorer import RoomExplorer

STILL = MapOptions(pickups=0, doors=False, monsters=0, lights=False)
LOOK_STEPS = 8
"""Turns to one side and back: the true history has twice as many steps, and the first view."""
HISTORY = 2 * LOOK_STEPS + 1
AWAY_STEPS = 8
"""Consecutive steps of the walk away whose views do not show what the start's view shows."""
AWAY_SHARE = 0.05
"""A view does not show it if at most this share of its pixels does."""
WALKED_M = 3.0
"""The walk away ends at least so far from the start."""
OUT_STEPS = 26
"""The walk away takes at most so many steps, and those of coming to rest."""
STRIDE_STEPS = 3
"""Steps between two checks of the walk away."""
POSE_ERROR_M = 0.02
"""A path is dropped if a camera of the way back is further from that of the way out."""
WALK_STEPS = 66
"""Steps of the free walk."""
WALK_PACE, WALK_NEAR_M, WALK_GLANCE = 0.6, 2.2, 0.04
"""The walker of the free walk, see `DepthWalker`. A step is at most 0.63 m long, so that successive views overlap."""
WORST_M, FARTHEST_M = 0.05, 60.0
"""Depth is kept within these, metres."""


@dataclass(frozen=True)
class Scene:
    """True views on a map. Shapes: `h` is `HISTORY`, `p` steps of the way out and back, `w` is `WALK_STEPS` + 1.

    Attributes:
        index: of the map in its split.
        k: `[3, 3]`, K in pixels.
        history_frames: uint8 `[h, 4, H, W, 3]` of the look around; the first view is the start.
        history_cameras: `[h, 4, 4, 4]`, metres.
        history_depth: float32 `[h, H, W]`, of the last frame of every step, metres.
        path_frames: uint8 `[p, H, W, 3]`, the last frame of every step on the way out and back.
        path_before: the frames before those, one video frame earlier.
        path_cameras: `[p, 4, 4, 4]`; step p - 1 is at the start's pose.
        path_depth: float32 `[p, H, W]`.
        walk_frames: uint8 `[w, H, W, 3]` of the free walk; the first is the start.
        walk_cameras: `[w, 4, 4]`.
        walk_depth: float32 `[w, H, W]`.
        walk_themes: `[themes]`, the share of the first frame that shows each of `TRAIN_THEMES`.
        prompt: caption of the start.
        walk_prompt: caption of the start of the free walk.
    """

    index: int
    k: np.ndarray
    history_frames: np.ndarray
    history_cameras: np.ndarray
    history_depth: np.ndarray
    path_frames: np.ndarray
    path_before: np.ndarray
    path_cameras: np.ndarray
    path_depth: np.ndarray
    walk_frames: np.ndarray
    walk_cameras: np.ndarray
    walk_depth: np.ndarray
    walk_themes: np.ndarray
    prompt: str
    walk_prompt: str

    @property
    def out(self) -> int:
        """Steps of the way out; the way back has as many."""
        return len(self.path_frames) // 2

    @property
    def start_frame(self) -> np.ndarray:
        """uint8 `[H, W, 3]`."""
        return self.history_frames[0, -1]

    def history_poses(self, step: int) -> list[Pose]:
        """The four poses of a step of the look around."""
        return [Pose(camera) for camera in self.history_cameras[step]]

    def path_poses(self, step: int) -> list[Pose]:
        """The four poses of a step of the way out and back."""
        return [Pose(camera) for camera in self.path_cameras[step]]

    @cached_property
    def seen(self) -> np.ndarray:
        """Which pixels of the path's frames show a place of the look around, bool `[p, H, W]`."""
        return self._on_path(HISTORY)

    @cached_property
    def seen_at_start(self) -> np.ndarray:
        """Which pixels of the path's frames show a place of the first view, bool `[p, H, W]`."""
        return self._on_path(1)

    def _on_path(self, views: int) -> np.ndarray:
        history = [_still_view(self.history_depth[i], self.history_cameras[i, -1], self.k) for i in range(views)]
        covisibility = Covisibility(history)
        path = zip(self.path_depth, self.path_cameras[:, -1], strict=True)
        return np.stack([covisibility.mask(_still_view(*row, self.k), (0,))[0] for row in path])


def _still_view(depth_m: np.ndarray, camera: np.ndarray, k: np.ndarray) -> View:
    """A view with one frame, whose picture does not matter."""
    return View(np.empty(0, np.uint8), depth_m, camera[None], k, all_depth_m=depth_m[None])


def open_simulator(split: str, maps: MapOptions | None, size: tuple[int, int], control: Control) -> DoomWorld:
    """The simulator of generated maps; `maps` is None for those with pickups, doors, monsters and lights."""
    return DoomWorld("rooms", *size, control, split=split, maps=maps)


def walk_scene(still: DoomWorld, lively: DoomWorld, split: str, index: int) -> Scene | None:
    """The scene of a map; None if no walk away leaves the start's view, or the way back differs from the way out.

    Args:
        still, lively: simulators of the split, without and with things that change.
    """
    found = _walk_away_and_back(still, Start(seed=index, map_seed=map_seed(index, split)), index)
    if found is None:
        return None
    state, view = lively.start(Start(seed=index, map_seed=map_seed(index, split)))
    layout = lively.layout()
    prompt = caption_steps([view], [layout])[0].text
    themes = theme_shares(FloorGrid(layout), view.depth_m, view.world_from_camera[-1], view.image_from_camera)
    walker, views = free_walker(index), [view]
    for _ in range(WALK_STEPS):
        (state,), (view,) = lively.step([state], walker.act(view.depth_m)[None])
        views.append(view)
    views_found, found_prompt = found
    history, path = views_found[:HISTORY], views_found[HISTORY:]
    return Scene(
        index, view.image_from_camera,
        np.stack([view.frames for view in history]), _cameras(history), _depth(history),
        *(np.stack([view.frames[instant] for view in path]) for instant in (-1, -2)), _cameras(path), _depth(path),
        np.stack([view.frames[-1] for view in views]), _cameras(views)[:, -1], _depth(views),
        themes, found_prompt, prompt,
    )  # fmt: skip


def free_walker(index: int) -> DepthWalker:
    """The policy of the free walk on the map with this index, by the depth of the world that it walks in."""
    return DepthWalker(np.random.default_rng([index, 7]), WALK_PACE, WALK_NEAR_M, WALK_GLANCE)


def _walk_away_and_back(world: DoomWorld, start: Start, index: int) -> tuple[list[View], str] | None:
    """The views of the look around, the way out, and the way back over the same cameras, and the start's caption."""
    rng = np.random.default_rng(index)
    state, view = world.start(start)
    explorer = RoomExplorer(world, state, view, 10_000, rng)
    explorer.roams = False  # it looks where it goes before it goes
    look_rad = float(rng.choice([-1.0, 1.0])) * LOOK_STEPS * FRAMES_PER_STEP * world.control.turn_rad
    explorer.turn(look_rad)
    explorer.turn(-look_rad)
    views = explorer.views
    covisibility = Covisibility([_still_view(view.depth_m, view.world_from_camera[-1], view.image_from_camera)])
    first, goal = len(views), None
    while not _has_left(covisibility, views[first:], views[0]):
        explorer.steps = min(len(views) + STRIDE_STEPS, first + OUT_STEPS)
        if len(views) >= first + OUT_STEPS:
            return None
        before = len(views)
        if goal is None:
            goal = explorer.grid.entry(int(rng.choice(explorer.linked[explorer.room])), explorer.room)
        explorer.walk_to(goal)
        if len(views) < explorer.steps:  # arrived, or stuck: on to another room
            goal = None
            if len(views) == before:
                explorer.turn(float(rng.choice([-1.0, 1.0])) * np.pi / 4)
    explorer.steps = 10_000
    out = len(views) - first + STOPPING_STEPS
    _retrace(explorer, first)
    if len(views) != first + 2 * out or views[-1].terminated:
        return None
    cameras = _cameras(views)[:, -1]
    mirrored = cameras[first - 1 : first + out - 1][::-1]
    error_m = np.abs(cameras[first + out :] - mirrored).max()
    if error_m >= POSE_ERROR_M:
        return None
    return views, caption_steps(views[:1], explorer.layouts[:1])[0].text


def _retrace(explorer: RoomExplorer, first: int) -> None:
    """Comes to rest, then follows every camera since step `first` in reverse."""
    for _ in range(STOPPING_STEPS):
        explorer.act(0.0, 0.0, 0.0)
    for poses in reversed_steps(explorer.views[first - 1 :]):
        if explorer.done:
            return
        explorer.state, view = explorer.world.follow(explorer.state, poses)
        explorer.views.append(view)


def _has_left(covisibility: Covisibility, views: Sequence[View], start: View) -> bool:
    """Whether the latest views are out of the start's for long enough, and far enough away."""
    if len(views) < AWAY_STEPS:
        return False
    walked_m = np.linalg.norm(views[-1].world_from_camera[-1, :3, 3] - start.world_from_camera[-1, :3, 3])
    if walked_m < WALKED_M:
        return False
    last = views[-AWAY_STEPS:]
    last = [_still_view(view.depth_m, view.world_from_camera[-1], view.image_from_camera) for view in last]
    return all(covisibility.mask(view, (0,)).mean() <= AWAY_SHARE for view in last)


def _cameras(views: Sequence[View]) -> np.ndarray:
    return np.stack([view.world_from_camera for view in views])


def _depth(views: Sequence[View]) -> np.ndarray:
    return clean_depth(np.stack([view.depth_m for view in views]))


def clean_depth(depth_m: np.ndarray) -> np.ndarray:
    """Finite float32 depth within `WORST_M` and `FARTHEST_M`."""
    return np.nan_to_num(depth_m, nan=FARTHEST_M, posinf=FARTHEST_M).clip(WORST_M, FARTHEST_M).astype(np.float32)


def save_arrays(file: Path, arrays: Any) -> None:
    """Writes the fields of a dataclass to an npz; depth in float16, whose error is below 0.05 %. An incomplete file is
    never left.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    values = {field.name: getattr(arrays, field.name) for field in fields(arrays)}
    values = {name: value for name, value in values.items() if value is not None}
    for name, value in values.items():
        if isinstance(value, np.ndarray) and "depth" in name:
            values[name] = value.astype(np.float16)
    part = file.with_suffix(".part")
    try:
        with part.open("wb") as stream:
            np.savez_compressed(stream, **values)
        part.rename(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def load_arrays(kind: type, file: Path) -> Any:
    """The dataclass that `save_arrays` wrote; fields that were None are None.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with np.load(file) as stored:
            values = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"{file} is damaged; delete it, and the same command makes it again") from error
    for name, value in values.items():
        if "depth" in name:
            values[name] = value.astype(np.float32)
        elif value.ndim == 0:
            values[name] = value.item()
    return kind(**{field.name: values.get(field.name) for field in fields(kind)})
