"""The moments of an episode: going back and forward in time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mosaic_gym.envs.episode import Episode
from mosaic_gym.memory.editing import EditHistory
from mosaic_gym.memory.mosaic import MosaicMemory

CAPACITY = 4096
"""Moments that a timeline holds. They share keyframes, so each adds its view, its history and one keyframe to memory:
about 0.2 MB at 64 x 64 pixels."""


@dataclass(frozen=True)
class Moment:
    """An episode at one step.

    Attributes:
        episode: a value; stepping from it again repeats its future bit for bit.
        action: `[3]`, that led to it; zeros at the start.
        step_s: how long it took to compute.
        edits: of its memory, never changed in place.
        set_aside: its memory while memory is off.
    """

    episode: Episode
    action: np.ndarray
    step_s: float = 0.0
    edits: EditHistory = field(default_factory=EditHistory)
    set_aside: MosaicMemory | None = None


class Timeline:
    """The moments since the start, and which of them is the present.

    Args:
        start: the first moment.
        capacity: the most moments; the oldest are dropped.
    """

    def __init__(self, start: Moment, capacity: int = CAPACITY) -> None:
        self._moments, self._index, self._capacity = [start], 0, capacity

    def __len__(self) -> int:
        return len(self._moments)

    @property
    def present(self) -> Moment:
        return self._moments[self._index]

    @property
    def before(self) -> Moment | None:
        """The moment before the present one; None at the start."""
        return self._moments[self._index - 1] if self._index else None

    @property
    def past(self) -> list[Moment]:
        """All moments up to the present one."""
        return self._moments[: self._index + 1]

    @property
    def ahead(self) -> int:
        """Moments after the present one."""
        return len(self._moments) - 1 - self._index

    def append(self, moment: Moment) -> None:
        """Adds the moment after the present one; later ones, which were rewound, are dropped."""
        self._moments[self._index + 1 :] = [moment]
        del self._moments[: max(0, len(self._moments) - self._capacity)]
        self._index = len(self._moments) - 1

    def replace_present(self, **changes: Any) -> None:
        """Changes fields of the present moment, after an edit or a new prompt; later moments are dropped."""
        self._moments[self._index :] = [replace(self.present, **changes)]

    def move(self, steps: int) -> int:
        """Goes so many steps forward in time, back if negative; returns how many were possible."""
        index = min(max(self._index + steps, 0), len(self._moments) - 1)
        moved, self._index = index - self._index, index
        return moved

    def fork(self) -> Timeline:
        """Another timeline with the same past."""
        other = Timeline(self._moments[0], self._capacity)
        other._moments = self.past
        other._index = len(other._moments) - 1
        return other
