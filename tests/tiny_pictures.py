"""A world of color and depth at tiny size, with random weights."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from mosaic_gym.geometry.control import Control, control_settings
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.depth import ConvDepth
from mosaic_gym.model.hourglass import HourglassTransformer
from mosaic_gym.model.rgbd_codec import RGBDCodec
from mosaic_gym.model.settings import WorldSettings
from mosaic_gym.model.text import ByteTextEncoder
from tests.tiny import tiny_outcome

SIZE = (32, 48)
K = ((32.0, 0.0, 24.0), (0.0, 25.6, 16.0), (0.0, 0.0, 1.0))


def tiny_transformer(channels: int = 6, text_dim: int = 16) -> HourglassTransformer:
    """A transformer whose output is not zero."""
    transformer = HourglassTransformer(channels, 1, widths=(16, 32), num_fine_blocks=1, num_blocks=2, head_dim=32,
                                       text_dim=text_dim)  # fmt: skip
    for block in transformer.blocks:
        torch.nn.init.normal_(block.to_out.weight, std=0.1)
        torch.nn.init.normal_(block.mlp_out.weight, std=0.1)
    for layer in (transformer.proj_out, transformer.skip):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return transformer


def tiny_codec(channels: int = 6) -> RGBDCodec:
    """A codec whose linear maps are fitted to noise."""
    codec = RGBDCodec(channels, (8, 16))
    codec.fit_linear(torch.rand(20, 4, *SIZE) * 2 - 1)
    return codec


def tiny_picture_model(seed: int = 0, capacity: int = 16) -> WorldModel:
    """A world model of a few thousand random weights, non-square pixels."""
    torch.manual_seed(seed)
    settings = WorldSettings(
        height=SIZE[0], width=SIZE[1], image_from_camera=K, control=control_settings(Control()), denoising_steps=2,
        history=2, max_sources=3, max_patches=8, capacity=capacity, scenario="rooms",
    )  # fmt: skip
    return WorldModel(
        settings,
        tiny_transformer(),
        None,
        tiny_codec(),
        ByteTextEncoder(width=16, length=96, outputs=2),
        ConvDepth(widths=(8, 8, 16)),
        tiny_outcome(),
        None,
        FlowMatchEulerDiscreteScheduler(),
        torch.randint(0, 256, (3, *SIZE, 3), dtype=torch.uint8),
        ("a room", "a hall", "a wall close ahead"),
    )
