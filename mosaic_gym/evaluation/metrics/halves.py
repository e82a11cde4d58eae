"""How far generated data are from true data, in units of how far two halves of the true data are from each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mosaic_gym.evaluation.metrics.intervals import check_maps

LEAST_MAPS = 16
"""Half of the maps are on each side."""
SPLITS, SPLITS_OF_A_DRAW = 32, 6
"""Random halvings whose distances are averaged: for the value, and for each draw of the interval. The distance of two
halves varies much from one halving to the next."""

OfMap = Callable[[np.ndarray], Any]
OfMaps = Callable[[Sequence[Any]], Any]
Distance = Callable[[Any, Any], float]


def ratio_to_true_halves(
    of_map: OfMap,
    of_maps: OfMaps,
    distance: Distance,
    generated: np.ndarray,
    true: np.ndarray,
    maps_generated: np.ndarray,
    maps_true: np.ndarray,
    draws: int = 60,
    seed: int = 0,
) -> dict[str, float | str | None]:
    """Distance of generated to true data over the distance of two true halves of disjoint maps.

    The maps are split at random into halves A and B. The numerator is the mean of distance(generated A, true B) and
    distance(generated B, true A); the denominator is distance(true A, true B). So both have sets of the same size, and
    no map is on both sides: what a distance gains from few samples cancels, and other true maps give about 1.

    Args:
        of_map: what the distance needs of the rows `[r, d]` of one map, computed once a map.
        of_maps: what it needs of a set of maps, from that of each; maps can occur more than once.
        distance: of two sets of maps.
        generated: `[n, d]`; `maps_generated`: `[n]`, the map of every row. If the maps are those of `maps_true`, both
            are split alike.
        true: `[m, d]`; `maps_true`: `[m]`.
        draws: of the interval: maps are drawn with replacement, and all copies of a map are in the same half.

    Returns:
        value (over `SPLITS` splits), low and high (95 %), `distance` and `true_distance` (numerator and denominator),
        and reason: None, or why value, low and high are None.

    Raises:
        ValueError: fewer than `LEAST_MAPS` maps on a side, or rows that are not finite.
    """
    for name, rows in (("generated", generated), ("true", true)):
        if not np.isfinite(rows).all():
            raise ValueError(f"{name} holds values that are not finite: leave those rows out")
    rng = np.random.default_rng(seed)
    generated_rows = {name: of_map(rows) for name, rows in _rows_by_map(generated, maps_generated).items()}
    true_rows = {name: of_map(rows) for name, rows in _rows_by_map(true, maps_true).items()}
    paired = generated_rows.keys() == true_rows.keys()

    def measure(splits: int, resample: bool) -> tuple[float, float]:
        """Numerator and denominator, mean over some splits of one draw of maps."""
        true_maps = _draw(list(true_rows), rng, resample)
        generated_maps = true_maps if paired else _draw(list(generated_rows), rng, resample)
        found = []
        for _ in range(splits):
            true_halves = _halves(true_maps, rng)
            generated_halves = true_halves if paired else _halves(generated_maps, rng)
            true_a, true_b = (of_maps([true_rows[name] for name in half]) for half in true_halves)
            ours_a, ours_b = (of_maps([generated_rows[name] for name in half]) for half in generated_halves)
            ours = (distance(ours_a, true_b) + distance(ours_b, true_a)) / 2
            found.append((ours, distance(true_a, true_b)))
        top, bottom = np.mean(found, axis=0)
        return float(top), float(bottom)

    numerator, denominator = measure(SPLITS, resample=False)
    found = {"distance": numerator, "true_distance": denominator}
    scale = float(np.var(true, axis=0).sum())
    if denominator <= 1e-9 * max(scale, 1e-9):
        reason = (
            f"undefined: the distance of two true halves is {denominator:.3g}, not clear of zero; the true data do not "
            "vary, so use data of more maps"
        )
        return {"value": None, "low": None, "high": None, **found, "reason": reason}
    value = numerator / denominator
    low, high = _interval(value, [measure(SPLITS_OF_A_DRAW, resample=True) for _ in range(draws)])
    return {"value": value, "low": low, "high": high, **found, "reason": None}


def _interval(value: float, drawn: list[tuple[float, float]]) -> tuple[float, float]:
    """The spread of drawn (numerator, denominator) as ratios, centered on the value.

    A draw with replacement has fewer different maps, which makes the distance of two halves larger. So the draws give
    the spread of the logarithm alone, and not its middle.
    """
    logarithms = np.log([max(top, 1e-12) / bottom for top, bottom in drawn if bottom > 0] or [1.0])
    spread = np.percentile(logarithms, [2.5, 97.5]) - np.median(logarithms)
    low, high = value * np.exp(spread)
    return float(low), float(high)


def _rows_by_map(rows: np.ndarray, maps: np.ndarray) -> dict[object, np.ndarray]:
    array = check_maps(maps, len(rows), LEAST_MAPS)
    return {name: rows[array == name] for name in np.unique(array)}


def _draw(names: list, rng: np.random.Generator, resample: bool) -> list:
    return [names[i] for i in rng.integers(len(names), size=len(names))] if resample else names


def _halves(names: list, rng: np.random.Generator) -> tuple[list, list]:
    """Two halves of maps; all copies of a map are in the same one."""
    first = set(rng.permutation(sorted(set(names)))[: len(set(names)) // 2].tolist())
    return [name for name in names if name in first], [name for name in names if name not in first]
