"""How fast a step of a full-size Wan world is, stage by stage: its shapes with random weights, no download.

Timed is the streaming student (`causal`, few steps): clean tokens are read once, one clip goes on for ever. Quality
is not asked about; random weights have none.
"""

from __future__ import annotations

import gc
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile, record_function

from mosaic_gym.evaluation.stages import GROUPS, REST, Operations, Stopwatch, now, staged
from mosaic_gym.geometry.control import Control
from mosaic_gym.model.checkpoints import WorldModel, WorldSettings
from mosaic_gym.model.depth import HuggingFaceDepth
from mosaic_gym.model.transformer import MosaicTransformer3DModel
from mosaic_gym.model.wan.cameras import METRES_PER_UNIT
from mosaic_gym.model.wan.codec import PROMPT_TOKENS, WanCodec
from mosaic_gym.model.wan.options import DTYPES
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
"""Transformer and autoencoder as Wan 2.2 TI2V-5B has them, and of the depth model's config what differs from Depth
Anything V2 Small's; and a toy to try the benchmark on a CPU."""
UNIT = 32
"""Pixels to a token's side: the autoencoders' stride of 16, and patches of 2."""
DRIVER_CALLS = ("Launch", "Memcpy", "Synchronize")
"""What a profile counts, by parts of the names of CUDA's calls."""
FEW = 4
"""Steps that are profiled, and that are timed with a full memory."""


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
    """Of the transformer and the autoencoder, as a student's are: of what diffusers keeps in float32 (clock, norms and
    tables of scales), that. The depth model runs in float32, as in play."""
    compile: bool = True
    """Compile the transformer's blocks."""
    profile: Path | None = None
    """A folder for tables of the operations of some steps, which are printed too; None for no tables."""
    json: Path | None = None
    """Where to write every figure, after each size."""


