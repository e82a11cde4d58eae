"""A step does not depend on defaults that other code in the process has set."""

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from mosaic_gym.geometry.control import ACTIONS
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.protocol import Start
from tests.tiny import save_depth, tiny_model
from tests.tiny_wan import SIZE, save_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("world")
    tiny_model().save_pretrained(place)
    return place


def play(folder) -> list[np.ndarray]:
    """Everything that an episode shows: loaded, started, stepped alone and in a batch, observed and packed."""
    world = MosaicWorld(WorldModel.from_pretrained(folder))
    state, view = world.start(Start(seed=3))
    found = [view.frames, view.depth_m]
    for name in ("forward", "turn_right", "forward_turn_left"):
        (state,), (view,) = world.step([state], np.array([ACTIONS[name]]))
        found += [view.frames, view.depth_m, np.array([view.reward, view.coverage])]
    pair, views = world.step([state, state], np.array([ACTIONS["forward"], ACTIONS["turn_left"]]))
    found += [part for view in views for part in (view.frames, view.depth_m)]
    observed = world.observe(pair[0], view.frames, [pair[0].pose] * 4)
    found.append(world.step([observed], np.array([ACTIONS["backward"]]))[1][0].frames)
    tensors, _ = world.pack(pair[1])
    return [*found, *(tensors[name].numpy() for name in sorted(tensors))]


@pytest.fixture(scope="module")
def usual(folder):
    return play(folder)


def assert_same(found, usual):
    assert len(found) == len(usual)
    for one, other in zip(found, usual, strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


DEFAULTS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "no_grad": lambda: torch.set_grad_enabled(False),
    "inference": torch.inference_mode,
    "numpy_errors": lambda: np.errstate(all="raise"),
    "warnings": warnings_as_errors,
    "deterministic": deterministic,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_episode_is_the_same_whatever_the_process_has_as_default(name, folder, usual):
    with DEFAULTS[name]():
        found = play(folder)
    assert_same(found, usual)


def test_an_episode_is_the_same_to_rounding_whatever_device_is_the_default(folder, usual):
    """To rounding: torch leaves its fast path for attention where a default device is set."""
    with default_device("meta"):
        found = play(folder)
    for one, other in zip(found[:10], usual[:10], strict=True):
        apart = np.abs(one.astype(float) - other.astype(float)).max()
        assert one.dtype == other.dtype and apart <= (1 if one.dtype == np.uint8 else 1e-4)


def test_an_episode_goes_on_under_another_default_and_back(folder, usual):
    world = MosaicWorld(WorldModel.from_pretrained(folder))
    state, _ = world.start(Start(seed=3))
    for name, around in (
        ("forward", default_dtype(torch.float64)),
        ("turn_right", torch.inference_mode()),
        ("forward_turn_left", default_dtype(torch.float16)),
    ):
        with around:
            (state,), (view,) = world.step([state], np.array([ACTIONS[name]]))
    assert np.array_equal(view.frames, usual[8]) and np.array_equal(view.depth_m, usual[9])


def test_a_pretrained_world_is_the_same_whatever_dtype_is_the_default(tmp_path):
    pipeline, depth = save_pipeline(tmp_path / "pipeline"), save_depth(tmp_path / "depth")
    loading = {"dtype": "float32", "depth": str(depth), "guidance": 2.0}
    shown = []
    for dtype in (torch.float32, torch.float64):
        with default_dtype(dtype):
            world = MosaicWorld.from_pretrained(str(pipeline), denoising_steps=2, size=SIZE, loading=loading)
            state, _ = world.start(Start(seed=3))
            _, (view,) = world.step([state], np.array([ACTIONS["forward"]]))
        shown.append((view.frames, view.depth_m))
    assert_same(shown[1], shown[0])
