"""Pictures of what was measured: contact sheets and side-by-side videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath

import numpy as np
from PIL import Image, ImageDraw

from mosaic_gym.evaluation.paths import Path
from mosaic_gym.evaluation.rollout import VARIANTS
from mosaic_gym.geometry.control import FRAMES_PER_STEP

LABEL_PX = 14
ENGINE = "true engine"


def enlarge(frame: np.ndarray, times: int) -> np.ndarray:
    """uint8 `[H, W, 3]` with every pixel `times` as large."""
    return frame.repeat(times, 0).repeat(times, 1)


def labelled(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture under a dark strip that says `text`."""
    strip = Image.new("RGB", (picture.shape[1], LABEL_PX), (24, 24, 28))
    ImageDraw.Draw(strip).text((3, 1), text, fill=(235, 235, 235))
    return np.concatenate([np.asarray(strip), picture])


def phase(path: Path, step: int) -> str:
    """What the body is doing at a step of a return path."""
    if step < path.history:
        return "looking around (true frames)"
    return "leaving" if step < path.back else "coming back"


def sheet(path: Path, shown: dict[str, np.ndarray], columns: int = 12, times: int = 2) -> np.ndarray:
    """A contact sheet, uint8 `[h, w, 3]`: a row for the engine and each arm, moments from the history's end on.

    Args:
        shown: for each arm its frames `[steps, 4, H, W, 3]` of the way, as `Arms.dream` gives them.
    """
    count = len(path.views) - path.history
    steps = np.unique(np.linspace(0, count - 1, columns).round().astype(int))
    rows = [(ENGINE, [path.views[path.history + step].frames[-1] for step in steps])]
    rows += [(VARIANTS[variant], [frames[step, -1] for step in steps]) for variant, frames in shown.items()]
    gap = np.full((rows[0][1][0].shape[0] * times, 2, 3), 24, np.uint8)
    drawn = []
    for name, frames in rows:
        line = np.concatenate([part for frame in frames for part in (enlarge(frame, times), gap)], axis=1)
        drawn.append(labelled(line, name))
    said = [f"{phase(path, path.history + step)} {step + 1}" for step in steps]
    width = drawn[0].shape[1] // len(steps)
    head = Image.new("RGB", (drawn[0].shape[1], LABEL_PX), (24, 24, 28))
    for i, text in enumerate(said):
        ImageDraw.Draw(head).text((i * width + 3, 1), text, fill=(160, 200, 255))
    return np.concatenate([np.asarray(head), *drawn])


def save_sheet(file: FilePath, path: Path, shown: dict[str, np.ndarray]) -> FilePath:
    """Writes `sheet` as a PNG."""
    Image.fromarray(sheet(path, shown)).save(file)
    return file


def save_video(
    file: FilePath, path: Path, columns: Sequence[tuple[str, np.ndarray]], times: int = 5, frames_per_second: int = 35
) -> FilePath:
    """Writes a side-by-side MP4 of a return path: the history, then the way, every frame of it.

    Args:
        columns: labels and frames `[steps, 4, H, W, 3]` of the whole path.
        frames_per_second: 35 is the engine's own pace.
    """
    import imageio.v2 as imageio

    with imageio.get_writer(file, fps=frames_per_second, codec="libx264", quality=8, macro_block_size=2) as writer:
        for step in range(len(path.views)):
            for instant in range(FRAMES_PER_STEP):
                parts = [labelled(enlarge(frames[step, instant], times), name) for name, frames in columns]
                picture = labelled(np.concatenate(parts, axis=1), phase(path, step))
                height, width = picture.shape[:2]
                writer.append_data(picture[: height - height % 2, : width - width % 2])
    return file
