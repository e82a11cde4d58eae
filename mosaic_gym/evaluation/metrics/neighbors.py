"""Nearest neighbors in blocks, so that memory stays bounded however many rows there are."""

from __future__ import annotations

import numpy as np

from mosaic_gym.evaluation.metrics.image import check_frames

BLOCK = 2048


def pooled_pixels(frames: np.ndarray, cells: int = 8) -> np.ndarray:
    """Frames averaged to `cells` x `cells`, float32 `[n, cells * cells * 3]`, grey levels.

    Args:
        frames: uint8 `[n, H, W, 3]`, H and W multiples of `cells`.
    """
    count, height, width, _ = check_frames("frames", frames).shape
    if height % cells or width % cells:
        raise ValueError(f"frames of {height} x {width} pixels have no {cells} x {cells} equal cells: change `cells`")
    blocks = frames.reshape(count, cells, height // cells, cells, width // cells, 3)
    return blocks.mean((2, 4), dtype=np.float32).reshape(count, -1)


def nearest_distances(queries: np.ndarray, rows: np.ndarray, neighbors: int = 1, block: int = BLOCK) -> np.ndarray:
    """Euclidean distances from every query to its nearest rows, `[n, neighbors]` float32, ascending.

    Args:
        queries: `[n, d]`.
        rows: `[m, d]`, m at least `neighbors`; may be a memory map.
        block: so many queries and rows are compared at once; working memory is about 12 `block`^2 bytes.
    """
    found = np.empty((len(queries), neighbors), dtype=np.float32)
    for start in range(0, len(queries), block):
        part = np.asarray(queries[start : start + block], dtype=np.float32)
        squares = (part**2).sum(1)[:, None]
        best = np.full((len(part), neighbors), np.inf, dtype=np.float32)
        for first in range(0, len(rows), block):
            other = np.asarray(rows[first : first + block], dtype=np.float32)
            distance = part @ other.T
            distance *= -2
            distance += (other**2).sum(1)
            if neighbors < distance.shape[1]:
                distance = np.partition(distance, neighbors - 1, axis=1)[:, :neighbors]
            best = np.sort(np.concatenate([best, distance], 1), axis=1)[:, :neighbors]
        found[start : start + block] = np.sqrt(np.maximum(best + squares, 0))
    return found
