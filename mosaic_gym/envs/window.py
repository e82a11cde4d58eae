"""A window for frames. pygame is imported when the first window opens."""

from __future__ import annotations

import numpy as np

STRIP_PX = 28
"""Height of the strip for a line of text under the picture, pixels."""


class Window:
    """A window that shows pictures enlarged by a whole number.

    Args:
        height: of the pictures, pixels.
        width: of the pictures, pixels.
        title: in the window's frame.
        strip: whether there is room for a line of text under the picture.
        target_px: the enlarged picture is at most this high (and at least as high as the picture).
    """

    def __init__(self, height: int, width: int, title: str, strip: bool = False, target_px: int = 512) -> None:
        import pygame

        self._pygame = pygame
        self.scale = max(1, target_px // height)
        pygame.display.init()
        pygame.font.init()
        strip_px = STRIP_PX if strip else 0
        self._window = pygame.Window(title, (width * self.scale, height * self.scale + strip_px))
        self._font = pygame.font.Font(None, 20)
        self._clock = pygame.time.Clock()

    def show(self, picture: np.ndarray, frames_per_second: float, line: str = "") -> None:
        """Draws a picture, and waits until the one before has been seen for its time.

        Args:
            picture: uint8 `[H, W, 3]`.
            frames_per_second: the pace to hold.
            line: text for the strip.
        """
        pygame = self._pygame
        enlarged = picture.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        surface = self._window.get_surface()
        surface.fill((16, 16, 20))
        surface.blit(pygame.surfarray.make_surface(enlarged.swapaxes(0, 1)), (0, 0))
        surface.blit(self._font.render(line, True, (220, 220, 220)), (8, enlarged.shape[0] + 7))
        self._window.flip()
        pygame.event.pump()  # else the desktop takes the window for hung; events stay queued for who asks
        self._clock.tick(frames_per_second)

    def pixels(self) -> np.ndarray:
        """uint8 `[H, W, 3]` of all that the window shows, the strip included."""
        return self._pygame.surfarray.array3d(self._window.get_surface()).swapaxes(0, 1).copy()

    def close(self) -> None:
        """Closes the window; safe to call twice."""
        if self._window is not None:
            self._window.destroy()
            self._window = None
