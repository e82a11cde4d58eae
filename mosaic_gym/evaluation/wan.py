"""How fast a step of a full-size Wan world is, stage by stage: its shapes with random weights, no download.

Timed is the streaming student (`causal`, few steps): clean tokens are read once, one clip goes on for ever. Quality
is not asked about; random weights have none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler

from mosaic_gym.geometry.control import Control
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.model.checkpoints import WorldModel, WorldSettings
from mosaic_gym.model.transformer import MosaicTransformer3DModel
from mosaic_gym.model.wan import PROMPT_TOKENS, WanCodec
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.protocol import Start

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "5B": (
        {
            "num_attention_heads": 24, "attention_head_dim": 128, "in_channels": 48, "out_channels": 48,
            "text_dim": 4096, "freq_dim": 256, "ffn_dim": 14336, "num_layers": 30,
        },
        {
            "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
            "temperal_downsample": [False, True, True], "is_residual": True, "in_channels": 12, "out_channels": 12,
            "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
        },
    ),
    "tiny": (
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 6, "out_channels": 6,
            "text_dim": 32, "freq_dim": 16, "ffn_dim": 48, "num_layers": 2,
        },
        {
            "base_dim": 4, "decoder_base_dim": 4, "z_dim": 6, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1,
            "temperal_downsample": [False, True, True], "is_residual": True, "in_channels": 12, "out_channels": 12,
            "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 6, "latents_std": [1.0] * 6,
        },
    ),
}  # fmt: skip
"""Transformer and autoencoder, as Wan 2.2 TI2V-5B has them; and a toy to try the benchmark on a CPU."""
STAGES = {
    "recall": "memory", "denoised": "network", "_decode": "codec", "_estimate_depth": "depth", "_remember": "memory",
    "_carried_on": "codec",
}  # fmt: skip
"""Methods of the world that are timed, and what their time counts as; the rest of a step is bookkeeping."""


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym evaluate wan` takes."""

    shape: str = "5B"
    """`5B`, or `tiny`."""
    sizes: tuple[tuple[int, int], ...] = ((352, 640), (704, 1280))
    """Heights and widths of the frames, pixels."""
    denoising_steps: int = 4
    """Of the student."""
    steps: int = 16
    """Environment steps that are timed."""
    warm_up: int = 8
    """Steps before that, which fill the memory and compile."""
    device: str = "cuda"
    """Where everything runs."""
    dtype: str = "bfloat16"
    """Of all networks."""
    compile: bool = True
    """Compile the transformer's blocks."""
    json: Path | None = None
    """Where to write every figure."""


class _NoPrompts:
    """Prompt vectors of the right shape: a prompt is encoded once an episode, which is not what is timed."""

    def __init__(self, width: int, dtype: torch.dtype, device: str):
        self.vectors = torch.randn(1, PROMPT_TOKENS, width, device=device).to(dtype)

    def encode(self, prompts: list[str]) -> torch.Tensor:
        return self.vectors.expand(len(prompts), -1, -1)


