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
from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.protocol import Start, View

FIRST_SEED = 1_000_009
AWAY_STEPS = 16
"""Steps (64 frames) that a return path stays away from all that its history saw."""
AWAY_SHARE = 0.02
"""A view is away while at most this share of its pixels shows a place that the history saw."""
LONGEST_WAY_OUT = 48
UNTRUE_M = 0.01
"""A return whose poses miss the outward ones by more than this is thrown away."""


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

    None if the seed's walk does not leave within `LONGEST_WAY_OUT` steps, or walls kept the body off its way back.
    """
    rng = np.random.default_rng(seed)
    state, view = world.start(Start(seed=seed))
    explorer = Explorer(world, state, view, 10_000, rng)
    # 1. Somewhere, at rest.
    explorer.wander(int(rng.integers(6, 20)))
    for _ in range(12):
        explorer.act(0.0, 0.0, 0.0)
    first = len(explorer.views) - 1
    # 2. The history: a look to one side and back.
    side = float(rng.choice([-1.0, 1.0]))
    sweep_rad = float(rng.uniform(0.6, 1.2))
    explorer.turn(side * sweep_rad)
    explorer.turn(-side * sweep_rad)
    history = len(explorer.views) - first
    # 3. Out: away from where it looked, and off, until nothing of it has been in view for long enough.
    explorer.turn(-side * float(rng.uniform(1.8, 2.6)))
    seen = Seen(explorer.views[first : first + history])
    while not explorer.done and _away(seen, explorer.views[first + history :]) < AWAY_STEPS:
        if len(explorer.views) - first - history > LONGEST_WAY_OUT:
            return None
        explorer.wander(2, careful=True)
    out = len(explorer.views) - first - history
    if explorer.done or out < AWAY_STEPS:
        return None
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
