"""The real classes at tiny size: a world model with random weights, and episodes recorded in the engine."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from mosaic_gym.geometry.control import Control, control_settings
from mosaic_gym.memory.keyframe import Keyframe, lift
from mosaic_gym.model.atlas import Atlas
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.codec import LinearCodec
from mosaic_gym.model.depth import ConvDepth
from mosaic_gym.model.refiner import Refiner
from mosaic_gym.model.reward_heads import RewardTerminationHeads
from mosaic_gym.model.settings import WorldSettings
from mosaic_gym.model.text import ByteTextEncoder
from mosaic_gym.model.transformer import MosaicTransformer3DModel
from mosaic_gym.worlds.recording import RecordConfig, record

SIZE = (32, 48)


def lifted(latent, depth_m, world_from_camera, image_from_camera, generation, step, place=None) -> Keyframe:
    """One keyframe, of what `lift` takes many of."""
    places = None if place is None else place[None]
    told = latent[None], depth_m[None], world_from_camera[None], image_from_camera, generation[None]
    (keyframe,) = lift(*told, [step], places)
    return keyframe


def tiny_model(seed: int = 0, capacity: int = 16, size: tuple[int, int] = SIZE) -> WorldModel:
    """A world model of a few thousand random weights, non-square pixels."""
    torch.manual_seed(seed)
    codec = LinearCodec(channels=24, stride=8)
    codec.fit(torch.rand(40, 4, 3, *size) * 2 - 1)
    transformer = MosaicTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=1,
        attention_head_dim=32,
        in_channels=24,
        out_channels=24,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        insertion="split",
        causal=True,
        rope_theta=100.0,
        metres_per_unit=4.0,
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.05)
    refiner = Refiner(widths=(8, 8, 8))
    torch.nn.init.normal_(refiner.head.weight, std=0.05)
    settings = WorldSettings(
        height=size[0],
        width=size[1],
        image_from_camera=((32.0, 0.0, size[1] / 2), (0.0, 25.6, size[0] / 2), (0.0, 0.0, 1.0)),
        control=control_settings(Control()),
        max_patches=8,
        capacity=capacity,
    )
    return WorldModel(
        settings,
        transformer,
        refiner,
        codec,
        ByteTextEncoder(width=16, length=96, outputs=2),
        ConvDepth(widths=(8, 8, 16)),
        tiny_outcome(),
        tiny_atlas(size),
        FlowMatchEulerDiscreteScheduler(),
        torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8),
        ("a room", "a hall", "a wall close ahead"),
    )


def tiny_outcome() -> RewardTerminationHeads:
    """Heads that mostly say: a small loss, and no end."""
    heads = RewardTerminationHeads(widths=(8, 8))
    heads.reward_values.copy_(torch.tensor([-0.25, 0.0, 1.0]))
    torch.nn.init.zeros_(heads.tell.weight)
    heads.tell.bias.data.copy_(torch.tensor([6.0, 0.0, 0.0, -12.0]))
    return heads


def tiny_atlas(size: tuple[int, int] = SIZE) -> Atlas:
    """An atlas of a map that it has not learnt."""
    return Atlas(
        *size, corner_m=(0.0, -32.0), side_m=48.0, coarse=8, fine=16, features=4, samples=6, hidden=16, cells=4,
        headings=8, strip=8, ground=8,
    )  # fmt: skip


def record_few(root: Path) -> Path:
    """Nine training episodes and a held-out one, six steps each."""
    record(RecordConfig(out=root, episodes=10, steps_per_episode=6, height=48, width=64, workers=1))
    return root


def save_depth(folder: Path) -> Path:
    """A depth model of a real class with random weights."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(3)
    config = DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False,
        reassemble_factors=[4, 2, 1, 0.5],
    )  # fmt: skip
    model = DPTForDepthEstimation(config)
    torch.nn.init.constant_(model.head.head[-2].bias, 2.0)  # metres, about
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


class Trap:
    """Leaves a file behind wherever it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled_only(folder: Path, name: str, sprung: Path) -> None:
    """Leaves a folder weights that torch would unpickle, `name`.bin, and no others; `sprung` appears if it does."""
    (folder / f"{name}.safetensors").unlink()
    torch.save({"weight": torch.zeros(1), "trap": Trap(sprung)}, folder / f"{name}.bin")
