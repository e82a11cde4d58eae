"""A conformance test of the `World` protocol, for any world.

It checks what planning needs: a state is a value, its future repeats, forks do not affect each other and share what is
equal, a packed state continues in another process, and a view does not depend on the other states of its batch.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from mosaic_gym.geometry.control import ACTIONS, FRAMES_PER_STEP
from mosaic_gym.worlds.protocol import Start, State, View, World

WALK = ("forward", "forward_turn_right", "left", "turn_left", "forward")
OTHER_WALK = ("turn_right", "backward", "backward", "turn_right", "noop")
OUTLIERS = 1e-3
"""The share of a view that may differ by more than the tolerance. Where two surfaces in memory fit a pixel equally
well, rounding decides which one is visible."""
SMALL_BYTES = 1024
"""Smaller arrays may be copied: that costs little, and a mask that is all True often equals another by chance."""
FORMAT = "mosaic-conformance-1"
"""Format name in the file that a packed state is written to."""


@dataclass(frozen=True)
class Tolerances:
    """How much a view may depend on the size of its batch.

    Attributes:
        levels: grey levels of a frame.
        pose_m: metres.
        depth: relative.
        reward: absolute.
    """

    levels: int
    pose_m: float
    depth: float
    reward: float


def check_world(
    make: Callable[[], World],
    steps: int = 3,
    frame_tolerance: int = 1,
    pose_tolerance_m: float = 1e-3,
    depth_tolerance: float = 1e-2,
    reward_tolerance: float = 1e-3,
    batch_steps: int = 6,
) -> None:
    """Tests a world; returns None if it passes.

    Views are compared bit by bit, but between batches of different size they may differ a little, because matrix
    products of different shapes are summed in different orders, and a body that slides along walls in the frames
    follows them.

    Args:
        make: makes the world; called here and, pickled, in a new process.
        steps: over which futures are compared, at most five.
        frame_tolerance, pose_tolerance_m, depth_tolerance, reward_tolerance: differences that are allowed between
            batches of different size: grey levels, metres, a share of the depth, and the reward. One number of a
            thousand in frames and depths may differ by more (`OUTLIERS`), and coverage by as much.
        batch_steps: over which batches are compared. Differences from rounding are stored in memory and affect later
            views, so most worlds diverge over longer walks.

    Raises:
        AssertionError: the world breaks the protocol; the message says what it requires and what was found.
        ValueError: steps or batch_steps out of range.
    """
    if not 1 <= steps <= len(WALK):
        raise ValueError(f"steps is 1 to {len(WALK)}; got {steps}")
    if batch_steps < 1:
        raise ValueError(f"batches are compared over 1 step or more; got {batch_steps}")
    world = make()
    try:
        _check_views(world)
        if not world.forkable:
            _check_refusals(world)
            return
        count = max(steps, batch_steps)
        walk, other_walk = _actions(WALK, count), _actions(OTHER_WALK, count)
        start, _ = world.start(Start(seed=11))
        middle, _ = _roll_out(world, start, walk[:steps])
        views = _roll_out(world, middle, walk)[1]
        _check_repeats(world, middle, views[:steps], walk[:steps], other_walk[:steps])
        _check_sharing(world, middle, (walk[0], other_walk[0]))
        tolerances = Tolerances(frame_tolerance, pose_tolerance_m, depth_tolerance, reward_tolerance)
        _check_batches(world, middle, views[:batch_steps], walk, other_walk, tolerances)
        _check_packing(make, world, middle, views[:steps], walk[:steps])  # last: a new process takes seconds to start
    finally:
        world.close()


def _actions(names: tuple[str, ...], count: int) -> np.ndarray:
    """`[count, 3]`; a walk that is shorter repeats."""
    return np.array([ACTIONS[names[step % len(names)]] for step in range(count)])


def _roll_out(world: World, state: State, actions: np.ndarray) -> tuple[State, list[View]]:
    """The last state, and a copy of each view as the step returned it."""
    views, copies = [], []
    for action in actions:
        argument = action[None].copy()
        (state,), (view,) = world.step([state], argument)
        _require_equal(argument[0], action, "a step does not change the actions passed to it")
        views.append(view)
        copies.append(_copy(view))
    _require_same_views(copies, views, "later steps do not change a view")
    return state, copies


def _copy(view: View) -> View:
    """A view with arrays of its own. Without copies, a world that reuses one buffer would be compared with itself."""
    values = {field.name: getattr(view, field.name) for field in fields(View)}
    return replace(view, **{name: value.copy() for name, value in values.items() if isinstance(value, np.ndarray)})


def _require(condition: bool, requirement: str, found: object) -> None:
    """Raises AssertionError unless the condition holds; an `assert` would vanish under `python -O`."""
    if not condition:
        raise AssertionError(f"expected: {requirement}; found: {found}")


def _require_equal(one: np.ndarray, other: np.ndarray, requirement: str) -> None:
    one, other = np.asarray(one), np.asarray(other)
    _require(one.shape == other.shape, requirement, f"shapes {one.shape} and {other.shape}")
    differ = one != other
    _require(not differ.any(), requirement, f"{differ.mean():.2%} of the numbers differ")


def _check_views(world: World) -> None:
    state, returned = world.start(Start(seed=5))
    view = _copy(returned)
    second, second_view = world.start(Start(seed=5))
    size = (world.height, world.width)
    indices = state.step_index, second.step_index
    _require(indices == (0, 0), "a new state has step_index 0", indices)
    frames, depth_m, cameras = view.frames, view.depth_m, view.world_from_camera
    shape = (FRAMES_PER_STEP, *size, 3)
    fits = frames.shape == shape and frames.dtype == np.uint8
    _require(fits, f"frames are uint8 {shape}", f"{frames.dtype} {frames.shape}")
    _require(depth_m.shape == size, f"depth has shape {size}", depth_m.shape)
    _require(bool((depth_m >= 0).all()), "depth is not negative, nor NaN", f"{depth_m.min():g} m at the least")
    _require(cameras.shape == (FRAMES_PER_STEP, 4, 4), "there are four cameras [4, 4]", f"shape {cameras.shape}")
    _require(0.0 <= view.coverage <= 1.0, "coverage is a share, 0 to 1", view.coverage)
    _require_equal(frames, second_view.frames, "the same seed starts with the same frames")
    (after,), (next_view,) = world.step([second], _actions(("forward",), 1))
    _require_same_views([view], [returned], "later steps do not change a view")
    _require(after.step_index == 1, "a step adds one to step_index", after.step_index)
    distance = np.abs(after.pose.world_from_camera - next_view.world_from_camera[-1]).max()
    _require(bool(distance < 1e-6), "the state's pose is the last camera's", f"{distance:.2g} between them")


def _check_refusals(world: World) -> None:
    """A world that is not forkable refuses to step or pack an old state."""
    state, _ = world.start(Start(seed=5))
    action = _actions(("forward",), 1)
    world.step([state], action)
    for call in (lambda: world.step([state], action), lambda: world.pack(state)):
        try:
            call()
        except RuntimeError:
            continue
        requirement = "a world that is not forkable raises RuntimeError when an old state is stepped or packed"
        _require(False, requirement, "no error")


def _check_repeats(world: World, middle: State, views: list[View], walk: np.ndarray, other_walk: np.ndarray) -> None:
    _roll_out(world, middle, other_walk)
    _require_same_views(views, _roll_out(world, middle, walk)[1], "a state's future repeats, whatever other forks do")


def _check_sharing(world: World, middle: State, actions: Collection[np.ndarray]) -> None:
    """A step does not copy what it leaves unchanged, so that forks cost as much as their differences.

    The arrays and tensors of states are compared, and not their packed form, which may be a copy. An array that was
    copied and changed is a difference.
    """
    before = _array_contents(middle)
    for action in actions:
        (after,), _ = world.step([middle], action[None])
        for content, (name, addresses) in _array_contents(after).items():
            shared = content not in before or not addresses.isdisjoint(before[content][1])
            _require(shared, "forks share what is equal", f"{name} was copied")


def _array_contents(state: State) -> dict[Any, tuple[str, set[int]]]:
    """The distinct contents of a state's arrays: for each the name of one array, and all addresses in memory."""
    import torch

    contents: dict[Any, tuple[str, set[int]]] = {}
    for name, array in _arrays(state, "state", set()):
        if array.nbytes < SMALL_BYTES:
            continue
        if isinstance(array, torch.Tensor):
            address, kind = array.data_ptr(), str(array.dtype).removeprefix("torch.")
            plain = array.detach().cpu().contiguous().view(torch.uint8).numpy()
        else:
            address, kind, plain = array.ctypes.data, str(array.dtype), np.ascontiguousarray(array)
        content = kind, tuple(array.shape), hashlib.blake2b(plain).digest()
        contents.setdefault(content, (name, set()))[1].add(address)
    return contents


