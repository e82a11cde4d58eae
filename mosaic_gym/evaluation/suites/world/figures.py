"""The figures of a world, each from the roll-outs alone.

A figure is a dict: `value`, `low` and `high` (95 %, bootstrap over maps), and `reason`, which is None or why the value
is None ("undefined: ..." or "not applicable: ..."). Some have more entries. The definitions stand in the functions here
and in `mosaic_gym/evaluation/metrics/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mosaic_gym.evaluation.metrics.classifier import auc_of_classifier
from mosaic_gym.evaluation.metrics.depth import depth_distance, floor_error, manhattan_share
from mosaic_gym.evaluation.metrics.diversity import diversity_ratio
from mosaic_gym.evaluation.metrics.frechet import frechet_ratio
from mosaic_gym.evaluation.metrics.memorised import memorised_share
from mosaic_gym.evaluation.metrics.neighbors import pooled_pixels
from mosaic_gym.evaluation.metrics.sharpness import sharpness
from mosaic_gym.evaluation.net import EvaluationNet
from mosaic_gym.evaluation.suites.world.faithfulness import faithfulness_figures
from mosaic_gym.evaluation.suites.world.motion_figures import motion_figures
from mosaic_gym.evaluation.suites.world.prompt_figures import theme_followed
from mosaic_gym.evaluation.suites.world.rollouts import Rollout
from mosaic_gym.evaluation.suites.world.scenes import Scene

Figure = dict[str, Any]

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


@dataclass(frozen=True)
class Reference:
    """The reference data that worlds are compared with.

    Attributes:
        scenes: true scenes of the split.
        training: frames of training maps, as `pooled_pixels` `[n, d]`.
        net: the evaluation net.
        codec: encodes and decodes frames by the codec of the checkpoint; None without one.
    """

    scenes: Sequence[Scene]
    training: np.ndarray
    net: EvaluationNet
    codec: Callable[[np.ndarray], np.ndarray] | None = None

    @cached_property
    def maps(self) -> np.ndarray:
        """The map of every scene."""
        return np.array([scene.index for scene in self.scenes])

    @cached_property
    def walks(self) -> np.ndarray:
        """uint8 `[maps, w, H, W, 3]`."""
        return np.stack([scene.walk_frames for scene in self.scenes])

    @cached_property
    def walk_depth(self) -> np.ndarray:
        """`[maps, w, H, W]`."""
        return np.stack([scene.walk_depth for scene in self.scenes])

    @cached_property
    def features(self) -> np.ndarray:
        """Features of the walks' frames, `[maps, n, 64]`."""
        return features_of(self.net, self.walks[:, 1::EVERY])

    @cached_property
    def held_out(self) -> np.ndarray:
        """The walks' invented frames as `pooled_pixels`."""
        return pooled_pixels(flat(self.walks[:, INVENTED_FROM::EVERY]))

    @cached_property
    def coded_walks(self) -> np.ndarray | None:
        """The frames around `WALK_MOMENTS` after the codec, uint8 `[3, maps, 4, H, W, 3]`."""
        if self.codec is None:
            return None
        parts = [self.walks[:, [moment + k for k in AROUND]] for moment in WALK_MOMENTS]
        return np.stack([self.codec(flat(part)).reshape(part.shape) for part in parts])


def flat(frames: np.ndarray) -> np.ndarray:
    """`[maps, n, ...]` as `[maps * n, ...]`."""
    return frames.reshape(-1, *frames.shape[2:])


def features_of(net: EvaluationNet, frames: np.ndarray) -> np.ndarray:
    """Features `[maps, n, 64]` of frames `[maps, n, H, W, 3]`."""
    return net.read(flat(frames))[0].reshape(*frames.shape[:2], -1)


def without(kind: str, why: str) -> Figure:
    """A figure without a value."""
    return {"value": None, "low": None, "high": None, "reason": f"{kind}: {why}"}


