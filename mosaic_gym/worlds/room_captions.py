"""Captions of walks through generated maps: theme, light, things in view, and what happens in view.

Examples: "a brick room, bright, with a health bonus and an imp", "a vine corridor, dim; the door opens".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mosaic_gym.worlds.maps.layout import Layout
from mosaic_gym.worlds.maps.ways import OUTSIDE, FloorGrid
from mosaic_gym.worlds.protocol import View

MAX_BYTES = 160
"""Greatest length of a caption, bytes of UTF-8."""
MONSTERS = {"DoomImp": "an imp", "Zombieman": "a zombie", "Demon": "a demon"}
PICKUPS = {"HealthBonus": "a health bonus", "ArmorBonus": "an armor bonus"}
PROPS = {
    "BlueTorch": "a blue torch", "Candlestick": "a candle", "Column": "a lamp", "ExplosiveBarrel": "a barrel",
    "GreenTorch": "a green torch", "RedTorch": "a red torch", "Stalagtite": "a stalagmite", "TallGreenColumn":
    "a green column", "TechLamp": "a lamp", "TechLamp2": "a lamp", "TechPillar": "a tech pillar", "TorchTree": "a tree",
}  # fmt: skip
"""Words in captions by the labels of things."""
MOST_THINGS = 3
BRIGHT, DIM = 200, 100
"""Light (0 to 255) from which a room is called bright, and from which it is called dim."""
SAMPLE_EVERY_PX = 4
PULL_M = 0.1
"""Points on walls are moved so far towards the camera, so that they lie inside their room, metres."""
VISIBLE_SHARE = 0.05
"""A space is in view if it has this share of the pixels."""
SAME_M = 0.4
"""A door is in view if the depth in its direction is within this of its own, metres."""


@dataclass(frozen=True)
class StepCaption:
    """The caption of a step, and its parts.

    Attributes:
        text: the caption, at most `MAX_BYTES` bytes.
        theme: of the room or corridor that most of the frame shows.
        room: index of the room where the body is; None in corridors.
        events: what happens in view, such as "the door opens".
    """

    text: str
    theme: str
    room: int | None
    events: tuple[str, ...]


def caption_steps(views: Sequence[View], layouts: Sequence[Layout]) -> list[StepCaption]:
    """Captions of consecutive views of one map.

    Args:
        layouts: the truth at every view.
    """
    grid, captions, doors = FloorGrid(layouts[0]), [], _Doors(layouts[0])
    in_view: list[bool] = []
    for step, (view, layout) in enumerate(zip(views, layouts, strict=True)):
        in_view_before, in_view = in_view, doors.in_view(view)
        shares = _spaces_in_view(view, grid)
        room = grid.room_at((float(view.world_from_camera[-1, 0, 3]), float(view.world_from_camera[-1, 2, 3])))
        main = max(shares, key=shares.__getitem__, default=room or 0)
        space, events = layout.spaces[main], ()
        if step > 0:
            opened = [
                new.is_open and not old.is_open for old, new in zip(layouts[step - 1].doors, layout.doors, strict=True)
            ]
            seen = [a or b for a, b in zip(in_view_before, in_view, strict=True)]
            door_opens = any(a and b for a, b in zip(opened, seen, strict=True))
            events = _events(views[step - 1], view, layouts[step - 1], layout, shares, door_opens)
        closed_door = any(seen and not door.is_open for door, seen in zip(layout.doors, in_view, strict=True))
        kind = "corridor" if space.kind == "corridor" else "room"
        light = "bright" if space.light >= BRIGHT else "dim" if space.light >= DIM else "dark"
        text = _sentence(f"{_with_article(space.theme)} {kind}, {light}", _things(view, closed_door), events)
        captions.append(StepCaption(text, space.theme, room, events))
    return captions


def _sentence(place: str, things: Sequence[str], events: Sequence[str]) -> str:
    """The caption, with as many things as fit into `MAX_BYTES`."""
    for count in range(min(len(things), MOST_THINGS), -1, -1):
        text = (
            place + (f", with {_joined(things[:count])}" if count else "") + (f"; {_joined(events)}" if events else "")
        )
        if len(text.encode()) <= MAX_BYTES:
            return text
    return place


def _with_article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _things(view: View, closed_door: bool) -> list[str]:
    """Words for what is in view: monsters, pickups, closed doors, props; each word once."""
    words = [names[label] for names in (MONSTERS, PICKUPS) for label in view.labels if label in names]
    words += ["a closed door"] if closed_door else []
    words += [PROPS[label] for label in view.labels if label in PROPS]
    return list(dict.fromkeys(words))


def _events(
    before: View, view: View, layout_before: Layout, layout: Layout, shares: dict[int, float], door_opens: bool
) -> tuple[str, ...]:
    """The events in view between two steps."""
    events = [f"{MONSTERS[label]} appears" for label in view.labels if label in MONSTERS and label not in before.labels]
    events += ["the door opens"] if door_opens else []
    if any(old.is_there and not new.is_there for old, new in zip(layout_before.things, layout.things, strict=True)):
        events.append("a bonus is taken")
    for index, (old, new) in enumerate(zip(layout_before.spaces, layout.spaces, strict=True)):
        if new.is_dark and not old.is_dark and shares.get(index, 0.0) >= VISIBLE_SHARE:
            events.append("the light goes out")
    return tuple(dict.fromkeys(events))


def _spaces_in_view(view: View, grid: FloorGrid) -> dict[int, float]:
    """The share of the last frame's pixels that every space in view has; things count as the space they stand in."""
    half = SAMPLE_EVERY_PX // 2
    depth_m, k, camera = view.depth_m, view.image_from_camera, view.world_from_camera[-1]
    columns = np.arange(half, depth_m.shape[1], SAMPLE_EVERY_PX)
    right = (columns + 0.5 - k[0, 2]) / k[0, 0]
    distance_m = np.maximum(depth_m[half::SAMPLE_EVERY_PX, half::SAMPLE_EVERY_PX] - PULL_M, 0.0)
    x_m = camera[0, 3] + distance_m * (camera[0, 2] + right * camera[0, 0])
    z_m = camera[2, 3] + distance_m * (camera[2, 2] + right * camera[2, 0])
    spaces = grid.spaces_at(np.stack([x_m.ravel(), z_m.ravel()], axis=-1))
    counts = np.bincount(spaces[spaces != OUTSIDE]).tolist()
    return {index: count / len(spaces) for index, count in enumerate(counts) if count}


