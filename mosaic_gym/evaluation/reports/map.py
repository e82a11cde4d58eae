"""Pictures of generated maps: a map from above, and the sheet of all themes. uint8 `[H, W, 3]`, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mosaic_gym.evaluation.reports.frames import BACKGROUND, TEXT, enlarge, labeled
from mosaic_gym.worlds.maps.layout import Layout

METRE_PX = 18
"""Pixels of a metre from above."""
BORDER_M = 1.5
LEGEND_PX = 30
LEGEND_WIDTH_PX = 540
WALL, DOOR, OPEN_DOOR, PATH = (235, 235, 235), (214, 120, 40), (110, 150, 90), (255, 255, 255)
MARKS = {"start": (90, 230, 90), "pickup": (90, 170, 255), "monster": (240, 70, 70), "prop": (190, 190, 190)}
"""Colors of things by kind."""
COLORS = {
    "brick": (124, 72, 56), "marble": (96, 118, 84), "cave": (92, 78, 62), "wood": (128, 92, 46),
    "tech": (52, 112, 84), "metal": (98, 104, 116), "ember": (196, 110, 40), "hell": (136, 36, 36),
    "white": (166, 162, 154), "crate": (146, 120, 78), "computer": (48, 68, 140), "vine": (60, 104, 52),
    "stone": (112, 112, 104), "tan": (158, 132, 96),
}  # fmt: skip
"""Colors of rooms by theme."""


def map_picture(layout: Layout, path_m: np.ndarray | None = None) -> np.ndarray:
    """A map from above, north (+z) up.

    Args:
        layout: the map and its state.
        path_m: `[n, 2]`, places (x, z) of a walk, metres.
    """
    corners = np.concatenate([space.outline_m for space in layout.spaces])
    low, high = corners.min(0) - BORDER_M, corners.max(0) + BORDER_M
    width, height = (int(np.ceil(size)) for size in (high - low) * METRE_PX)
    width = max(width, LEGEND_WIDTH_PX)
    picture = Image.new("RGB", (width, height + LEGEND_PX), BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)

    def pixels(places_m: np.ndarray) -> list[tuple[float, float]]:
        x, z = (np.atleast_2d(places_m) - low).T * METRE_PX
        return list(zip(x.tolist(), (height - z).tolist(), strict=True))

    for space in layout.spaces:
        color = np.array(COLORS.get(space.theme, (120, 120, 120)))
        shade = 0.4 if space.is_dark else 1.0 if space.kind != "corridor" else 0.7
        draw.polygon(pixels(space.outline_m), fill=tuple((color * shade).astype(int).tolist()))
    for ends_m in _walls(layout):
        draw.line(pixels(ends_m), fill=WALL, width=2)
    for space in layout.spaces:
        for pillar_m in space.pillars_m:
            draw.polygon(pixels(pillar_m), fill=WALL)
    for door in layout.doors:
        draw.polygon(pixels(door.outline_m), fill=OPEN_DOOR if door.is_open else DOOR)
    if path_m is not None and len(path_m) > 1:
        draw.line(pixels(path_m), fill=PATH, width=2, joint="curve")
    for thing in layout.things:
        ((x, y),) = pixels(thing.place_m)
        size = {"start": 7, "monster": 6, "prop": 4}.get(thing.kind, 4)
        fill = MARKS[thing.kind] if thing.is_there else None
        shape = draw.rectangle if thing.kind == "prop" else draw.ellipse
        shape((x - size, y - size, x + size, y + size), fill=fill, outline=(0, 0, 0) if fill else MARKS[thing.kind])
    for index, room in enumerate(layout.rooms):
        low_m, high_m = room.outline_m.min(0), room.outline_m.max(0)
        ((x, y),) = pixels(low_m + (0.5, 0.75) * (high_m - low_m))
        name = f"{index} {room.theme}"
        draw.text((x, y), name, fill=TEXT, font=font, anchor="mm", stroke_width=2, stroke_fill=(0, 0, 0))
    _legend(draw, font, layout, width, height)
    return np.asarray(picture)


def _walls(layout: Layout) -> list[np.ndarray]:
    """The parts of all outlines that belong to one space alone, `[2, 2]` each."""
    outlines = [space.outline_m for space in layout.spaces] + [door.outline_m for door in layout.doors]
    corners = np.concatenate(outlines)
    edges: dict[tuple, int] = {}
    for outline in outlines:
        for a, b in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            axis = 1 if a[0] == b[0] else 0
            on_line = corners[(corners[:, 1 - axis] == a[1 - axis])][:, axis]
            inner = on_line[(on_line > min(a[axis], b[axis])) & (on_line < max(a[axis], b[axis]))]
            stops = np.unique([a[axis], b[axis], *inner])
            for start, end in zip(stops, stops[1:], strict=False):
                key = (axis, float(a[1 - axis]), float(start), float(end))
                edges[key] = edges.get(key, 0) + 1
    walls = []
    for (axis, across, start, end), count in edges.items():
        if count == 1:
            ends = [(start, across), (end, across)] if axis == 0 else [(across, start), (across, end)]
            walls.append(np.array(ends))
    return walls


def _legend(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, layout: Layout, width: int, top: int) -> None:
    draw.text((8, top + LEGEND_PX // 2), f"map {layout.seed}", fill=TEXT, font=font, anchor="lm")
    entries = [*MARKS.items(), ("door", DOOR), ("open door", OPEN_DOOR)]
    left = 90
    for name, color in entries:
        draw.ellipse((left, top + 9, left + 12, top + 21), fill=color, outline=(0, 0, 0))
        draw.text((left + 17, top + LEGEND_PX // 2), name, fill=TEXT, font=font, anchor="lm")
        left += 30 + int(font.getlength(name))


def theme_sheet(frames: Mapping[str, np.ndarray], columns: int = 5, scale: int = 3) -> np.ndarray:
    """Frames side by side, enlarged, with their names above.

    Args:
        frames: uint8 `[H, W, 3]` of one size, by name.
    """
    tiles = [np.pad(labeled(enlarge(frame, scale), name), ((2, 2), (2, 2), (0, 0))) for name, frame in frames.items()]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.concatenate(
        [np.concatenate(tiles[first : first + columns], axis=1) for first in range(0, len(tiles), columns)]
    )
