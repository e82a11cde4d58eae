"""A Gymnasium wrapper whose rendering shows an overlay of the window, for `RecordVideo`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from mosaic_gym.play.overlays import OVERLAYS, overlay_picture


class OverlayRendering(gym.Wrapper):
    """`render()` returns the last frame and its overlay side by side, uint8 `[H, 2 W, 3]`.

    Args:
        env: `MosaicWorld-v0` with `render_mode="rgb_array"`.
        overlay: `sources` (orange was invented, blue was generated again over memory, green was edited), `memory` (what
            the sampler starts from), or `depth`.

    Raises:
        ValueError: another overlay or render mode.
    """

    def __init__(self, env: gym.Env, overlay: str = "sources") -> None:
        if overlay not in OVERLAYS:
            raise ValueError(f"the overlay is one of {', '.join(OVERLAYS)}; got {overlay!r}")
        if env.render_mode != "rgb_array":
            raise ValueError(f"an overlay needs render_mode='rgb_array'; got {env.render_mode!r}")
        super().__init__(env)
        self.overlay = overlay
        self._before: Any = None

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        self._before = None
        return self.env.reset(**options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._before = self.unwrapped.state
        return self.env.step(action)

    def render(self) -> np.ndarray:
        """The last frame and its overlay; before the first step, and after a restored state, the frame twice."""
        picture = overlay_picture(self.unwrapped.world, self._before, self.unwrapped.view, self.overlay)
        return np.concatenate([self.env.render(), picture], 1)
