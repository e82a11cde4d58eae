"""The arms, let loose along the engine's paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mosaic_gym.evaluation.metrics import decibels, realigned_error, squared_error, ssim_map
from mosaic_gym.evaluation.paths import Path, Seen, outward_frame
from mosaic_gym.geometry.control import FRAMES_PER_STEP
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.state import WorldState

VARIANTS = {
    "memory": "memory on",
    "off": "memory off",
    "last": "last frame only",
    "unplaced": "memory on, map unknown",
    "expected": "memory and atlas alone",
    "warp": "the warp alone, no network",
}
LEAST_UNCOVERED = 0.01
"""A step ahead counts for what is not covered if at least this share of its pixels is not."""
LEAST_SHARE = 0.05
"""A frame counts in the return if at least this share of it shows what the history saw."""


class Variants:
    """One checkpoint, with more and less of it.

    Args:
        model: the checkpoint.
        denoising_steps: None for the shipped number.
    """

    def __init__(self, model: WorldModel, denoising_steps: int | None = None):
        self.world = MosaicWorld(model, denoising_steps=denoising_steps)
        self._others = {
            "unplaced": MosaicWorld(model, denoising_steps=denoising_steps, atlas=False),
            "expected": MosaicWorld(model, network=False),
            "warp": MosaicWorld(model, network=False, atlas=False),
        }

    def after_history(self, path: Path) -> WorldState:
        """The state that has truly seen the path's history, with all of its memory."""
        state = self.world.begin(path.views[0].frames, path.poses(0), path.seed, path.prompt)
        for step in range(1, path.history):
            state = self.world.observe(state, path.views[step].frames, path.poses(step))
        return state

    def dream(self, variant: str, states: Sequence[WorldState], paths: Sequence[Path]) -> list[np.ndarray]:
        """Frames uint8 `[steps, 4, H, W, 3]` of each path's way, free-running from the states after its history."""
        world = self._others.get(variant, self.world)
        states = [self._limited(variant, state) for state in states]
        shown: list[list[np.ndarray]] = [[] for _ in paths]
        for step in range(max(len(path.views) - path.history for path in paths)):
            going = [i for i, path in enumerate(paths) if path.history + step < len(path.views)]
            poses = [paths[i].poses(paths[i].history + step) for i in going]
            after, views = world.see([states[i] for i in going], poses)
            for i, state, view in zip(going, after, views, strict=True):
                states[i] = state
                shown[i].append(view.frames)
        return [np.stack(frames) for frames in shown]

    def _limited(self, variant: str, state: WorldState) -> WorldState:
        if variant == "off":
            return replace(state, memory=MosaicMemory(capacity=0))
        if variant == "last":
            return replace(state, memory=MosaicMemory(state.memory.keyframes[-1:], capacity=1))
        return state


def measure_ahead(path: Path, frames: np.ndarray, covered: np.ndarray) -> dict[str, float]:
    """dB of the one step ahead: as it is, with covered pixels realigned, and of uncovered ones if they are enough.

    Args:
        frames: uint8 `[1, 4, H, W, 3]`; covered: bool `[4, H, W]`.
    """
    true = path.views[path.history].frames
    error = squared_error(frames[0], true)
    realigned = np.where(covered, realigned_error(frames[0], true), error)
    measured = {"psnr": decibels(error.mean()), "realigned": decibels(realigned.mean())}
    if covered.mean() <= 1.0 - LEAST_UNCOVERED:
        measured["uncovered"] = decibels(error[~covered].mean())
    return measured


def measure_return(path: Path, frames: np.ndarray) -> dict[str, float]:
    """The way back against the engine, where the history saw, and against the arm's own way out at the same poses; and
    all of the way, out and back, against the engine, which for the most part nobody has seen."""
    seen = Seen(list(path.views[: path.history]))
    back = frames[path.out :]
    errors, similar, own = [], [], []
    for step in range(path.out):
        view = path.views[path.back + step]
        masks = seen.mask(view)
        counted = [instant for instant in range(FRAMES_PER_STEP) if masks[instant].mean() >= LEAST_SHARE]
        if counted:
            errors.append(squared_error(back[step, counted], view.frames[counted])[masks[counted]])
            similar.append(ssim_map(back[step, counted], view.frames[counted])[masks[counted]])
        for instant in range(FRAMES_PER_STEP):
            out_step, out_instant = outward_frame(path, step * FRAMES_PER_STEP + instant)
            if out_step >= path.history:
                outward = frames[out_step - path.history, out_instant]
                own.append(squared_error(back[step, instant], outward).mean())
    return {
        "engine": decibels(np.concatenate(errors).mean()),
        "ssim": float(np.concatenate(similar).mean()),
        "self": decibels(float(np.mean(own))),
        "way": decibels(squared_error(frames, np.stack([view.frames for view in path.views[path.history :]])).mean()),
    }
