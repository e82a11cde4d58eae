"""Whether changes of memory are seen in what the learned world generates: moved, removed and duplicated patches.

In every case, a textured square of a start view is copied to two thirds of its distance: the *object*, in front of its
source. Then it is moved sideways, removed, or duplicated, and compared in generated frames.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mosaic_gym.validation import Whole, option, validate

if TYPE_CHECKING:
    import numpy as np

    from mosaic_gym.worlds.mosaic import MosaicWorld
    from mosaic_gym.worlds.protocol import View
    from mosaic_gym.worlds.state import WorldState

NEARER = 0.65
"""The object's distance as a share of that of the patches it was copied from."""
SHIFTS_PX = (8.0, 14.0)
"""The range of the sideways movement, pixels of the view."""
RANGE_M = (1.2, 6.0)
"""The range of the patches' distance, metres."""
MOST_ERROR = 0.15
"""The displacement is right within this share of fx * dx / z."""
CORE = 0.75
"""The middle part of the object that is compared: its border may be jagged."""
TURNS = 4
"""Steps of turning away, and as many back, before what was removed or duplicated is looked at again."""
GOALS = {"moved_right": 1.0, "removed_gone": 0.9, "duplicated_twice": 0.9}


@dataclass(frozen=True)
class Config:
    """Measure whether moved, removed and duplicated patches of memory are seen in generated frames."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    cases: Annotated[int, Whole(1)] = 40
    """Start views, by seed; those without a textured square at a usable distance are skipped."""
    json: Path | None = None
    """Write the figures here."""

    def __post_init__(self) -> None:
        validate(self, option)


@dataclass(frozen=True)
class Case:
    """A world with an object in it.

    Attributes:
        state: with the object in memory, after the step that shows it.
        view: of that step. background: the view before the object was there.
        box: (top, left, bottom, right) of the object in the view, pixels.
        distance_m: of the object.
        shift_px: by how many pixels to the right it is to be moved.
    """

    state: WorldState
    view: View
    background: np.ndarray
    box: tuple[int, int, int, int]
    distance_m: float
    shift_px: float


def make_case(world: MosaicWorld, seed: int) -> Case | None:
    """The case of a seed; None if its start view has no textured square at a usable distance."""
    import numpy as np

    from mosaic_gym.memory import editing
    from mosaic_gym.worlds.protocol import Start

    rng = np.random.default_rng(seed)
    state, view = world.start(Start(seed=seed))
    height, width = view.depth_m.shape
    side = 2 * height // state.memory.keyframes[0].alive.shape[0]  # two patches
    frame = view.frames[-1].astype(float)
    best, box = 0.0, None
    for top in range(side // 2, height - 3 * side // 2 + 1, side // 2):
        for left in range(side, width - 2 * side + 1, side // 2):
            square = frame[top : top + side, left : left + side]
            distance_m = float(np.median(view.depth_m[top : top + side, left : left + side]))
            texture = float(square.std(axis=(0, 1)).mean())
            if texture > best and RANGE_M[0] < distance_m < RANGE_M[1]:
                best, box = texture, (top, left, top + side, left + side)
    if box is None:
        return None
    camera, k = view.world_from_camera[-1], view.image_from_camera
    patches = editing.select_on_screen(state.memory, box, camera, k, (height, width))
    if not len(patches):
        return None
    centre = editing.centre_m(state.memory, patches)
    ray = centre - camera[:3, 3]
    memory = editing.duplicate(state.memory, patches, (NEARER - 1) * ray)
    distance_m = NEARER * float(ray @ camera[:3, 2])
    (state,), (after,) = world.step([world.with_memory(state, memory)], np.zeros((1, 3)))
    shift = float(rng.uniform(*SHIFTS_PX)) * float(rng.choice([-1.0, 1.0]))
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = side / NEARER / 2 * CORE
    rows, columns = (np.clip((m - half, m + half), 0, size) for m, size in zip(middle, (height, width), strict=True))
    box = int(rows[0]), int(columns[0]), int(rows[1]), int(columns[1])
    if box[1] + shift < 0 or box[3] + shift > width:
        shift = -shift
    return Case(state, after, view.frames[-1], box, distance_m, shift)


def measure_case(world: MosaicWorld, case: Case) -> dict[str, float]:
    """The displacement's relative error, and 1 or 0 for: right within `MOST_ERROR`, gone, and there twice."""
    import numpy as np

    from mosaic_gym.memory import editing

    memory, camera = case.state.memory, case.view.world_from_camera[-1]
    k = case.view.image_from_camera
    thing = editing.Selection(tuple(key.alive if key.edited else key.alive & False for key in memory.keyframes))
    by_m = camera[:3, 0] * (case.shift_px * case.distance_m / k[0, 0])
    still, results = np.zeros((1, 3)), {}

    moved = world.with_memory(case.state, editing.move(memory, thing, by_m))
    _, (view,) = world.step([moved], still)
    found_px = _displacement(case.view.frames[-1], view.frames[-1], case.box)
    results["displacement_error"] = abs(found_px - case.shift_px) / abs(case.shift_px)
    results["moved_right"] = float(results["displacement_error"] <= MOST_ERROR)

    frame = _look_away_and_back(world, world.with_memory(case.state, editing.remove(memory, thing)))
    results["removed_gone"] = float(not _shows_object(frame, case, 0))
    beside_px = _beside_px(case)
    by_m = camera[:3, 0] * (beside_px * case.distance_m / k[0, 0])
    frame = _look_away_and_back(world, world.with_memory(case.state, editing.duplicate(memory, thing, by_m)))
    results["duplicated_twice"] = float(all(_shows_object(frame, case, px) for px in (0, beside_px)))
    return results


