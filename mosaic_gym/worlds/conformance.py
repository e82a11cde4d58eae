"""Is this world what it says? A test of the `World` protocol that any world may be put to.

It asks for what makes a world fit for planning: a state is a value, its future repeats, forks do not touch each
other and share what is equal, a packed state goes on in another process, and what anybody sees does not depend on who
shares the batch.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from mosaic_gym.geometry.control import ACTIONS, FRAMES_PER_STEP
from mosaic_gym.worlds.protocol import Start, State, View, World

WALK = ("forward", "forward_turn_right", "left", "turn_left", "forward")
FLIPPED = 1e-3
"""The share of a view that may differ by more: where two remembered surfaces compete, rounding can decide which is
shown."""
SMALL = 1024
"""An array of fewer bytes than this may be copied: it costs little, and a mask that is all true is often just equal."""
OTHER_WALK = ("turn_right", "backward", "backward", "turn_right", "noop")
FORMAT = "mosaic-conformance-1"
"""Of the file that a packed state is put into."""


def check_world(
    make: Callable[[], World],
    steps: int = 3,
    frame_tolerance: int = 1,
    pose_tolerance_m: float = 1e-3,
    depth_tolerance: float = 1e-2,
    reward_tolerance: float = 1e-3,
    batch_steps: int = 6,
) -> None:
    """Puts a world to the test; silent if it passes.

    Args:
        make: makes the world; called here and, pickled, in a fresh process.
        steps: how far futures are compared, at most five.
        frame_tolerance, pose_tolerance_m, depth_tolerance, reward_tolerance: by how much a view may differ between
            batches of different size: grey levels, metres, a share of the depth, and the reward. Frames and depths may
            differ by more in one number of a thousand (`FLIPPED`), and coverage by as much; the rest of a view may
            not. (Everything else is compared bit by bit. Matrix products of different shapes are summed in different
            order; and a body that slides along walls seen in the frames follows them.)
        batch_steps: over how many steps batches are compared. What rounding has decided is remembered: sooner or later
            most worlds drift apart.

    Raises:
        AssertionError: what the world does not keep to.
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
            _check_it_says_so(world)
            return
        walk, other = (
            _action_vectors(WALK, max(steps, batch_steps)),
            _action_vectors(OTHER_WALK, max(steps, batch_steps)),
        )
        start, _ = world.start(Start(seed=11))
        middle, _ = _roll(world, start, walk[:steps])
        alone = _roll(world, middle, walk)[1]
        before, ahead = alone[:steps], walk[:steps]
        _check_repeats(world, middle, before, ahead, other[:steps])
        _check_sharing(world, middle, (walk[0], other[0]))
        tolerances = frame_tolerance, pose_tolerance_m, depth_tolerance, reward_tolerance
        _check_batches(world, middle, alone[:batch_steps], walk, other, tolerances)
        _check_packing(make, world, middle, before, ahead)  # last, for another process takes seconds to begin
    finally:
        world.close()


def _action_vectors(names: tuple[str, ...], count: int) -> np.ndarray:
    """`[count, 3]`; a walk that is over begins again."""
    return np.array([ACTIONS[names[step % len(names)]] for step in range(count)])


def _roll(world: World, state: State, action_vectors: np.ndarray) -> tuple[State, list[View]]:
    """The last state, and each view as it was when it was shown."""
    shown, views = [], []
    for action_vector in action_vectors:
        given = action_vector[None].copy()
        (state,), (view,) = world.step([state], given)
        _expect_equal(given[0], action_vector, "the actions given to a step stay as they were")
        shown.append(view)
        views.append(_copied(view))
    _same(views, shown, "a view stays as it was shown, whatever is stepped after it")
    return state, views


def _copied(view: View) -> View:
    """A view that shares nothing: a world that shows all views in one buffer would else be compared with itself."""
    told = {each.name: getattr(view, each.name) for each in fields(View)}
    return replace(view, **{name: value.copy() for name, value in told.items() if isinstance(value, np.ndarray)})


def _expect(kept: bool, promise: str, found: object) -> None:
    """Raises AssertionError unless a promise is kept; an `assert` would be lost under `python -O`."""
    if not kept:
        raise AssertionError(f"expected: {promise}; found: {found}")


def _expect_equal(one: np.ndarray, other: np.ndarray, promise: str) -> None:
    one, other = np.asarray(one), np.asarray(other)
    _expect(one.shape == other.shape, promise, f"shapes {one.shape} and {other.shape}")
    differ = one != other
    _expect(not differ.any(), promise, f"{differ.mean():.2%} of the numbers differ")


