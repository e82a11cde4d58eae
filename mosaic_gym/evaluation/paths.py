"""Held-out paths through the true engine: what the benchmark asks a dream to repeat.

Seeds end in 9, as held-out ones do, and start far behind those that are recorded, so that nothing here was
trained on or tuned on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mosaic_gym.data.captions import caption
from mosaic_gym.data.explore import STOPPING_STEPS, Explorer
from mosaic_gym.geometry.camera import invert_pose, project, transform, unproject
from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose, control_from_settings
from mosaic_gym.model.checkpoints import WorldSettings
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.protocol import Start, View

FIRST_SEED = 1_000_009
AWAY_STEPS = 16
"""Steps (64 frames) on end that a return path stays away from all that its history saw."""
AWAY_SHARE = 0.02
"""A view is away while at most this share of its pixels shows a place that the history saw."""
LONGEST_WAY_OUT = 40
OPEN_M = 1.5
"""A history looks at a place, not at a wall before its nose: half of what each of its views shows is farther."""
CLEAR_M = 3.0
"""A way out is begun towards where at least so much is free."""
WALKED_M = 2.0
"""A way out leads at least so far from where the history looked around; turning on the spot is not leaving."""
STRIDE_STEPS = 6
"""Steps walked before the way out is judged again; the explorer may change its mind about a side between them."""
UNTRUE_M = 0.01
"""A return whose poses miss the outward ones by more than this is thrown away."""


def simulator_of(settings: WorldSettings) -> DoomWorld:
    """The engine that a checkpoint was trained on and is compared with; no clock of the game's own ends an episode."""
    control = control_from_settings(settings.control)
    return DoomWorld(settings.scenario, settings.height, settings.width, control, timeout_tics=0)


@dataclass(frozen=True)
class Path:
    """What the engine showed along a path, one view a step.

    Attributes:
        seed: of the episode.
        views: of the true history first, then of the way (out and, for a return path, back).
        history: how many views are history.
        out: how many are the way out (for a path one step ahead: the one target).
        prompt: caption of the first view.
    """

    seed: int
    views: tuple[View, ...]
    history: int
    out: int
    prompt: str

    def poses(self, step: int) -> list[Pose]:
        """The four poses of a step."""
        return [Pose(camera) for camera in self.views[step].world_from_camera]

    @property
    def back(self) -> int:
        """The first step of the way back."""
        return self.history + self.out


def seeds() -> Iterator[int]:
    """Held-out seeds, without end."""
    seed = FIRST_SEED
    while True:
        yield seed
        seed += 10


def ahead_path(world: DoomWorld, seed: int) -> Path | None:
    """Ten to forty explored steps; the last is the target. None if the game ended it early."""
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(11, 41))
    state, view = world.start(Start(seed=seed))
    explorer = Explorer(world, state, view, steps, rng)
    explorer.explore()
    if len(explorer.views) < steps:
        return None
    return Path(seed, tuple(explorer.views), steps - 1, 1, caption(view))


def return_path(world: DoomWorld, seed: int) -> Path | None:
    """Look around somewhere, leave all of it for at least 16 steps, and retrace the way back.

    None if there is no open view to remember, the seed's walk does not leave within `LONGEST_WAY_OUT` steps, or
    walls kept the body off its way back.
    """
    rng = np.random.default_rng(seed)
    state, view = world.start(Start(seed=seed))
    explorer = Explorer(world, state, view, 10_000, rng)
    # 1. Somewhere, at rest.
    explorer.wander(int(rng.integers(6, 20)))
    for _ in range(12):
        explorer.act(0.0, 0.0, 0.0)
    side = float(rng.choice([-1.0, 1.0]))
    looking = int(rng.integers(4, 8))
    if not _find_open_sector(explorer, -side, looking):
        return None
    first = len(explorer.views) - 1
    # 2. The history: a look to one side and back.
    sweep_rad = side * looking * _step_rad(explorer)
    explorer.turn(sweep_rad)
    explorer.turn(-sweep_rad)
    history = len(explorer.views) - first
    # 3. Out: away from where it looked, and off, until nothing of it has been in view for long enough.
    seen = Seen(explorer.views[first:])
    explorer.turn(-side * float(rng.uniform(1.4, 2.2)))
    _face_a_clear_way(explorer, -side)
    while not explorer.done and not _has_left(seen, explorer.views[first:], history):
        if len(explorer.views) - first - history + STRIDE_STEPS + STOPPING_STEPS > LONGEST_WAY_OUT:
            return None
        explorer.wander(STRIDE_STEPS, careful=True)
    if explorer.done:
        return None
    out = len(explorer.views) - first - history
    # 4. Back over the same poses, frame by frame; coming to rest belongs to the way out.
    out += STOPPING_STEPS
    explorer.retrace(first + history)
    views = explorer.views[first:]
    if len(views) != history + 2 * out or views[-1].terminated:
        return None
    path = Path(seed, tuple(views), history, out, caption(views[0]))
    return path if _largest_miss_m(path) < UNTRUE_M else None