def _beside_px(case: Case) -> int:
    """By how many pixels to the right a duplicate stands beside the object, on the side with more room."""
    _, left, _, right = case.box
    width = round((right - left) / CORE) + 2
    return width if case.view.frames.shape[2] - right >= left else -width


def _look_away_and_back(world: MosaicWorld, state: WorldState) -> np.ndarray:
    import numpy as np

    for turn in (0.0, *[1.0] * TURNS, *[-1.0] * TURNS):
        (state,), (view,) = world.step([state], np.array([[0.0, 0.0, turn]]))
    return view.frames[-1]


def _displacement(before: np.ndarray, after: np.ndarray, box: tuple[int, int, int, int]) -> float:
    """By how many pixels to the right a square of one frame is found in the other: the best correlation in its rows."""
    top, left, bottom, right = box
    template, width = before[top:bottom, left:right].astype(float), right - left
    starts = range(after.shape[1] - width + 1)
    scores = [_correlation(template, after[top:bottom, start : start + width].astype(float)) for start in starts]
    best = max(starts, key=lambda start: scores[start])
    if 0 < best < len(scores) - 1:  # to a fraction of a pixel, by a parabola through three scores
        one, two, three = scores[best - 1 : best + 2]
        curvature = one - 2 * two + three
        return best - left + (0.5 * (one - three) / curvature if curvature < 0 else 0.0)
    return float(best - left)


def _shows_object(frame: np.ndarray, case: Case, shift_px: int) -> bool:
    """Whether a frame shows the object, moved by some pixels, rather than what is behind it."""
    import numpy as np

    top, left, bottom, right = case.box
    start, end = max(left + shift_px, 0), min(right + shift_px, frame.shape[1])
    thing = case.view.frames[-1][top:bottom, start - shift_px : end - shift_px].astype(float)
    behind = case.background[top:bottom, start:end].astype(float)
    here = frame[top:bottom, start:end].astype(float)
    return bool(np.abs(here - thing).mean() < np.abs(here - behind).mean())


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / max(float((one**2).sum() * (other**2).sum()) ** 0.5, 1e-9))


def evaluate(config: Config) -> dict[str, Any]:
    """Prints each figure with its 95 % interval and its goal.

    Raises:
        ValueError: no start view has a textured square at a usable distance.
    """
    from tqdm import tqdm

    from mosaic_gym.evaluation.metrics.intervals import wilson_interval
    from mosaic_gym.worlds.mosaic import MosaicWorld

    world, rows = MosaicWorld.from_pretrained(config.checkpoint), []
    for seed in tqdm(range(config.cases), desc="edits", unit="case"):
        case = make_case(world, seed)
        if case is not None:
            rows.append(measure_case(world, case))
    if not rows:
        raise ValueError("no start view has a textured square at a usable distance; give more --cases")
    figures = {
        name: {**wilson_interval([row[name] for row in rows]), "goal": goal, "cases": len(rows)}
        for name, goal in GOALS.items()
    }
    for name, figure in figures.items():
        print(
            f"{name:<18} {figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}], goal {figure['goal']:.2f}, "
            f"{len(rows)} cases"
        )
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps({"checkpoint": config.checkpoint, **figures, "rows": rows}, indent=2) + "\n")
        print(f"figures: {config.json}")
    return figures
