"""The line in which a prompt is typed."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class PromptLine:
    """A text that grows with the keys.

    Args:
        text: it starts with.
        offers: prompts that the keys up and down put in.
        answer: what is called with the text when it is taken.

    Attributes:
        taken: whether return ended it, not escape.
    """

    def __init__(self, text: str, offers: Sequence[str], answer: Callable[[str], str]) -> None:
        self.text, self.answer, self.taken = text, answer, False
        self._offers, self._offer = sorted({offer for offer in offers if offer}), -1

    def read(self, typed: Sequence[tuple[str, str]]) -> bool:
        """Takes characters and keys, see `InputEvents.typed`; returns whether the line is complete."""
        for kind, key in typed:
            if kind == "text":
                self.text += key
            elif key in ("return", "escape"):
                self.taken = key == "return"
                return True
            elif key == "backspace":
                self.text = self.text[:-1]
            elif self._offers:
                first = 0 if key == "down" else -1
                step = 1 if key == "down" else -1
                self._offer = first % len(self._offers) if self._offer < 0 else (self._offer + step) % len(self._offers)
                self.text = self._offers[self._offer]
        return False
