"""Roll-outs of a world and its variants along ground-truth paths, and the figures of one roll-out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mosaic_gym.evaluation.metrics.image import decibels, realigned_error, squared_error, ssim_map
from mosaic_gym.evaluation.metrics.visibility import Covisibility
from mosaic_gym.evaluation.suites.paths import TruePath, outward_frame
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
    "prior": "memory and atlas alone",
    "warp": "the warp alone, no network",
}
"""Labels of the variants by name. `unplaced` runs without the atlas, `prior` without the network, `warp` without
both."""
MIN_SHARE = 0.05
"""A frame counts in the return if at least this share of its pixels shows a place of the history."""


class Variants:
    """One checkpoint with parts of it switched off.

    Args:
        model: the checkpoint.
        denoising_steps: None for the shipped number.
    """

    def __init__(self, model: WorldModel, denoising_steps: int | None = None):
        self.world = MosaicWorld(model, denoising_steps=denoising_steps)
        self._reduced = {
            "unplaced": MosaicWorld(model, denoising_steps=denoising_steps, atlas=False),
            "prior": MosaicWorld(model, network=False),
            "warp": MosaicWorld(model, network=False, atlas=False),
        }

    def after_history(self, path: TruePath) -> WorldState:
        """The state after the path's history, with the history's true frames in memory."""
        state = self.world.start_from_frames(path.views[0].frames, path.poses(0), path.seed, path.prompt)
        for step in range(1, path.history):
            state = self.world.observe(state, path.views[step].frames, path.poses(step))
        return state

    def rollout(self, variant: str, states: Sequence[WorldState], paths: Sequence[TruePath]) -> list[np.ndarray]:
        """Generated frames along each path after its history, without any true frame.

        Args:
            variant: a key of `VARIANTS`.
            states: from `after_history`, one for each path.

        Returns:
            For each path, uint8 `[steps, 4, H, W, 3]`.
        """
        world = self._reduced.get(variant, self.world)
        states = [self._limited(variant, state) for state in states]
        frames: list[list[np.ndarray]] = [[] for _ in paths]
        for step in range(max(len(path.views) - path.history for path in paths)):
            active = [i for i, path in enumerate(paths) if path.history + step < len(path.views)]
            poses = [paths[i].poses(paths[i].history + step) for i in active]
            next_states, views = world.generate([states[i] for i in active], poses)
            for i, state, view in zip(active, next_states, views, strict=True):
                states[i] = state
                frames[i].append(view.frames)
        return [np.stack(path_frames) for path_frames in frames]

    def _limited(self, variant: str, state: WorldState) -> WorldState:
        if variant == "off":
            return replace(state, memory=MosaicMemory(capacity=0))
        if variant == "last":
            return replace(state, memory=MosaicMemory(state.memory.keyframes[-1:], capacity=1))
        return state


def measure_ahead(path: TruePath, frames: np.ndarray, covered: np.ndarray) -> dict[str, float]:
    """PSNR of the one step ahead, dB.

    Args:
        frames: generated, uint8 `[1, 4, H, W, 3]`.
        covered: which pixels memory covers, bool `[4, H, W]`.

    Returns:
        `psnr`: of all pixels. `realigned`: with covered pixels realigned (see `realigned_error`).
    """
    true = path.views[path.history].frames
    error = squared_error(frames[0], true)
    realigned = np.where(covered, realigned_error(frames[0], true), error)
    return {"psnr": decibels(error.mean()), "realigned": decibels(realigned.mean())}


def measure_return(path: TruePath, frames: np.ndarray) -> dict[str, float]:
    """PSNR, dB, and SSIM of a generated return path.

    Args:
        frames: generated, uint8 `[steps, 4, H, W, 3]`, of the way out and back.

    Returns:
        `truth`, `ssim`: PSNR and SSIM of the way back against the true frames, over pixels whose place the history
        shows. `self`: PSNR of the way back against the generated way out at the same poses.
    """
    covisibility = Covisibility(list(path.views[: path.history]))
    back = frames[path.out :]
    errors, similarities, self_errors = [], [], []
    for step in range(path.out):
        view = path.views[path.back + step]
        masks = covisibility.mask(view)
        counted = [instant for instant in range(FRAMES_PER_STEP) if masks[instant].mean() >= MIN_SHARE]
        if counted:
            errors.append(squared_error(back[step, counted], view.frames[counted])[masks[counted]])
            similarities.append(ssim_map(back[step, counted], view.frames[counted])[masks[counted]])
        for instant in range(FRAMES_PER_STEP):
            out_step, out_instant = outward_frame(path, step * FRAMES_PER_STEP + instant)
            if out_step >= path.history:
                outward = frames[out_step - path.history, out_instant]
                self_errors.append(squared_error(back[step, instant], outward).mean())
    return {
        "truth": decibels(np.concatenate(errors).mean()),
        "ssim": float(np.concatenate(similarities).mean()),
        "self": decibels(float(np.mean(self_errors))),
    }
