"""95 % intervals of means and shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
