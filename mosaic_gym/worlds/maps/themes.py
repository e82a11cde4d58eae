"""Room themes: the look of a room, legible in one 64x64 frame."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """The look of a room, by names of Freedoom's textures, flats and things.

    Attributes:
        wall: texture of the walls.
        floor, ceiling: flats.
        prop: the simulator's number of the thing that stands in corners.
        scale: UDMF's texture scale. 0.5 makes a pattern twice as large, so that it spans several pixels at 64x64.
    """

    wall: str
    floor: str
    ceiling: str
    prop: int
    scale: float = 0.5


THEMES: dict[str, Theme] = {
    "brick": Theme("BRICK7", "FLOOR5_2", "CEIL3_5", 48),
    "marble": Theme("MARBLE2", "DEM1_5", "DEM1_6", 30),
    "cave": Theme("ROCK4", "RROCK09", "RROCK04", 47),
    "wood": Theme("WOOD1", "FLAT5_1", "CEIL1_1", 2028),
    "tech": Theme("TEKGREN2", "FLAT14", "CEIL5_1", 48),
    "metal": Theme("SHAWN2", "FLAT23", "FLAT20", 2028),
    "ember": Theme("BIGBRIK2", "TLITE6_4", "CEIL1_3", 44),
    "hell": Theme("SKINEDGE", "FLOOR6_1", "FLAT5_2", 45),
    "white": Theme("ICKWALL1", "FLAT3", "FLOOR1_1", 86),
    "crate": Theme("CRATINY", "FLAT1_1", "CRATOP1", 2035),
    "computer": Theme("COMPBLUE", "CONS1_5", "COMP01", 85),
    "vine": Theme("GRAYVINE", "GRASS1", "FLAT10", 43),
    "stone": Theme("STONE2", "FLAT5_4", "FLAT18", 46),
    "tan": Theme("STARTAN2", "FLOOR4_8", "CEIL3_1", 34),
}
"""All themes by name."""
HELDOUT_THEMES = ("stone", "tan")
"""Themes of the split `heldout-themes`; no other split has them."""
