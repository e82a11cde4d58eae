"""The atlas against the engine, on held-out walks: what it draws, and whether it knows where it is."""

from __future__ import annotations

from dataclasses import dataclass

MISTAKEN_M = 0.5
"""A frame that is recognised further from where it was taken is mistaken for another place."""


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym evaluate atlas` takes."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    paths: int = 50
    """Held-out walks, some 25 views each."""


def evaluate(config: Config) -> dict[str, dict[str, float]]:
    """Prints the figures: of pictures from true places, of single frames, and of walks as memory has them.

    Raises:
        ValueError: fewer than two walks, or a checkpoint without an atlas.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from mosaic_gym.evaluation.metrics.intervals import bootstrap_interval as interval
    from mosaic_gym.evaluation.suites.paths import ahead_path, collect
    from mosaic_gym.evaluation.suites.rollout import Variants as Arms
    from mosaic_gym.geometry.camera import place_of
    from mosaic_gym.memory.whereabouts import is_known, recognised
    from mosaic_gym.model.checkpoints import WorldModel
    from mosaic_gym.model.codec import frames_to_float

    if config.paths < 2:
        raise ValueError("give at least 2 paths")
    model = WorldModel.from_pretrained(config.checkpoint).to("cpu")
    if model.atlas is None:
        raise ValueError(f"{config.checkpoint} has no atlas; train one (mosaic-gym train atlas), and a world with it")
    arms, k = Arms(model), torch.tensor(model.settings.image_from_camera)
    told: dict[str, list[float]] = {}

    def tell(name: str, values: torch.Tensor) -> None:
        if values.numel():
            told.setdefault(name, []).append(float(values.float().mean()))

    for path in tqdm(collect(ahead_path, config.paths, model.settings), desc="walks", unit="walk"):
        frames = frames_to_float(torch.tensor(np.stack([view.frames[-1] for view in path.views])))
        cameras = np.stack([view.world_from_camera[-1] for view in path.views])
        true = place_of(torch.tensor(cameras, dtype=torch.float32))
        drawn = model.atlas.picture(true, k)[0].clamp(-1.0, 1.0)
        error = (drawn - frames).square().mean((1, 2, 3)).clamp_min(1e-4)
        tell("picture from the true place, dB", 10 * torch.log10(4.0 / error))
        found = model.atlas.find(frames, k)
        off_m, known = (found[:, :2] - true[:, :2]).norm(dim=-1), found[:, 3] > 0
        tell("single frames recognised, share", known)
        tell("of these mistaken for another place, share", off_m[known] > MISTAKEN_M)
        state = arms.after_history(path)
        (place,) = recognised([state.memory.keyframes], state.history_cameras[-1:, -1:])
        sure = is_known(state.memory.keyframes)
        tell("walks recognised, share", torch.tensor(sure))
        if sure:
            off_m = (place[0, :2] - true[path.history - 1, :2]).norm()
            tell("of these mistaken for another place, share (walks)", off_m > MISTAKEN_M)
            tell("where the others are, off by, m", off_m[off_m <= MISTAKEN_M])
    figures = {name: interval(values) for name, values in told.items()}
    for name, figure in figures.items():
        print(f"{name:<52}{figure['value']:8.3f} [{figure['low']:.3f}, {figure['high']:.3f}]")
    return figures
