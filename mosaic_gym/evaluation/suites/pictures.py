"""Contact sheets and videos of return paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mosaic_gym.evaluation.reports.sheet import save_contact_sheet
from mosaic_gym.evaluation.suites.paths import TruePath
from mosaic_gym.evaluation.suites.rollout import VARIANTS

TRUTH = "simulator"
"""Label of the true frames."""


def true_frames(path: TruePath) -> np.ndarray:
    """The simulator's frames of the whole path, uint8 `[steps, 4, H, W, 3]`."""
    return np.stack([view.frames for view in path.views])


def phase(path: TruePath, step: int) -> str:
    """Which part of a return path a step belongs to, for captions."""
    if step < path.history:
        return "looking around (true frames)"
    return "leaving" if step < path.back else "coming back"


def save_return_sheet(
    file: Path, path: TruePath, frames_by_variant: Mapping[str, np.ndarray], columns: int = 12
) -> Path:
    """Writes a contact sheet of the way out and back as a PNG: a row for the simulator and one for each variant.

    Args:
        frames_by_variant: frames `[steps, 4, H, W, 3]` by the variant's name, as `Variants.rollout` returns them.
        columns: moments, at equal distances.
    """
    steps = np.unique(np.linspace(0, len(path.views) - path.history - 1, columns).round().astype(int))
    rows = [(TRUTH, true_frames(path)[path.history :][steps, -1])]
    rows += [(VARIANTS[variant], frames[steps, -1]) for variant, frames in frames_by_variant.items()]
    return save_contact_sheet(file, rows, [f"{phase(path, path.history + step)} {step + 1}" for step in steps])
