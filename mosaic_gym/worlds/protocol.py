"""What every world, learned or true, offers: start, step, and views of what is seen.

Worlds are stepped as lists of states, so that a learned world makes one network call for all
of them. A state is a value: stepping returns a new one. A world that cannot keep that promise
(a game engine has one true present) raises `StaleStateError` when an old state is stepped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mosaic_gym.geometry.control import Control, Pose
from mosaic_gym.validation import is_finite


class StaleStateError(RuntimeError):
    """A state was stepped that the world has already moved past and cannot return to."""


@dataclass(frozen=True)
class View:
    """What one step shows. Snapshots share its arrays: copy one before writing to it.

    Attributes:
        frames: uint8 `[4, H, W, 3]`, in order; the last is the present.
        depth_m: float32 `[H, W]`, perpendicular depth of the last frame, metres.
        world_from_camera: float64 `[4, 4, 4]`, a camera for each frame, metres.
        image_from_camera: float64 `[3, 3]`, K in pixels of the frames.
        coverage: share of the view's pixels that memory could recall, 0 to 1 (1 in a true world). What a
            learned world dreamt where it knew its place on the map is drawn anew, not recalled, and does not count.
        on_map: whether the place is recognised on a map that the world knows by heart, and not beyond its edge, so
            that what memory leaves open is drawn from it.
        keyframes: keyframes held in memory (0 in a true world).
        labels: names of the objects in sight (true worlds only), sorted.
        reward: the world's own reward of this step (a learned world's is predicted; 0 without heads for it).
        terminated: whether the world itself has ended.
        all_depth_m: float32 `[4, H, W]`, the depth of every frame (true worlds only).
    """

    frames: np.ndarray
    depth_m: np.ndarray
    world_from_camera: np.ndarray
    image_from_camera: np.ndarray
    coverage: float = 1.0
    on_map: bool = False
    keyframes: int = 0
    labels: tuple[str, ...] = ()
    reward: float = 0.0
    terminated: bool = False
    all_depth_m: np.ndarray | None = None


@dataclass(frozen=True)
class Start:
    """How an episode begins. What is None is drawn by the world from the seed.

    Attributes:
        seed: of everything random in the episode.
        image: uint8 `[H, W, 3]`, the first frame (learned worlds). With it, a prompt that is None is empty.
        world_from_camera: `[4, 4]`, the first camera, metres.
        prompt: text that conditions a learned world.
        memory: a saved memory to begin with (learned worlds).
    """

    seed: int
    image: np.ndarray | None = None
    world_from_camera: np.ndarray | None = None
    prompt: str | None = None
    memory: Any = field(default=None, repr=False)


@runtime_checkable
class State(Protocol):
    """The least a state tells: where the body is and how many steps have been made."""

    @property
    def pose(self) -> Pose: ...

    @property
    def step_index(self) -> int: ...


@runtime_checkable
class World(Protocol):
    """A world: learned or true, stepped by actions."""

    control: Control
    height: int
    width: int
    image_from_camera: np.ndarray
    forkable: bool
    """Whether any state may be stepped again, and packed to go on elsewhere; if not, only the latest may be stepped."""

    @property
    def fingerprint(self) -> str:
        """Tells worlds apart whose states do not fit each other: what they are made of, and behind `;` each, as
        `name=value`, what was asked for beside."""
        ...

    def start(self, start: Start) -> tuple[State, View]:
        """A fresh state and its first view: four frames from a body at rest."""
        ...

    def step(self, states: Sequence[State], actions: np.ndarray) -> tuple[list[State], list[View]]:
        """Advances every state by its action `[b, 3]`; the given states, and all views, stay as they were.

        What a step leaves as it was, the new state holds in the very same array or tensor, so that forks grow with
        what diverged only.
        """
        ...

    def pack(self, state: State) -> tuple[dict[str, Any], dict[str, Any]]:
        """A state as contiguous torch tensors by name and what JSON can say; RuntimeError in a world that is not
        forkable. (Tuples come back from JSON as lists, and keys as text.)"""
        ...

    def unpack(self, tensors: Mapping[str, Any], about: dict[str, Any]) -> State:
        """The state that `pack` described, bit for bit; RuntimeError in a world that is not forkable."""
        ...

    def close(self) -> None:
        """Lets go of what the world holds outside Python; safe to call twice."""
        ...


def check_temperature(temperature: float) -> float:
    """The temperature of a world's draws as Python's number; ValueError if it is none, or negative."""
    if not is_finite(temperature) or temperature < 0.0:
        raise ValueError(f"temperature is a finite number, 0 or more; got {temperature!r}")
    return float(temperature)


def check_fingerprint(what: str, theirs: str, mine: str) -> None:
    """Raises ValueError if what was kept by one world is given to one that would go on with it otherwise.

    Args:
        what: names it in the error; theirs, mine: fingerprints, see `World.fingerprint`.
    """
    if theirs == mine:
        return
    (checkpoint, *made), (own, *asked) = theirs.split(";"), mine.split(";")
    if checkpoint != own:
        raise ValueError(f"{what} is of another checkpoint; take it to a world of its own")
    theirs, mine = (", ".join(each) or "nothing that its checkpoint does not ship with" for each in (made, asked))
    raise ValueError(
        f"{what} is of a world made with {theirs}; this one was made with {mine}, and would go on otherwise. Make one "
        "as that was"
    )