def measure(scenes: Sequence[Scene], rollouts: Sequence[Rollout], reference: Reference) -> dict[str, Figure]:
    """All figures that follow from roll-outs, by name.

    Args:
        scenes: those of the roll-outs, in the same order.
    """
    walks = np.stack([rollout.walk for rollout in rollouts])
    depth = np.stack([rollout.walk_depth for rollout in rollouts])
    maps = np.array([scene.index for scene in scenes])
    figures = faithfulness_figures(scenes, rollouts)
    figures |= _classifiers(walks, maps, reference)
    features = features_of(reference.net, walks[:, 1::EVERY])
    count = features.shape[1]
    names, true_names = maps.repeat(count), reference.maps.repeat(count)
    frames_a_side = {"frames_a_side": int(min(len(names), len(true_names)))}
    figures["frechet_ratio"] = {
        **frechet_ratio(flat(features), flat(reference.features), names, true_names), **frames_a_side
    }  # fmt: skip
    for moment in WALK_MOMENTS:
        around = [moment + k for k in AROUND]
        parts = flat(walks[:, around]), flat(reference.walks[:, around])
        figures[f"sharpness_{moment}"] = sharpness(*parts, maps.repeat(4), reference.maps.repeat(4))
    parts = flat(depth[:, 1::EVERY]), flat(reference.walk_depth[:, 1::EVERY])
    figures["depth_distance"] = depth_distance(*parts, names, true_names)
    figures |= _surfaces(scenes, rollouts, depth, maps, reference)
    figures |= motion_figures(scenes, rollouts)
    figures["diversity_ratio"] = _diversity(scenes, rollouts, reference)
    invented = walks[:, INVENTED_FROM::EVERY]
    figures["memorised_share"] = {
        **memorised_share(
            pooled_pixels(flat(invented)), reference.held_out, reference.training, maps.repeat(invented.shape[1])
        ),
        "reason": None,
    }
    figures["theme_followed"] = theme_followed(scenes, rollouts, reference.net)
    return figures


def _classifiers(walks: np.ndarray, maps: np.ndarray, reference: Reference) -> dict[str, Figure]:
    """`auc_pixels_K` and `auc_layout_K`: how well a classifier separates a walk's frames around step K from true ones.

    `through_codec` beside the value: the same against true frames that went through the world's codec.
    """
    figures = {}
    for at in ("pixels", "layout"):
        for i, moment in enumerate(WALK_MOMENTS):
            around = [moment + k for k in AROUND]
            ours, names = flat(walks[:, around]), (maps.repeat(4), reference.maps.repeat(4))
            figure = {**auc_of_classifier(ours, flat(reference.walks[:, around]), *names, at=at), "reason": None}
            if reference.coded_walks is not None:
                coded = auc_of_classifier(ours, flat(reference.coded_walks[i]), *names, at=at, draws=200)
                figure["through_codec"] = coded["value"]
            figures[f"auc_{at}_{moment}"] = figure
    return figures


def _surfaces(
    scenes: Sequence[Scene], rollouts: Sequence[Rollout], depth: np.ndarray, maps: np.ndarray, reference: Reference
) -> dict[str, Figure]:
    """`floor_error` and `manhattan_share` of the free walk."""
    chosen = slice(PLANES_EVERY, None, PLANES_EVERY)
    cameras = np.stack([rollout.walk_cameras for rollout in rollouts])[:, chosen]
    true_cameras = np.stack([scene.walk_cameras for scene in reference.scenes])[:, chosen]
    count, k = cameras.shape[1], scenes[0].k
    ours = flat(depth[:, chosen]), flat(cameras)
    true = flat(reference.walk_depth[:, chosen]), flat(true_cameras)
    names, true_names = maps.repeat(count), reference.maps.repeat(count)
    eye_height_m = float(-scenes[0].walk_cameras[0, 1, 3])
    try:
        right_angles = manhattan_share(*ours, names, *true, true_names, k)
    except ValueError as error:
        right_angles = without("undefined", str(error))
    return {"floor_error": floor_error(*ours, k, names, eye_height_m), "manhattan_share": right_angles}


def _diversity(scenes: Sequence[Scene], rollouts: Sequence[Rollout], reference: Reference) -> Figure:
    """`diversity_ratio` over the frames of the way out that show the invented area."""
    ours, again, names, true, true_names = [], [], [], [], []
    for scene, rollout in zip(scenes, rollouts, strict=True):
        steps = len(rollout.again)
        new = np.flatnonzero(scene.seen_at_start[:steps].mean((1, 2)) <= INVENTED_SHARE)
        if len(new):
            ours.append(reference.net.read(rollout.invented[new])[0])
            again.append(reference.net.read(rollout.again[new])[0])
            names += [scene.index] * len(new)
    for scene in reference.scenes:
        new = np.flatnonzero(scene.seen_at_start[: scene.out].mean((1, 2)) <= INVENTED_SHARE)
        if len(new):
            true.append(reference.net.read(scene.path_frames[new])[0])
            true_names += [scene.index] * len(new)
    if len(set(names)) < 8:
        return without("undefined", f"only {len(set(names))} walks away reach an invented area; use more --paths")
    parts = np.concatenate(ours), np.concatenate(again), np.array(names)
    return diversity_ratio(*parts, np.concatenate(true), np.array(true_names))
