"""Measures the speed of a full-size Wan world's step, stage by stage, with random weights; nothing is downloaded.

The measured model is the streaming student (`causal`, few denoising steps): clean tokens are read once a step, and
decoding continues one clip. Because weights are random, quality is not measured.
"""

from __future__ import annotations

import gc
import json
import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile, record_function

from mosaic_gym.evaluation.speed.stages import GROUPS, REST, Operations, Stopwatch, now, staged
from mosaic_gym.geometry.control import Control, control_settings
from mosaic_gym.model.checkpoints import WorldModel, WorldSettings
from mosaic_gym.model.depth import HuggingFaceDepth
from mosaic_gym.model.transformer import MosaicTransformer3DModel
from mosaic_gym.model.wan.cameras import METRES_PER_UNIT
from mosaic_gym.model.wan.codec import PROMPT_TOKENS, WanCodec
from mosaic_gym.model.wan.options import DTYPES
from mosaic_gym.validation import Flag, ListOf, OneOf, Text, Whole, option, validate
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.protocol import Start
from mosaic_gym.worlds.state import WorldState

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
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
        {},
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
        {
            "backbone_config": {
                "model_type": "dinov2", "image_size": 28, "hidden_size": 32, "num_hidden_layers": 4,
                "num_attention_heads": 2, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False,
            },
            "reassemble_hidden_size": 32, "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8,
        },
    ),
}  # fmt: skip
"""The configs of transformer, autoencoder and depth model by name: those of Wan 2.2 TI2V-5B, and tiny ones to try the
benchmark on a CPU. The depth model's hold only what differs from Depth Anything V2 Small's."""
TOKEN_PX = 32
"""Pixels along each side of a token: the autoencoders' stride of 16 times patches of 2."""
DRIVER_CALLS = ("Launch", "Memcpy", "Synchronize")
"""Parts of the names of the CUDA calls that a profile counts."""
PROFILED_STEPS = 4
"""Steps that are profiled, and steps that are timed with a full memory."""


@dataclass(frozen=True)
class Config:
    """Measure the time of a full-size Wan step, stage by stage, with random weights."""

    shape: Annotated[str, OneOf(*SHAPES)] = "5B"
    """`5B`, or `tiny`."""
    sizes: Annotated[tuple[tuple[int, int], ...], ListOf(ListOf(Whole(TOKEN_PX)))] = ((352, 640), (704, 1280))
    """Heights and widths of the frames, pixels; multiples of 32."""
    denoising_steps: Annotated[int, Whole(1)] = 4
    """Denoising steps of the student."""
    steps: Annotated[int, Whole(1)] = 16
    """Environment steps that are timed."""
    warm_up: Annotated[int, Whole(0)] = 8
    """Steps before those, which fill the memory and compile."""
    device: Annotated[str, Text()] = "cuda"
    """The device that everything runs on."""
    dtype: Annotated[str, OneOf(*DTYPES)] = "bfloat16"
    """Precision of the transformer and the autoencoder, as for a student. Modules that diffusers keeps in float32 (time
    embedding, norms, scale and shift tables) are in float32 here too. The depth model runs in float32, as in play."""
    compile: Annotated[bool, Flag()] = True
    """Compile the transformer's blocks."""
    profile: Path | None = None
    """A folder for tables of the operations of some steps, which are printed too; None for no tables."""
    json: Path | None = None
    """A JSON file for all figures, written after each size; None for no file."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        validate(self, option)
        for size in self.sizes:
            if len(size) != 2 or any(side % TOKEN_PX for side in size):
                raise ValueError(
                    f"--sizes takes heights and widths that are multiples of {TOKEN_PX} pixels; got "
                    f"{'x'.join(map(str, size))}"
                )


class _RandomPrompts:
    """Random prompt vectors of the right shape. A prompt is encoded once an episode, so steps do not include it.

    In play the text encoder stays on the GPU: UMT5-XXL in bfloat16 takes 10.6 GiB beside the memory measured here.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: str):
        self.vectors = torch.randn(1, PROMPT_TOKENS, width, device=device).to(dtype)

    def encode(self, prompts: list[str]) -> torch.Tensor:
        return self.vectors.expand(len(prompts), -1, -1)


