"""Error of a checkpoint's depth estimator on held-out walks of the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from mosaic_gym.validation import Whole, option, validate

if TYPE_CHECKING:
    from mosaic_gym.evaluation.suites.paths import TruePath
    from mosaic_gym.model.checkpoints import WorldModel


@dataclass(frozen=True)
class Config:
    """Measure the error of a checkpoint's depth estimator on held-out walks."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    paths: Annotated[int, Whole(1)] = 50
    """Held-out walks of about 25 views each."""

    def __post_init__(self) -> None:
        validate(self, option)


def relative_errors(model: WorldModel, paths: Sequence[TruePath]) -> list[float]:
    """Median relative error of the estimated depth for each path, over all pixels of the last frames of its steps."""
    import numpy as np
    import torch

    from mosaic_gym.model.codec import frames_to_float
    from mosaic_gym.model.depth import relative_error

    errors = []
    for path in paths:
        frames = np.stack([view.frames for view in path.views])
        true_m = torch.tensor(np.stack([view.depth_m for view in path.views]))
        k = torch.tensor(path.views[0].image_from_camera, dtype=torch.float32).expand(len(frames), 3, 3)
        estimate_m = model.depth.estimate(frames_to_float(torch.tensor(frames))[:, -1], k)
        errors.append(float(relative_error(estimate_m, true_m).median()))
    return errors


def evaluate(config: Config) -> dict[str, float]:
    """Prints the mean over paths of the median relative error, with its 95 % interval."""
    from mosaic_gym.evaluation.metrics.intervals import bootstrap_interval
    from mosaic_gym.evaluation.suites.paths import ahead_path, collect
    from mosaic_gym.model.checkpoints import WorldModel

    model = WorldModel.from_pretrained(config.checkpoint).to("cpu")
    figure = bootstrap_interval(relative_errors(model, collect(ahead_path, config.paths, model.settings)))
    low, high = 100 * figure["low"], 100 * figure["high"]
    print(f"depth_median_relative_error: {100 * figure['value']:.2f} % [{low:.2f}, {high:.2f}] (goal <= 8 %)")
    return figure
