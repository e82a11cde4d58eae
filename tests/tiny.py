"""The real classes at tiny size: a world model with random weights, and episodes recorded in the engine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from mosaic_gym.geometry.control import Control
from mosaic_gym.model.checkpoints import WorldModel, WorldSettings
from mosaic_gym.model.codec import LinearCodec
from mosaic_gym.model.depth import ConvDepth
from mosaic_gym.model.detail import DetailNet
from mosaic_gym.model.outcome import OutcomeHeads
from mosaic_gym.model.text import ByteTextEncoder
from mosaic_gym.model.transformer import MosaicTransformer3DModel
from mosaic_gym.worlds.recording import RecordConfig, record

SIZE = (32, 48)


def tiny_model(seed: int = 0, capacity: int = 16, size: tuple[int, int] = SIZE) -> WorldModel:
    """A world model of a few thousand random weights, non-square pixels."""
    torch.manual_seed(seed)
    codec = LinearCodec(channels=24, stride=8)
    codec.fit(torch.rand(40, 4, 3, *size) * 2 - 1)
    transformer = MosaicTransformer3DModel(
        latent_channels=24,
        num_attention_heads=1,
        attention_head_dim=32,
        num_layers=2,
        ffn_dim=32,
        text_dim=16,
        freq_dim=16,
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.05)
    detail = DetailNet(widths=(8, 8, 8))
    torch.nn.init.normal_(detail.head.weight, std=0.05)
    settings = WorldSettings(
        height=size[0],
        width=size[1],
        image_from_camera=((32.0, 0.0, size[1] / 2), (0.0, 25.6, size[0] / 2), (0.0, 0.0, 1.0)),
        control=asdict(Control()),
        max_patches=8,
        capacity=capacity,
    )
    return WorldModel(
        settings,
        transformer,
        detail,
        codec,
        ByteTextEncoder(width=16, length=96, outputs=2),
        ConvDepth(widths=(8, 8, 16)),
        tiny_outcome(),
        FlowMatchEulerDiscreteScheduler(),
        torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8),
        ("a room", "a hall", "a wall close ahead"),
    )


def tiny_outcome() -> OutcomeHeads:
    """Heads that mostly say: a small loss, and no end."""
    heads = OutcomeHeads(widths=(8, 8))
    heads.reward_values.copy_(torch.tensor([-0.25, 0.0, 1.0]))
    torch.nn.init.zeros_(heads.tell.weight)
    heads.tell.bias.data.copy_(torch.tensor([6.0, 0.0, 0.0, -12.0]))
    return heads


def record_few(root: Path) -> Path:
    """Nine training episodes and a held-out one, six steps each."""
    record(RecordConfig(out=root, episodes=10, steps_per_episode=6, height=48, width=64, workers=1))
    return root
