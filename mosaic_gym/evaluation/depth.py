"""The depth estimator against the engine, on held-out walks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym evaluate depth` takes."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    paths: int = 50
    """Held-out walks, some 25 views each."""


def relative_errors(model, paths) -> list[float]:
    """The median over pixels, one for each path, over the last frames of its steps."""
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
    """Prints the figure.

    Raises:
        ValueError: no path to measure on.
    """
    from mosaic_gym.evaluation.metrics import interval
    from mosaic_gym.evaluation.paths import ahead_path
    from mosaic_gym.evaluation.revisit import collect
    from mosaic_gym.model.checkpoints import WorldModel

    if config.paths < 1:
        raise ValueError("give at least 1 path")
    model = WorldModel.from_pretrained(config.checkpoint).to("cpu")
    figure = interval(relative_errors(model, collect(ahead_path, config.paths, model.settings)))
    low, high = 100 * figure["low"], 100 * figure["high"]
    print(f"depth_median_relative_error: {100 * figure['value']:.2f} % [{low:.2f}, {high:.2f}] (goal <= 8 %)")
    return figure
