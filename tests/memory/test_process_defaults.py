"""Defaults of the process (dtype, device, gradients) do not change what memory computes."""

from contextlib import contextmanager
from dataclasses import fields

import numpy as np
import pytest
import torch

from mosaic_gym.geometry.camera import rescale_intrinsics
from mosaic_gym.memory.keyframe import lift
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.memory.obstacles import obstacles_near
from mosaic_gym.memory.retrieval import Retrieved, retrieve

SIZE, GRID, CHANNELS = (32, 64), (4, 8), 6
NUMBERS = torch.Generator().manual_seed(3)
LATENTS = torch.randn(5, CHANNELS, *GRID, generator=NUMBERS)
DEPTH_M = 2.0 + torch.rand(5, *SIZE, generator=NUMBERS)
K = torch.tensor([[50.0, 0.0, 32.0], [0.0, 40.0, 16.0], [0.0, 0.0, 1.0]])
GENERATION = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0]).view(5, 1, 1).expand(5, *GRID).contiguous()
CAMERAS = torch.eye(4).repeat(5, 4, 1, 1)
CAMERAS[:, :, 0, 3] = torch.linspace(-1.0, 1.0, 5)[:, None]
MASK = torch.arange(GRID[0] * GRID[1]).view(GRID) % 3 == 0
SHIFT = torch.eye(4)
SHIFT[0, 3] = 0.25


class Codec:
    """Shows three channels of a latent, each cell as 8 x 8 pixels."""

    channels, stride, image_stride, instants = CHANNELS, 8, 1, slice(0, 4)

    def keyframe_image(self, latents):
        return latents[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2)

    def from_keyframe_images(self, warped_frames):
        cells = torch.nn.functional.avg_pool2d(warped_frames.flatten(0, 1), 8).unflatten(0, warped_frames.shape[:2])
        return torch.cat([cells[:, -1], cells.mean(1)], 1)


def everything() -> dict[str, torch.Tensor]:
    """All that lifting, updating, editing and retrieval compute, by name."""
    keyframes = lift(LATENTS, DEPTH_M, CAMERAS, rescale_intrinsics(K, SIZE, SIZE), GENERATION, range(5))
    memory = MosaicMemory(capacity=4)
    for keyframe in keyframes:
        memory = memory.update(keyframe)
    memory = memory.edit({0: MASK}, SHIFT).splice(memory, SHIFT.tolist())
    views = CAMERAS[1:4] + torch.zeros_like(CAMERAS[1:4]).index_fill(-1, CAMERAS.new_tensor([3]).long(), 0.0)
    pictures = [DEPTH_M.new_full((4, 3, *SIZE), 0.5), None, None]
    memories = [memory.keyframes, (), keyframes[:2]]
    retrieved = retrieve(memories, views, K, Codec(), (CHANNELS, *GRID), 3, 20, pictures=pictures)
    found = {f"retrieved.{field.name}": getattr(retrieved, field.name) for field in fields(Retrieved)}
    found |= {f"{i}.{name}": value for i, key in enumerate(memory.keyframes) for name, value in key.tensors.items()}
    places = obstacles_near(memories, np.zeros((3, 3)), [3.0] * 3)
    return found | {f"obstacles.{i}": torch.from_numpy(place) for i, place in enumerate(places)}


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(
    "default",
    [
        lambda: default_dtype(torch.float64),
        lambda: default_dtype(torch.bfloat16),
        lambda: default_device("meta"),  # whatever is made there has no values, and fails
        torch.inference_mode,
    ],
    ids=["float64", "bfloat16", "device", "inference"],
)
def test_memory_computes_the_same_whatever_the_process_has_as_defaults(default):
    expected = everything()
    with default():
        found = everything()
    assert found["retrieved.coverage"][0] > 0.5 and len(found["obstacles.0"])
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].device == value.device, name
        assert torch.equal(found[name], value), name


def test_memory_keeps_no_graph_of_gradients():
    depth_m = DEPTH_M.clone().requires_grad_()
    (keyframe,) = lift(LATENTS[:1], depth_m[:1], CAMERAS[:1], K, GENERATION[:1], [0])
    assert not any(value.requires_grad for value in keyframe.tensors.values())
