"""Figures of merit over pixels, their intervals over paths, and whether two places rank policies alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

SSIM_WINDOW, SSIM_SIGMA = 7, 1.5
SHIFTS_PX = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
SHIFT_WINDOW = 5


def squared_error(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Per-pixel squared error, mean over colours, `[..., H, W]` of uint8 frames `[..., H, W, 3]`."""
    return ((one.astype(np.float64) - other.astype(np.float64)) ** 2).mean(-1)


def decibels(mean_squared_error: float) -> float:
    """PSNR of a mean squared error on the scale of uint8; an error of zero counts as 1e-3."""
    return float(10 * np.log10(255.0**2 / max(mean_squared_error, 1e-3)))


def realigned_error(shown: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Per-pixel squared error left when every pixel may take the shift that serves its 5 x 5 neighbourhood best.

    Shifts are up to a pixel, in quarters and halves, cubic. This looks at the answer: it bounds what putting the pixels
    of `shown` in better places could gain.

    Args:
        shown, true: uint8 `[n, H, W, 3]`.

    Returns:
        float64 `[n, H, W]`.
    """
    x, y = (torch.tensor(frames, dtype=torch.float64).permute(0, 3, 1, 2) for frames in (shown, true))
    height, width = x.shape[-2:]
    least = torch.full((len(x), 1, height, width), torch.inf, dtype=x.dtype)
    chosen = least.clone()
    for right in SHIFTS_PX:
        for down in SHIFTS_PX:
            move = torch.tensor([[1.0, 0.0, 2.0 * right / width], [0.0, 1.0, 2.0 * down / height]], dtype=x.dtype)
            grid = F.affine_grid(move.expand(len(x), 2, 3), list(x.shape), align_corners=False)
            moved = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
            error = (moved - y).square().mean(1, keepdim=True)
            nearby = F.avg_pool2d(error, SHIFT_WINDOW, 1, SHIFT_WINDOW // 2, count_include_pad=False)
            better = nearby < least
            least, chosen = torch.where(better, nearby, least), torch.where(better, error, chosen)
    return chosen[:, 0].numpy()


def ssim_map(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """SSIM of every pixel (Wang et al. 2004; Gaussian window 7, sigma 1.5), mean over colours.

    Args:
        one, other: uint8 `[n, H, W, 3]`.

    Returns:
        float64 `[n, H, W]`.
    """
    x, y = (torch.tensor(frames, dtype=torch.float64).permute(0, 3, 1, 2) / 255.0 for frames in (one, other))
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window = torch.outer(line, line)
    window = (window / window.sum()).expand(3, 1, -1, -1)

    def blur(image: torch.Tensor) -> torch.Tensor:
        padded = F.pad(image, [SSIM_WINDOW // 2] * 4, mode="reflect")
        return F.conv2d(padded, window, groups=3)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(1).numpy()


def interval(values: Sequence[float], draws: int = 4000) -> dict[str, float]:
    """Mean of per-path values and its 95 % bootstrap interval, as value, low, high."""
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = array[rng.integers(0, len(array), (draws, len(array)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"value": float(array.mean()), "low": float(low), "high": float(high)}


def runs_interval(values: Sequence[Sequence[float]], draws: int = 4000) -> dict[str, float]:
    """Mean of `values` `[runs, episodes]` and its 95 % interval when runs and episodes are both drawn anew, as value,
    low, high.

    Runs that differ by more than their episodes tell widen it; how much they do, two or three can only hint at.
    """
    array = np.asarray(values, dtype=np.float64)
    runs, episodes = array.shape
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, runs, (draws, runs))
    rows = rng.integers(0, episodes, (draws, episodes))
    means = [array[np.ix_(which, row)].mean() for which, row in zip(chosen, rows, strict=True)]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"value": float(array.mean()), "low": float(low), "high": float(high)}


def share_interval(successes: Sequence[float], z: float = 1.96) -> dict[str, float]:
    """A share of successes (0 or 1 each) and its 95 % interval (Wilson 1927), as value, low, high.

    Unlike a bootstrap's it does not close up where all, or none, of a few succeeded.
    """
    count, share = len(successes), float(np.mean(successes))
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return {"value": share, "low": float(max(centre - reach, 0.0)), "high": float(min(centre + reach, 1.0))}


def agreement(dream: np.ndarray, engine: np.ndarray, seed: int, draws: int = 1000) -> dict[str, float | None]:
    """How far the order of policies by their mean returns is the same in dream and engine.

    Args:
        dream, engine: returns `[policies, episodes]`, of the same episodes.

    Returns:
        `spearman`; `low`, `high`: 95 % of a bootstrap over episodes, policies as they are. `halves`, `engine_halves`:
        the mean when one half of the episodes, drawn again and again, is ranked in the dream, or in the engine itself,
        and the other half in the engine. If the engine's halves disagree, policies are too much alike to be ranked by
        so few episodes. None for what cannot be said, since policies all return the same.
    """

    def measure(found: np.ndarray, tell: Callable[[np.ndarray], float]) -> float | None:
        said = found[np.isfinite(found)]
        return float(tell(said)) if len(said) else None

    def halves(one: np.ndarray, other: np.ndarray) -> float | None:
        shuffled = np.stack([rng.permutation(count) for _ in range(draws)])
        return measure(_rank_correlations(one, other, *np.split(shuffled, [count // 2], axis=1)), np.mean)

    rng = np.random.default_rng(seed)
    count = dream.shape[1]
    rows, all_rows = rng.integers(count, size=(draws, count)), np.arange(count)[None]
    drawn = _rank_correlations(dream, engine, rows, rows)
    return {
        "spearman": measure(_rank_correlations(dream, engine, all_rows, all_rows), np.mean),
        "low": measure(drawn, lambda found: np.percentile(found, 2.5)),
        "high": measure(drawn, lambda found: np.percentile(found, 97.5)),
        "halves": halves(dream, engine),
        "engine_halves": halves(engine, engine),
    }


def _rank_correlations(
    one: np.ndarray, other: np.ndarray, rows_of_one: np.ndarray, rows_of_other: np.ndarray
) -> np.ndarray:
    """Spearman's rho `[draws]` of policies' mean returns, ties averaged; NaN where all return the same.

    Args:
        one, other: returns `[policies, episodes]`; rows_of_one, rows_of_other: `[draws, n]`, the episodes that count.
    """
    from scipy.stats import rankdata

    means = one[:, rows_of_one].mean(-1), other[:, rows_of_other].mean(-1)  # [policies, draws]
    x, y = (rankdata(each, axis=0) - (len(each) + 1) / 2 for each in means)
    with np.errstate(invalid="ignore"):
        return (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))
