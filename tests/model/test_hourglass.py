"""The hourglass transformer: its cameras are relative, padding has no effect, and clean tokens are read once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mosaic_gym.memory.pictures import MemoryInputs
from mosaic_gym.model.hourglass import HourglassTransformer
from mosaic_gym.model.sampler import sample_flow
from tests.tiny_pictures import SIZE, tiny_transformer
from tests.tiny_pictures import K as K_ROWS

K = torch.tensor(K_ROWS)
H, W = SIZE[0] // 4, SIZE[1] // 4


def rigid(seed: int) -> torch.Tensor:
    """A random rigid transform `[4, 4]`."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    rotation = rotation * torch.linalg.det(rotation).sign()
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3], matrix[:3, 3] = rotation, torch.randn(3, generator=generator, dtype=torch.float64)
    return matrix


def inputs(b: int = 2, patches: int = 5):
    """Memory, recent latents and cameras, cameras, text."""
    torch.manual_seed(0)
    steps = torch.stack([rigid(100 + i) for i in range(b * (patches + 3) * 4)]).float().unflatten(0, (b, -1, 4))
    exists = torch.ones(b, patches, dtype=torch.bool)
    exists[-1, -2:] = False
    memory = MemoryInputs(
        torch.randn(b, 6, H, W), torch.rand(b, 6, H, W), torch.randn(b, patches, 24), torch.rand(b, patches, 2) * 8,
        steps[:, :patches], exists,
    )  # fmt: skip
    return memory, torch.randn(b, 2, 6, H, W), steps[:, patches : patches + 2], steps[:, -1], torch.randn(b, 3, 16)


def velocity(model, memory, recent, recent_cameras, cameras, text, noisy=None):
    b = len(recent)
    torch.manual_seed(1)
    noisy = torch.randn(b, 7, H, W) if noisy is None else noisy
    reading = model.read(memory, recent, recent_cameras, cameras, K.expand(b, 3, 3), SIZE, text)
    return model(noisy, torch.full((b,), 0.7), reading)


@torch.no_grad()
def test_moving_the_world_frame_changes_nothing():
    model = tiny_transformer()
    memory, recent, recent_cameras, cameras, text = inputs()
    before = velocity(model, memory, recent, recent_cameras, cameras, text)
    shift = rigid(7).float()
    moved = replace(memory, patch_cameras=shift @ memory.patch_cameras)
    after = velocity(model, moved, recent, shift @ recent_cameras, shift @ cameras, text)
    assert torch.allclose(before, after, atol=2e-4)
    other = velocity(model, memory, recent, shift @ recent_cameras, cameras, text)
    assert float((before - other).abs().max()) > 1e-3, "relative cameras do change it"


@torch.no_grad()
def test_padding_has_no_effect_and_members_do_not_see_each_other():
    model = tiny_transformer()
    memory, *rest = inputs()
    before = velocity(model, memory, *rest)
    patches = memory.patches.clone()
    patches[-1, -2:] = 100.0  # of patches that do not exist
    assert torch.allclose(before, velocity(model, replace(memory, patches=patches), *rest), atol=1e-5)
    patches[0, 0] += 1.0
    changed = velocity(model, replace(memory, patches=patches), *rest)
    assert torch.allclose(before[1], changed[1], atol=1e-5)
    assert float((before[0] - changed[0]).abs().max()) > 1e-4


@torch.no_grad()
def test_fractions_of_patch_coordinates_count():
    model = tiny_transformer()
    memory, *rest = inputs()
    before = velocity(model, memory, *rest)
    shifted = replace(memory, patch_uv=memory.patch_uv + 0.3)
    assert float((before - velocity(model, shifted, *rest)).abs().max()) > 1e-5


def test_training_and_sampling_compute_the_same():
    model = tiny_transformer()
    arguments = inputs()
    with torch.no_grad():
        sampled = velocity(model, *arguments)
    trained = velocity(model, *arguments)
    assert torch.allclose(sampled, trained, atol=1e-4)
    trained.square().mean().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing


@torch.no_grad()
def test_guidance_of_one_ignores_the_negative_prompt():
    model = tiny_transformer()
    memory, recent, recent_cameras, cameras, text = inputs()
    k, noise = K.expand(2, 3, 3), torch.randn(2, 7, H, W)
    reading = model.read(memory, recent, recent_cameras, cameras, k, SIZE, text)
    negative = model.read(memory, recent, recent_cameras, cameras, k, SIZE, torch.zeros_like(text))
    plain = sample_flow(model, reading, noise, 3)
    assert torch.equal(plain, sample_flow(model, reading, noise, 3, negative=negative, guidance=1.0))
    assert not torch.allclose(plain, sample_flow(model, reading, noise, 3, negative=negative, guidance=3.0))


def test_heads_that_four_cameras_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of 32"):
        HourglassTransformer(widths=(16, 48), head_dim=48)
