"""Which key does what in the window, and how a TOML file changes it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HELD = {
    "forward": (("w", "up"), "walk"),
    "back": (("s", "down"), "walk back"),
    "strafe_left": (("a",), "step to the left"),
    "strafe_right": (("d",), "step to the right"),
    "turn_left": (("left",), "turn to the left"),
    "turn_right": (("right",), "turn to the right"),
}
"""What is done while a key is down: default keys and help."""
PRESSED = {
    "help": (("h",), "show or hide this list"),
    "quit": (("escape",), "quit"),
    "restart": (("r",), "new episode with the next seed"),
    "pause": (("p", "space"), "pause, go on"),
    "single_step": (("n",), "one step, then pause"),
    "rewind": (("[",), "one step back in time, ten with shift"),
    "replay": (("]",), "one step forward in time again"),
    "fork": (("f",), "fork: two futures side by side; again to end"),
    "fork_prompt": (("g",), "fork with another prompt"),
    "steer": (("tab",), "steer the first, the second, or both"),
    "simulator": (("c",), "learned world or simulator"),
    "policy": (("o",), "you or the policy"),
    "memory": (("m",), "memory on or off"),
    "more_guidance": (("=",), "more classifier-free guidance"),
    "less_guidance": (("-",), "less of it"),
    "prompt": (("return",), "type a prompt; up and down offer some"),
    "overlay": (("v",), "overlay: sources, memory before denoising, depth"),
    "map": (("t",), "map of memory from above"),
    "curves": (("y",), "curves of coverage, reward, action and speed"),
    "mouse_look": (("l",), "turn with the mouse, on or off"),
    "gallery": (("b",), "start images; click on one"),
    "record": (("k",), "start or end a recording"),
    "screenshot": (("i",), "save a picture of the window"),
    "save": (("f5",), "save this moment"),
    "load": (("f9",), "return to the saved moment"),
    "remove": (("x", "delete"), "remove the selected patches"),
    "duplicate": (("e",), "duplicate them, half a metre to the right"),
    "enlarge": ((".",), "enlarge them by a quarter"),
    "turn": ((",",), "turn them by 30 degrees"),
    "undo": (("u",), "undo an edit"),
    "redo": (("j",), "redo it"),
}
"""What a key does once when it is pressed: default keys and help."""


@dataclass(frozen=True)
class Bindings:
    """The keys of every command, by pygame's key names.

    Raises:
        ValueError: an unknown command or key, or one key for two commands.
    """

    keys: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        import pygame

        pygame.display.init()  # which names the keys
        known = {**HELD, **PRESSED}
        codes: dict[int, str] = {}
        for command, names in self.keys.items():
            if command not in known:
                raise ValueError(f"there is no command {command!r}; the commands are {', '.join(known)}")
            for name in names:
                try:
                    code = pygame.key.key_code(name)
                except ValueError as error:
                    raise ValueError(f"{command}: pygame knows no key {name!r}") from error
                if codes.setdefault(code, command) != command:
                    raise ValueError(f"the key {name!r} is given to {codes[code]} and to {command}; give it to one")
        object.__setattr__(self, "_commands", codes)

    def command(self, code: int) -> str | None:
        """The command of a key code, or None."""
        return self._commands.get(code)  # type: ignore[attr-defined]

    def help(self) -> list[str]:
        """One line for each command: its keys, and what it does."""
        texts = {name: text for name, (_, text) in {**HELD, **PRESSED}.items()}
        return [f"{' '.join(names):<10} {texts[command]}" for command, names in self.keys.items() if names]


def default_bindings() -> Bindings:
    """The default keys."""
    return Bindings({command: keys for command, (keys, _) in {**HELD, **PRESSED}.items()})


def load_bindings(path: Path) -> Bindings:
    """The default keys with those of a TOML file: a table `keys` with a list of key names for each command.

    Raises:
        FileNotFoundError: no such file. ValueError: no TOML, another table, or as `Bindings`.
    """
    try:
        written = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    table = written.get("keys", {})
    if set(written) - {"keys"} or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in table.values()
    ):
        raise ValueError(f'{path} has one table, with lists of key names:\n[keys]\nforward = ["w", "up"]')
    try:
        return Bindings({**default_bindings().keys, **{command: tuple(names) for command, names in table.items()}})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
