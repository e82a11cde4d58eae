"""Recipe: a pretrained Wan model learns to use cameras and memory. One flat loop, over recorded episodes of any world.

A sample is a clip of an episode: its first frame as an image, the frames after it to be predicted, and a memory of what
the episode showed before, retrieved by the code that the world runs. Clips have every length from one latent frame, as
in a step of the world, to `--clip`, as in `MosaicWorld.generate_clip`. The recipe trains the camera projections, which
start at zero, and LoRA adapters. With `--full` it trains every weight, as the paper does (AdamW, 1e-5, batch 64).

Many GPUs: `accelerate launch --config_file mosaic_gym/training/multi_gpu.yaml --num_processes GPUS -m mosaic_gym.cli
train world --from ...` gives each a copy of the model. With `fsdp.yaml` each holds its shard of the transformer's
weights, gradients and moments, after it has loaded all of them.

Before the first step, every recorded step is encoded and its depth estimated, once for all processes, and stored for
when the run resumes (`keyframe_cache.py`). Mistakes raise errors before that, and before the pipeline is loaded where
options, recordings or the run's folder show them.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator, AutocastKwargs, DistributedType
from diffusers import WanImageToVideoPipeline
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.transformer import TIMESTEPS, MosaicTransformer3DModel
from mosaic_gym.model.wan.adapters import fuse_adapters
from mosaic_gym.model.wan.options import WanOptions
from mosaic_gym.model.wan.requirements import require
from mosaic_gym.training.budget import budget_of, check_one_budget, recipe_of
from mosaic_gym.training.clips import add_noise, draw_noise_level, draw_sample, lift_long_episodes
from mosaic_gym.training.precision import float32_by_default
from mosaic_gym.training.pretrained import (
    AUGMENTATION,
    PRECISIONS,
    check_trainable,
    open_pretrained,
    resolve_shift,
    usage,
    usage_of_transformer,
)
from mosaic_gym.training.run import Run, check_processes
from mosaic_gym.training.samples import MemoryAugmentation
from mosaic_gym.validation import Flag, Folder, Number, OneOf, PathOrId, Whole, option, validate

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
"""Linear layers of Wan's blocks that get adapters."""
ADAPTER = "default"
"""The name of the trained adapter; loaded adapters have other names."""


@dataclass(frozen=True)
class Config:
    """Fine-tune a pretrained Wan model on recorded episodes, so that it uses cameras and memory."""

    from_: Annotated[str, tyro.conf.arg(name="from"), PathOrId()]
    """A Wan pipeline in diffusers' format, folder or hub id."""
    data: Annotated[Path, Folder()] = Path("data/my_way_home")
    """Recorded episodes."""
    out: Annotated[Path, Folder()] = Path("runs/wan")
    """The run's folder: checkpoints, log, the encoded recordings in `lifted/`, and the adapter and the camera
    projections in `weights/`."""
    height: Annotated[int, Whole(1)] = 352
    """Height of the frames, pixels; recorded ones are resized."""
    width: Annotated[int, Whole(1)] = 640
    """Width of the frames, pixels."""
    steps: Annotated[int | None, Whole(1)] = None
    """Optimizer steps of the whole run; 2000 without --minutes."""
    minutes: Annotated[float | None, Number(above=0.0)] = None
    """Wall time of training, earlier parts of the run included, instead of --steps."""
    batch: Annotated[int, Whole(1)] = 64
    """Samples in an optimizer step, over all processes."""
    learning_rate: Annotated[float | None, Number(above=0.0)] = None
    """The peak; None for 1e-5 with --full, otherwise 1e-4."""
    full: Annotated[bool, Flag()] = False
    """Train every weight of the transformer, and no adapter."""
    rank: Annotated[int, Whole(1)] = 32
    """Rank of the LoRA adapters."""
    clip: Annotated[int, Whole(1)] = 5
    """Most latent frames to predict, four video frames each; the paper's chunks have 20. Their number is drawn evenly
    for each sample, from 1, as in a step of the world, to this."""
    empty_prompt: Annotated[float, Number(0.0, 1.0)] = 0.1
    """Share of samples whose prompt is empty, for guidance."""
    shift: Annotated[float | None, Number(above=0.0)] = None
    """Shift of the noise levels; above 1, more of them are near pure noise. None for the pipeline's own flow_shift."""
    augmentation: MemoryAugmentation = field(default_factory=lambda: AUGMENTATION)
    """How much of the past a sample's memory holds, and by which warps the model gets it."""
    episodes: Annotated[int | None, Whole(1)] = None
    """Recorded episodes to use; None for all."""
    checkpoint_minutes: Annotated[float, Number(above=0.0)] = 5.0
    """Time between checkpoints. Each is three times the size of what is trained: 63 GB with --full for TI2V-5B."""
    precision: Annotated[str, OneOf(*PRECISIONS)] = "bf16"
    """`bf16`, or `no` (float32), which needs loading.dtype float32 unless all weights are trained."""
    loading: WanOptions = field(default_factory=WanOptions)
    """How the pipeline is loaded."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range, and for options that exclude each other."""
        validate(self, option)
        check_one_budget(self)
        check_trainable(self.loading, self.augmentation, all_weights=self.full)
        if self.precision == "no" and not self.full and self.loading.dtype != "float32":
            raise ValueError(
                f"--precision no (float32) does not go with frozen weights in {self.loading.dtype}: load them in "
                "float32 (--loading.dtype float32), or train with --precision bf16"
            )


