"""A window for frames. pygame is imported when the first window opens, or when a display is looked for."""

from __future__ import annotations

import os
import sys

import numpy as np

STRIP_PX = 28
"""Height of the strip for a line of text under the picture, pixels."""
DISPLAY_OF_DRIVER = {"x11": "DISPLAY", "wayland": "WAYLAND_DISPLAY"}
"""SDL's drivers that need a display server, and the environment variable that names the server."""


def check_display() -> None:
    """Raises RuntimeError if no window can open here. Call it before anything slow is loaded."""
    if not _has_display():
        raise RuntimeError(
            "no display to open a window on: on a machine without one, use render_mode='rgb_array' (RecordVideo writes "
            "such frames to a file), run the program under xvfb-run, or set SDL_VIDEODRIVER=dummy for a window that "
            "stays invisible"
        )


def _has_display() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    requested = os.environ.get("SDL_VIDEODRIVER", "").lower()
    drivers = requested.split(",") if requested else DISPLAY_OF_DRIVER  # SDL uses the first that works
    if not any(_may_work(driver.strip()) for driver in drivers):
        return False
    import pygame

    if pygame.display.get_init():
        return True
    try:
        pygame.display.init()  # the variable may name a server that does not answer
    except pygame.error:
        return False
    driver = pygame.display.get_driver()
    pygame.display.quit()
    return driver in requested or driver in DISPLAY_OF_DRIVER  # SDL falls back to drivers that draw nothing


def _may_work(driver: str) -> bool:
    return driver not in DISPLAY_OF_DRIVER or bool(os.environ.get(DISPLAY_OF_DRIVER[driver]))


class Window:
    """A window that shows pictures enlarged by a whole number.

    Args:
        height: of the pictures, pixels.
        width: of the pictures, pixels.
        title: in the window's frame.
        strip: whether to leave a strip for a line of text under the picture.
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
        """Draws a picture, and waits until the previous one has been visible for its time.

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
        pygame.event.pump()  # or the desktop reports that the window hangs; events stay in the queue
        self._clock.tick(frames_per_second)

    def pixels(self) -> np.ndarray:
        """uint8 `[H, W, 3]` of the window's whole content, the strip included."""
        return self._pygame.surfarray.array3d(self._window.get_surface()).swapaxes(0, 1).copy()

    def close(self) -> None:
        """Closes the window; safe to call twice."""
        if self._window is not None:
            self._window.destroy()
            self._window = None
