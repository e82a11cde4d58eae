"""The plot of `evaluate transfer`: successes with their intervals, the ranking, and the planner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(path: Path, results: Mapping[str, Any]) -> None:
    """Draws the content of `transfer.json` to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = 1 + ("ranking" in results) + ("planner" in results)
    figure, axes = plt.subplots(1, panels, figsize=(3.7 * panels, 3.2), layout="constrained", squeeze=False)
    left, *others = axes[0]
    _bars(left, results["variants"], ["0.85", "0.7", "0.55", "tab:blue", "tab:green"])
    left.set(ylabel="success in the simulator", title="goal task, by where policies are trained")
    if "ranking" in results:
        middle, *others = others
        _ranking(middle, results["ranking"])
    if "planner" in results:
        _bars(others[0], results["planner"], ["tab:blue", "tab:cyan", "0.7"])
        title = "return task; CEM in the learned world"
        others[0].set(ylabel="comes home in the simulator", xlabel="memory", title=title)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _ranking(axes: Axes, ranking: Mapping[str, Any]) -> None:
    """Mean returns in both environments, one point a policy, with the policies' names in a column on the right."""
    pairs = ranking["returns_learned_simulator"]
    learned, simulator = np.array(list(pairs.values())).T
    axes.plot(learned, simulator, "o")
    # Good policies have similar returns, so that names beside their points would overlap.
    span, right, height = np.ptp([learned, simulator]) or 1.0, learned.max(), -np.inf
    for name, point in sorted(pairs.items(), key=lambda pair: pair[1][1]):
        height = max(point[1], height + 0.055 * span)
        line = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.6}
        axes.annotate(name, point, (right + 0.1 * span, height), fontsize=8, va="center", arrowprops=line)
    axes.set_xlim(right=right + 0.45 * span)
    axes.set_ylim(top=max(height, simulator.max()) + 0.05 * span)
    axes.set(xlabel="mean return in the learned world", ylabel="mean return in the simulator")
    rho = ranking["spearman"]
    axes.set_title("policies, rank correlation " + ("none" if rho is None else f"{rho:.2f}"))


def _bars(axes: Axes, variants: Mapping[str, Mapping[str, Mapping[str, float]]], colors: list[str]) -> None:
    """Successes by name, with their intervals."""
    rows = [figures["success"] for figures in variants.values()]
    values = [row["value"] for row in rows]
    errors = [[row["value"] - row["low"] for row in rows], [row["high"] - row["value"] for row in rows]]
    axes.bar(list(variants), values, yerr=errors, capsize=4, color=colors[: len(rows)])
    axes.set_ylim(0.0, 1.0)
