"""Whether a world follows a prompt that names a theme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mosaic_gym.evaluation.metrics.intervals import bootstrap_maps
from mosaic_gym.evaluation.net import EvaluationNet
from mosaic_gym.evaluation.suites.world.rollouts import PROMPTED_STEPS, Rollout
from mosaic_gym.evaluation.suites.world.scenes import Scene

FIRST_STEP = 12
"""From this step on, a walk's frames count as invented rooms."""


def theme_followed(scenes: Sequence[Scene], rollouts: Sequence[Rollout], net: EvaluationNet) -> dict[str, Any]:
    """Share of the frames of invented rooms whose theme, as the evaluation net names it, is the prompted one.

    The theme is drawn evenly from those not in the start's view. `without_prompt` is the same share in the walks that
    had the start's own caption as prompt.
    """
    if rollouts[0].prompted is None:
        return {"value": None, "low": None, "high": None, "reason": "not applicable: the world takes no prompt"}
    matches, plain, maps = [], [], []
    for scene, rollout in zip(scenes, rollouts, strict=True):
        steps = slice(FIRST_STEP, PROMPTED_STEPS + 1)
        matches.append(net.read(rollout.prompted[steps])[1].argmax(1) == rollout.prompted_theme)
        plain.append(net.read(rollout.walk[steps])[1].argmax(1) == rollout.prompted_theme)
        maps += [scene.index] * len(matches[-1])
    share = bootstrap_maps(np.concatenate(matches).astype(np.float64), np.array(maps))
    return {**share, "without_prompt": float(np.concatenate(plain).mean()), "reason": None}
