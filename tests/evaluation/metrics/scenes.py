"""True-like frames without a simulator: painted maps with exact depth, and ways to spoil them."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mosaic_gym.geometry.control import pose_at
from mosaic_gym.geometry.steering import steer_towards_depth
from mosaic_gym.worlds.maps.plan import is_free
from mosaic_gym.worlds.maps.raycast import Raycaster
from mosaic_gym.worlds.maps.rooms import MapOptions, draw_plan

UNITS_PER_M, EYE_M = 32.0, 41.0 / 32.0
K = np.array([[128 / 3, 0.0, 32.0], [0.0, 51.2, 32.0], [0.0, 0.0, 1.0]])
BARE = MapOptions(pickups=0, doors=False, monsters=0, lights=False)


@dataclass(frozen=True)
class Views:
    """Frames uint8 `[n, H, W, 3]`, depth `[n, H, W]` metres and cameras `[n, 4, 4]` of some maps `[n]`."""

    frames: np.ndarray
    depth_m: np.ndarray
    cameras: np.ndarray
    maps: np.ndarray


class Scene:
    """One map, painted."""

    def __init__(self, seed: int):
        self.plan = draw_plan(seed, options=BARE)
        self.caster = Raycaster(self.plan)
        self.ceilings = np.array([space.ceiling for space in self.plan.spaces], float)
        rng = np.random.default_rng([seed, 7])
        self.base = rng.uniform(60, 190, (3, 3))  # floor, ceiling, wall
        self.waves = rng.uniform(-1, 1, (3, 4, 3)) * rng.uniform(2, 6, (1, 4, 1))  # per surface, radians a metre
        self.tints = rng.normal(0, 18, (3, 4, 3))

    def render(self, x_m: float, z_m: float, yaw_rad: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A frame, its depth and its camera; places in metres, as those of cameras."""
        slopes, falls = (np.arange(64) + 0.5 - 32) / K[0, 0], (np.arange(64) + 0.5 - 32) / K[1, 1]
        units = self.caster.depth(
            x_m * UNITS_PER_M, z_m * UNITS_PER_M, EYE_M * UNITS_PER_M, yaw_rad, slopes, falls, self.ceilings
        )
        depth_m = np.where(np.isfinite(units), units, 1.0) / UNITS_PER_M
        camera = pose_at(x_m, -EYE_M, z_m, yaw_rad).world_from_camera
        rays = np.stack(np.broadcast_arrays(slopes[None], falls[:, None], 1.0), -1)
        points = (rays * depth_m[..., None]) @ camera[:3, :3].T + camera[:3, 3]
        surface = np.where(np.abs(points[..., 1]) < 1e-6, 0, np.where(self._is_ceiling(points), 1, 2))
        phase = np.einsum("hwk,hwak->hwa", points, self.waves[surface])
        color = self.base[surface] + np.einsum("hwa,hwac->hwc", np.tanh(2.5 * np.sin(phase)), self.tints[surface])
        color = color * np.clip(1.15 - 0.05 * depth_m, 0.4, 1)[..., None]
        return np.clip(np.round(color), 0, 255).astype(np.uint8), depth_m.astype(np.float32), camera

    def _is_ceiling(self, points: np.ndarray) -> np.ndarray:
        heights = -points[..., 1] * UNITS_PER_M
        return np.isclose(heights[..., None], np.unique(self.ceilings), atol=1e-4).any(-1)

    def start(self, rng: np.random.Generator) -> tuple[float, float, float]:
        """A free place and a heading."""
        rooms = self.plan.rooms
        while True:
            room = rooms[rng.integers(len(rooms))]
            outline = np.array(room.outline)
            x, y = rng.uniform(outline.min(0), outline.max(0))
            if is_free(room, x, y, 24):
                return x / UNITS_PER_M, y / UNITS_PER_M, float(rng.uniform(-np.pi, np.pi))

    def walk(self, steps: int, seed: int = 0) -> tuple[list, list, list]:
        """Frames, depths and cameras of a walk that steers by depth, 0.4 m and at most 0.3 rad a step."""
        rng = np.random.default_rng([self.plan.seed, seed])
        x, z, yaw = self.start(rng)
        rows: tuple[list, list, list] = [], [], []
        for _ in range(steps):
            for column, value in zip(rows, self.render(x, z, yaw), strict=True):
                column.append(value)
            forward, _, turn = steer_towards_depth(rows[1][-1], rng)
            yaw += 0.3 * turn
            x, z = x + 0.4 * forward * np.sin(yaw), z + 0.4 * forward * np.cos(yaw)
        return rows


@lru_cache(maxsize=64)
def scene(seed: int) -> Scene:
    return Scene(seed)


@lru_cache(maxsize=8)
def views(seeds: range, count: int = 4) -> Views:
    """`count` views of each map, from places and in directions drawn at random."""
    rows = []
    for map_seed in seeds:
        rng = np.random.default_rng([map_seed, 1])
        rows += [scene(map_seed).render(*scene(map_seed).start(rng)) for _ in range(count)]
    frames, depths, cameras = (np.stack(column) for column in zip(*rows, strict=True))
    return Views(frames, depths, cameras, np.repeat(np.array(seeds), count))


def blurred(frames: np.ndarray) -> np.ndarray:
    """Averaged over 3 x 3 pixels: a blur by one pixel."""
    padded = np.pad(frames.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = frames.shape[1:3]
    total = sum(padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3))
    return np.round(total / 9).astype(np.uint8)


def noisy(frames: np.ndarray, levels: float = 2.0) -> np.ndarray:
    """With Gaussian noise of so many grey levels."""
    noise = np.random.default_rng(5).normal(0, levels, frames.shape)
    return np.clip(np.round(frames + noise), 0, 255).astype(np.uint8)


def smoothed(frames: np.ndarray, share: float = 0.6, frequencies: int = 8) -> np.ndarray:
    """As an L1 codec leaves them: of the 8 x 8 cosine transform, high frequencies are weakened and small ones gone."""
    k = np.arange(8)
    basis = np.cos(np.pi * (k[None] + 0.5) * k[:, None] / 8) * np.where(k == 0, np.sqrt(1 / 8), 0.5)[:, None]
    n, height, width, _ = frames.shape
    blocks = frames.reshape(n, height // 8, 8, width // 8, 8, 3).astype(np.float64)
    waves = np.einsum("ui,nyixjc,vj->nyuxvc", basis, blocks, basis, optimize=True)
    waves = np.where(np.abs(waves) > frequencies, waves, 0) * share ** (np.add.outer(k, k) / 4)[:, None, :, None]
    back = np.einsum("ui,nyuxvc,vj->nyixjc", basis, waves, basis, optimize=True).reshape(frames.shape)
    return np.clip(np.round(back), 0, 255).astype(np.uint8)


def mush(frames: np.ndarray) -> np.ndarray:
    """Blobs with each frame's own colors and no rooms: phases of the spectrum are random, its amplitudes stay."""
    rng = np.random.default_rng(6)
    phase = np.angle(np.fft.fft2(rng.normal(size=frames.shape[:3]), axes=(1, 2)))[..., None]
    spectrum = np.fft.fft2(frames.astype(np.float64), axes=(1, 2))
    phase[:, 0, 0] = 0
    return np.clip(np.round(np.fft.ifft2(np.abs(spectrum) * np.exp(1j * phase), axes=(1, 2)).real), 0, 255).astype(
        np.uint8
    )
