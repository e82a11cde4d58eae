"""95 % intervals of means, shares, ratios and differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST_MAPS = 8
"""A bootstrap over fewer maps gives no reliable interval."""


def bootstrap_interval(values: Sequence[float], draws: int = 4000) -> dict[str, float]:
    """Mean of per-path values and its 95 % bootstrap interval, as value, low, high."""
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = array[rng.integers(0, len(array), (draws, len(array)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"value": float(array.mean()), "low": float(low), "high": float(high)}


def bootstrap_runs_interval(values: Sequence[Sequence[float]], draws: int = 4000) -> dict[str, float]:
    """Mean of `values` `[runs, episodes]` and its 95 % interval, resampling runs and episodes, as value, low, high.

    The interval widens where runs differ by more than the noise of their episodes. Two or three runs give only a rough
    estimate of that difference.
    """
    array = np.asarray(values, dtype=np.float64)
    runs, episodes = array.shape
    rng = np.random.default_rng(0)
    run_draws = rng.integers(0, runs, (draws, runs))
    episode_draws = rng.integers(0, episodes, (draws, episodes))
    means = [array[np.ix_(rows, columns)].mean() for rows, columns in zip(run_draws, episode_draws, strict=True)]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"value": float(array.mean()), "low": float(low), "high": float(high)}


def wilson_interval(successes: Sequence[float], z: float = 1.96) -> dict[str, float]:
    """Share of successes (0 or 1 each) and its 95 % score interval (Wilson 1927), as value, low, high.

    Unlike a bootstrap interval it keeps a width where all, or none, of a few trials succeeded.
    """
    count, share = len(successes), float(np.mean(successes))
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return {"value": share, "low": float(max(center - reach, 0.0)), "high": float(min(center + reach, 1.0))}


def bootstrap_maps(values: np.ndarray, maps: np.ndarray, draws: int = 4000, seed: int = 0) -> dict[str, float]:
    """Mean of values and its 95 % interval by bootstrap over maps, as value, low, high.

    Values of one map depend on each other, so maps are resampled, each with all of its values.

    Args:
        values: `[n]`, finite.
        maps: `[n]`, the map of every value.

    Raises:
        ValueError: fewer than `LEAST_MAPS` maps, or values that are not finite.
    """
    sums, counts, _ = _by_map(values, maps)
    weights = _resampled(len(sums), draws, seed)
    return _interval(sums.sum() / counts.sum(), (weights @ sums) / (weights @ counts))


def bootstrap_maps_ratio(
    numerator: np.ndarray,
    numerator_maps: np.ndarray,
    denominator: np.ndarray,
    denominator_maps: np.ndarray,
    draws: int = 4000,
    seed: int = 0,
) -> dict[str, float | str | None]:
    """Ratio of two means and its 95 % interval by bootstrap over maps, as value, low, high, and `reason`.

    If both sides have the same maps, the same ones are drawn for both; otherwise each side is drawn alone.

    Args:
        numerator: `[n]`; `numerator_maps`: `[n]`.
        denominator: `[m]`; `denominator_maps`: `[m]`.

    Returns:
        `reason` is None. If the interval of the denominator contains zero, the ratio is undefined: value, low and high
        are None, and `reason` says why.
    """
    top, bottom, top_draws, bottom_draws = _two_means(
        numerator, numerator_maps, denominator, denominator_maps, draws, seed
    )
    below = _interval(bottom, bottom_draws)
    if not is_clear_of_zero(below):
        reason = (
            f"undefined: the denominator is {bottom:.3g} with a 95 % interval from {below['low']:.3g} to "
            f"{below['high']:.3g}, not clear of zero; use more maps"
        )
        return {"value": None, "low": None, "high": None, "reason": reason}
    return {**_interval(top / bottom, top_draws / bottom_draws), "reason": None}


def bootstrap_maps_difference(
    one: np.ndarray, one_maps: np.ndarray, other: np.ndarray, other_maps: np.ndarray, draws: int = 4000, seed: int = 0
) -> dict[str, float]:
    """Mean of `one` minus mean of `other` and its 95 % interval by bootstrap over maps, as value, low, high.

    Arguments as those of `bootstrap_maps_ratio`.
    """
    first, second, first_draws, second_draws = _two_means(one, one_maps, other, other_maps, draws, seed)
    return _interval(first - second, first_draws - second_draws)


def is_clear_of_zero(interval: dict[str, float]) -> bool:
    """Whether zero, up to rounding, is outside an interval."""
    tiny = 1e-9
    return interval["low"] > tiny or interval["high"] < -tiny


def check_maps(maps: np.ndarray, count: int, least: int | None = None) -> np.ndarray:
    """The maps as an array `[count]`.

    Raises:
        ValueError: their number is not `count`, or fewer than `least` (`LEAST_MAPS` by default) differ.
    """
    array, least = np.asarray(maps), LEAST_MAPS if least is None else least
    if array.shape != (count,):
        raise ValueError(f"maps has shape {array.shape}, expected ({count},): give the map of every value")
    found = len(np.unique(array))
    if found < least:
        raise ValueError(f"{found} maps are too few: use at least {least}")
    return array


def _by_map(values: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums and numbers of the values of each map, and the maps, in ascending order; `[m]` each."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"values must be one finite number each, got shape {array.shape}: leave out undefined ones")
    names, index = np.unique(check_maps(maps, len(array)), return_inverse=True)
    return np.bincount(index, array), np.bincount(index).astype(np.float64), names


def _two_means(
    one: np.ndarray, one_maps: np.ndarray, other: np.ndarray, other_maps: np.ndarray, draws: int, seed: int
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Two means, and both resampled, `[draws]` each."""
    first, first_counts, first_names = _by_map(one, one_maps)
    second, second_counts, second_names = _by_map(other, other_maps)
    weights = _resampled(len(first), draws, seed)
    paired = len(first) == len(second) and bool((first_names == second_names).all())
    second_weights = weights if paired else _resampled(len(second), draws, seed + 1)
    return (
        float(first.sum() / first_counts.sum()),
        float(second.sum() / second_counts.sum()),
        (weights @ first) / (weights @ first_counts),
        (second_weights @ second) / (second_weights @ second_counts),
    )


def _resampled(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each of `count` items is drawn, `[draws, count]`."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)


def _interval(value: float, resampled: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}