def _check_views(world: World) -> None:
    state, shown = world.start(Start(seed=5))
    view = _copied(shown)
    again, same = world.start(Start(seed=5))
    size = (world.height, world.width)
    indices = state.step_index, again.step_index
    _expect(indices == (0, 0), "a fresh state has step_index 0", indices)
    frames, depth_m, cameras = view.frames, view.depth_m, view.world_from_camera
    shape = (FRAMES_PER_STEP, *size, 3)
    right = frames.shape == shape and frames.dtype == np.uint8
    _expect(right, f"frames are uint8 {shape}", f"{frames.dtype} {frames.shape}")
    _expect(depth_m.shape == size, f"depth has shape {size}", depth_m.shape)
    _expect(bool((depth_m >= 0).all()), "depth is not negative, nor NaN", f"{depth_m.min():g} m at the least")
    _expect(cameras.shape == (FRAMES_PER_STEP, 4, 4), "there are four cameras [4, 4]", f"shape {cameras.shape}")
    _expect(0.0 <= view.coverage <= 1.0, "coverage is a share, 0 to 1", view.coverage)
    _expect_equal(frames, same.frames, "the same seed starts with the same frames")
    (after,), (seen,) = world.step([again], _action_vectors(("forward",), 1))
    _same([view], [shown], "a view stays as it was shown, whatever is stepped after it")
    _expect(after.step_index == 1, "a step adds one to step_index", after.step_index)
    off = np.abs(after.pose.world_from_camera - seen.world_from_camera[-1]).max()
    _expect(bool(off < 1e-6), "the state's pose is the last camera's", f"{off:.2g} between them")


def _check_it_says_so(world: World) -> None:
    """A world with one true present refuses to go back, plainly."""
    state, _ = world.start(Start(seed=5))
    world.step([state], _action_vectors(("forward",), 1))
    for act in (lambda: world.step([state], _action_vectors(("forward",), 1)), lambda: world.pack(state)):
        try:
            act()
        except RuntimeError:
            continue
        promise = "a world that is not forkable raises RuntimeError when an old state is stepped or packed"
        _expect(False, promise, "no error")


def _check_repeats(world: World, middle: State, before: list[View], walk: np.ndarray, other: np.ndarray) -> None:
    _roll(world, middle, other)
    _same(before, _roll(world, middle, walk)[1], "a state's future repeats, whatever other forks did meanwhile")


def _check_sharing(world: World, middle: State, action_vectors: Collection[np.ndarray]) -> None:
    """Forks grow with what diverged only: what a step left as it was, it did not copy.

    Looked at are the arrays and tensors that states hold, and not what they are packed as, which may be copies. One
    that was copied and changed has diverged.
    """
    held = _held(middle)
    for action_vector in action_vectors:
        (after,), _ = world.step([middle], action_vector[None])
        for content, (name, addresses) in _held(after).items():
            shared = content not in held or not addresses.isdisjoint(held[content][1])
            _expect(shared, "forks share what is equal", f"{name} was copied")


def _held(state: State) -> dict[Any, tuple[str, set[int]]]:
    """What the arrays of a state say: for each content the name of one that says it, and where in memory they are."""
    import torch

    held: dict[Any, tuple[str, set[int]]] = {}
    for name, array in _arrays(state, "state", set()):
        if array.nbytes < SMALL:
            continue
        if isinstance(array, torch.Tensor):
            address, kind = array.data_ptr(), str(array.dtype).removeprefix("torch.")
            plain = array.detach().cpu().contiguous().view(torch.uint8).numpy()
        else:
            address, kind, plain = array.ctypes.data, str(array.dtype), np.ascontiguousarray(array)
        content = kind, tuple(array.shape), hashlib.blake2b(plain).digest()
        held.setdefault(content, (name, set()))[1].add(address)
    return held


def _arrays(value: Any, name: str, met: set[int]) -> Iterator[tuple[str, Any]]:
    """The arrays and tensors in a value, in what it holds, and so on, by name; `met` are the ids of those looked at."""
    import torch

    if id(value) in met or isinstance(value, str | bytes | type | FunctionType | ModuleType):
        return
    met.add(id(value))
    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype != object):
        yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _arrays(each, f"{name}[{key!r}]", met)
    elif isinstance(value, list | tuple | set | frozenset | np.ndarray):
        for index, each in enumerate(value):
            yield from _arrays(each, f"{name}[{index}]", met)
    else:
        slots = [each for kind in type(value).__mro__ for each in getattr(kind, "__slots__", ())]
        for each in (*getattr(value, "__dict__", ()), *slots):
            yield from _arrays(getattr(value, each, None), f"{name}.{each}", met)


