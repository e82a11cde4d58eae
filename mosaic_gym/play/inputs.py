"""Keys, mouse, gamepad and pictures of the user's: which action they steer, and which commands were events."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_gym.play.bindings import HELD, Bindings

MOUSE_TURN_PX = 60.0
"""Movement of the mouse, in pixels of the window, that turns as much as a key does in a step."""
LINE_KEYS = ("return", "escape", "backspace", "up", "down")
"""Keys that do something in the line where a prompt is typed."""
DEAD_ZONE = 0.15
"""Deflection of a gamepad's stick that counts as none, as a share of the whole."""
MOST_DEFLECTION = 32767.0


@dataclass
class InputEvents:
    """What came in since the last look.

    Attributes:
        commands: names of commands, in order; see `bindings.PRESSED`.
        shift: whether shift was down.
        typed: for the prompt, in order: ("text", characters) or ("key", one of `LINE_KEYS`).
        drops: files that were dropped on the window.
        mouse: (kind, position, button) of buttons and movements: `down`, `move`, `up`.
        closed: whether the window was closed.
    """

    commands: list[str] = field(default_factory=list)
    shift: bool = False
    typed: list[tuple[str, str]] = field(default_factory=list)
    drops: list[Path] = field(default_factory=list)
    mouse: list[tuple[str, tuple[int, int], int]] = field(default_factory=list)
    closed: bool = False


class Inputs:
    """Tracks pygame's events.

    Args:
        bindings: which key does what.

    Attributes:
        typing: whether characters go to the prompt instead of commands.
        mouse_look: whether the mouse turns the body.
    """

    def __init__(self, bindings: Bindings) -> None:
        import pygame
        from pygame._sdl2 import controller

        self._controllers = controller
        self._pygame, self._bindings = pygame, bindings
        self.typing = self.mouse_look = False
        self._down: dict[str, set[int]] = {command: set() for command in HELD}
        self._tapped: set[str] = set()
        self._turned_px = 0.0
        pygame.joystick.init()
        controller.init()
        self._pads: dict[int, Any] = {}  # pads that are there already are announced too

    def read(self) -> InputEvents:
        """Processes new events."""
        pygame, events = self._pygame, InputEvents()
        for event in pygame.event.get():
            if event.type in (pygame.QUIT, pygame.WINDOWCLOSE):
                events.closed = True
            elif event.type == pygame.KEYDOWN:
                self._press(event, events)
            elif event.type == pygame.KEYUP:
                for keys in self._down.values():
                    keys.discard(event.key)
            elif event.type == pygame.DROPFILE:
                events.drops.append(Path(event.file))
            elif event.type == pygame.MOUSEBUTTONDOWN:
                events.mouse.append(("down", event.pos, event.button))
            elif event.type == pygame.MOUSEBUTTONUP:
                events.mouse.append(("up", event.pos, event.button))
            elif event.type == pygame.MOUSEMOTION:
                events.mouse.append(("move", event.pos, 0))
                self._turned_px += event.rel[0] if self.mouse_look else 0
            elif event.type == pygame.CONTROLLERDEVICEADDED:
                pad = self._controllers.Controller(event.device_index)
                self._pads[pad.as_joystick().get_instance_id()] = pad
            elif event.type == pygame.CONTROLLERDEVICEREMOVED:
                self._pads.pop(event.instance_id, None)
        return events

    def action(self) -> np.ndarray:
        """The action `[3]` of keys that are down or were tapped since the last action, of the mouse and the gamepad."""
        active = {command for command, keys in self._down.items() if keys} | self._tapped
        self._tapped = set()
        axes = [
            ("forward" in active) - ("back" in active),
            ("strafe_right" in active) - ("strafe_left" in active),
            ("turn_right" in active) - ("turn_left" in active) + self._turned_px / MOUSE_TURN_PX,
        ]
        self._turned_px = 0.0
        pygame = self._pygame
        for pad in self._pads.values():
            names = pygame.CONTROLLER_AXIS_LEFTY, pygame.CONTROLLER_AXIS_LEFTX, pygame.CONTROLLER_AXIS_RIGHTX
            sticks = [pad.get_axis(name) / MOST_DEFLECTION for name in names]
            sticks[0] = -sticks[0]
            axes = [axis + (stick if abs(stick) > DEAD_ZONE else 0.0) for axis, stick in zip(axes, sticks, strict=True)]
        return np.clip(np.array(axes, np.float32), -1.0, 1.0)

    @property
    def held(self) -> list[str]:
        """Names of the commands whose keys are down."""
        return [command for command, keys in self._down.items() if keys]

    def _press(self, event: Any, events: InputEvents) -> None:
        if self.typing:
            name = self._pygame.key.name(event.key)
            name = "return" if name == "enter" else name  # of the keypad
            character = getattr(event, "unicode", "")
            if name in LINE_KEYS:
                events.typed.append(("key", name))
            elif character.isprintable():
                events.typed.append(("text", character))
            return
        command = self._bindings.command(event.key)
        self.typing = command in ("prompt", "fork_prompt")  # what follows is text, though the step is not over yet
        if command in HELD:
            self._down[command].add(event.key)
            self._tapped.add(command)  # a tap can be shorter than a step, and over by now
        elif command is not None:
            events.commands.append(command)
            events.shift |= bool(getattr(event, "mod", 0) & self._pygame.KMOD_SHIFT)


def load_image(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """A picture of the user's, uint8 `[H, W, 3]` of `size`, and a note if it was resized.

    Raises:
        FileNotFoundError: no such file. ValueError: no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no picture that Pillow can read, or far too large: {error}") from error
    height, width = size
    if picture.size == (width, height):
        return np.asarray(picture), ""
    note = f", resized from {picture.width} x {picture.height} to {width} x {height} pixels"
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS)), note