class _NoPrompts:
    """Prompt vectors of the right shape: a prompt is encoded once an episode, which is not what is timed.

    In play the text encoder stays on the GPU: UMT5-XXL in bfloat16 takes 10.6 GiB beside the memory measured here.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: str):
        self.vectors = torch.randn(1, PROMPT_TOKENS, width, device=device).to(dtype)

    def encode(self, prompts: list[str]) -> torch.Tensor:
        return self.vectors.expand(len(prompts), -1, -1)


def _depth(shape: dict[str, Any], device: str) -> HuggingFaceDepth:
    """Depth Anything with random weights, behind the image processor that play has it behind: on the CPU."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, DPTImageProcessor

    # Random weights say half of the greatest depth: a room's.
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
    of_transformer, of_vae, of_depth = SHAPES[config.shape]
    torch.manual_seed(0)
    with torch.device(config.device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            told = {"insertion": "parallel", "causal": True, "metres_per_unit": METRES_PER_UNIT}
            transformer = MosaicTransformer3DModel(**of_transformer, **told)
            vae = AutoencoderKLWan(**of_vae)
        finally:
            torch.set_default_dtype(before)
    for name, parameter in transformer.named_parameters():  # as from_pretrained does
        if not set(transformer._keep_in_fp32_modules).isdisjoint(name.split(".")):
            parameter.data = parameter.data.float()
    if config.compile:
        transformer.compile_repeated_blocks(dynamic=True)
    focal = 0.7 * size[1]
    tokens = (size[0] // UNIT) * (size[1] // UNIT)
    settings = WorldSettings(
        *size, ((focal, 0.0, size[1] / 2), (0.0, focal, size[0] / 2), (0.0, 0.0, 1.0)), asdict(Control()),
        denoising_steps=config.denoising_steps, max_patches=tokens,
    )  # fmt: skip
    codec = WanCodec(vae.eval(), restarts=False).to(config.device)
    prompts = _NoPrompts(transformer.config.text_dim, dtype, config.device)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    model = WorldModel(
        settings, transformer, None, codec, prompts, _depth(of_depth, config.device), None, None, scheduler,
        torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8), ("",),
    )  # fmt: skip
    return MosaicWorld(model, device=config.device)


def measure(config: Config, size: tuple[int, int], figure: dict[str, Any]) -> Iterator[str]:
    """Fills in `figure`, and tells it line by line, each as soon as it is known: what fails later costs it no more.

    Stages are timed on steps of their own, for each is waited for, and a step is a little slower so.
    """
    on_gpu = config.device.startswith("cuda")
    began = time.perf_counter()
    world = build(config, size)
    figure["built_s"] = now(world.device) - began
    figure["vae_dtype"] = str(world.model.codec.vae.dtype).removeprefix("torch.")
    yield f"the autoencoder is in {figure['vae_dtype']}, as a student has it; a model that is none has it in float32"
    if on_gpu:
        figure["built_gib"] = torch.cuda.memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    began = now(world.device)
    state, _ = world.start(Start(0))
    figure["started_s"] = now(world.device) - began
    began = now(world.device)
    state = _walk(world, state, 1)
    figure["first_step_s"] = now(world.device) - began
    yield (
        f"seconds to build {figure['built_s']:.1f}, to begin an episode {figure['started_s']:.1f}, of the first step "
        f"{figure['first_step_s']:.1f}"
    )
    state = _walk(world, state, config.warm_up)

    graphs, began = counters["stats"]["unique_graphs"], now(world.device)
    state = _walk(world, state, config.steps)
    seconds = (now(world.device) - began) / config.steps
    late = counters["stats"]["unique_graphs"] - graphs
    figure |= {"frames_per_second": 4 / seconds, "step_ms": 1e3 * seconds, "graphs": graphs, "graphs_late": late}
    rate = f"{4 / seconds:.1f} frames a second (goal >= 16 at 352x640)"
    yield f"{rate}: {1e3 * seconds:.1f} ms a step; {graphs} graphs compiled, {late} more meanwhile"
    if on_gpu:
        figure["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        most = f"{figure['peak_gib']:.1f} (goal <= 40 at 352x640)"
        yield f"GiB without a text encoder, when built {figure['built_gib']:.1f}, at most {most}"
    ms = figure["ms"] = _stages_ms(world, state, config.steps)
    figure["outside_share"] = sum(ms[name] for kind in ("memory", REST) for name in GROUPS[kind]) / sum(ms.values())
    figure["keyframes"] = len(state.memory)
    yield f"milliseconds of stages, each waited for: {_told(ms)}"
    yield f"outside network, codec and depth: {figure['outside_share']:.1%} (goal <= 5 %)"

    many = state.memory.keyframes * (world.capacity // len(state.memory) + 1)
    full = replace(state, memory=replace(state.memory, keyframes=many[: world.capacity]))
    figure["ms_full"], figure["keyframes_full"] = _stages_ms(world, full, FEW), len(full.memory)
    yield f"with {len(full.memory)} keyframes instead of {len(state.memory)}: {_told(figure['ms_full'])}"
    if not config.compile:  # what is compiled shows no operations
        figure["operations"] = _operations(world, full)
        told = ", ".join(f"{stage} {count}" for stage, count in figure["operations"].items())
        yield f"operations that are no views, a step: {told}"
    if config.profile is not None:
        config.profile.mkdir(parents=True, exist_ok=True)
        told, figure["calls"] = _profiled(world, state)
        (config.profile / f"{config.shape}_{size[0]}x{size[1]}.txt").write_text(told)
        yield told


def _told(ms: dict[str, float]) -> str:
    parts = []
    for kind, names in GROUPS.items():
        of = " + ".join(f"{name} {ms[name]:.1f}" for name in names)
        parts.append(f"{kind} {sum(ms[name] for name in names):.1f}" + (f" ({of})" if len(names) > 1 else ""))
    return ", ".join(parts)


def _stages_ms(world: MosaicWorld, state: WorldState, steps: int) -> dict[str, float]:
    stopwatch = Stopwatch(world.device)
    with staged(world, stopwatch):
        _walk(world, state, steps)
    return {stage: 1e3 * seconds / steps for stage, seconds in stopwatch.stop().items()}


def _operations(world: MosaicWorld, state: WorldState) -> dict[str, int]:
    operations = Operations()
    with staged(world, operations), operations:
        _walk(world, state, 1)
    return dict(operations.counts)


def _profiled(world: MosaicWorld, state: WorldState) -> tuple[str, dict[str, float]]:
    """Tables of the operations of a few steps, and how often a step launches a kernel or waits, by stage."""
    activities = [ProfilerActivity.CPU]
    if world.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler, staged(world, lambda stage: record_function(f"stage {stage}")):
        _walk(world, state, FEW)
        now(world.device)
    counts: Counter[str] = Counter()
    for event in profiler.events():
        called = next((kind for kind in DRIVER_CALLS if event.name.startswith("cu") and kind in event.name), None)
        around = event if called else None
        while around is not None and not around.name.startswith("stage "):
            around = around.cpu_parent
        if called:
            counts[f"{called} in {REST if around is None else around.name.removeprefix('stage ')}"] += 1
    a_step = {name: count / FEW for name, count in sorted(counts.items())}
    averages = profiler.key_averages()
    orders = ("self_device_time_total", "self_cpu_time_total")
    tables = [averages.table(sort_by=order, row_limit=40, max_name_column_width=70) for order in orders]
    return "\n".join([*tables, f"calls of the driver a step: {a_step}"]), a_step


def _walk(world: MosaicWorld, state: WorldState, steps: int) -> WorldState:
    action_vectors = torch.tensor([[1.0, 0.0, 0.3], [1.0, 0.0, -0.3], [0.0, 0.0, 0.5]]).numpy()
    for index in range(steps):
        (state,), _ = world.step([state], action_vectors[index % 3][None])
    return state


def _check(config: Config) -> None:
    """Raises ValueError for what cannot be measured."""
    if config.steps < 1 or config.denoising_steps < 1 or config.warm_up < 0:
        raise ValueError("give at least 1 step, 1 denoising step, and a warm-up of 0 or more")
    for name, value, known in (("shape", config.shape, SHAPES), ("dtype", config.dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"{name} is one of {', '.join(known)}; got {value!r}")
    for height, width in config.sizes:
        if min(height, width) < UNIT or height % UNIT or width % UNIT:
            raise ValueError(f"sizes are multiples of {UNIT} pixels; got {height}x{width}")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            "this torch sees no CUDA device; what would be measured shows in a few seconds with --device cpu --shape "
            "tiny --dtype float32 --no-compile --sizes 64 96"
        )


def evaluate(config: Config) -> list[dict[str, Any]]:
    """Prints a table of stages for every size; one that fails, for want of memory say, is told and the next tried.

    Raises:
        ValueError: no CUDA device where one is asked for, fewer than one step, an unknown shape or dtype, or sizes
            that are not made of tokens.
    """
    _check(config)
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
    print(_machine(config.device), flush=True)
    told: list[dict[str, Any]] = []
    for size in config.sizes:
        asked = f"{config.denoising_steps} denoising steps, {config.dtype}"
        print(f"{config.shape} {size[0]}x{size[1]}, {asked}:", flush=True)
        figure: dict[str, Any] = {"size": list(size)}
        told.append(figure)
        try:
            for line in measure(config, tuple(size), figure):
                print(f"  {line}", flush=True)
        except (RuntimeError, MemoryError) as error:
            figure["error"] = str(error)
            print(f"  failed: {error}", flush=True)
        if config.json is not None:
            config.json.write_text(json.dumps(told, indent=2) + "\n")
        gc.collect()
        if config.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return told


def _machine(device: str) -> str:
    if not device.startswith("cuda"):
        return f"{device}, torch {torch.__version__}"
    name, cudnn = torch.cuda.get_device_name(device), torch.backends.cudnn.version()
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
