"""The World protocol: the methods of every world, learned or simulated, and the views that they return.

Worlds step lists of states, so that a learned world makes one network call for all of them. A state is a value:
stepping returns a new one. A simulator cannot return to an old state; it raises `StaleStateError` when an old state is
stepped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mosaic_gym.geometry.control import Control, Pose


class StaleStateError(RuntimeError):
    """A state was stepped that the world has already moved past and cannot return to."""


@dataclass(frozen=True)
class View:
    """The result of one step. Snapshots share its arrays: copy an array before writing to it.

    Attributes:
        frames: uint8 `[4, H, W, 3]`, in order; the last one is the present.
        depth_m: float32 `[H, W]`, perpendicular depth of the last frame, metres.
        world_from_camera: float64 `[4, 4, 4]`, a camera for each frame, metres.
        image_from_camera: float64 `[3, 3]`, K in pixels of the frames.
        coverage: share of the pixels that memory covers, 0 to 1 (1 in a simulator). Frames that a learned world drew
            from its atlas are drawn again rather than retrieved, and do not count.
        on_map: whether the episode is located on the map of the world's atlas and inside its borders, so that the
            atlas fills what memory does not cover.
        keyframes: keyframes in memory (0 in a simulator).
        labels: names of the objects in view, sorted (simulators only).
        reward: the world's own reward of this step; predicted in a learned world, 0 without heads for it.
        terminated: whether the world itself has ended the episode.
        all_depth_m: float32 `[4, H, W]`, the depth of every frame (simulators only).
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
    """How an episode starts. The world draws from the seed whatever is None.

    Attributes:
        seed: of everything random in the episode.
        image: uint8 `[H, W, 3]`, the first frame (learned worlds). With an image, a prompt of None is empty.
        world_from_camera: `[4, 4]`, the first camera, metres.
        prompt: text that conditions a learned world.
        memory: a saved memory to start with (learned worlds).
        map_seed: the generated map to play (the simulator's scenario `rooms`).
    """

    seed: int
    image: np.ndarray | None = None
    world_from_camera: np.ndarray | None = None
    prompt: str | None = None
    memory: Any = field(default=None, repr=False)
    map_seed: int | None = None


@runtime_checkable
class State(Protocol):
    """The attributes of every state: the pose of the body, and the number of steps since the start."""

    @property
    def pose(self) -> Pose: ...

    @property
    def step_index(self) -> int: ...


@runtime_checkable
class World(Protocol):
    """A world, learned or simulated, that actions step."""

    control: Control
    height: int
    width: int
    image_from_camera: np.ndarray
    forkable: bool
    """Whether any state can be stepped again and packed. If not, only the latest state can be stepped."""

    @property
    def fingerprint(self) -> str:
        """Differs between worlds whose states do not fit each other.

        It starts with what the world is made of. Options that differ from their defaults follow, each as `;name=value`.
        """
        ...

    def start(self, start: Start) -> tuple[State, View]:
        """A new state and its first view: four frames from a body at rest."""
        ...

    def step(self, states: Sequence[State], actions: np.ndarray) -> tuple[list[State], list[View]]:
        """Advances every state by its action `[b, 3]`. The given states and all earlier views stay unchanged.

        A new state holds whatever the step left unchanged in the very same array or tensor, so that the memory of forks
        grows with their differences only.
        """
        ...

    def pack(self, state: State) -> tuple[dict[str, Any], dict[str, Any]]:
        """A state as contiguous torch tensors by name, and as metadata that JSON can hold.

        JSON returns tuples as lists, and keys as text.

        Raises:
            RuntimeError: a world that is not forkable.
        """
        ...

    def unpack(self, tensors: Mapping[str, Any], metadata: dict[str, Any]) -> State:
        """The state that `pack` described, bit for bit; RuntimeError in a world that is not forkable."""
        ...

    def close(self) -> None:
        """Releases what the world holds outside of Python; safe to call twice."""
        ...


def check_fingerprint(name: str, stored: str, own: str) -> None:
    """Checks that a stored state fits a world.

    Args:
        name: what the message calls the state, such as "the snapshot".
        stored: fingerprint of the world that made it, see `World.fingerprint`.
        own: fingerprint of this world.

    Raises:
        ValueError: the worlds differ in their checkpoint or in an option; the message says in which.
    """
    if stored == own:
        return
    (stored_checkpoint, *stored_options), (own_checkpoint, *own_options) = stored.split(";"), own.split(";")
    if stored_checkpoint != own_checkpoint:
        raise ValueError(f"{name} was made with another checkpoint; load it in a world of that checkpoint")
    theirs, ours = (", ".join(options) or "the checkpoint's defaults" for options in (stored_options, own_options))
    raise ValueError(
        f"{name} was made in a world with {theirs}, and this world has {ours}: its future would differ. Make a world "
        "with the same options"
    )