def _arrays(value: Any, name: str, visited: set[int]) -> Iterator[tuple[str, Any]]:
    """All arrays and tensors reachable from a value, by name; `visited` holds the ids of values already searched."""
    import torch

    if id(value) in visited or isinstance(value, str | bytes | type | FunctionType | ModuleType):
        return
    visited.add(id(value))
    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype != object):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _arrays(item, f"{name}[{key!r}]", visited)
    elif isinstance(value, list | tuple | set | frozenset | np.ndarray):
        for index, item in enumerate(value):
            yield from _arrays(item, f"{name}[{index}]", visited)
    else:
        slots = [slot for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ())]
        for attribute in (*getattr(value, "__dict__", ()), *slots):
            yield from _arrays(getattr(value, attribute, None), f"{name}.{attribute}", visited)


def _check_packing(make: Callable[[], World], world: World, middle: State, views: list[View], walk: np.ndarray) -> None:
    """A state continues from a file, as `env.save` writes it and `env.load` reads it, here and in a new process."""
    from mosaic_gym.memory.files import save_with_metadata

    tensors, metadata = world.pack(middle)
    _check_packed(tensors, metadata)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_with_metadata(tensors, path, {"format": FORMAT, "state": metadata})
        _require_same_views(
            views, _roll_out(world, _load_state(world, path), walk)[1], "a saved state continues bit for bit"
        )
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_continue_in_process, args=(make, path, walk, sender))
        process.start()
        sender.close()
        try:
            continued = receiver.recv()
        except EOFError:
            raise AssertionError(
                "expected: make(), pickled, makes the world in another process, which unpacks the state; found: that "
                "process ended (its error is above)"
            ) from None
        process.join()
    _require_same_views(views, continued, "a saved state continues bit for bit in another process")


