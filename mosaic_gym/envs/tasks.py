"""Tasks: reward and termination, judged from views and never from the network.

A task keeps no state of its own: what it has to remember is a value that travels with the
episode, so that one task object serves many episodes at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mosaic_gym.worlds.protocol import View


@dataclass(frozen=True)
class Judgement:
    """What a task says of one step.

    Attributes:
        progress: what the task remembers, for the next step.
        reward: of this step.
        terminated: whether the task is over.
    """

    progress: Any
    reward: float
    terminated: bool


@runtime_checkable
class Task(Protocol):
    """Reward and termination of an episode, from what is seen only."""

    def begin(self, view: View) -> Any:
        """What the task remembers after the first view."""
        ...

    def judge(self, progress: Any, view: View) -> Judgement:
        """The verdict on a step that showed `view`."""
        ...


class ExploreTask:
    """One point for each square of floor, `cell_m` metres wide, that the body enters for the first time."""

    def __init__(self, cell_m: float = 1.0) -> None:
        self.cell_m = cell_m

    def begin(self, view: View) -> frozenset[tuple[int, int]]:
        """The squares the body begins on."""
        return frozenset(self._squares(view))

    def judge(self, progress: frozenset[tuple[int, int]], view: View) -> Judgement:
        """Counts the squares under the step's four cameras that are new; never ends."""
        squares = progress | self._squares(view)
        return Judgement(squares, float(len(squares) - len(progress)), False)

    def _squares(self, view: View) -> set[tuple[int, int]]:
        floor_m = view.world_from_camera[:, [0, 2], 3]
        return {(int(x), int(z)) for x, z in np.floor(floor_m / self.cell_m)}


class EngineTask:
    """The world's own reward and end."""

    def begin(self, view: View) -> None:
        """Nothing to remember."""

    def judge(self, progress: None, view: View) -> Judgement:
        """Passes on what the world said of the step."""
        return Judgement(None, view.reward, view.terminated)


TASKS: dict[str, type[Task]] = {"engine": EngineTask, "explore": ExploreTask}
"""Tasks by name."""
