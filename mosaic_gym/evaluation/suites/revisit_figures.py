"""The named figures of the revisit suite: their goals, values and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Figure = dict[str, float | None]
"""`value`, `low`, `high` (95 % interval over paths) and, for a named figure, `goal`; None without a goal."""

GOALS = {
    "psnr_ahead": (29.5, "one step ahead, dB"),
    "gain_ahead_over_warp": (1.5, "the same, gain over the warp alone, dB"),
    "psnr_return_truth": (24.0, "return against ground truth, dB"),
    "gain_return_truth_over_off": (5.0, "the same, gain over memory off, dB"),
    "gain_return_truth_over_warp": (0.0, "the same, gain over the warp alone, dB"),
    "psnr_return_self": (25.0, "return against its own outward frames, dB"),
    "gain_return_self_over_off": (6.0, "the same, gain over memory off, dB"),
    "ssim_return_truth": (0.6, "SSIM of the return"),
    "depth_median_relative_error": (0.08, "depth, median relative error (at most)"),
    "steps_per_second": (20.0, "environment steps per second"),
}
"""Goal and description of each figure that has a goal."""
AT_MOST = {"depth_median_relative_error"}
"""Figures whose goal is an upper bound."""
UNGRADED = {
    "gain_ahead_over_prior": "gain ahead over memory and atlas, dB",
    "gain_return_truth_over_prior": "gain of the return over memory and atlas, dB",
    "gain_ahead_unplaced_over_warp": "gain ahead over the warp, map unknown, dB",
    "gain_return_truth_unplaced_over_warp": "gain of the return over the warp, map unknown, dB",
    "bound_ahead_realigned": "what realigning the warp could gain, dB",
}
"""Figures without a goal, with their descriptions. `over_prior` is what transformer and refiner add to their inputs.
`unplaced` is without the atlas. `realigned` is what the best shifts of covered pixels would gain. No figure is over
places that no earlier view showed: the best PSNR there is that of a blur. `evaluate world` measures those."""
OLD_NAMES = {
    name.replace("truth", "engine").replace("prior", "expected"): name  # name in files
    for name in (*GOALS, *UNGRADED)
}
"""Names of figures by their names in cards that earlier versions wrote."""


def current_names(card: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a checkpoint's card under their present names, also if an earlier version wrote it."""
    return {OLD_NAMES.get(name, name): figure for name, figure in card.items()}


def named_figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """The named figures of a run.

    Args:
        results: from `revisit.measure`: rows `ahead` and `return`, each with one dict of figures by variant, and
            `depth`, one error for each path.
    """
    from mosaic_gym.evaluation.metrics.intervals import bootstrap_interval

    ahead, back = results["ahead"], results["return"]

    def mean(rows: list[Any], figure: str, variant: str, baseline: str | None = None) -> dict[str, float]:
        return bootstrap_interval([row[variant][figure] - (row[baseline][figure] if baseline else 0.0) for row in rows])

    graded = {
        "psnr_ahead": mean(ahead, "psnr", "memory"),
        "gain_ahead_over_warp": mean(ahead, "psnr", "memory", "warp"),
        "psnr_return_truth": mean(back, "truth", "memory"),
        "gain_return_truth_over_off": mean(back, "truth", "memory", "off"),
        "gain_return_truth_over_warp": mean(back, "truth", "memory", "warp"),
        "psnr_return_self": mean(back, "self", "memory"),
        "gain_return_self_over_off": mean(back, "self", "memory", "off"),
        "ssim_return_truth": mean(back, "ssim", "memory"),
        "depth_median_relative_error": bootstrap_interval(results["depth"]),
    }
    ungraded = {}
    for name, rows, figure in (("ahead", ahead, "psnr"), ("return_truth", back, "truth")):
        ungraded[f"gain_{name}_over_prior"] = mean(rows, figure, "memory", "prior")
        ungraded[f"gain_{name}_unplaced_over_warp"] = mean(rows, figure, "unplaced", "warp")
    bounds = [row["warp"]["realigned"] - row["warp"]["psnr"] for row in ahead]
    ungraded["bound_ahead_realigned"] = bootstrap_interval(bounds)
    figures = {name: {**figure, "goal": GOALS[name][0]} for name, figure in graded.items()}
    return figures | {name: {**figure, "goal": None} for name, figure in ungraded.items()}


def variant_table(results: Mapping[str, Any]) -> dict[str, dict[str, Figure]]:
    """Every measure with its interval, by variant."""
    from mosaic_gym.evaluation.metrics.intervals import bootstrap_interval
    from mosaic_gym.evaluation.suites.rollout import VARIANTS

    table = {}
    for variant in VARIANTS:
        table[variant] = {"ahead": bootstrap_interval([row[variant]["psnr"] for row in results["ahead"]])}
        for name in ("truth", "self", "ssim"):
            table[variant][f"return_{name}"] = bootstrap_interval([row[variant][name] for row in results["return"]])
    return table


def print_figures(figures: Mapping[str, Figure], card: Mapping[str, Figure] | None = None) -> None:
    """Prints a table of figures with intervals and goals and, if given, the figures of the checkpoint's card."""
    for name, (goal, description) in GOALS.items():
        if name not in figures:
            continue
        figure, sign = figures[name], "<=" if name in AT_MOST else ">="
        met = figure["value"] <= goal if name in AT_MOST else figure["value"] >= goal
        line = f"{description:<46} {figure['value']:8.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        published = f"   card: {card[name]['value']:.3f}" if card and name in card else ""
        print(f"{line}  goal {sign} {goal:g}  {'met' if met else 'MISSED'}{published}")
    for name, description in UNGRADED.items():
        if name in figures:
            figure = figures[name]
            print(f"{description:<46} {figure['value']:8.3f} [{figure['low']:.3f}, {figure['high']:.3f}]  no goal")


def print_variants(table: Mapping[str, Mapping[str, Figure]]) -> None:
    """Prints one line for each variant."""
    from mosaic_gym.evaluation.suites.rollout import VARIANTS

    print(f"{'variant':<28}{'ahead dB':>10}{'return dB':>11}{'self dB':>9}{'SSIM':>7}")
    for variant, row in table.items():
        names = ("ahead", "return_truth", "return_self", "return_ssim")
        ahead, truth, own, ssim = (row[name]["value"] for name in names)
        print(f"{VARIANTS[variant]:<28}{ahead:10.2f}{truth:11.2f}{own:9.2f}{ssim:7.3f}")