def _check_packed(tensors: dict[str, Any], metadata: dict[str, Any]) -> None:
    import torch

    for name, value in tensors.items():
        _require(isinstance(value, torch.Tensor), "states are packed as torch tensors", f"{name} is {type(value)}")
        _require(value.is_contiguous(), "packed tensors are contiguous, because files hold no others", f"{name} is not")
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"expected: JSON can hold the metadata of a packed state; found: {error}") from error


def _load_state(world: World, path: Path) -> State:
    from mosaic_gym.memory.files import load_with_metadata

    tensors, metadata = load_with_metadata(path, (FORMAT,), "state")
    tensors = {name: value.to(getattr(world, "device", "cpu")) for name, value in tensors.items()}
    try:
        return world.unpack(tensors, metadata["state"])
    except Exception as error:
        raise AssertionError(
            "expected: unpack takes what a file returns (JSON makes lists of tuples, and text of other keys); found: "
            f"{error!r}"
        ) from error


def _continue_in_process(make: Callable[[], World], path: Path, walk: np.ndarray, sender: Any) -> None:
    world = make()
    _, views = _roll_out(world, _load_state(world, path), walk)
    sender.send(views)
    sender.close()
    world.close()


def _check_batches(
    world: World,
    middle: State,
    views: list[View],
    walk: np.ndarray,
    other_walk: np.ndarray,
    tolerances: Tolerances,
) -> None:
    new, _ = world.start(Start(seed=12))
    states = [new, middle, middle]
    for step, single in enumerate(views):
        states, batch = world.step(states, np.stack([other_walk[step], walk[step], other_walk[step]]))
        _check_near(batch[1], single, f"by step {step + 1}, ", tolerances)


def _check_near(view: View, single: View, when: str, tolerances: Tolerances) -> None:
    """Checks that a view in a batch equals the same view of a single state, within the tolerances."""
    pose_m, levels = tolerances.pose_m, tolerances.levels
    distance_m = np.abs(view.world_from_camera - single.world_from_camera).max()
    _require(
        bool(distance_m <= pose_m), f"poses depend on the batch by at most {pose_m:g} m", f"{when}{distance_m:.2g} m"
    )
    share = (np.abs(view.frames.astype(int) - single.frames.astype(int)) > levels).mean()
    limit = f"at most {OUTLIERS:.2%} of a frame depends on the batch by more than {levels} grey levels"
    _require(bool(share <= OUTLIERS), limit, f"{when}{share:.2%}")
    share = (~np.isclose(view.depth_m, single.depth_m, rtol=tolerances.depth)).mean()
    limit = f"at most {OUTLIERS:.2%} of the depths depends on the batch by more than {tolerances.depth:.2%}"
    _require(bool(share <= OUTLIERS), limit, f"{when}{share:.2%}")
    for name, limit in (("coverage", OUTLIERS), ("reward", tolerances.reward)):
        values = getattr(view, name), getattr(single, name)
        requirement = f"the {name} depends on the batch by at most {limit:g}"
        _require(
            abs(values[0] - values[1]) <= limit, requirement, f"{when}{values[0]:g} in a batch, {values[1]:g} alone"
        )
    for name in ("terminated", "on_map", "keyframes", "labels"):
        values = getattr(view, name), getattr(single, name)
        requirement = f"{name} does not depend on the batch"
        _require(values[0] == values[1], requirement, f"{when}{values[0]} in a batch, {values[1]} alone")


def _require_same_views(one: list[View], other: list[View], requirement: str) -> None:
    """Requires that all fields of two lists of views are equal, bit by bit."""
    for step, (a, b) in enumerate(zip(one, other, strict=True), start=1):
        for name in (field.name for field in fields(View)):
            full, first, second = f"{requirement}, {name} of step {step}", getattr(a, name), getattr(b, name)
            if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
                _require_equal(first, second, full)
            else:
                _require(first == second, full, f"{first} and {second}")