class _Doors:
    """Which doors of a map are in view."""

    def __init__(self, layout: Layout):
        """Five points at eye height on both long sides of every door, or of the opening where it was."""
        points_m = []
        for door in layout.doors:
            low_m, high_m = door.outline_m.min(0), door.outline_m.max(0)
            thin = int(np.argmin(high_m - low_m))
            along_m = np.linspace(low_m, high_m, 7)[1:-1]
            sides_m = np.concatenate([along_m, along_m])
            sides_m[:5, thin], sides_m[5:, thin] = low_m[thin], high_m[thin]
            points_m.append(sides_m)
        self._points_m = np.array(points_m).reshape(-1, 10, 2)

    def in_view(self, view: View) -> list[bool]:
        """For every door, whether the last frame shows some of its points."""
        camera, k = view.world_from_camera[-1], view.image_from_camera
        offset = self._points_m - camera[[0, 2], 3]
        ahead_m = offset @ camera[[0, 2], 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            column = np.where(ahead_m > 0.05, k[0, 0] * (offset @ camera[[0, 2], 0]) / ahead_m + k[0, 2], -1.0)
        height, width = view.depth_m.shape
        inside = (column >= 0) & (column < width)
        surface_m = view.depth_m[height // 2, np.where(inside, column, 0).astype(int)]
        return (inside & (surface_m > ahead_m - SAME_M)).any(axis=1).tolist()