def outward_frame(path: Path, frame: int) -> tuple[int, int]:
    """The (step, instant) of the way out, or of the history's end, at the pose of the way back's `frame`-th frame."""
    index = path.back * FRAMES_PER_STEP - 2 - frame
    return divmod(index, FRAMES_PER_STEP)


def _largest_miss_m(path: Path) -> float:
    worst = 0.0
    for frame in range(path.out * FRAMES_PER_STEP):
        step, instant = outward_frame(path, frame)
        there = path.views[step].world_from_camera[instant]
        back_step, back_instant = divmod(frame, FRAMES_PER_STEP)
        here = path.views[path.back + back_step].world_from_camera[back_instant]
        worst = max(worst, float(np.abs(there - here).max()))
    return worst


def _median_depth_m(view: View) -> float:
    return float(np.median(view.depth_m))


def _step_rad(explorer: Explorer) -> float:
    return FRAMES_PER_STEP * explorer.world.control.turn_rad


def _find_open_sector(explorer: Explorer, side: float, steps: int) -> bool:
    """Turns to a side until the last `steps` turns showed open views only; False if a whole turn has no such."""
    step_rad, open_views = _step_rad(explorer), 0
    for _ in range(round(2 * np.pi / step_rad) + steps):
        open_views = open_views + 1 if _median_depth_m(explorer.views[-1]) >= OPEN_M else 0
        if open_views > steps:
            return True
        explorer.turn(side * step_rad)
    return False


def _face_a_clear_way(explorer: Explorer, side: float) -> None:
    """Turns on to a side until the horizon ahead is clear, for a quarter turn at most."""
    for _ in range(round(np.pi / 2 / _step_rad(explorer))):
        depth_m = explorer.views[-1].depth_m
        height, width = depth_m.shape
        if depth_m[height // 2, width // 4 : 3 * width // 4].min() >= CLEAR_M:
            return
        explorer.turn(side * _step_rad(explorer))


def _has_left(seen: Seen, views: list[View], history: int) -> bool:
    """Whether the way after the first `history` views is away for long enough, and leads far enough."""
    walked_m = np.linalg.norm(views[-1].world_from_camera[-1, :3, 3] - views[0].world_from_camera[-1, :3, 3])
    return bool(walked_m >= WALKED_M) and _away(seen, views[history:]) >= AWAY_STEPS


def _away(seen: Seen, views: list[View]) -> int:
    """How many of the latest steps, unbroken, show nothing that was seen."""
    count = 0
    for view in reversed(views):
        if seen.mask(view, instants=(3,)).mean() > AWAY_SHARE:
            return count
        count += 1
    return count


class Seen:
    """Which pixels of later views show places that some true views saw, by the engine's depth."""

    def __init__(self, views: list[View]):
        self.depth_m = torch.tensor(np.stack([view.all_depth_m[-1] for view in views]))
        cameras = np.stack([view.world_from_camera[-1] for view in views])
        self.camera_from_world = invert_pose(torch.tensor(cameras, dtype=torch.float32))
        self.k = torch.tensor(views[0].image_from_camera, dtype=torch.float32)

    def mask(self, view: View, instants: tuple[int, ...] = (0, 1, 2, 3)) -> np.ndarray:
        """bool `[len(instants), H, W]`."""
        depth_m = torch.tensor(view.all_depth_m[list(instants)], dtype=torch.float32)
        cameras = torch.tensor(view.world_from_camera[list(instants)], dtype=torch.float32)
        height, width = depth_m.shape[-2:]
        points = transform(cameras, unproject(depth_m, self.k).flatten(1, 2)).flatten(0, 1)
        uv, z = project(transform(self.camera_from_world, points), self.k)
        column, row = uv.floor().long().unbind(-1)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (z > 0.05)
        cell = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).clamp(0, height * width - 1)
        there_m = self.depth_m.flatten(1).gather(1, cell)
        # The engine's depth comes in steps of 0.22 m.
        same = (z - there_m).abs() < 0.08 * there_m + 0.25
        return (inside & same).any(0).view(len(instants), height, width).numpy()
