"""Held-out ground-truth paths through the simulator, along which a learned world is measured.

Seeds end in 9, as held-out seeds do. They start far behind the seeds of recordings, so no recording that a world was
trained or tuned on contains these paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mosaic_gym.evaluation.metrics.visibility import Covisibility
from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose, control_from_settings
from mosaic_gym.model.checkpoints import WorldSettings
from mosaic_gym.worlds.captions import caption
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.explorer import STOPPING_STEPS, Explorer
from mosaic_gym.worlds.protocol import Start, View

FIRST_SEED = 1_000_009
AWAY_STEPS = 16
"""Consecutive steps (64 frames) of a return path that show no place of its history."""
AWAY_SHARE = 0.02
"""A view shows no place of the history if at most this share of its pixels does."""
MAX_STEPS_OUT = 40
OPEN_M = 1.5
"""Median depth of each view of a history is at least this, so that it does not show a wall close by."""
CLEAR_M = 3.0
"""A way out starts in a direction with this much free space."""
WALKED_M = 2.0
"""A way out ends at least this far from its start; turning on the spot does not count as leaving."""
STRIDE_STEPS = 6
"""Steps between two checks of the way out. The explorer may change its direction between them."""
MAX_POSE_ERROR_M = 0.01
"""A return path is dropped if a pose of the way back differs from the outward one by more than this."""


def simulator_of(settings: WorldSettings) -> DoomWorld:
    """The simulator that a checkpoint was trained on, without the game's own time limit."""
    control = control_from_settings(settings.control)
    return DoomWorld(settings.scenario, settings.height, settings.width, control, timeout_tics=0)


