"""Parts of pictures: enlarged frames, labels, and frames side by side. Images are uint8 `[H, W, 3]`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LABEL_PX = 14
"""Height of a label, pixels."""
BACKGROUND, TEXT, CAPTION = (24, 24, 28), (235, 235, 235), (160, 200, 255)


def enlarge(frame: np.ndarray, scale: int) -> np.ndarray:
    """Every pixel `scale` times as large, without interpolation."""
    return frame.repeat(scale, 0).repeat(scale, 1)


def text_strip(
    texts: Sequence[tuple[int, str]],
    width: int,
    height: int = LABEL_PX,
    color: tuple[int, int, int] = TEXT,
) -> np.ndarray:
    """A dark strip with texts in it.

    Args:
        texts: the left edge of each text, pixels, and the text.
    """
    strip = Image.new("RGB", (width, height), BACKGROUND)
    font = ImageFont.load_default(size=round(0.7 * height))
    for left, text in texts:
        ImageDraw.Draw(strip).text((left + 3, height // 2), text, fill=color, font=font, anchor="lm")
    return np.asarray(strip)


def labeled(picture: np.ndarray, text: str, height: int = LABEL_PX) -> np.ndarray:
    """The picture with a strip above it that holds a text."""
    return np.concatenate([text_strip([(0, text)], picture.shape[1], height), picture])


def side_by_side(pictures: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Pictures of equal height in a row, with dark gaps between them."""
    space = np.empty((pictures[0].shape[0], gap, 3), np.uint8)
    space[:] = BACKGROUND
    row = [part for picture in pictures for part in (space, picture)]
    return np.concatenate(row[1:], axis=1)
