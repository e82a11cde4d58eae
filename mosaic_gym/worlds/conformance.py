"""Is this world what it says? A test of the `World` protocol that any world may be put to.

It asks for what makes a world fit for planning: a state is a value, its future repeats, forks do not touch each
other and share what is equal, a packed state goes on in another process, and nobody's frames depend on who shares the
batch.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mosaic_gym.geometry.control import ACTIONS, FRAMES_PER_STEP
from mosaic_gym.worlds.protocol import Start, State, View, World

WALK = ("forward", "forward_turn_right", "left", "turn_left", "forward")
FLIPPED = 1e-3
"""The share of a frame that may differ by more: where two remembered surfaces compete, rounding can decide which is
shown."""
COUNTS = 64
"""A tensor of fewer numbers than this may be copied."""
OTHER_WALK = ("turn_right", "backward", "backward", "turn_right", "noop")


def check_world(
    make: Callable[[], World], steps: int = 3, frame_tolerance: int = 1, pose_tolerance_m: float = 1e-3
) -> None:
    """Puts a world to the test; silent if it passes.

    Args:
        make: makes the world; called here and, pickled, in a fresh process.
        steps: how far futures are compared, at most five.
        frame_tolerance, pose_tolerance_m: grey levels and metres by which a view may differ between batches of
            different size, but for one number in a thousand (`FLIPPED`). (Everything else is compared bit by bit.
            Matrix products of different shapes are summed in different order; and a body that slides along walls seen
            in the frames follows them.)

    Raises:
        AssertionError: what the world does not keep to.
        ValueError: steps out of range.
    """
    if not 1 <= steps <= len(WALK):
        raise ValueError(f"steps is 1 to {len(WALK)}; got {steps}")
    world = make()
    try:
        _check_views(world)
        if not world.forkable:
            _check_it_says_so(world)
            return
        walk, other = _thrusts(WALK)[:steps], _thrusts(OTHER_WALK)[:steps]
        start, _ = world.start(Start(seed=11))
        middle, _ = _roll(world, start, walk)
        before = _roll(world, middle, walk)[1]
        _check_repeats(world, middle, before, walk, other)
        _check_sharing(world, middle, walk, other)
        _check_packing(make, world, middle, before, walk)
        _check_batches(world, middle, before, walk, other, frame_tolerance, pose_tolerance_m)
    finally:
        world.close()


def _thrusts(names: tuple[str, ...]) -> np.ndarray:
    return np.array([ACTIONS[name] for name in names])


def _roll(world: World, state: State, thrusts: np.ndarray) -> tuple[State, list[View]]:
    views = []
    for thrust in thrusts:
        (state,), (view,) = world.step([state], thrust[None])
        views.append(view)
    return state, views


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
    state, view = world.start(Start(seed=5))
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
    (after,), (seen,) = world.step([again], _thrusts(("forward",)))
    _expect(after.step_index == 1, "a step adds one to step_index", after.step_index)
    off = np.abs(after.pose.world_from_camera - seen.world_from_camera[-1]).max()
    _expect(bool(off < 1e-6), "the state's pose is the last camera's", f"{off:.2g} between them")


def _check_it_says_so(world: World) -> None:
    """A world with one true present refuses to go back, plainly."""
    state, _ = world.start(Start(seed=5))
    world.step([state], _thrusts(("forward",)))
    for act in (lambda: world.step([state], _thrusts(("forward",))), lambda: world.pack(state)):
        try:
            act()
        except RuntimeError:
            continue
        promise = "a world that is not forkable raises RuntimeError when an old state is stepped or packed"
        _expect(False, promise, "no error")


def _check_repeats(
    world: World, middle: State, before: list[View], walk: np.ndarray, other: np.ndarray
) -> None:
    _roll(world, middle, other)
    _same(before, _roll(world, middle, walk)[1], "a state's future repeats, whatever other forks did meanwhile")


def _check_sharing(world: World, middle: State, walk: np.ndarray, other: np.ndarray) -> None:
    """Forks grow with what diverged only: what a step left as it was, it did not copy."""
    import torch

    held, _ = world.pack(middle)
    for thrust in (walk[0], other[0]):
        (after,), _ = world.step([middle], thrust[None])
        for name, tensor in world.pack(after)[0].items():
            before = held.get(name)
            if before is None or before.numel() < COUNTS or not torch.equal(before, tensor):
                continue
            _expect(tensor.data_ptr() == before.data_ptr(), "forks share what is equal", f"{name} was copied")


def _check_packing(
    make: Callable[[], World], world: World, middle: State, before: list[View], walk: np.ndarray
) -> None:
    from safetensors.torch import save_file

    tensors, about = world.pack(middle)
    _same(before, _roll(world, world.unpack(tensors, about), walk)[1], "an unpacked state goes on bit for bit")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, str(path))  # it takes none that share
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_go_on_elsewhere, args=(make, path, about, walk, sender))
        process.start()
        sender.close()
        try:
            frames = receiver.recv()
        except EOFError:
            raise AssertionError(
                "expected: make(), pickled, makes the world in another process, and it unpacks the state; found: that "
                "process ended (its error is above)"
            ) from None
        process.join()
    for view, elsewhere in zip(before, frames, strict=True):
        _expect_equal(view.frames, elsewhere, "a saved state goes on bit for bit in another process")


def _go_on_elsewhere(
    make: Callable[[], World], path: Path, about: dict[str, Any], walk: np.ndarray, sender: Any
) -> None:
    from safetensors.torch import load_file

    world = make()
    _, views = _roll(world, world.unpack(load_file(str(path)), about), walk)
    sender.send([view.frames for view in views])
    sender.close()
    world.close()


def _check_batches(
    world: World,
    middle: State,
    before: list[View],
    walk: np.ndarray,
    other: np.ndarray,
    tolerance: int,
    tolerance_m: float,
) -> None:
    fresh, _ = world.start(Start(seed=12))
    states = [fresh, middle, middle]
    for step, alone in enumerate(before):
        states, views = world.step(states, np.stack([other[step], walk[step], other[step]]))
        apart_m = np.abs(views[1].world_from_camera - alone.world_from_camera).max()
        near = f"poses depend on the batch by {tolerance_m:g} m at most"
        _expect(bool(apart_m <= tolerance_m), near, f"{apart_m:.2g} m")
        beyond = (np.abs(views[1].frames.astype(int) - alone.frames.astype(int)) > tolerance).mean()
        most = f"{FLIPPED:.2%} of a frame at most depends on the batch by more than {tolerance} grey levels"
        _expect(bool(beyond <= FLIPPED), most, f"{beyond:.2%}")


def _same(one: list[View], other: list[View], promise: str) -> None:
    for step, (a, b) in enumerate(zip(one, other, strict=True), start=1):
        for name in ("frames", "depth_m", "world_from_camera"):
            _expect_equal(getattr(a, name), getattr(b, name), f"{promise}, {name} of step {step}")
        told = [(view.coverage, view.reward, view.terminated) for view in (a, b)]
        _expect(told[0] == told[1], f"{promise}, coverage, reward and end of step {step}", f"{told[0]} and {told[1]}")
