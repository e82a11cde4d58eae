"""Draws the two figures of the documentation, as SVG: one step of the world, and the coordinates.

    python docs/draw_figures.py

Writes docs/images/step.svg and docs/images/coordinates.svg. Needs nothing beyond Python.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
INK, GREY, PAPER = "#22303c", "#6b7a86", "#ffffff"
BLUE, ORANGE, GREEN, RED = "#2f6db3", "#c75a1c", "#2e8540", "#c0392b"
FILLS = {BLUE: "#e8f0fa", ORANGE: "#fcefe6", GREEN: "#e9f5ec", GREY: "#f3f5f7"}
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
MONO = "Menlo, Consolas, 'DejaVu Sans Mono', monospace"

Point = tuple[float, float]


class Drawing:
    """An SVG picture, made of the lines that its methods add.

    Args:
        width, height: pixels.
        title: for readers who do not see the picture.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="{FONT}">',
            f"<title>{title}</title>",
            "<defs>",
        ]
        for color in (INK, GREY, BLUE, ORANGE, GREEN, RED):
            self.lines.append(
                f'<marker id="head{color[1:]}" viewBox="0 0 10 10" refX="8.5" refY="5" markerWidth="7" '
                f'markerHeight="7" orient="auto-start-reverse"><path d="M0 0 L10 5 L0 10 z" fill="{color}"/></marker>'
            )
        self.lines.append("</defs>")
        self.lines.append(f'<rect width="{width}" height="{height}" rx="12" fill="{PAPER}"/>')

    def text(
        self, at: Point, words: str, size: int = 14, color: str = INK, anchor: str = "middle", bold: bool = False,
        mono: bool = False,
    ) -> None:  # fmt: skip
        """One line of text; its baseline starts, ends or is centred at a point."""
        weight = ' font-weight="bold"' if bold else ""
        family = f' font-family="{MONO}"' if mono else ""
        escaped = words.replace("&", "&amp;").replace("<", "&lt;")
        self.lines.append(
            f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}"'
            f"{weight}{family}>{escaped}</text>"
        )

    def box(self, corner: Point, size: Point, color: str, dashed: bool = False) -> None:
        """A rounded box, tinted in the light shade of its color."""
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.lines.append(
            f'<rect x="{corner[0]}" y="{corner[1]}" width="{size[0]}" height="{size[1]}" rx="9" fill="{FILLS[color]}" '
            f'stroke="{color}" stroke-width="1.8"{dash}/>'
        )

    def path(
        self, points: Sequence[Point], color: str = INK, width: float = 1.8, arrow: bool = False, dashed: bool = False,
        fill: str = "none", close: bool = False,
    ) -> None:  # fmt: skip
        """A line through points."""
        way = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points) + (" z" if close else "")
        head = f' marker-end="url(#head{color[1:]})"' if arrow else ""
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.lines.append(
            f'<path d="{way}" fill="{fill}" stroke="{color}" stroke-width="{width}" stroke-linejoin="round"'
            f"{dash}{head}/>"
        )

    def dot(self, at: Point, radius: float, color: str) -> None:
        """A filled circle."""
        self.lines.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius}" fill="{color}"/>')

    def save(self, name: str) -> None:
        """Writes the picture into docs/images."""
        IMAGES.mkdir(exist_ok=True)
        (IMAGES / name).write_text("\n".join([*self.lines, "</svg>", ""]))


