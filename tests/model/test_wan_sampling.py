"""How a Wan model samples: as precise in half precision as diffusers', and guided only where that leads somewhere."""

from unittest import mock

import pytest
import torch
from diffusers import WanTransformer3DModel

from mosaic_gym.model.sampler import denoise
from mosaic_gym.model.wan.loading import load_pipeline
from mosaic_gym.model.wan.options import WanOptions
from tests.tiny_wan import CHANNELS, EXACT, GRID, SIZE, TEXT, K, context_for, nothing_retrieved


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_off_by_no_more_than_wan_is(folder, dtype):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 4, CHANNELS, *GRID, generator=generator)
    text = torch.randn(8, 7, TEXT, generator=generator)
    time = torch.linspace(40.0, 960.0, 8)
    per_frame = (GRID[0] // 2) * (GRID[1] // 2)
    times = torch.cat([torch.zeros(8, per_frame), time[:, None].expand(-1, 3 * per_frame)], dim=1)

    def theirs(precision):
        wan = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=precision)
        return wan(latents.transpose(1, 2).to(precision), times, text.to(precision)).sample.transpose(1, 2)[:, 1:]

    with torch.no_grad():
        exact, rough = theirs(torch.float32), theirs(dtype).float()
        ours = load_pipeline(folder, WanOptions(dtype=str(dtype).removeprefix("torch."))).transformer
        mine = ours(latents[:, 1:], time, context_for(ours, latents[:, :1], 3, text)).float()
    dims = (1, 2, 3, 4)  # each sample by itself: a timestep of its own
    noise = torch.linalg.vector_norm(rough - exact, dim=dims)
    assert (noise > 1e-4 * torch.linalg.vector_norm(exact, dim=dims)).all(), "rounding shows at all"
    assert (torch.linalg.vector_norm(mine - exact, dim=dims) <= 1.05 * noise).all()


@pytest.mark.parametrize("causal", [False, True])
def test_guidance_away_from_the_prompt_itself_asks_the_network_once(folder, causal):
    options = WanOptions(dtype="float32", causal=causal)
    pipeline = load_pipeline(folder, options)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 1, CHANNELS, *GRID, generator=generator)
    history = torch.randn(2, 1, CHANNELS, *GRID, generator=generator)
    text, other = torch.randn(2, 2, 7, TEXT, generator=generator)
    cameras = torch.eye(4).expand(2, 1, 4, 4, 4)
    calls = []
    pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))

    def sampled(unwanted):
        calls.clear()
        return denoise(
            pipeline.transformer, pipeline.scheduler, noise, history, cameras, nothing_retrieved(cameras), cameras,
            K.expand(2, 3, 3), SIZE, text, 3, unwanted, 5.0,
        ), len(calls)  # fmt: skip

    once, asked = sampled(text.clone())
    assert asked == 3
    with mock.patch("torch.equal", return_value=False):
        twice, asked = sampled(text.clone())
    assert asked == 6 and torch.equal(once, twice)
    apart, asked = sampled(torch.cat([text[:1], other[1:]]))
    assert asked == 6 and torch.equal(apart[0], once[0]) and not torch.equal(apart[1], once[1])


def test_a_pipeline_is_sampled_with_its_own_scheduler(folder):
    scheduler = load_pipeline(folder, EXACT).scheduler
    assert type(scheduler).__name__ == "UniPCMultistepScheduler" and scheduler.config.flow_shift == 5.0
