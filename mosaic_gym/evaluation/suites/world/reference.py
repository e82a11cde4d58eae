"""The true data that worlds are compared with, and what is computed of it once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.evaluation.metrics.classifier import features_at
from mosaic_gym.evaluation.metrics.depth import depth_percentiles, upright_shares
from mosaic_gym.evaluation.metrics.frechet import Whitening
from mosaic_gym.evaluation.metrics.memorised import copy_threshold
from mosaic_gym.evaluation.metrics.neighbors import pooled_pixels
from mosaic_gym.evaluation.metrics.sharpness import gradient_energy
from mosaic_gym.evaluation.net import EvaluationNet
from mosaic_gym.evaluation.suites.world.scenes import Scene

WALK_MOMENTS = (4, 16, 64)
"""Steps of the free walk at which figures with a K in their name are taken."""
AROUND = (-1, 0, 1, 2)
"""Four frames a map around each of those."""
EVERY = 2
"""Every so many steps of a walk count in figures of the distribution."""
PLANES_EVERY = 4
INVENTED_FROM = 8
"""A walk's frames count as invented from this step on, in `memorised_share`."""
INVENTED_SHARE = 0.2
"""A frame is of the invented area if at most this share of its pixels shows a place of the start's view."""
DITHER = 2.0
"""Standard deviation of the noise on both sides of `auc_pixels_K` for its entry `dithered`, grey levels."""
HALF_FEATURES, FEATURES_FLOOR, CONTRASTS_FLOOR = 32, 1e-2, 1e-3
"""Components of the net's features, and as many of its contrasts, in `frechet_ratio`; floors of their variances."""


class DistributionFeatures:
    """The 64 features of `frechet_ratio`: the net's features and its local contrasts, both whitened.

    Args:
        net: the evaluation net.
        frames: uint8 `[n, H, W, 3]` of training maps, whose variances whiten.
    """

    def __init__(self, net: EvaluationNet, frames: np.ndarray):
        self.net = net
        features, contrasts = net.read_with_contrasts(frames)
        self.of_features = Whitening(features, HALF_FEATURES, FEATURES_FLOOR)
        self.of_contrasts = Whitening(contrasts, HALF_FEATURES, CONTRASTS_FLOOR)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Features `[n, 64]` of frames uint8 `[n, H, W, 3]`."""
        features, contrasts = self.net.read_with_contrasts(frames)
        return np.concatenate([self.of_features(features), self.of_contrasts(contrasts)], 1)


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference data that worlds are compared with.

    Attributes:
        scenes: true scenes of the split.
        training: frames that a world can have been trained on, as `pooled_pixels` `[n, d]`.
        net: the evaluation net.
        distribution: the features of `frechet_ratio`.
        codec: encodes and decodes frames by the codec of the checkpoint; None without one.
        known: what `classifier_features` has computed.
    """

    scenes: Sequence[Scene]
    training: np.ndarray
    net: EvaluationNet
    distribution: DistributionFeatures
    codec: Callable[[np.ndarray], np.ndarray] | None = None
    known: dict[tuple[str, int, float, bool], np.ndarray] = field(default_factory=dict)

    @cached_property
    def maps(self) -> np.ndarray:
        """The map of every scene."""
        return np.array([scene.index for scene in self.scenes])

    @cached_property
    def walks(self) -> np.ndarray:
        """uint8 `[maps, w, H, W, 3]`."""
        return np.stack([scene.walk_frames for scene in self.scenes])

    @cached_property
    def features(self) -> np.ndarray:
        """Features of the walks' frames, `[maps * n, 64]`."""
        return self.distribution(flat(self.walks[:, 1::EVERY]))

    @cached_property
    def percentiles(self) -> np.ndarray:
        """`depth_percentiles` of the walks, `[maps * n, 3]`."""
        return np.concatenate([depth_percentiles(scene.walk_depth[1::EVERY]) for scene in self.scenes])

    @cached_property
    def upright(self) -> np.ndarray:
        """`upright_shares` of the walks, `[maps * n]`."""
        chosen = slice(PLANES_EVERY, None, PLANES_EVERY)
        return np.concatenate([
            upright_shares(scene.walk_depth[chosen], cameras, scene.k, np.full(len(cameras), scene.index))
            for scene, cameras in ((scene, scene.walk_cameras[chosen]) for scene in self.scenes)
        ])  # fmt: skip

    @cached_property
    def threshold(self) -> float:
        """`copy_threshold` of the walks' invented frames."""
        return copy_threshold(pooled_pixels(flat(self.walks[:, INVENTED_FROM::EVERY])), self.training)

    @cached_property
    def outward(self) -> tuple[np.ndarray, np.ndarray]:
        """The net's features of the true frames of the invented area, `[n, 64]`, and the map of each, `[n]`."""
        rows = [invented_steps(scene, scene.out) for scene in self.scenes]
        frames = np.concatenate([scene.path_frames[new] for scene, new in zip(self.scenes, rows, strict=True)])
        return self.net.read(frames)[0], self.maps.repeat([len(new) for new in rows])

    @cached_property
    def energy(self) -> dict[int, np.ndarray]:
        """`gradient_energy` of the frames around each of `WALK_MOMENTS`, `[maps * 4]`."""
        return {moment: gradient_energy(around(self.walks, moment)) for moment in WALK_MOMENTS}

    def classifier_features(self, at: str, moment: int, dither: float = 0.0, coded: bool = False) -> np.ndarray:
        """Features of a classifier of the frames around a step of the walks; `coded`: after the codec."""
        key = at, moment, dither, coded
        if key not in self.known:
            frames = around(self.walks, moment)
            self.known[key] = features_at(self.codec(frames) if coded else frames, at, dither, seed=1)
        return self.known[key]


def recorded_pixels(folder: Path, size: tuple[int, int]) -> np.ndarray:
    """The last frame of every step of a recording's training episodes, as `pooled_pixels` `[n, d]`.

    Raises:
        FileNotFoundError: no training episode is recorded there.
        ValueError: its frames have another size, (height, width).
    """
    store = EpisodeStore(folder, "train")
    found = tuple(store.load(0)["frames"].shape[-3:-1])
    if found != size:
        raise ValueError(f"{folder} has frames of {found}, and the world's are of {size}: give the world's recording")
    return np.concatenate([pooled_pixels(store.load(index)["frames"][:, -1].numpy()) for index in range(len(store))])


def flat(frames: np.ndarray) -> np.ndarray:
    """`[maps, n, ...]` as `[maps * n, ...]`."""
    return frames.reshape(-1, *frames.shape[2:])


def around(walks: np.ndarray, moment: int) -> np.ndarray:
    """The four frames around a step of every walk, `[maps * 4, ...]` of `[maps, w, ...]`."""
    return flat(walks[:, [moment + k for k in AROUND]])


def invented_steps(scene: Scene, steps: int) -> np.ndarray:
    """Which of the first steps of the path show the invented area."""
    return np.flatnonzero(scene.seen_at_start[:steps].mean((1, 2)) <= INVENTED_SHARE)
