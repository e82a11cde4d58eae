"""Pretrained Wan: equal to diffusers' own classes, and decoded piece by piece."""

import numpy as np
import PIL.Image
import pytest
import torch

from mosaic_gym.model.sampler import denoise
from mosaic_gym.model.wan.codec import WanCodec
from tests.tiny_wan import (
    CHANNELS,
    GRID,
    SIZE,
    TEXT,
    K,
    context_for,
    in_ours,
    nothing_retrieved,
    tiny_pipeline,
    tiny_transformer,
    tiny_vae,
)


@pytest.fixture
def sequence():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, CHANNELS, *GRID, dtype=torch.float64, generator=generator)
    return latents, torch.randn(2, 7, TEXT, dtype=torch.float64, generator=generator)


def test_it_equals_wan_forward_and_gradient(sequence):
    latents, text = sequence
    wan = tiny_transformer().double()
    ours = in_ours(wan)
    time = torch.tensor([321.0, 777.0], dtype=torch.float64)
    per_frame = (GRID[0] // 2) * (GRID[1] // 2)
    times = torch.cat([torch.zeros(2, per_frame), time[:, None].expand(-1, 3 * per_frame)], dim=1).double()
    theirs = wan(latents.transpose(1, 2), times, text).sample.transpose(1, 2)[:, 1:]
    mine = ours(latents[:, 1:], time, context_for(ours, latents[:, :1], 3, text))
    assert (mine - theirs).abs().max() <= 1e-10 * theirs.abs().max()
    weigh = torch.randn_like(theirs)
    (theirs * weigh).sum().backward()
    (mine * weigh).sum().backward()
    gradients = dict(ours.named_parameters())
    for name, parameter in wan.named_parameters():
        scale = parameter.grad.abs().max().clamp_min(1e-12)
        assert (gradients[name].grad - parameter.grad).abs().max() <= 1e-10 * scale, name
    assert gradients["blocks.0.attn1.to_out_cameras.weight"].grad.abs().max() > 0


def test_sampling_equals_the_pipeline_for_the_same_noise():
    pipeline = tiny_pipeline().to(torch.float64)
    pipeline.set_progress_bar_config(disable=True)
    ours = in_ours(pipeline.transformer)
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    noise = torch.randn(1, CHANNELS, 3, *GRID, generator=torch.Generator().manual_seed(5))
    theirs = pipeline(
        PIL.Image.fromarray(pixels), prompt="a red room", negative_prompt="hall", height=SIZE[0], width=SIZE[1],
        num_frames=9, num_inference_steps=4, guidance_scale=3.0, latents=noise, output_type="latent",
    ).frames  # fmt: skip
    wanted, unwanted = pipeline.encode_prompt("a red room", "hall", max_sequence_length=512)
    codec = WanCodec(pipeline.vae).to(torch.float64)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None, None].float() / 127.5 - 1.0
    history = codec.encode(image.double().expand(1, 4, 3, *SIZE))[:, None]
    cameras = torch.eye(4, dtype=torch.float64).expand(1, 2, 4, 4, 4)
    mine = denoise(
        ours, pipeline.scheduler, noise.transpose(1, 2)[:, 1:], history, cameras[:, :1], nothing_retrieved(cameras),
        cameras, K.double()[None], SIZE, wanted, 4, unwanted, 3.0,
    )  # fmt: skip
    apart = (mine.transpose(1, 2) - theirs[:, :, 1:]).abs().max() / theirs.abs().max()
    assert apart <= 1e-6  # the pipeline keeps its latents in float32


def test_a_causal_student_reads_once_and_never_sees_ahead(sequence):
    latents, text = sequence
    ours = in_ours(tiny_transformer().double(), causal=True)
    time = torch.tensor([500.0, 900.0], dtype=torch.float64)
    context = context_for(ours, latents[:, :1], 1, text)
    one, other = (ours(noisy, time, context) for noisy in (latents[:, 1:2], latents[:, 2:3]))
    again = context_for(ours, latents[:, :1], 1, text)
    assert (one - other).abs().max() > 1e-6
    for kept, same in zip(context.keys_values, again.keys_values, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(kept, same, strict=True))


def test_a_context_for_one_look_gives_what_one_that_is_kept_gives(sequence):
    latents, text = sequence
    ours = in_ours(tiny_transformer().double(), causal=True)
    time = torch.tensor([500.0, 900.0], dtype=torch.float64)
    contexts = [context_for(ours, latents[:, :1], 2, text, once) for once in (False, True)]
    kept, once = (ours(latents[:, 1:3], time, context) for context in contexts)
    assert (once - kept).abs().max() <= 1e-12 * kept.abs().max()


def test_a_clip_decoded_piece_by_piece_equals_the_clip_decoded_at_once():
    vae = tiny_vae().double().eval()
    codec = WanCodec(vae).double()
    latents = torch.randn(2, 5, CHANNELS, *GRID, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scaled = latents.transpose(1, 2) * codec.deviation + codec.mean
    whole = vae.decode(scaled).sample.transpose(1, 2)
    streams, shown = [(), ()], []
    for latent in latents.unbind(1):
        frames, streams = codec.decode_next(latent, streams)
        shown.append(frames)
    assert [frames.shape[1] for frames in shown] == [1, 4, 4, 4, 4]
    assert (torch.cat(shown, dim=1) - whole).abs().max() <= 1e-6  # frames are told in float32
    assert torch.equal(codec.last_frame(latents[0, -1], streams[0]), shown[-1][0, -1])


def test_clips_that_stand_differently_share_a_batch_and_forks_stay_apart():
    codec = WanCodec(tiny_vae().eval())
    latents = torch.randn(3, 2, CHANNELS, *GRID, generator=torch.Generator().manual_seed(2))
    begun = codec.start_clips(latents[0])
    on, after = codec.decode_next(latents[1], begun)
    mixed, _ = codec.decode_next(latents[2], [begun[0], after[1]])
    alone, _ = codec.decode_next(latents[2, :1], begun[:1])
    assert torch.allclose(mixed[:1], alone, atol=1e-5)
    again, _ = codec.decode_next(latents[1], begun)
    assert torch.equal(on, again)


def test_an_image_and_a_clip_encode_as_wan_does():
    vae = tiny_vae().eval()
    codec = WanCodec(vae)
    frames = torch.rand(1, 5, 3, *SIZE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    said = vae.encode(frames.transpose(1, 2)).latent_dist.mode()
    expected = ((said - codec.mean) / codec.deviation).transpose(1, 2)
    assert torch.equal(codec.encode(frames[:, 1:], frames[:, 0]), expected[:, 1])
    assert torch.allclose(codec.encode(frames[:, :4].flip(1)), expected[:, 0], atol=1e-5)
    with pytest.raises(ValueError, match="multiples of 16 pixels; got 60x96"):
        codec.encode(torch.zeros(1, 4, 3, 60, 96))
