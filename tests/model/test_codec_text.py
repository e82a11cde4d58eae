"""The linear codec's algebra, and prompts as bytes."""

import pytest
import torch

from mosaic_gym.model.codec import LinearCodec, frames_to_float, frames_to_uint8
from mosaic_gym.model.text import ByteTextEncoder


def blocks(n: int = 30) -> torch.Tensor:
    return torch.rand(n, 4, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_all_components_repeat_exactly_and_more_repeat_better():
    frames, errors = blocks(), []
    for channels in (16, 64, 192):
        codec = LinearCodec(channels, stride=4)
        codec.fit(frames)
        errors.append(float((codec.decode(codec.encode(frames)) - frames).square().mean()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-8


def test_a_still_is_the_last_frame_and_stills_make_a_clip():
    frames = blocks(4)
    codec = LinearCodec(64, stride=4)
    codec.fit(blocks())
    latents = codec.encode(frames)
    assert torch.allclose(codec.keyframe_image(latents), codec.decode(latents)[:, -1], atol=1e-6)
    assert torch.equal(codec.from_keyframe_images(frames), latents)


def test_components_are_orthonormal_and_latent_errors_times_scale_are_pixel_errors():
    codec = LinearCodec(48, stride=4)
    codec.fit(blocks())
    assert torch.allclose(codec.components @ codec.components.T, torch.eye(48), atol=1e-5)
    one, two = codec.encode(blocks(2))
    in_latents = ((one - two) * codec.scale[:, None, None]).square().sum()
    shown = codec.decode(torch.stack([one, two]))
    assert torch.allclose(in_latents, (shown[0] - shown[1]).square().sum(), rtol=1e-4)


def test_frames_survive_the_way_to_floats_and_back():
    frames = torch.randint(0, 256, (2, 4, 8, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(frames_to_uint8(frames_to_float(frames)), frames)


def test_wrong_clips_are_refused():
    with pytest.raises(ValueError, match="multiples of 4"):
        LinearCodec(8, stride=4).encode(torch.zeros(1, 4, 3, 10, 12))
    with pytest.raises(ValueError, match="takes \\[b, 4"):
        LinearCodec(8, stride=4).encode(torch.zeros(1, 3, 3, 8, 12))


def test_prompts_are_bytes_and_are_never_cut():
    encoder = ByteTextEncoder(width=16, length=12, outputs=3)
    assert encoder.encode(["a room", "ein Saal"]).shape == (2, 3, 16)
    assert not torch.allclose(encoder.encode(["a"]), encoder.encode(["b"]))
    with pytest.raises(ValueError, match="at most 12 bytes; this one has 14"):
        encoder.tokenize(["äääääää"])
