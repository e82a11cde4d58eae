"""Contact sheets: one row a variant, one column a moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mosaic_gym.evaluation.reports.frames import CAPTION, enlarge, labeled, side_by_side, text_strip


def contact_sheet(rows: Sequence[tuple[str, np.ndarray]], captions: Sequence[str], scale: int = 2) -> np.ndarray:
    """A contact sheet, uint8 `[h, w, 3]`.

    Args:
        rows: a label and frames uint8 `[n, H, W, 3]` each, all of one shape.
        captions: n texts above the columns.
        scale: enlargement of every pixel.
    """
    lines = [labeled(side_by_side([enlarge(frame, scale) for frame in frames]), label) for label, frames in rows]
    width = lines[0].shape[1]
    texts = [(index * width // len(captions), caption) for index, caption in enumerate(captions)]
    return np.concatenate([text_strip(texts, width, color=CAPTION), *lines])


def save_contact_sheet(
    file: Path, rows: Sequence[tuple[str, np.ndarray]], captions: Sequence[str], scale: int = 2
) -> Path:
    """Writes `contact_sheet` as a PNG."""
    Image.fromarray(contact_sheet(rows, captions, scale)).save(file)
    return file
