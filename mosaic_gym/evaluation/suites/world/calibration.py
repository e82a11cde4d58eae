"""Calibration: which known worlds each figure distinguishes from the truth.

A threshold is derived from the ceiling, the simulator on other maps: its 95 % interval, widened on each side by half of
its width. A figure catches a world whose own interval lies beyond it altogether, or for which it is undefined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Figure = Mapping[str, Any]

WORSE = {
    "return_psnr_seen": "lower", "return_gain_seen": "lower", "nmr_seen": "lower", "nmr_invented": "lower",
    "nmr_seen_of_truth": "lower", "nmr_invented_of_truth": "lower", "mirror_psnr": "lower",
    "auc_pixels_4": "higher", "auc_pixels_16": "higher", "auc_pixels_64": "higher",
    "auc_layout_4": "higher", "auc_layout_16": "higher", "auc_layout_64": "higher",
    "frechet_ratio": "higher",
    "sharpness_4": "both", "sharpness_16": "both", "sharpness_64": "both",
    "depth_distance": "higher", "floor_error": "higher", "manhattan_share": "both",
    "rot_err_deg": "higher", "trans_err_m": "higher", "loop_err_m": "higher",
    "diversity_ratio": "both", "memorised_share": "higher",
    "theme_followed": "lower", "taken_stays_gone": "lower", "door_stays_open": "lower",
    "steps_per_second": "lower",
}  # fmt: skip
"""All figures in the order of the tables, and on which side of the ceiling a value is worse."""
LEAST_CAUGHT = 2
"""Figures that must catch every bad world."""


def is_caught(name: str, figure: Figure, ceiling: Figure) -> bool:
    """Whether a figure distinguishes a world from the ceiling.

    Args:
        name: of the figure.
        figure: the world's.
        ceiling: the simulator's on other maps.
    """
    if ceiling["value"] is None or name == "steps_per_second":
        return False
    if figure["value"] is None:
        return figure["reason"].startswith("undefined")
    margin = (ceiling["high"] - ceiling["low"]) / 2
    too_low = figure["high"] < ceiling["low"] - margin
    too_high = figure["low"] > ceiling["high"] + margin
    return {"lower": too_low, "higher": too_high, "both": too_low or too_high}[WORSE[name]]


def catches(worlds: Mapping[str, Mapping[str, Figure]], ceiling: Mapping[str, Figure]) -> dict[str, list[str]]:
    """For every world the names of the figures that catch it."""
    return {
        world: [
            name
            for name in WORSE
            if name in figures and name in ceiling and is_caught(name, figures[name], ceiling[name])
        ]
        for world, figures in worlds.items()
    }


def verdicts(caught: Mapping[str, list[str]], good: set[str], neutral: set[str] = frozenset()) -> list[str]:
    """What the calibration found, one line each; a line that starts with `FAILED` is a figure's or a world's fault.

    Args:
        caught: from `catches`.
        good: worlds that no figure may catch.
        neutral: worlds that may be caught or not, such as a codec that may be good; all others are bad.
    """
    lines = []
    for world, names in caught.items():
        if world in good:
            line = (
                f"{world}: passes all" if not names else f"FAILED: {world} is true, and is caught by {', '.join(names)}"
            )
        elif len(names) >= LEAST_CAUGHT or world in neutral:
            line = f"{world}: caught by {len(names)} ({', '.join(names) or 'nothing'})"
        else:
            line = f"FAILED: {world} is caught by {', '.join(names) or 'nothing'}; it must be by {LEAST_CAUGHT}"
        lines.append(line)
    bad = [world for world in caught if world not in good]
    for name in WORSE:
        found = [world for world in bad if name in caught[world]]
        lines.append(f"{name} catches {', '.join(found) or 'none of them'}")
    return lines
