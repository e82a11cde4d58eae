"""Tables of the evaluation, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mosaic_gym.evaluation.suites.world.calibration import WORSE, is_caught

BESIDE = (
    "memory_off", "dithered", "through_codec", "share", "failed_share", "without_prompt", "frames_a_side", "walks",
    "cases", "truth",
)  # fmt: skip
"""Entries that are printed beside a figure."""
COLUMNS = 7
"""Figures in one block of the calibration table."""

Figures = Mapping[str, Mapping[str, Any]]


def figure_lines(figures: Figures, ceiling: Figures) -> list[str]:
    """One line a figure: value, interval, the simulator's value on other maps, and what belongs to it."""
    lines = [f"{'figure':<24}{'value':>9}   {'95 % interval':<18}{'simulator':>10}"]
    for name in WORSE:
        if name not in figures:
            continue
        figure, true = figures[name], ceiling.get(name, {"value": None})
        if figure["value"] is None:
            lines.append(f"{name:<24}{figure['reason']}")
            continue
        interval = f"[{short(figure['low'])}, {short(figure['high'])}]"
        beside = "; ".join(f"{key} {short(figure[key])}" for key in BESIDE if key in figure)
        lines.append(
            f"{name:<24}{short(figure['value']):>9}   {interval:<18}{short(true['value']):>10}   {beside}".rstrip()
        )
    return lines


def calibration_lines(worlds: Mapping[str, Figures], ceiling: Figures) -> list[str]:
    """One row a world, one column a figure, in blocks of `COLUMNS`; a star marks what the figure catches."""
    names = [name for name in WORSE if name in ceiling and name != "steps_per_second"]
    wide = max(len(world) for world in worlds) + 1
    lines = []
    for start in range(0, len(names), COLUMNS):
        block = names[start : start + COLUMNS]
        lines += ["", " " * wide + "".join(f"{name:>24}" for name in block)]
        for world, figures in worlds.items():
            lines.append(f"{world:<{wide}}" + "".join(f"{_cell(name, figures, ceiling):>24}" for name in block))
    return lines[1:]


def _cell(name: str, figures: Figures, ceiling: Figures) -> str:
    if name not in figures:
        return "- "
    figure = figures[name]
    value = short(figure["value"]) if figure["value"] is not None else figure["reason"].split(":")[0]
    value = {"undefined": "undef", "not applicable": "n/a"}.get(value, value)
    return value + ("*" if is_caught(name, figure, ceiling[name]) else " ")


def short(value: float | int | None) -> str:
    """A number with three digits."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def net_line(net: Mapping[str, Any]) -> str:
    """The evaluation net's fingerprint and accuracies."""
    return (
        f"evaluation net {net['fingerprint']}: theme accuracy {net['theme']:.3f}, area under the curve of things "
        f"{net['kinds']:.3f}, on held-out maps"
    )
