"""True frames of generated maps with what they show: for the evaluation net, and as the training frames of figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mosaic_gym.evaluation.metrics.surfaces import rays
from mosaic_gym.evaluation.net import KINDS
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.maps.layout import Layout
from mosaic_gym.worlds.maps.rooms import map_seed
from mosaic_gym.worlds.maps.themes import HELDOUT_THEMES, THEMES
from mosaic_gym.worlds.maps.ways import OUTSIDE, FloorGrid
from mosaic_gym.worlds.protocol import Start
from mosaic_gym.worlds.room_explorer import RoomExplorer

TRAIN_THEMES = tuple(sorted(set(THEMES) - set(HELDOUT_THEMES)))
EVERY_PX = 2
"""Themes are read from every so many pixels in both directions."""
NEARER = 0.97
"""Points on walls are moved towards the camera, into the room that the wall belongs to."""


@dataclass(frozen=True)
class TrueFrames:
    """An explorer's views of one map, one frame a step.

    Attributes:
        frames: uint8 `[n, H, W, 3]`.
        depth_m: float32 `[n, H, W]`, metres.
        cameras: `[n, 4, 4]`, metres.
        themes: `[n, themes]`, the share of the pixels that shows each of `TRAIN_THEMES`; float32.
        kinds: `[n, kinds]`, whether each of `KINDS` is in view; float32.
    """

    frames: np.ndarray
    depth_m: np.ndarray
    cameras: np.ndarray
    themes: np.ndarray
    kinds: np.ndarray


def draw_frames(world: DoomWorld, index: int, split: str, steps: int) -> TrueFrames:
    """The views of `steps` steps of the explorer on the map with this index in a split."""
    state, view = world.start(Start(seed=index, map_seed=map_seed(index, split)))
    explorer = RoomExplorer(world, state, view, steps, np.random.default_rng(index))
    grid = explorer.grid
    explorer.explore()
    views = explorer.views
    depth_m = np.stack([view.depth_m for view in views])
    cameras = np.stack([view.world_from_camera[-1] for view in views])
    k = views[0].image_from_camera
    return TrueFrames(
        np.stack([view.frames[-1] for view in views]),
        depth_m,
        cameras,
        np.stack([theme_shares(grid, *pair, k) for pair in zip(depth_m, cameras, strict=True)]),
        np.array([[kind in view.labels for kind in KINDS] for view in views], dtype=np.float32),
    )


def theme_shares(grid: FloorGrid, depth_m: np.ndarray, camera: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The share of a view's pixels that shows each of `TRAIN_THEMES`, by true depth `[H, W]`; float32 `[themes]`."""
    half = slice(EVERY_PX // 2, None, EVERY_PX)
    points = (rays(k, *depth_m.shape) * depth_m[..., None])[half, half].reshape(-1, 3) * NEARER
    places = points @ camera[:3, :3].T + camera[:3, 3]
    spaces = grid.spaces_at(places[:, [0, 2]])
    return _shares(grid.layout, spaces[spaces != OUTSIDE])


def _shares(layout: Layout, spaces: np.ndarray) -> np.ndarray:
    counts = np.bincount(spaces, minlength=len(layout.spaces))
    shares = np.zeros(len(TRAIN_THEMES), dtype=np.float32)
    for space, count in zip(layout.spaces, counts, strict=False):
        if space.theme in TRAIN_THEMES:
            shares[TRAIN_THEMES.index(space.theme)] += count
    return shares / max(shares.sum(), 1.0)