class _Depth:
    """Depth-Anything (small) with random weights, its answer made positive; without its image processor, which in
    play runs on the CPU and is not timed here."""

    def __init__(self, dtype: torch.dtype, device: str):
        from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

        self.model = DepthAnythingForDepthEstimation(DepthAnythingConfig()).to(device, dtype).eval()
        self.dtype = dtype

    def to(self, device: str) -> _Depth:
        return self

    @torch.no_grad()
    def estimate(self, frames: torch.Tensor, image_from_camera: torch.Tensor) -> torch.Tensor:
        sides = [max(14, side // 14 * 14) for side in frames.shape[-2:]]
        scaled = torch.nn.functional.interpolate(frames, size=sides, mode="bilinear")
        said = self.model(pixel_values=scaled.to(self.dtype)).predicted_depth[:, None]
        said = torch.nn.functional.interpolate(said.float(), size=frames.shape[-2:], mode="nearest")[:, 0]
        return 2.0 + torch.sigmoid(said)


def build(config: Config, size: tuple[int, int]) -> MosaicWorld:
    """A world of these shapes with random weights.

    Raises:
        ValueError: an unknown shape. RuntimeError: the device has too little memory.
    """
    if config.shape not in SHAPES:
        raise ValueError(f"shape is one of {', '.join(SHAPES)}; got {config.shape!r}")
    dtype = getattr(torch, config.dtype)
    of_transformer, of_vae = SHAPES[config.shape]
    torch.manual_seed(0)
    with torch.device(config.device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            transformer = MosaicTransformer3DModel(**of_transformer, insertion="parallel", causal=True)
            vae = AutoencoderKLWan(**of_vae)
        finally:
            torch.set_default_dtype(before)
    if config.compile:
        transformer.compile_repeated_blocks(dynamic=True)
    focal = 0.7 * size[1]
    tokens = (size[0] // 32) * (size[1] // 32)
    settings = WorldSettings(
        *size, ((focal, 0.0, size[1] / 2), (0.0, focal, size[0] / 2), (0.0, 0.0, 1.0)), asdict(Control()),
        denoising_steps=config.denoising_steps, max_patches=tokens,
    )  # fmt: skip
    codec = WanCodec(vae.eval(), restarts=False).to(config.device)
    prompts = _NoPrompts(transformer.config.text_dim, dtype, config.device)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    model = WorldModel(
        settings, transformer, None, codec, prompts, _Depth(dtype, config.device), None, None, scheduler,
        torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8), ("",),
    )  # fmt: skip
    return MosaicWorld(model, device=config.device)


@contextmanager
def timed(world: MosaicWorld, spent: dict[str, float]) -> Any:
    """Adds the seconds of every stage to `spent`, by what it counts as."""

    def clocked(method: Callable[..., Any], kind: str) -> Callable[..., Any]:
        @wraps(method)
        def run(*args: Any) -> Any:
            started = now(world.device)
            result = method(*args)
            spent[kind] = spent.get(kind, 0.0) + now(world.device) - started
            return result

        return run

    for name, kind in STAGES.items():
        setattr(world, name, clocked(getattr(world, name), kind))
    try:
        yield
    finally:
        for name in STAGES:
            delattr(world, name)


def now(device: torch.device) -> float:
    """Seconds, with everything on the device done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(config: Config, size: tuple[int, int]) -> dict[str, Any]:
    """Milliseconds of a step by stage, frames a second, and peak memory in GiB."""
    if config.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    world = build(config, size)
    state, _ = world.start(Start(0))
    state = _walk(world, state, config.warm_up)
    spent: dict[str, float] = {}
    with timed(world, spent):
        started = now(world.device)
        _walk(world, state, config.steps)
        whole = now(world.device) - started
    spent["bookkeeping"] = whole - sum(spent.values())
    outside = (spent.get("memory", 0.0) + spent["bookkeeping"]) / whole
    peak = torch.cuda.max_memory_allocated() / 2**30 if config.device.startswith("cuda") else None
    return {
        "size": list(size),
        "frames_per_second": 4 * config.steps / whole,
        "ms": {kind: 1e3 * seconds / config.steps for kind, seconds in spent.items()},
        "outside_share": outside,
        "peak_gib": peak,
        "keyframes": config.warm_up + config.steps + 1,
    }


def _walk(world: MosaicWorld, state: Any, steps: int) -> Any:
    thrusts = torch.tensor([[1.0, 0.0, 0.3], [1.0, 0.0, -0.3], [0.0, 0.0, 0.5]]).numpy()
    for index in range(steps):
        (state,), _ = world.step([state], thrusts[index % 3][None])
    assert isinstance(state.memory, MosaicMemory)
    return state


def evaluate(config: Config) -> list[dict[str, Any]]:
    """Prints a table of stages for every size.

    Raises:
        ValueError: no CUDA device where one is asked for, or fewer than one step.
    """
    if config.steps < 1 or config.warm_up < 0:
        raise ValueError("give at least 1 step, and a warm-up of 0 or more")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("this torch sees no CUDA device; --device cpu --shape tiny shows what would be measured")
    told = []
    for size in config.sizes:
        figure = measure(config, tuple(size))
        told.append(figure)
        stages = ", ".join(f"{kind} {ms:.1f}" for kind, ms in figure["ms"].items())
        peak = "" if figure["peak_gib"] is None else f"; peak {figure['peak_gib']:.1f} GiB (goal <= 40 at 352x640)"
        print(f"{config.shape} {size[0]}x{size[1]}, {config.denoising_steps} denoising steps, {config.dtype}:")
        print(f"  {figure['frames_per_second']:.1f} frames a second (goal >= 16 at 352x640)")
        print(f"  milliseconds a step: {stages}{peak}")
        print(f"  outside network, codec and depth: {figure['outside_share']:.1%} (goal <= 5 %)")
    if config.json is not None:
        config.json.write_text(json.dumps(told, indent=2) + "\n")
    return told