def _random_depth(shape: dict[str, Any], device: str) -> HuggingFaceDepth:
    """Depth Anything with random weights and the same image processor as in play, on the CPU."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, DPTImageProcessor

    # Random weights predict half of the maximum depth; with this maximum that is the depth of a room.
    config = DepthAnythingConfig(**shape, depth_estimation_type="metric", max_depth=5)
    side = config.backbone_config.image_size
    processor = DPTImageProcessor(
        size={"height": side, "width": side}, keep_aspect_ratio=True, ensure_multiple_of=14, resample=3
    )
    with TemporaryDirectory() as folder:
        DepthAnythingForDepthEstimation(config).save_pretrained(folder)
        processor.save_pretrained(folder)
        return HuggingFaceDepth(folder, device=device)


def build(config: Config, size: tuple[int, int]) -> MosaicWorld:
    """A world of these shapes with random weights.

    Raises:
        RuntimeError: the device has too little memory.
    """
    dtype = getattr(torch, config.dtype)
    transformer_config, vae_config, depth_config = SHAPES[config.shape]
    torch.manual_seed(0)
    with torch.device(config.device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            options = {"insertion": "parallel", "causal": True, "metres_per_unit": METRES_PER_UNIT}
            transformer = MosaicTransformer3DModel(**transformer_config, **options)
            vae = AutoencoderKLWan(**vae_config)
        finally:
            torch.set_default_dtype(before)
    for name, parameter in transformer.named_parameters():  # as from_pretrained does
        if not set(transformer._keep_in_fp32_modules).isdisjoint(name.split(".")):
            parameter.data = parameter.data.float()
    if config.compile:
        transformer.compile_repeated_blocks(dynamic=True)
    focal = 0.7 * size[1]
    tokens = (size[0] // TOKEN_PX) * (size[1] // TOKEN_PX)
    settings = WorldSettings(
        *size, ((focal, 0.0, size[1] / 2), (0.0, focal, size[0] / 2), (0.0, 0.0, 1.0)), control_settings(Control()),
        denoising_steps=config.denoising_steps, max_patches=tokens,
    )  # fmt: skip
    codec = WanCodec(vae.eval(), restarts=False).to(config.device)
    prompts = _RandomPrompts(transformer.config.text_dim, dtype, config.device)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    model = WorldModel(
        settings, transformer, None, codec, prompts, _random_depth(depth_config, config.device), None, None, scheduler,
        torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8), ("",),
    )  # fmt: skip
    return MosaicWorld(model, device=config.device)


def measure(config: Config, size: tuple[int, int], figures: dict[str, Any]) -> Iterator[str]:
    """Measures one size. Fills in `figures` and yields lines for the terminal as soon as each result is known.

    A later failure therefore loses no earlier result. Stages are timed on steps of their own, because waiting for each
    stage makes a step a little slower.
    """
    world, state = yield from _measure_start(config, size, figures)
    state = _walk(world, state, config.warm_up)
    state = yield from _measure_rate(config, world, state, figures)
    yield from _measure_stages(config, world, state, figures)
    if config.profile is not None:
        config.profile.mkdir(parents=True, exist_ok=True)
        tables, figures["calls"] = _profile(world, state)
        (config.profile / f"{config.shape}_{size[0]}x{size[1]}.txt").write_text(tables)
        yield tables


def _measure_start(
    config: Config, size: tuple[int, int], figures: dict[str, Any]
) -> Generator[str, None, tuple[MosaicWorld, WorldState]]:
    """Building, the start of an episode, and the first step."""
    before = time.perf_counter()
    world = build(config, size)
    figures["built_s"] = now(world.device) - before
    figures["vae_dtype"] = str(world.model.codec.vae.dtype).removeprefix("torch.")
    yield f"the autoencoder is in {figures['vae_dtype']}, as for a student; other models have it in float32"
    if world.device.type == "cuda":
        figures["built_gib"] = torch.cuda.memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    before = now(world.device)
    state, _ = world.start(Start(0))
    figures["started_s"] = now(world.device) - before
    before = now(world.device)
    state = _walk(world, state, 1)
    figures["first_step_s"] = now(world.device) - before
    yield (
        f"seconds to build {figures['built_s']:.1f}, to start an episode {figures['started_s']:.1f}, for the first "
        f"step {figures['first_step_s']:.1f}"
    )
    return world, state


def _measure_rate(
    config: Config, world: MosaicWorld, state: WorldState, figures: dict[str, Any]
) -> Generator[str, None, WorldState]:
    """Frames per second, compiled graphs, and memory."""
    graphs, before = counters["stats"]["unique_graphs"], now(world.device)
    state = _walk(world, state, config.steps)
    seconds = (now(world.device) - before) / config.steps
    late = counters["stats"]["unique_graphs"] - graphs
    figures |= {"frames_per_second": 4 / seconds, "step_ms": 1e3 * seconds, "graphs": graphs, "graphs_late": late}
    rate = f"{4 / seconds:.1f} frames a second (goal >= 16 at 352x640)"
    yield f"{rate}: {1e3 * seconds:.1f} ms a step; {graphs} graphs compiled before, {late} during these steps"
    if world.device.type == "cuda":
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        peak = f"{figures['peak_gib']:.1f} (goal <= 40 at 352x640)"
        yield f"GiB without a text encoder: {figures['built_gib']:.1f} after building, at most {peak}"
    return state


def _measure_stages(config: Config, world: MosaicWorld, state: WorldState, figures: dict[str, Any]) -> Iterator[str]:
    """Milliseconds of each stage, also with a full memory, and operations of each stage."""
    ms = figures["ms"] = _stage_ms(world, state, config.steps)
    outside = sum(ms[name] for group in ("memory", REST) for name in GROUPS[group])
    figures["outside_share"] = outside / sum(ms.values())
    figures["keyframes"] = len(state.memory)
    yield f"milliseconds of stages, waiting for each: {_format_ms(ms)}"
    yield f"outside network, codec and depth: {figures['outside_share']:.1%} (goal <= 5 %)"
    copies = state.memory.keyframes * (world.capacity // len(state.memory) + 1)
    full = replace(state, memory=replace(state.memory, keyframes=copies[: world.capacity]))
    figures["ms_full"], figures["keyframes_full"] = _stage_ms(world, full, PROFILED_STEPS), len(full.memory)
    yield f"with {len(full.memory)} keyframes instead of {len(state.memory)}: {_format_ms(figures['ms_full'])}"
    if not config.compile:  # compiled code shows no operations
        figures["operations"] = _count_operations(world, full)
        counts = ", ".join(f"{stage} {count}" for stage, count in figures["operations"].items())
        yield f"operations a step that are not views: {counts}"


def _format_ms(ms: dict[str, float]) -> str:
    parts = []
    for group, names in GROUPS.items():
        terms = " + ".join(f"{name} {ms[name]:.1f}" for name in names)
        parts.append(f"{group} {sum(ms[name] for name in names):.1f}" + (f" ({terms})" if len(names) > 1 else ""))
    return ", ".join(parts)


def _stage_ms(world: MosaicWorld, state: WorldState, steps: int) -> dict[str, float]:
    stopwatch = Stopwatch(world.device)
    with staged(world, stopwatch):
        _walk(world, state, steps)
    return {stage: 1e3 * seconds / steps for stage, seconds in stopwatch.stop().items()}


def _count_operations(world: MosaicWorld, state: WorldState) -> dict[str, int]:
    operations = Operations()
    with staged(world, operations), operations:
        _walk(world, state, 1)
    return dict(operations.counts)


def _profile(world: MosaicWorld, state: WorldState) -> tuple[str, dict[str, float]]:
    """Tables of the operations of a few steps, and the kernel launches, copies and waits of a step by stage."""
    activities = [ProfilerActivity.CPU]
    if world.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler, staged(world, lambda stage: record_function(f"stage {stage}")):
        _walk(world, state, PROFILED_STEPS)
        now(world.device)
    counts: Counter[str] = Counter()
    for event in profiler.events():
        kind = next((kind for kind in DRIVER_CALLS if event.name.startswith("cu") and kind in event.name), None)
        if kind is None:
            continue
        outer = event
        while outer is not None and not outer.name.startswith("stage "):
            outer = outer.cpu_parent
        counts[f"{kind} in {REST if outer is None else outer.name.removeprefix('stage ')}"] += 1
    calls = {name: count / PROFILED_STEPS for name, count in sorted(counts.items())}
    averages = profiler.key_averages()
    orders = ("self_device_time_total", "self_cpu_time_total")
    tables = [averages.table(sort_by=order, row_limit=40, max_name_column_width=70) for order in orders]
    return "\n".join([*tables, f"calls of the driver a step: {calls}"]), calls


def _walk(world: MosaicWorld, state: WorldState, steps: int) -> WorldState:
    actions = np.array([[1.0, 0.0, 0.3], [1.0, 0.0, -0.3], [0.0, 0.0, 0.5]], dtype=np.float32)
    for index in range(steps):
        (state,), _ = world.step([state], actions[index % 3][None])
    return state


def evaluate(config: Config) -> list[dict[str, Any]]:
    """Prints the figures of every size. After a size that fails, for example for lack of memory, the next is measured.

    Raises:
        ValueError: the config asks for a CUDA device, and there is none.
    """
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            "torch finds no CUDA device; a run of a few seconds shows what is measured: --device cpu --shape tiny "
            "--dtype float32 --no-compile --sizes 64 96"
        )
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
    print(_machine(config.device), flush=True)
    rows: list[dict[str, Any]] = []
    for size in config.sizes:
        options = f"{config.denoising_steps} denoising steps, {config.dtype}"
        print(f"{config.shape} {size[0]}x{size[1]}, {options}:", flush=True)
        figures: dict[str, Any] = {"size": list(size)}
        rows.append(figures)
        try:
            for line in measure(config, size, figures):
                print(f"  {line}", flush=True)
        except (RuntimeError, MemoryError) as error:
            figures["error"] = str(error)
            print(f"  failed: {error}", flush=True)
        if config.json is not None:
            config.json.write_text(json.dumps(rows, indent=2) + "\n")
        gc.collect()
        if config.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return rows


def _machine(device: str) -> str:
    if not device.startswith("cuda"):
        return f"{device}, torch {torch.__version__}"
    name, cudnn = torch.cuda.get_device_name(device), torch.backends.cudnn.version()
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