def draw_step() -> None:
    """One environment step: control, retrieve, sample, decode, update."""
    picture = Drawing(1000, 400, "One environment step: control, retrieve, sample, decode, update")
    top, height, width = 176, 84, 132
    lefts = {"control": 28, "retrieve": 232, "sample": 436, "decode": 640, "update": 840}
    below = {
        "control": ("moves the camera,", "stops at walls"),
        "retrieve": ("patches these views", "should show again"),
        "sample": ("diffusion transformer,", "flow matching"),
        "decode": ("codec, refiner,", "depth estimator"),
        "update": ("adds a keyframe", "to the memory"),
    }
    colors = {"control": GREY, "retrieve": BLUE, "sample": ORANGE, "decode": ORANGE, "update": BLUE}
    for name, left in lefts.items():
        picture.box((left, top), (width, height), colors[name])
        picture.text((left + width / 2, top + 28), name, 17, bold=True)
        for row, words in enumerate(below[name]):
            picture.text((left + width / 2, top + 50 + 17 * row), words, 12, GREY)
    middle = top + height / 2
    labels = {
        "control": ("4 cameras",),
        "retrieve": ("tokens,", "warped", "latent"),
        "sample": ("latent", "frame"),
        "decode": ("frames,", "depth"),
    }
    names = list(lefts)
    for name, following in zip(names, names[1:], strict=False):
        start, end = lefts[name] + width, lefts[following]
        picture.path([(start + 3, middle), (end - 3, middle)], arrow=True)
        words = labels[name]
        for row, word in enumerate(words):
            picture.text(((start + end) / 2 - 2, middle - 9 - 14 * (len(words) - 1 - row)), word, 12)
    # The memory above reads into `retrieve` and is written by `update`.
    picture.box((232, 28), (740, 72), BLUE)
    picture.text((602, 58), "spatial memory of the episode", 17, bold=True)
    picture.text((602, 80), "keyframes: a latent, its depth, its cameras; every latent cell is a patch in 3D", 13, GREY)
    picture.path([(298, 103), (298, top - 4)], BLUE, 2.4, arrow=True)
    picture.text((310, 144), "read", 13, BLUE, "start")
    picture.path([(906, top - 3), (906, 104)], BLUE, 2.4, arrow=True)
    picture.text((894, 144), "write", 13, BLUE, "end")
    # What else a step reads, and what it gives.
    base = 330
    inputs = {
        "control": (GREY, "action, pose", "forward, strafe, turn"),
        "retrieve": (GREY, "learned map", "of the one recorded level"),
        "sample": (GREY, "history, prompt, noise", "noise from (seed, step)"),
    }
    for name, (color, words, more) in inputs.items():
        center = lefts[name] + width / 2
        picture.box((center - 82, base), (164, 50), color, dashed=name == "retrieve")
        picture.text((center, base + 21), words, 13, bold=True)
        picture.text((center, base + 39), more, 12, GREY)
        picture.path([(center, base - 3), (center, top + height + 4)], GREY, arrow=True, dashed=name == "retrieve")
    center = lefts["decode"] + width / 2
    picture.box((center - 82, base), (164, 50), GREEN)
    picture.text((center, base + 21), "observation", 13, bold=True)
    picture.text((center, base + 39), "the last of four frames", 12, GREY)
    picture.path([(center, top + height + 3), (center, base - 4)], GREEN, arrow=True)
    center = lefts["update"] + width / 2
    picture.box((center - 70, base), (140, 50), GREEN)
    picture.text((center, base + 21), "next state", 13, bold=True)
    picture.text((center, base + 39), "a value", 12, GREY)
    picture.path([(center, top + height + 3), (center, base - 4)], GREEN, arrow=True)
    picture.save("step.svg")


def oblique(origin: Point, point: Sequence[float], scale: float) -> Point:
    """Where a point (x right, y down, z forward) is drawn: looked at from behind, a little from above and the left."""
    x, y, z = point
    return origin[0] + scale * (x + 0.52 * z), origin[1] + scale * (y - 0.40 * z)


def triad(picture: Drawing, at: Point, axes: Sequence[tuple[str, str, Sequence[float]]], scale: float) -> None:
    """Three axes: each a label, a color and a direction (x right, y down, z forward)."""
    for label, color, direction in axes:
        tip = oblique(at, direction, scale)
        picture.path([at, tip], color, 2.6, arrow=True)
        beyond = oblique(at, [part + 13 / scale * part for part in direction], scale)
        picture.text((beyond[0], beyond[1] + 5), label, 14, color, bold=True)
    picture.dot(at, 3.5, INK)


RIGHT, DOWN, FORWARD = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
LEFT, UP, BACK = (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0)
HERE = (("x", RED, RIGHT), ("y", GREEN, DOWN), ("z", BLUE, FORWARD))


