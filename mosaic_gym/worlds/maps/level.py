"""A plan as a level of the simulator: UDMF text and a script, in a WAD file whose only level is replaced in place.

Formats: a WAD is a header (`PWAD`, number of lumps, offset of the directory), the lumps, and a directory of (offset,
size, 8-byte name). A level is a marker and the lumps `TEXTMAP` (UDMF 1.1, in ZDoom's namespace `zdoom`), `BEHAVIOR`
(compiled ACS, format `ACS0`) and `ENDMAP`. The simulator builds the nodes when it loads the level.
"""

from __future__ import annotations

import struct
from pathlib import Path

from mosaic_gym.worlds.maps.plan import Edge, Plan, Space, Thing, edges_of
from mosaic_gym.worlds.maps.themes import THEMES

LEVEL = "MAP01"
TEXT_BYTES = 400_000
"""Length of the lump with the text. The largest level of 10,000 seeds fills half of it."""
SCRIPT_BYTES = 1_024
"""Length of the lump with the script, of which a monster takes 24."""
FIRST_TAG = 100
"""Sector i has the tag `FIRST_TAG + i`, by which lines act on it."""
FIRST_MONSTER, FIRST_GOAL = 1_000, 2_000
"""Identities of monsters, and of the two ends of their patrols."""
DOOR_OPEN, LIGHT_CHANGE, SET_GOAL = 11, 112, 229
"""ZDoom's specials `Door_Open`, `Light_ChangeToValue` and `Thing_SetGoal`."""
PATROL_POINT = 9024
"""The simulator's number of an invisible place that monsters walk to."""
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
    parts += [line for index, thing in enumerate(plan.things) for line in _things(index, thing)]
    return "\n".join(parts).encode()


def level_script(plan: Plan) -> bytes:
    """The BEHAVIOR lump of a plan: a script that runs when the level opens and sends each monster on its patrol."""
    lspec4direct, terminate, open_script = 12, 1, 1_000
    monsters = [index for index, thing in enumerate(plan.things) if thing.patrol is not None]
    calls = [(lspec4direct, SET_GOAL, FIRST_MONSTER + i, FIRST_GOAL + 2 * i + 1, 0, 1) for i in monsters]
    code = b"".join(struct.pack("<6i", *call) for call in calls) + struct.pack("<i", terminate)
    start = 8  # behind the header
    scripts, strings = struct.pack("<4i", 1, open_script + 1, start, 0), struct.pack("<i", 0)
    return b"ACS\0" + struct.pack("<i", start + len(code)) + code + scripts + strings


def _things(index: int, thing: Thing) -> list[str]:
    """A thing, and the ends of its patrol, which point to each other, as UDMF blocks."""
    flags = " ".join(f"skill{level} = true;" for level in range(1, 6)) + " single = true;"
    place = f"x = {thing.x}.0; y = {thing.y}.0; angle = {thing.angle_deg};"
    if thing.patrol is None:
        return [f"thing {{ {place} type = {thing.number}; {flags} }}"]
    lines = [f"thing {{ {place} type = {thing.number}; id = {FIRST_MONSTER + index}; friend = true; {flags} }}"]
    ends = FIRST_GOAL + 2 * index, FIRST_GOAL + 2 * index + 1
    for (x, y), own, other in zip(thing.patrol, ends, ends[::-1], strict=True):
        goal = f"x = {x}.0; y = {y}.0; type = {PATROL_POINT}; id = {own}; arg0 = {other};"
        lines.append(f"thing {{ {goal} {flags} }}")
    return lines


def _facing_out(edge: Edge, plan: Plan) -> Edge:
    """The opening with a door, or a room whose light goes out, behind it: lines act on what is behind their front."""
    front = plan.spaces[edge.front]
    if front.kind == "door" or (front.dark is not None and plan.spaces[edge.back].kind != "door"):
        return Edge(edge.b, edge.a, edge.back, edge.front)
    return edge


def _action(edge: Edge, plan: Plan) -> str:
    """The effect of crossing or pushing an opening, as UDMF fields."""
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

    Lumps have a fixed length, so that a running simulator, which has read the directory, finds the new level in the
    place of the old one when it loads the level again.

    Raises:
        ValueError: the level is larger than its lumps.
    """
    text, script = level_text(plan), level_script(plan)
    if len(text) > TEXT_BYTES or len(script) > SCRIPT_BYTES:
        raise ValueError(
            f"the level of map seed {plan.seed} takes {len(text)} + {len(script)} bytes, more than {TEXT_BYTES} + "
            f"{SCRIPT_BYTES}: use fewer things"
        )
    body = text.ljust(TEXT_BYTES, b"\n") + script.ljust(SCRIPT_BYTES, b"\0")
    if path.exists():
        with path.open("r+b") as file:
            file.seek(_HEADER.size)
            file.write(body)
        return
    lumps = ((LEVEL, 0), ("TEXTMAP", TEXT_BYTES), ("BEHAVIOR", SCRIPT_BYTES), ("ENDMAP", 0))
    directory, offset = b"", _HEADER.size
    for name, size in lumps:
        directory += _ENTRY.pack(offset, size, name.encode())
        offset += size
    path.write_bytes(_HEADER.pack(b"PWAD", len(lumps), offset) + body + directory)
