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


def _check_views(world: World) -> None:
    state, view = world.start(Start(seed=5))
    again, same = world.start(Start(seed=5))
    size = (world.height, world.width)
    assert state.step_index == again.step_index == 0, "a fresh state has step_index 0"
    assert view.frames.shape == (FRAMES_PER_STEP, *size, 3) and view.frames.dtype == np.uint8, "frames are uint8 [4HW3]"
    assert view.depth_m.shape == size and (view.depth_m >= 0).all(), "depth is [H, W], not negative"
    assert view.world_from_camera.shape == (FRAMES_PER_STEP, 4, 4), "there are four cameras"
    assert 0.0 <= view.coverage <= 1.0, "coverage is a share"
    np.testing.assert_array_equal(view.frames, same.frames, "the same seed starts with the same frames")
    (after,), (seen,) = world.step([again], _thrusts(("forward",)))
    assert after.step_index == 1, "a step adds one to step_index"
    last = after.pose.world_from_camera
    np.testing.assert_allclose(last, seen.world_from_camera[-1], err_msg="the state's pose is the last camera's")


def _check_it_says_so(world: World) -> None:
    """A world with one true present refuses to go back, plainly."""
    state, _ = world.start(Start(seed=5))
    world.step([state], _thrusts(("forward",)))
    for act in (lambda: world.step([state], _thrusts(("forward",))), lambda: world.pack(state)):
        try:
            act()
        except RuntimeError:
            continue
        raise AssertionError("a world that is not forkable raises RuntimeError when an old state is stepped or packed")


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
            assert tensor.data_ptr() == before.data_ptr(), f"forks share what is equal: {name} was copied"


def _check_packing(
    make: Callable[[], World], world: World, middle: State, before: list[View], walk: np.ndarray
) -> None:
    from safetensors.torch import save_file

    tensors, about = world.pack(middle)
    _same(before, _roll(world, world.unpack(tensors, about), walk)[1], "an unpacked state goes on bit for bit")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path))
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_go_on_elsewhere, args=(make, path, about, walk, sender))
        process.start()
        sender.close()
        try:
            frames = receiver.recv()
        except EOFError:
            raise AssertionError("in another process the world or its state could not be made") from None
        process.join()
    for view, elsewhere in zip(before, frames, strict=True):
        np.testing.assert_array_equal(view.frames, elsewhere, "a saved state goes on bit for bit in another process")


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
        assert apart_m <= tolerance_m, f"poses depend on the batch by {apart_m:.2g}, more than {tolerance_m:g}"
        beyond = (np.abs(views[1].frames.astype(int) - alone.frames.astype(int)) > tolerance).mean()
        assert beyond <= FLIPPED, f"{beyond:.2%} of a frame depends on the batch by more than {tolerance} grey levels"


def _same(one: list[View], other: list[View], promise: str) -> None:
    for a, b in zip(one, other, strict=True):
        for name in ("frames", "depth_m", "world_from_camera"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), f"{promise}: {name} differ")
        assert (a.coverage, a.reward, a.terminated) == (b.coverage, b.reward, b.terminated), promise
