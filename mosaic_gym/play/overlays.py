"""Pictures that explain a step: where each pixel comes from, depth, memory from above, curves. uint8 `[H, W, 3]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from mosaic_gym.memory.mosaic import MosaicMemory
    from mosaic_gym.worlds.inspection import StepSources
    from mosaic_gym.worlds.protocol import View

OVERLAYS = ("sources", "memory", "depth")
INVENTED, AGAIN, EDITED = (255, 140, 30), (70, 120, 255), (80, 220, 90)
"""Tints of pixels that were invented, that were generated again over memory, and that an edit put there."""
TINT = 0.55
NEAR_M, FAR_M = 0.3, 20.0
"""The range of the depth picture, metres."""
DEPTH_COLORS = np.array([(255, 245, 200), (250, 160, 60), (190, 50, 90), (70, 20, 110), (10, 8, 35)], float)
"""Colors from near to far, evenly spaced in the logarithm of depth."""
CURVE_COLORS = ((240, 180, 60), (90, 170, 255), (240, 90, 90), (130, 220, 130))
BACKGROUND = (16, 16, 20)
EYE_BAND_M = 0.8
"""The map shows patches of at most this height over or under the eye, so not floors and ceilings."""


def tint_sources(frame: np.ndarray, sources: StepSources) -> np.ndarray:
    """A frame in which pixels from memory keep their colors; the others are tinted."""
    picture = frame.astype(float)
    kinds = [(~sources.covered, INVENTED), (sources.covered & ~sources.from_memory, AGAIN), (sources.edited, EDITED)]
    for mask, color in kinds:
        picture[mask] = (1 - TINT) * picture[mask] + TINT * np.array(color)
    return picture.astype(np.uint8)


def overlay_picture(world: Any, before: Any, view: View, overlay: str) -> np.ndarray:
    """The overlay of a view: `sources`, `memory` or `depth`; the frame where no step of the world led to it.

    Args:
        before: the state that was stepped to the view; None at a start.
    """
    if overlay == "depth":
        return depth_picture(view.depth_m)
    if before is None:
        return view.frames[-1]
    from mosaic_gym.worlds.inspection import step_sources

    sources = step_sources(world, before, view)
    return tint_sources(view.frames[-1], sources) if overlay == "sources" else sources.warped


def depth_picture(depth_m: np.ndarray) -> np.ndarray:
    """Depth `[H, W]`, metres, as colors: bright is near."""
    share = np.log(np.clip(depth_m, NEAR_M, FAR_M) / NEAR_M) / np.log(FAR_M / NEAR_M) * (len(DEPTH_COLORS) - 1)
    low = np.clip(share.astype(int), 0, len(DEPTH_COLORS) - 2)
    part = (share - low)[..., None]
    return ((1 - part) * DEPTH_COLORS[low] + part * DEPTH_COLORS[low + 1]).astype(np.uint8)


def memory_from_above(memory: MosaicMemory | None, path_m: np.ndarray, heading_rad: float, side_px: int) -> np.ndarray:
    """Memory from above, north (+z) up: patches at eye height, keyframes' cameras, the path, and the body.

    Args:
        path_m: `[n, 2]`, places (x, z) of the body, metres; the last is the present one.
        heading_rad: of the body, 0 along +z and growing to the right.
        side_px: of the square picture.
    """
    patches, cameras = np.zeros((0, 2)), np.zeros((0, 2))
    if memory is not None and len(memory):
        eye_m = float(memory.keyframes[-1].world_from_keyframe[1, 3])
        parts = [keyframe.points_m[keyframe.alive].double().cpu().numpy() for keyframe in memory.keyframes]
        points = np.concatenate(parts)
        patches = points[np.abs(points[:, 1] - eye_m) < EYE_BAND_M][:, [0, 2]]
        cameras = np.stack([k.world_from_keyframe[:3, 3].double().cpu().numpy() for k in memory.keyframes])[:, [0, 2]]
    places = np.concatenate([patches, cameras, path_m])
    centre = (places.min(0) + places.max(0)) / 2
    metre_px = (side_px - 16) / max(float((places.max(0) - places.min(0)).max()), 8.0)
    picture = Image.new("RGB", (side_px, side_px), BACKGROUND)
    draw = ImageDraw.Draw(picture)

    def pixels(places_m: np.ndarray) -> list[tuple[float, float]]:
        x, z = ((places_m - centre) * metre_px).T
        return list(zip((side_px / 2 + x).tolist(), (side_px / 2 - z).tolist(), strict=True))

    draw.point(pixels(patches), fill=(150, 150, 160))
    for x, y in pixels(cameras):
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=(90, 170, 255))
    if len(path_m) > 1:
        draw.line(pixels(path_m), fill=(240, 180, 60), width=1)
    ((x, y),) = pixels(path_m[-1:])
    ahead = np.array([np.sin(heading_rad), -np.cos(heading_rad)]) * 9
    side = np.array([-ahead[1], ahead[0]]) * 0.5
    body = np.array([x, y])
    draw.polygon([tuple(body + ahead), tuple(body - ahead / 3 + side), tuple(body - ahead / 3 - side)], fill=(255,) * 3)
    return np.asarray(picture)


def curves(series: Mapping[str, Sequence[float]], width_px: int, row_px: int = 44) -> np.ndarray:
    """A curve for each name, one below the other, each on its own scale, with its latest value."""
    picture = Image.new("RGB", (width_px, row_px * max(1, len(series))), BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
    for row, (name, values) in enumerate(series.items()):
        top, color = row * row_px, CURVE_COLORS[row % len(CURVE_COLORS)]
        numbers = np.asarray(values, float)
        latest = f"{numbers[-1]:.2f}" if len(numbers) else ""
        draw.text((4, top + 2), f"{name} {latest}", fill=color, font=font)
        if len(numbers) > 1:
            low, high = float(numbers.min()), float(numbers.max())
            heights = (numbers - low) / max(high - low, 1e-9)
            x = np.linspace(4, width_px - 5, len(numbers))
            y = top + row_px - 5 - heights * (row_px - 22)
            draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=color)
    return np.asarray(picture)
