"""A plan as a level of the simulator: UDMF text, in a WAD file whose only level can be replaced in place.

Formats: a WAD is a header (`PWAD`, number of lumps, offset of the directory), the lumps, and a directory of (offset,
size, 8-byte name). A UDMF level is three lumps: a marker, `TEXTMAP`, and `ENDMAP`; the simulator builds its nodes when
it loads the level. (UDMF 1.1 specification, and ZDoom's namespace `zdoom` for pushes, friends and texture scales.)
"""

from __future__ import annotations

import struct
from pathlib import Path

from mosaic_gym.worlds.maps.plan import Edge, Plan, Space, edges_of
from mosaic_gym.worlds.maps.themes import THEMES

LEVEL = "MAP01"
SLOT_BYTES = 400_000
"""Room for the text of a level. The largest of 10,000 seeds takes half of it."""
FIRST_TAG = 100
"""Sector i has the tag `FIRST_TAG + i`, by which lines act on it."""
DOOR_OPEN, LIGHT_CHANGE = 11, 112
"""ZDoom's line specials `Door_Open` and `Light_ChangeToValue`."""
DOOR_SPEED = 64
_HEADER = struct.Struct("<4sii")
_ENTRY = struct.Struct("<ii8s")


def level_text(plan: Plan) -> bytes:
    """The TEXTMAP lump of a plan."""
    vertices: dict[tuple[int, int], int] = {}
    lines, sides = [], []

    def vertex(point: tuple[int, int]) -> int:
        return vertices.setdefault(point, len(vertices))

    def side(index: int, solid: bool) -> int:
        theme = THEMES[plan.spaces[index].theme]
        wall, parts = theme.wall, ("top", "mid", "bottom")
        scale = " ".join(f"scale{axis}_{part} = {theme.scale};" for axis in "xy" for part in parts)
        middle = wall if solid else "-"
        sides.append(
            f'sidedef {{ sector = {index}; texturemiddle = "{middle}"; texturetop = "{wall}"; '
            f'texturebottom = "{wall}"; {scale} }}'
        )
        return len(sides) - 1

    for edge in edges_of(plan):
        if edge.back is None:
            ends = f"v1 = {vertex(edge.a)}; v2 = {vertex(edge.b)};"
            lines.append(f"linedef {{ {ends} sidefront = {side(edge.front, True)}; blocking = true; }}")
            continue
        edge = _facing_out(edge, plan)
        ends = f"v1 = {vertex(edge.a)}; v2 = {vertex(edge.b)};"
        pair = [side(i, False) for i in (edge.front, edge.back)]
        lines.append(
            f"linedef {{ {ends} sidefront = {pair[0]}; sideback = {pair[1]}; twosided = true;{_action(edge, plan)} }}"
        )
    parts = ['namespace = "zdoom";', *(f"vertex {{ x = {x}.0; y = {y}.0; }}" for x, y in vertices), *lines, *sides]
    parts += [_sector(index, space) for index, space in enumerate(plan.spaces)]
    skills = " ".join(f"skill{level} = true;" for level in range(1, 6))
    for thing in plan.things:
        friend = " friend = true;" if thing.kind == "monster" else ""
        parts.append(
            f"thing {{ x = {thing.x}.0; y = {thing.y}.0; type = {thing.number}; angle = {thing.angle_deg}; "
            f"{skills} single = true;{friend} }}"
        )
    return "\n".join(parts).encode()


def _facing_out(edge: Edge, plan: Plan) -> Edge:
    """The opening with a door, or a room whose light goes out, behind it: lines act on what is behind their front."""
    front = plan.spaces[edge.front]
    if front.kind == "door" or (front.dark is not None and plan.spaces[edge.back].kind != "door"):
        return Edge(edge.b, edge.a, edge.back, edge.front)
    return edge


def _action(edge: Edge, plan: Plan) -> str:
    """What crossing or pushing an opening does, as UDMF fields."""
    behind, tag = plan.spaces[edge.back], FIRST_TAG + edge.back
    if behind.kind == "door":
        return f" special = {DOOR_OPEN}; arg0 = {tag}; arg1 = {DOOR_SPEED}; playerpush = true;"
    if behind.dark is not None and plan.spaces[edge.front].kind == "corridor":
        return f" special = {LIGHT_CHANGE}; arg0 = {tag}; arg1 = {behind.dark}; playercross = true;"
    return ""


def _sector(index: int, space: Space) -> str:
    theme = THEMES[space.theme]
    scale = " ".join(f"{axis}scale{part} = {theme.scale};" for axis in "xy" for part in ("floor", "ceiling"))
    return (
        f'sector {{ heightfloor = 0; heightceiling = {space.ceiling}; texturefloor = "{theme.floor}"; '
        f'textureceiling = "{theme.ceiling}"; lightlevel = {space.light}; id = {FIRST_TAG + index}; {scale} }}'
    )


def write_level(path: Path, plan: Plan) -> None:
    """Writes a WAD of one level, or replaces the level of one that is there.

    The level's text has a slot of fixed size, so that a running simulator, which has read the directory, finds the new
    text in its place when it loads the level again.

    Raises:
        ValueError: the level is larger than its slot.
    """
    text = level_text(plan)
    if len(text) > SLOT_BYTES:
        raise ValueError(f"the level of map seed {plan.seed} takes {len(text)} bytes, more than {SLOT_BYTES}")
    text = text.ljust(SLOT_BYTES, b"\n")
    if path.exists():
        with path.open("r+b") as file:
            file.seek(_HEADER.size)
            file.write(text)
        return
    end = _HEADER.size + SLOT_BYTES
    entries = ((_HEADER.size, 0, LEVEL), (_HEADER.size, SLOT_BYTES, "TEXTMAP"), (end, 0, "ENDMAP"))
    directory = b"".join(_ENTRY.pack(offset, size, name.encode()) for offset, size, name in entries)
    path.write_bytes(_HEADER.pack(b"PWAD", len(entries), end) + text + directory)
