"""Side-by-side videos: an MP4 for looking closely, and an animated WebP for web pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mosaic_gym.evaluation.reports.frames import LABEL_PX, enlarge, labeled, side_by_side

FRAMES_PER_SECOND = 35
"""The simulator's own rate."""
ANIMATION_LABEL_PX = 24
"""Height of labels in animations, pixels; readable where a page shows the picture smaller than it is."""
Columns = Sequence[tuple[str, np.ndarray]]
"""Labels and frames uint8 `[steps, frames of a step, H, W, 3]`, all of one shape."""


def side_by_side_frames(
    columns: Columns, captions: Sequence[str], scale: int, label_px: int = LABEL_PX
) -> Iterator[np.ndarray]:
    """Every frame of every step, uint8 `[h, w, 3]`.

    Args:
        captions: a text above all columns for each step.
        scale: enlargement of every pixel.
        label_px: height of labels and captions.
    """
    steps, frames_per_step = columns[0][1].shape[:2]
    for step in range(steps):
        for instant in range(frames_per_step):
            parts = [labeled(enlarge(frames[step, instant], scale), label, label_px) for label, frames in columns]
            yield labeled(side_by_side(parts), captions[step], label_px)


def save_video(
    file: Path, columns: Columns, captions: Sequence[str], scale: int = 5, frames_per_second: int = FRAMES_PER_SECOND
) -> Path:
    """Writes an MP4; see `side_by_side_frames`."""
    import imageio.v2 as imageio

    with imageio.get_writer(file, fps=frames_per_second, codec="libx264", quality=8, macro_block_size=2) as writer:
        for picture in side_by_side_frames(columns, captions, scale):
            height, width = picture.shape[:2]
            writer.append_data(picture[: height - height % 2, : width - width % 2])
    return file


def save_animation(
    file: Path,
    columns: Columns,
    captions: Sequence[str],
    scale: int = 4,
    frames_per_second: int = FRAMES_PER_SECOND,
    quality: int = 50,
) -> Path:
    """Writes an animated WebP that repeats for ever; see `side_by_side_frames`.

    Args:
        quality: of the lossy encoder, 0 to 100.
    """
    frames = side_by_side_frames(columns, captions, scale, ANIMATION_LABEL_PX)
    pictures = [Image.fromarray(frame) for frame in frames]
    duration_ms = round(1000 / frames_per_second)
    pictures[0].save(
        file, save_all=True, append_images=pictures[1:], duration=duration_ms, loop=0, quality=quality, method=4
    )
    return file