def draw_camera(picture: Drawing) -> None:
    """The world's axes, a camera in them, and the matrix between."""
    world, scale = (88.0, 250.0), 78.0
    place, yaw_rad = (2.2, 0.0, 1.0), math.radians(20.0)
    picture.text((28, 40), "world_from_camera", 18, anchor="start", bold=True, mono=True)
    picture.text((28, 62), "takes a point from the camera's axes to the world's, in metres", 13, GREY, "start")
    triad(picture, world, HERE, scale)
    picture.text((world[0] + 14, world[1] + 100), "world", 14, GREY, "start")

    def in_world(point: Sequence[float]) -> Point:
        x, y, z = point
        cosine, sine = math.cos(yaw_rad), math.sin(yaw_rad)
        turned = (cosine * x + sine * z, y, -sine * x + cosine * z)
        return oblique(world, [a + b for a, b in zip(place, turned, strict=True)], scale)

    center = in_world((0, 0, 0))
    corners = [in_world((x, y, 1.7)) for x, y in ((-0.7, -0.6), (0.7, -0.6), (0.7, 0.6), (-0.7, 0.6))]
    picture.path(corners, GREY, 1.4, fill="#eef3f8", close=True)
    for corner in corners:
        picture.path([center, corner], GREY, 1.0)
    picture.path([world, center], INK, 1.4, arrow=True, dashed=True)
    for label, color, direction in HERE:
        tip = in_world([0.85 * part for part in direction])
        beyond = in_world([1.04 * part for part in direction])
        picture.path([center, tip], color, 2.6, arrow=True)
        picture.text((beyond[0], beyond[1] + 5), label, 14, color, bold=True)
    picture.dot(center, 3.5, INK)
    picture.text((center[0] - 12, center[1] - 10), "camera", 14, GREY, "end")
    picture.text((corners[1][0] + 4, corners[1][1] - 8), "image", 13, GREY, "end")
    words = (("x right", RED), ("y down", GREEN), ("z forward", BLUE))
    for column, (axis, color) in enumerate(words):
        picture.text((292 + 84 * column, 330), axis, 14, color, "start", bold=True)
    picture.text((292, 352), "first three columns: the camera's axes; last: its place", 13, GREY, "start")


def draw_pixels(picture: Drawing) -> None:
    """A small image with its pixel grid; centres lie at half-integers."""
    left, top, side, columns, rows = 640, 92, 66, 4, 3
    picture.text((left - 6, 40), "pixels", 18, anchor="start", bold=True)
    picture.text((left - 6, 62), "u right, v down; centres at half-integers", 13, GREY, "start")
    for column in range(columns + 1):
        x = left + column * side
        picture.path([(x, top), (x, top + rows * side)], GREY, 1.0)
        picture.text((x, top + rows * side + 18), str(column), 12, GREY)
    for row in range(rows + 1):
        y = top + row * side
        picture.path([(left, y), (left + columns * side, y)], GREY, 1.0)
        picture.text((left - 12, y + 4), str(row), 12, GREY)
    for row in range(rows):
        for column in range(columns):
            picture.dot((left + (column + 0.5) * side, top + (row + 0.5) * side), 3.0, ORANGE)
    picture.text((left + 0.5 * side, top + 0.5 * side + 20), "(0.5, 0.5)", 12, ORANGE)
    picture.text((left + 3.5 * side, top + 2.5 * side + 20), "(3.5, 2.5)", 12, ORANGE)
    picture.dot((left, top), 3.5, INK)
    picture.text((left + 5, top - 8), "(0, 0)", 12, INK, "start")
    picture.text(
        (left - 6, top + rows * side + 44), "3 high, 4 wide: the middle is (cx, cy) = (2, 1.5)", 13, INK, "start"
    )


def draw_coordinates() -> None:
    """The project's axes, and those of other projects, for the same camera at rest."""
    picture = Drawing(960, 590, "Coordinates: world from camera, pixels, and the axes of other projects")
    draw_camera(picture)
    draw_pixels(picture)
    picture.path([(28, 384), (932, 384)], "#d5dce2", 1.2)
    picture.text((28, 410), "The same level camera, looking into the page, in other projects' axes", 14, GREY, "start")
    others = (
        ("OpenCV, COLMAP: as here", HERE),
        ("OpenGL, nerfstudio, Blender", (("x", RED, RIGHT), ("y", GREEN, UP), ("z", BLUE, BACK))),
        ("ROS body", (("x", RED, FORWARD), ("y", GREEN, LEFT), ("z", BLUE, UP))),
    )
    for index, (name, axes) in enumerate(others):
        at = (160.0 + 310.0 * index, 482.0)
        triad(picture, at, axes, 46.0)
        picture.text((at[0] + 8, 572), name, 14, INK, bold=True)
    picture.save("coordinates.svg")


if __name__ == "__main__":
    draw_step()
    draw_coordinates()
