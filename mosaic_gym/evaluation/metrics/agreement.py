"""Whether two environments rank policies alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def rank_agreement(learned: np.ndarray, simulator: np.ndarray, seed: int, draws: int = 1000) -> dict[str, float | None]:
    """Rank correlation of policies' mean returns in the learned world and in the simulator.

    Args:
        learned: returns `[policies, episodes]`.
        simulator: returns `[policies, episodes]`, of the same episodes.

    Returns:
        `spearman`: Spearman's rho. `low`, `high`: its 95 % bootstrap interval over episodes, with the policies fixed.
        `halves`: mean rho when one random half of the episodes is ranked in the learned world and the other half in the
        simulator. `simulator_halves`: the same with both halves in the simulator. If the simulator's halves disagree,
        the policies are too similar to be ranked by so few episodes. A figure is None where policies all return the
        same, so that no order exists.
    """

    def summarize(correlations: np.ndarray, statistic: Callable[[np.ndarray], float]) -> float | None:
        defined = correlations[np.isfinite(correlations)]
        return float(statistic(defined)) if len(defined) else None

    def halves(one: np.ndarray, other: np.ndarray) -> float | None:
        shuffled = np.stack([rng.permutation(count) for _ in range(draws)])
        return summarize(_rank_correlations(one, other, *np.split(shuffled, [count // 2], axis=1)), np.mean)

    rng = np.random.default_rng(seed)
    count = learned.shape[1]
    rows, all_rows = rng.integers(count, size=(draws, count)), np.arange(count)[None]
    resampled = _rank_correlations(learned, simulator, rows, rows)
    return {
        "spearman": summarize(_rank_correlations(learned, simulator, all_rows, all_rows), np.mean),
        "low": summarize(resampled, lambda rho: np.percentile(rho, 2.5)),
        "high": summarize(resampled, lambda rho: np.percentile(rho, 97.5)),
        "halves": halves(learned, simulator),
        "simulator_halves": halves(simulator, simulator),
    }


def _rank_correlations(
    one: np.ndarray, other: np.ndarray, rows_of_one: np.ndarray, rows_of_other: np.ndarray
) -> np.ndarray:
    """Spearman's rho `[draws]` of policies' mean returns, ties averaged; NaN where all return the same.

    Args:
        one: returns `[policies, episodes]`.
        other: returns `[policies, episodes]`.
        rows_of_one: `[draws, n]`, the episodes of `one` that are averaged.
        rows_of_other: the same for `other`.
    """
    from scipy.stats import rankdata

    means = one[:, rows_of_one].mean(-1), other[:, rows_of_other].mean(-1)  # [policies, draws]
    x, y = (rankdata(mean, axis=0) - (len(mean) + 1) / 2 for mean in means)
    with np.errstate(invalid="ignore"):
        return (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))
