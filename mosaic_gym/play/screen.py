"""What the window shows: pictures side by side, a status line, lists and overlays, drawn with pygame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GAP_PX = 2
"""Between two pictures, in their pixels."""
STRIP_PX = 66
"""Height of the strip under the pictures: a line of status, and two for messages or the prompt."""
MESSAGE_LINES = 2
"""Lines of the strip for a message; of a longer one, the end is shown, where the cursor is."""
PANEL_PX = 240
"""Width of the panel at the right, where the map and the curves are."""
TARGET_PX, WIDEST_PX = 512, 1280
"""The window opens with pictures of at most this height, and grows with pictures and panel to at most this width."""
BACKGROUND, TEXT, MESSAGE, DIM = (16, 16, 20), (220, 220, 220), (250, 200, 90), (130, 130, 140)
GALLERY_COLUMNS = 6


@dataclass
class Content:
    """All that one redraw shows.

    Attributes:
        pictures: uint8 `[H, W, 3]`, side by side.
        steered: for each future, whether the keys steer it; a frame marks those where there are two.
        status: the first line of the strip.
        message: below it.
        keys: names of the commands whose keys are down, shown at once.
        lines: a list over the pictures, such as the help.
        panel: pictures for the panel at the right, one below the other.
        box: the index of a picture, and (top, left, bottom, right) of the rectangle that is dragged over it, in its
            pixels.
        gallery: small pictures to choose from, over everything.
    """

    pictures: Sequence[np.ndarray]
    steered: Sequence[bool] = ()
    status: str = ""
    message: str = ""
    keys: Sequence[str] = ()
    lines: Sequence[str] = ()
    panel: Sequence[np.ndarray] = ()
    box: tuple[int, tuple[float, float, float, float]] | None = None
    gallery: Sequence[np.ndarray] = ()


class Screen:
    """A resizable window. Pictures are enlarged by a whole number, so pixels stay sharp.

    Args:
        height, width: of a picture, pixels.
        count: pictures side by side when it opens.
    """

    def __init__(self, height: int, width: int, count: int = 1) -> None:
        import pygame

        self._pygame = pygame
        pygame.display.init()
        pygame.font.init()
        self._fitted = count * width + (count - 1) * GAP_PX, 0
        self.window = pygame.Window("Mosaic Gym", self._fitting_size(height, *self._fitted), resizable=True)
        self._font, self._small = pygame.font.Font(None, 20), pygame.font.Font(None, 18)
        self._scale = 1
        self._areas: list[tuple[int, int, int]] = []
        self._tiles: list[tuple[int, int, int, int]] = []

    def draw(self, content: Content) -> None:
        """Draws everything."""
        pygame = self._pygame
        height, width = content.pictures[0].shape[:2]
        columns = sum(picture.shape[1] for picture in content.pictures) + GAP_PX * (len(content.pictures) - 1)
        panel_px = PANEL_PX if content.panel else 0
        if (columns, panel_px) != self._fitted:
            self._fitted = columns, panel_px
            self.window.size = self._fitting_size(height, columns, panel_px)
        surface = self.window.get_surface()
        surface.fill(BACKGROUND)
        room = max(1, surface.get_width() - panel_px), max(1, surface.get_height() - STRIP_PX)
        self._scale = max(1, min(room[0] // columns, room[1] // height))
        left = max(0, (room[0] - columns * self._scale) // 2)
        several = len(content.steered) > 1
        self._areas = []
        for picture, steered in zip(content.pictures, [*content.steered, *[False] * 9], strict=False):
            self._blit(picture, (left, 0), self._scale)
            self._areas.append((left, *picture.shape[:2]))
            if several and steered:
                area = (left, 0, picture.shape[1] * self._scale, height * self._scale)
                pygame.draw.rect(surface, MESSAGE, area, 2)
            left += (picture.shape[1] + GAP_PX) * self._scale
        if content.box is not None:
            top, start, bottom, end = (round(value * self._scale) for value in content.box[1])
            left = self._areas[content.box[0]][0] + min(start, end)
            area = pygame.Rect(left, min(top, bottom), abs(end - start), abs(bottom - top))
            pygame.draw.rect(surface, MESSAGE, area, 1)
        self._draw_panel(content.panel, surface.get_width() - panel_px)
        self._write(content.keys, (8, 6), self._font, MESSAGE)
        half = -(-len(content.lines) // 2)
        for part, at in ((content.lines[:half], 12), (content.lines[half:], surface.get_width() // 2 + 6)):
            room_px = surface.get_width() // 2 - 18
            wrapped = [line for text in part for line in self._wrap(text, self._small, room_px)]
            self._write(wrapped, (at, 28), self._small, TEXT)
        bottom = surface.get_height() - STRIP_PX
        surface.fill(BACKGROUND, (0, bottom, surface.get_width(), STRIP_PX))
        surface.blit(self._font.render(content.status, True, TEXT), (8, bottom + 8))
        lines = self._wrap(content.message, self._small, surface.get_width() - 16)[-MESSAGE_LINES:]
        for row, line in enumerate(lines):
            surface.blit(self._small.render(line, True, MESSAGE), (8, bottom + 30 + 16 * row))
        self._tiles = []
        if content.gallery:
            self._draw_gallery(content.gallery)
        self.window.flip()

    def place_in_picture(self, position: tuple[int, int], index: int) -> tuple[float, float] | None:
        """The (row, column) of a picture under a position of the mouse; None outside of it, or before it is drawn."""
        if index >= len(self._areas):
            return None
        left, height, width = self._areas[index]
        column, row = (position[0] - left) / self._scale, position[1] / self._scale
        return (row, column) if 0 <= row <= height and 0 <= column <= width else None

    @property
    def scale(self) -> int:
        """Pixels of the window for one of a picture."""
        return self._scale

    def tile_at(self, position: tuple[int, int]) -> int | None:
        """The index of the gallery's picture under a position; None where there is none."""
        for index, (left, top, width, height) in enumerate(self._tiles):
            if left <= position[0] < left + width and top <= position[1] < top + height:
                return index
        return None

    def pixels(self) -> np.ndarray:
        """uint8 `[H, W, 3]` of the whole window."""
        return self._pygame.surfarray.array3d(self.window.get_surface()).swapaxes(0, 1).copy()

    def close(self) -> None:
        """Closes the window; safe to call twice."""
        if self.window is not None:
            self.window.destroy()
            self.window = None

    def _blit(self, picture: np.ndarray, at: tuple[int, int], scale: int) -> None:
        surface = self._pygame.surfarray.make_surface(np.ascontiguousarray(picture.swapaxes(0, 1)))
        if scale > 1:
            surface = self._pygame.transform.scale(surface, (picture.shape[1] * scale, picture.shape[0] * scale))
        self.window.get_surface().blit(surface, at)

    @staticmethod
    def _fitting_size(height: int, columns: int, panel_px: int) -> tuple[int, int]:
        """The window's size for pictures of some columns in all, as large as fits."""
        scale = max(1, min(TARGET_PX // height, (WIDEST_PX - panel_px) // columns))
        return max(columns * scale, 480) + panel_px, height * scale + STRIP_PX

    def _write(self, lines: Sequence[str], at: tuple[int, int], font: object, color: tuple[int, int, int]) -> None:
        """Lines one below the other on a shade, so that they are legible on any picture."""
        if not lines:
            return
        texts = [font.render(line, True, color) for line in lines]  # type: ignore[attr-defined]
        height, width = sum(text.get_height() + 2 for text in texts), max(text.get_width() for text in texts)
        back = self._pygame.Surface((width + 12, height + 8))
        back.set_alpha(190)
        self.window.get_surface().blit(back, (at[0] - 6, at[1] - 4))
        top = at[1]
        for text in texts:
            self.window.get_surface().blit(text, (at[0], top))
            top += text.get_height() + 2

    @staticmethod
    def _wrap(text: str, font: object, width: int) -> list[str]:
        """A text in lines of at most `width` pixels, broken at spaces, and within words that are longer than a line."""
        lines = [""]
        for word in text.split(" "):
            extended = f"{lines[-1]} {word}".lstrip() if lines[-1] else word
            if font.size(extended)[0] <= width:  # type: ignore[attr-defined]
                lines[-1] = extended
                continue
            lines += [""] if lines[-1] else []
            for character in word:
                if font.size(lines[-1] + character)[0] > width:  # type: ignore[attr-defined]
                    lines.append("")
                lines[-1] += character
        return lines

    def _draw_panel(self, panel: Sequence[np.ndarray], left: int) -> None:
        top = 0
        for picture in panel:
            self._blit(picture, (left, top), 1)
            top += picture.shape[0] + 4

    def _draw_gallery(self, gallery: Sequence[np.ndarray]) -> None:
        surface = self.window.get_surface()
        rows = -(-len(gallery) // GALLERY_COLUMNS)
        height, width = gallery[0].shape[:2]
        room = surface.get_width() // GALLERY_COLUMNS - 6, (surface.get_height() - STRIP_PX) // rows - 6
        scale = max(1, min(room[0] // width, room[1] // height))
        surface.fill(BACKGROUND, (0, 0, surface.get_width(), surface.get_height() - STRIP_PX))
        for index, picture in enumerate(gallery):
            row, column = divmod(index, GALLERY_COLUMNS)
            left, top = 6 + column * (width * scale + 6), 6 + row * (height * scale + 6)
            self._blit(picture, (left, top), scale)
            self._tiles.append((left, top, width * scale, height * scale))