def _check_packing(
    make: Callable[[], World], world: World, middle: State, before: list[View], walk: np.ndarray
) -> None:
    """A state goes through a file, as `env.save` writes it and `env.load` reads it."""
    from mosaic_gym.memory.files import save_with_metadata

    tensors, about = world.pack(middle)
    _check_packed(tensors, about)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_with_metadata(tensors, path, {"format": FORMAT, "state": about})
        _same(before, _roll(world, _unpacked(world, path), walk)[1], "a saved state goes on bit for bit")
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_go_on_elsewhere, args=(make, path, walk, sender))
        process.start()
        sender.close()
        try:
            elsewhere = receiver.recv()
        except EOFError:
            raise AssertionError(
                "expected: make(), pickled, makes the world in another process, and it unpacks the state; found: that "
                "process ended (its error is above)"
            ) from None
        process.join()
    _same(before, elsewhere, "a saved state goes on bit for bit in another process")


def _check_packed(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    import torch

    for name, value in tensors.items():
        _expect(isinstance(value, torch.Tensor), "states are packed as torch tensors", f"{name} is {type(value)}")
        _expect(value.is_contiguous(), "packed tensors are contiguous, for files hold no others", f"{name} is not")
    try:
        json.dumps(about)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"expected: JSON can say what a state is packed with; found: {error}") from error


def _unpacked(world: World, path: Path) -> State:
    from mosaic_gym.memory.files import load_with_metadata

    tensors, told = load_with_metadata(path, (FORMAT,), "state")
    tensors = {name: value.to(getattr(world, "device", "cpu")) for name, value in tensors.items()}
    try:
        return world.unpack(tensors, told["state"])
    except Exception as error:
        raise AssertionError(
            "expected: a state is unpacked from what its file gives back (of a tuple JSON makes a list, of other keys "
            f"text); found: {error!r}"
        ) from error


def _go_on_elsewhere(make: Callable[[], World], path: Path, walk: np.ndarray, sender: Any) -> None:
    world = make()
    _, views = _roll(world, _unpacked(world, path), walk)
    sender.send(views)
    sender.close()
    world.close()


def _check_batches(
    world: World,
    middle: State,
    before: list[View],
    walk: np.ndarray,
    other: np.ndarray,
    tolerances: tuple[int, float, float, float],
) -> None:
    fresh, _ = world.start(Start(seed=12))
    states = [fresh, middle, middle]
    for step, alone in enumerate(before):
        states, views = world.step(states, np.stack([other[step], walk[step], other[step]]))
        _check_near(views[1], alone, f"by step {step + 1}, ", *tolerances)


def _check_near(
    view: View, alone: View, when: str, levels: int, apart_m: float, depth_share: float, reward: float
) -> None:
    """What one view shows in a batch is what it shows alone, to the tolerances."""
    off_m = np.abs(view.world_from_camera - alone.world_from_camera).max()
    _expect(bool(off_m <= apart_m), f"poses depend on the batch by {apart_m:g} m at most", f"{when}{off_m:.2g} m")
    beyond = (np.abs(view.frames.astype(int) - alone.frames.astype(int)) > levels).mean()
    most = f"{FLIPPED:.2%} of a frame at most depends on the batch by more than {levels} grey levels"
    _expect(bool(beyond <= FLIPPED), most, f"{when}{beyond:.2%}")
    beyond = (~np.isclose(view.depth_m, alone.depth_m, rtol=depth_share)).mean()
    most = f"{FLIPPED:.2%} of the depths at most depends on the batch by more than {depth_share:.2%}"
    _expect(bool(beyond <= FLIPPED), most, f"{when}{beyond:.2%}")
    for name, most in (("coverage", FLIPPED), ("reward", reward)):
        found = getattr(view, name), getattr(alone, name)
        promise = f"the {name} depends on the batch by {most:g} at most"
        _expect(abs(found[0] - found[1]) <= most, promise, f"{when}{found[0]:g} in a batch, {found[1]:g} alone")
    for name in ("terminated", "on_map", "keyframes", "labels"):
        found = getattr(view, name), getattr(alone, name)
        promise = f"{name} does not depend on the batch"
        _expect(found[0] == found[1], promise, f"{when}{found[0]} in a batch, {found[1]} alone")


def _same(one: list[View], other: list[View], promise: str) -> None:
    """Everything in two lists of views is equal, bit by bit."""
    for step, (a, b) in enumerate(zip(one, other, strict=True), start=1):
        for name in (each.name for each in fields(View)):
            of, here, there = f"{promise}, {name} of step {step}", getattr(a, name), getattr(b, name)
            if isinstance(here, np.ndarray) and isinstance(there, np.ndarray):
                _expect_equal(here, there, of)
            else:
                _expect(here == there, of, f"{here} and {there}")