@dataclass(frozen=True)
class TruePath:
    """The simulator's views along a path, one view a step.

    Attributes:
        seed: of the episode.
        views: first the history, then the way out and, for a return path, the way back.
        history: number of history views.
        out: number of views of the way out; 1, the target, for a path one step ahead.
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


def held_out_seeds() -> Iterator[int]:
    """Held-out seeds, without end."""
    seed = FIRST_SEED
    while True:
        yield seed
        seed += 10


def collect(
    make_path: Callable[[DoomWorld, int], TruePath | None], count: int, settings: WorldSettings, label: str = "paths"
) -> list[TruePath]:
    """The first `count` paths of a kind, in the order of seeds, with a progress bar.

    Args:
        make_path: `ahead_path` or `return_path`; seeds for which it returns None are skipped.
        settings: of the checkpoint whose simulator is walked.
        label: of the progress bar.
    """
    from tqdm import tqdm

    world = simulator_of(settings)
    paths: list[TruePath] = []
    with tqdm(total=count, desc=f"walking {label} in the simulator", unit="path", mininterval=2.0) as bar:
        for seed in held_out_seeds():
            if len(paths) == count:
                break
            path = make_path(world, seed)
            if path is not None:
                paths.append(path)
                bar.update()
    world.close()
    return paths


def ahead_path(world: DoomWorld, seed: int) -> TruePath | None:
    """Ten to forty explored steps; the last is the target. None if the game ended the episode early."""
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(11, 41))
    state, view = world.start(Start(seed=seed))
    explorer = Explorer(world, state, view, steps, rng)
    explorer.explore()
    if len(explorer.views) < steps:
        return None
    return TruePath(seed, tuple(explorer.views), steps - 1, 1, caption(view))


def return_path(world: DoomWorld, seed: int) -> TruePath | None:
    """A look around, a way out with at least 16 steps out of view of it, and the way back over the same poses.

    None if no view is open enough for the history, if the walk does not leave within `MAX_STEPS_OUT` steps, or if walls
    changed the poses of the way back.
    """
    rng = np.random.default_rng(seed)
    state, view = world.start(Start(seed=seed))
    explorer = Explorer(world, state, view, 10_000, rng)
    # 1. Walk somewhere and come to rest.
    explorer.wander(int(rng.integers(6, 20)))
    for _ in range(12):
        explorer.act(0.0, 0.0, 0.0)
    side = float(rng.choice([-1.0, 1.0]))
    sweep_steps = int(rng.integers(4, 8))
    if not _find_open_sector(explorer, -side, sweep_steps):
        return None
    first = len(explorer.views) - 1
    # 2. The history: turn to one side and back.
    sweep_rad = side * sweep_steps * _step_rad(explorer)
    explorer.turn(sweep_rad)
    explorer.turn(-sweep_rad)
    history = len(explorer.views) - first
    # 3. Out: turn away and walk until no place of the history has been in view for long enough.
    covisibility = Covisibility(explorer.views[first:])
    explorer.turn(-side * float(rng.uniform(1.4, 2.2)))
    _face_free_space(explorer, -side)
    while not explorer.done and not _has_left(covisibility, explorer.views[first:], history):
        if len(explorer.views) - first - history + STRIDE_STEPS + STOPPING_STEPS > MAX_STEPS_OUT:
            return None
        explorer.wander(STRIDE_STEPS, careful=True)
    if explorer.done:
        return None
    out = len(explorer.views) - first - history
    # 4. Back over the same poses, frame by frame. The steps of coming to rest belong to the way out.
    out += STOPPING_STEPS
    explorer.retrace(first + history)
    views = explorer.views[first:]
    if len(views) != history + 2 * out or views[-1].terminated:
        return None
    path = TruePath(seed, tuple(views), history, out, caption(views[0]))
    return path if _largest_pose_error_m(path) < MAX_POSE_ERROR_M else None


def outward_frame(path: TruePath, frame: int) -> tuple[int, int]:
    """The (step, instant) with the same pose as the `frame`-th frame of the way back.

    It lies on the way out or at the end of the history.
    """
    index = path.back * FRAMES_PER_STEP - 2 - frame
    return divmod(index, FRAMES_PER_STEP)


def _largest_pose_error_m(path: TruePath) -> float:
    largest = 0.0
    for frame in range(path.out * FRAMES_PER_STEP):
        step, instant = outward_frame(path, frame)
        outward = path.views[step].world_from_camera[instant]
        back_step, back_instant = divmod(frame, FRAMES_PER_STEP)
        back = path.views[path.back + back_step].world_from_camera[back_instant]
        largest = max(largest, float(np.abs(outward - back).max()))
    return largest


def _median_depth_m(view: View) -> float:
    return float(np.median(view.depth_m))


def _step_rad(explorer: Explorer) -> float:
    return FRAMES_PER_STEP * explorer.world.control.turn_rad


def _find_open_sector(explorer: Explorer, side: float, steps: int) -> bool:
    """Turns to a side until the last `steps` turns showed open views only; False if a full turn has no such sector."""
    step_rad, open_views = _step_rad(explorer), 0
    for _ in range(round(2 * np.pi / step_rad) + steps):
        open_views = open_views + 1 if _median_depth_m(explorer.views[-1]) >= OPEN_M else 0
        if open_views > steps:
            return True
        explorer.turn(side * step_rad)
    return False


def _face_free_space(explorer: Explorer, side: float) -> None:
    """Turns to a side until the horizon ahead is free, for a quarter turn at most."""
    for _ in range(round(np.pi / 2 / _step_rad(explorer))):
        depth_m = explorer.views[-1].depth_m
        height, width = depth_m.shape
        if depth_m[height // 2, width // 4 : 3 * width // 4].min() >= CLEAR_M:
            return
        explorer.turn(side * _step_rad(explorer))


def _has_left(covisibility: Covisibility, views: Sequence[View], history: int) -> bool:
    """Whether the path after the first `history` views has left for long enough, and leads far enough."""
    walked_m = np.linalg.norm(views[-1].world_from_camera[-1, :3, 3] - views[0].world_from_camera[-1, :3, 3])
    return bool(walked_m >= WALKED_M) and _steps_away(covisibility, views[history:]) >= AWAY_STEPS


def _steps_away(covisibility: Covisibility, views: Sequence[View]) -> int:
    """Number of the latest consecutive steps that show no place of the history."""
    count = 0
    for view in reversed(views):
        if covisibility.mask(view, instants=(3,)).mean() > AWAY_SHARE:
            return count
        count += 1
    return count