def prepare(config: Config, model: WorldModel) -> None:
    """Selects the trained parameters: camera projections and a new adapter, or every weight.

    Loaded adapters stay active. The new adapter is trained on top of them, and they do not change; with `--full` they
    become part of the weights.
    """
    transformer = model.transformer
    if config.full:
        transformer.float()  # before adapters are added, and for the optimizer: small steps would be rounded away
        fuse_adapters(transformer)
    else:
        from peft import LoraConfig

        loaded = list(getattr(transformer, "peft_config", {}))
        transformer.add_adapter(LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=TARGETS), ADAPTER)
        transformer.set_adapters([*loaded, ADAPTER])
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(config.full or "to_out_cameras" in name or f".{ADAPTER}." in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small steps would be rounded away
    transformer.enable_gradient_checkpointing()


@float32_by_default()
def train(config: Config) -> WorldModel:
    """Trains, and writes the trained weights to `weights/`.

    Raises:
        ValueError: as for `open_pretrained`, and for a batch that the processes do not divide, processes that cannot
            train together, a causal model under FSDP, or a damaged file of encoded recordings.
        ModuleNotFoundError: adapters need peft; the message names the extra.
    """
    budget = budget_of(config, steps=2000)
    if not config.full:
        require("peft", "training adapters", "wan")
    torch.manual_seed(0)
    # Each weight is used once in a sample. Cached in another precision, sharded weights would be whole on each GPU.
    accelerator = Accelerator(mixed_precision=config.precision, kwargs_handlers=[AutocastKwargs(cache_enabled=False)])
    check_processes(accelerator, budget[0], averaged=False, shared=True)
    samples = config.batch // accelerator.num_processes
    if samples * accelerator.num_processes != config.batch:
        raise ValueError(f"--batch {config.batch} cannot be divided evenly among {accelerator.num_processes} processes")
    world, store = open_pretrained(config, str(accelerator.device), config.out)
    model = world.model
    config = resolve_shift(config, model)
    if model.transformer.config.causal and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "a causal model reads clean tokens outside its forward pass, where FSDP has not gathered its weights: "
            "train copies (mosaic_gym/training/multi_gpu.yaml), or a model that is not causal (without loading.causal)"
        )
    prepare(config, model)
    with _open_run(config, budget, model, store, accelerator) as run:
        episodes = {} if run.finished else lift_long_episodes(world, store, config, accelerator)
        run.start_clock()
        k = world.layout.intrinsics[None]
        copied = isinstance(run.model, DistributedDataParallel)
        while not run.finished:
            generator = run.generator()
            losses = []
            for index in range(samples):
                # 1. A clip, the state before it, and what memory retrieves for it.
                sample = draw_sample(world, store, episodes, config, run.seed + 7919 * index, shortest=1)
                state, retrieved, latents, cameras = sample
                # 2. Noise.
                sigma = draw_noise_level(generator, config.shift, latents)
                noisy, velocity = add_noise(latents, sigma, generator)
                # 3. The loss. Copies of the model average their gradients once a step, with the last sample's.
                last = index + 1 == samples
                with run.model.no_sync() if copied and not last else nullcontext():
                    with accelerator.autocast():
                        context = model.transformer.read(
                            state.history[None], state.history_cameras[None], retrieved, cameras, k,
                            (world.height, world.width), state.text[None],
                        )  # fmt: skip
                        predicted = run.model(noisy, sigma * TIMESTEPS, context)
                    loss = F.mse_loss(predicted.float(), velocity) / samples
                    if not last:
                        accelerator.backward(loss)
                losses.append(loss)
            run.update(losses[-1], {"loss": sum(loss.detach() for loss in losses)})
    if accelerator.is_main_process:
        save_trained(config, store, accelerator.unwrap_model(run.model), run.trained())
    return model


def _open_run(
    config: Config,
    budget: tuple[float | None, int | None],
    model: WorldModel,
    store: EpisodeStore,
    accelerator: Accelerator,
) -> Run:
    # The fingerprint is that of the loaded weights: it was computed when they were loaded.
    return Run(
        config.out,
        model.transformer,
        config.learning_rate or (1e-5 if config.full else 1e-4),
        *budget,
        accelerator,
        checkpoint_minutes=config.checkpoint_minutes,
        averaged=False,
        parts=model.fingerprint,
        recipe=recipe_of(config, store),
        shared=True,
    )


def save_trained(config: Config, store: EpisodeStore, transformer: Any, trained: dict[str, Tensor]) -> None:
    """Writes `weights/`: the camera projections and a LoRA adapter, or the whole transformer.

    An adapter needs the weights that it was trained on: load it with the same `transformer` and the earlier adapters,
    as in the call that this function prints.

    Args:
        transformer: the trained network; its weights may be sharded.
        trained: whole weights by name.
    """
    folder = config.out / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    if config.full:
        with torch.device("meta"):
            settings = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
            whole = MosaicTransformer3DModel.from_config(settings)
        whole.load_state_dict(trained, assign=True)
        whole.save_pretrained(folder / "transformer")
        print(f"trained weights are in {folder}; {usage_of_transformer(config, store, folder / 'transformer')}")
        return
    from peft import get_peft_model_state_dict

    cameras = {name: value for name, value in trained.items() if "to_out_cameras" in name}
    unit = {"metres_per_unit": str(transformer.config.metres_per_unit)}
    save_file(cameras, folder / "cameras.safetensors", metadata=unit)
    adapter = get_peft_model_state_dict(transformer, trained, adapter_name=ADAPTER)
    WanImageToVideoPipeline.save_lora_weights(folder, adapter)
    new = {"cameras": str(folder / "cameras.safetensors"), "lora": [*map(str, config.loading.lora), str(folder)]}
    print(f"trained weights are in {folder}; {usage(config, store, **new)}")
