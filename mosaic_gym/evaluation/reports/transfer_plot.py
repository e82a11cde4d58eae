"""The picture of `evaluate transfer`: successes with their intervals, the ranking, and the planner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(path: Path, found: dict[str, Any]) -> None:
    """Draws what `evaluate` found, as it is written to `transfer.json`, to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = 1 + ("ranking" in found) + ("planner" in found)
    figure, axes = plt.subplots(1, panels, figsize=(3.7 * panels, 3.2), layout="constrained", squeeze=False)
    left, *others = axes[0]
    _bars(left, found["arms"], ["0.85", "0.7", "0.55", "tab:blue", "tab:green"])
    left.set(ylabel="success in the engine", title="goal task, by where policies learnt")
    if "ranking" in found:
        middle, *others = others
        pairs = found["ranking"]["returns_dream_engine"]
        dream, engine = np.array(list(pairs.values())).T
        middle.plot(dream, engine, "o")
        # Names stand in a column of their own, for good policies are too near to one another.
        span, beside, height = np.ptp([dream, engine]) or 1.0, dream.max(), -np.inf
        for name, place in sorted(pairs.items(), key=lambda pair: pair[1][1]):
            height = max(place[1], height + 0.055 * span)
            line = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.6}
            middle.annotate(name, place, (beside + 0.1 * span, height), fontsize=8, va="center", arrowprops=line)
        middle.set_xlim(right=beside + 0.45 * span)
        middle.set_ylim(top=max(height, engine.max()) + 0.05 * span)
        middle.set(xlabel="mean return in the dream", ylabel="mean return in the engine")
        rho = found["ranking"]["spearman"]
        middle.set_title("policies, rank correlation " + ("none" if rho is None else f"{rho:.2f}"))
    if "planner" in found:
        _bars(others[0], found["planner"], ["tab:blue", "tab:cyan", "0.7"])
        others[0].set(ylabel="comes home in the engine", xlabel="memory", title="return task; CEM in the dream")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _bars(axes: Axes, variants: Mapping[str, dict[str, dict[str, float]]], colours: list[str]) -> None:
    """Successes by name, with their intervals."""
    rows = [told["success"] for told in variants.values()]
    values = [row["value"] for row in rows]
    reach = [[row["value"] - row["low"] for row in rows], [row["high"] - row["value"] for row in rows]]
    axes.bar(list(variants), values, yerr=reach, capsize=4, color=colours[: len(rows)])
    axes.set_ylim(0.0, 1.0)
