"""The codec of pictures with depth."""

from __future__ import annotations

import pytest
import torch

from mosaic_gym.model.parts import load_part, round_to_half, save_part
from mosaic_gym.model.rgbd_codec import RGBDCodec
from mosaic_gym.training.rgbd_codec import gradient_amplitude, measure, reconstruction_loss


@torch.no_grad()
def test_with_all_components_the_linear_maps_lose_nothing():
    torch.manual_seed(0)
    pictures = torch.rand(20, 4, 16, 24) * 2 - 1
    codec = RGBDCodec(64, (8, 16))
    codec.fit_linear(pictures)
    latents = codec.encode_pictures(pictures)
    assert latents.shape == (20, 64, 4, 6)
    assert torch.allclose(codec.decode_pictures(latents), pictures, atol=1e-4)
    assert 0.5 < float(latents.square().mean()) < 2.0, "the mean square of latents is about one"
    kept = measure(codec, pictures)
    assert kept["psnr"] > 60 and kept["gradient_energy"] == pytest.approx(1.0, abs=1e-3) and kept["depth_error"] < 1e-3


@torch.no_grad()
def test_fewer_components_keep_less():
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(40, 4, 6, 6) * 2 - 1, size=(24, 24), mode="bilinear")
    found = []
    for channels in (2, 8, 32):
        codec = RGBDCodec(channels, (8, 16))
        codec.fit_linear(smooth)
        found.append(measure(codec, smooth)["psnr"])
    assert found == sorted(found) and found[-1] > found[0] + 5


def test_wrong_pictures_are_named():
    codec = RGBDCodec(4, (8, 16))
    with pytest.raises(ValueError, match=r"colors and depth.*got \[1, 3, 16, 16\]"):
        codec.encode_pictures(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="multiples of 4"):
        codec.encode_pictures(torch.zeros(1, 4, 18, 16))


@torch.no_grad()
def test_saved_weights_come_back(tmp_path):
    codec = RGBDCodec(4, (8, 16))
    codec.fit_linear(torch.rand(20, 4, 16, 16))
    round_to_half(codec)
    save_part(codec, tmp_path / "codec")
    loaded = load_part(RGBDCodec, tmp_path, "codec")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in codec.state_dict().items())


def test_the_loss_punishes_a_blur_more_where_energy_counts():
    torch.manual_seed(0)
    sharp = torch.rand(2, 4, 16, 16) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
    assert float(reconstruction_loss(sharp, sharp, 1.0)) == 0.0
    assert float(reconstruction_loss(blurred, sharp, 1.0)) > float(reconstruction_loss(blurred, sharp, 0.0)) > 0
    assert float(gradient_amplitude(blurred).mean()) < float(gradient_amplitude(sharp).mean())
