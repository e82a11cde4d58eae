"""The figures of a world, each from the roll-outs alone.

A figure is a dict: `value`, `low` and `high` (95 %, bootstrap over maps), and `reason`, which is None or why the value
is None ("undefined: ..." or "not applicable: ..."). Some have more entries. The definitions stand in the functions here
and in `mosaic_gym/evaluation/metrics/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mosaic_gym.evaluation.metrics.classifier import auc_of_features, features_at
from mosaic_gym.evaluation.metrics.depth import (
    depth_distance_of_percentiles,
    depth_percentiles,
    floor_error,
    share_over_true,
    upright_shares,
)
from mosaic_gym.evaluation.metrics.diversity import diversity_ratio
from mosaic_gym.evaluation.metrics.frechet import frechet_ratio
from mosaic_gym.evaluation.metrics.intervals import bootstrap_maps_ratio
from mosaic_gym.evaluation.metrics.memorised import memorised_share
from mosaic_gym.evaluation.metrics.neighbors import pooled_pixels
from mosaic_gym.evaluation.metrics.sharpness import gradient_energy
from mosaic_gym.evaluation.suites.world.faithfulness import TrueWalks, faithfulness_figures
from mosaic_gym.evaluation.suites.world.motion_figures import motion_figures
from mosaic_gym.evaluation.suites.world.prompt_figures import theme_followed
from mosaic_gym.evaluation.suites.world.reference import (
    DITHER,
    EVERY,
    INVENTED_FROM,
    PLANES_EVERY,
    WALK_MOMENTS,
    Reference,
    around,
    flat,
    invented_steps,
)
from mosaic_gym.evaluation.suites.world.rollouts import Rollout
from mosaic_gym.evaluation.suites.world.scenes import Scene

Figure = dict[str, Any]

OF_DEPTH = ("depth_distance", "floor_error", "manhattan_share")
"""Figures that follow from the depth of the free walk alone."""


def without(kind: str, why: str) -> Figure:
    """A figure without a value."""
    return {"value": None, "low": None, "high": None, "reason": f"{kind}: {why}"}


def measure(
    truth: TrueWalks,
    rollouts: Sequence[Rollout],
    reference: Reference,
    same_depth: Mapping[str, Figure] | None = None,
) -> dict[str, Figure]:
    """All figures that follow from roll-outs, by name.

    Args:
        truth: the scenes of the roll-outs, in the same order.
        same_depth: figures of a world with the same depth, whose `OF_DEPTH` are taken over.
    """
    walks = np.stack([rollout.walk for rollout in rollouts])
    scenes, maps = truth.scenes, truth.maps
    figures = faithfulness_figures(truth, rollouts)
    figures |= _classifiers(walks, maps, reference)
    count = len(walks[0, 1::EVERY])
    names, true_names = maps.repeat(count), reference.maps.repeat(count)
    features = reference.distribution(flat(walks[:, 1::EVERY]))
    figures["frechet_ratio"] = {
        **frechet_ratio(features, reference.features, names, true_names),
        "frames_a_side": min(len(names), len(true_names)),
    }
    for moment in WALK_MOMENTS:
        energy = gradient_energy(around(walks, moment)), maps.repeat(4)
        true_energy = reference.energy[moment], reference.maps.repeat(4)
        figures[f"sharpness_{moment}"] = bootstrap_maps_ratio(*energy, *true_energy)
    if same_depth is not None:
        figures |= {name: same_depth[name] for name in OF_DEPTH}
    else:
        percentiles = np.concatenate([depth_percentiles(row.walk_depth[1::EVERY]) for row in rollouts])
        figures["depth_distance"] = depth_distance_of_percentiles(
            percentiles, reference.percentiles, names, true_names
        )  # fmt: skip
        figures |= _surfaces(scenes, rollouts, reference)
    figures |= motion_figures(scenes, rollouts)
    figures["diversity_ratio"] = _diversity(scenes, rollouts, reference)
    invented = walks[:, INVENTED_FROM::EVERY]
    share = memorised_share(
        pooled_pixels(flat(invented)), reference.training, maps.repeat(invented.shape[1]), reference.threshold
    )
    figures["memorised_share"] = {**share, "reason": None}
    figures["theme_followed"] = theme_followed(scenes, rollouts, reference.net)
    return figures


def _classifiers(walks: np.ndarray, maps: np.ndarray, reference: Reference) -> dict[str, Figure]:
    """`auc_pixels_K` and `auc_layout_K`: how well a classifier separates a walk's frames around step K from true ones.

    Beside the value: `dithered`, the same with noise of `DITHER` grey levels on both sides (of pixels alone), and
    `through_codec`, the same against true frames that went through the world's codec.
    """
    figures, names = {}, (maps.repeat(4), reference.maps.repeat(4))
    for at in ("pixels", "layout"):
        for moment in WALK_MOMENTS:
            frames = around(walks, moment)
            ours = features_at(frames, at)
            figure = {**auc_of_features(ours, reference.classifier_features(at, moment), *names), "reason": None}
            if at == "pixels":
                true = reference.classifier_features(at, moment, DITHER)
                figure["dithered"] = auc_of_features(features_at(frames, at, DITHER), true, *names, draws=1)["value"]
            if reference.codec is not None:
                true = reference.classifier_features(at, moment, coded=True)
                figure["through_codec"] = auc_of_features(ours, true, *names, draws=1)["value"]
            figures[f"auc_{at}_{moment}"] = figure
    return figures


def _surfaces(scenes: Sequence[Scene], rollouts: Sequence[Rollout], reference: Reference) -> dict[str, Figure]:
    """`floor_error` and `manhattan_share` of the free walk."""
    chosen = slice(PLANES_EVERY, None, PLANES_EVERY)
    cameras = np.concatenate([rollout.walk_cameras[chosen] for rollout in rollouts])
    depth = np.concatenate([rollout.walk_depth[chosen] for rollout in rollouts])
    count, k = len(rollouts[0].walk_cameras[chosen]), scenes[0].k
    names, true_names = (np.array([row.index for row in rows]).repeat(count) for rows in (scenes, reference.scenes))
    try:
        upright = upright_shares(depth, cameras, k, names)
        right_angles = share_over_true(upright, reference.upright, names, true_names)
    except ValueError as error:
        right_angles = without("undefined", str(error))
    eye_height_m = float(-scenes[0].walk_cameras[0, 1, 3])
    return {"floor_error": floor_error(depth, cameras, k, names, eye_height_m), "manhattan_share": right_angles}


def _diversity(scenes: Sequence[Scene], rollouts: Sequence[Rollout], reference: Reference) -> Figure:
    """`diversity_ratio` over the frames of the way out that show the invented area."""
    rows = [invented_steps(scene, len(rollout.again)) for scene, rollout in zip(scenes, rollouts, strict=True)]
    reached = sum(len(new) > 0 for new in rows)
    if reached < 8:
        return without("undefined", f"only {reached} walks away reach an invented area; use more --paths")
    ours, again = (
        reference.net.read(np.concatenate([getattr(row, part)[new] for row, new in zip(rollouts, rows, strict=True)]))[
            0
        ]
        for part in ("invented", "again")
    )
    names = np.array([scene.index for scene in scenes]).repeat([len(new) for new in rows])
    return diversity_ratio(ours, again, names, *reference.outward)
