"""Recipe: a pretrained Wan model learns where it is. One flat loop, over recorded episodes of any world.

A sample is a clip of an episode: its first frame as an image, the frames behind it to be predicted, and a memory of
what the episode saw before, recalled by the code that recalls in play. Clips are of all lengths, from the one latent
frame that a step in play makes behind a still to those of `see_chunk`. Trained are the camera projections, which
begin at zero, and LoRA adapters; or, with `--full`, every weight, as the paper does (AdamW, 1e-5, batch 64).

Many GPUs: `accelerate launch --config_file mosaic_gym/training/multi_gpu.yaml --num_processes GPUS -m mosaic_gym.cli
train world --from ...`, each with a copy of the model; or `fsdp.yaml`, each with its share of the transformer's
weights, gradients and moments, once it has loaded all of it.

Before its first step every recorded step is encoded and its depth estimated, once for all processes, and for whenever
the run goes on (`lifted.py`). What can be refused is refused before that, and before the pipeline is loaded if it shows
in options, recordings or the run's folder.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator, AutocastKwargs, DistributedType
from diffusers import WanImageToVideoPipeline
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.camera import rescale_intrinsics
from mosaic_gym.geometry.control import FRAMES_PER_STEP, Pose
from mosaic_gym.memory.mosaic import MosaicMemory, Retrieved
from mosaic_gym.model.checkpoints import WorldModel, is_wan
from mosaic_gym.model.transformer import TIMESTEPS, MosaicTransformer3DModel
from mosaic_gym.model.wan.pipeline import WanOptions, flow_shift, fuse_adapters
from mosaic_gym.training.lifted import FOLDER, build_all_memories, resized
from mosaic_gym.training.run import Run, budget_of, check_processes, check_resumable, exact_products, recipe_of
from mosaic_gym.training.samples import MemoryMix, Remembered, choose_past, retrieve_mixed
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.state import WorldState

UNUSED = ("worn", "wedge", "astray", "unplaced")
"""Of `MemoryMix`: what a pretrained model has no use for; there is no map, and a clip begins at a true frame."""
MIX = MemoryMix(away=0.0, alone=2 / 3, **dict.fromkeys(UNUSED, 0.0))
"""A third of the samples is told of memory by both warps, and a third by each alone."""
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
"""Linear layers of Wan's blocks that get adapters."""
ADAPTER = "default"
"""The name of the adapter that is trained, which is none of a loaded one's."""
COUNTS = ("batch", "clip", "rank", "episodes", "every", "denoising_steps")
"""Of this recipe's config and of the distillation's: whole numbers, at least 1."""
PRECISIONS = ("bf16", "no")
"""Of the same: what products are made in; `no` is float32."""
POSITIVE = ("learning_rate", "shift", "checkpoint_minutes")
"""Of the same: finite numbers above 0."""


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym train world --from FOLDER` takes."""

    from_: Annotated[str, tyro.conf.arg(name="from")]
    """A Wan pipeline in diffusers' format, folder or hub id."""
    data: Path = Path("data/my_way_home")
    """Recorded episodes."""
    out: Path = Path("runs/wan")
    """The run's folder: checkpoints, log, in `lifted/` what was encoded, and in `weights/` the adapter
    and the camera projections."""
    height: int = 352
    """Of the frames, pixels; recorded ones are resized."""
    width: int = 640
    """Of the frames, pixels."""
    steps: int | None = None
    """Optimiser steps of the whole run; 2000 without --minutes."""
    minutes: float | None = None
    """Wall time of training, earlier pieces included, instead of steps."""
    batch: int = 64
    """Samples to an optimiser step, over all processes."""
    learning_rate: float | None = None
    """The peak; None for 1e-5 with --full, else 1e-4."""
    full: bool = False
    """Train every weight of the transformer, and no adapter."""
    rank: int = 32
    """Of the LoRA adapters."""
    clip: int = 5
    """Latent frames to be predicted at most, four video frames each; the paper's chunks have 20. How many a sample has
    is drawn evenly from 1, as a step in play has behind a still, to this."""
    empty_prompt: float = 0.1
    """Share of samples whose prompt is empty, for guidance."""
    shift: float | None = None
    """Of the noise levels: above 1 leans towards noise. None for the pipeline's own flow_shift."""
    mix: MemoryMix = field(default_factory=lambda: MIX)
    """How much of the past a sample remembers, and by which warps it is told."""
    episodes: int | None = None
    """Recorded episodes to use; None for all."""
    checkpoint_minutes: float = 5.0
    """Between checkpoints, each of three times what is trained: 63 GB with --full at the size of TI2V-5B."""
    precision: str = "bf16"
    """`bf16`, or `no` (float32), which needs loading.dtype float32 unless all weights are trained."""
    loading: WanOptions = field(default_factory=WanOptions)
    """How the pipeline is loaded."""


def check(config: Any) -> None:
    """Raises ValueError for what cannot be trained, as far as a config of this recipe or of the distillation tells:
    numbers that train nothing, a mixture that they do not make, a depth model without a scale, a way of loading in
    which nothing can be trained, or no Wan pipeline. Nothing is loaded."""
    for name in COUNTS:
        if (count := getattr(config, name, None)) is not None and count < 1:
            raise ValueError(f"--{name.replace('_', '-')} is at least 1; got {count}")
    for name in POSITIVE:
        if (number := getattr(config, name)) is not None and not 0.0 < number < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} is a finite number above 0; got {number}")
    if config.precision not in PRECISIONS:
        raise ValueError(f"--precision is {' or '.join(PRECISIONS)}; got {config.precision!r}")
    if not is_wan(config.from_):
        raise ValueError(
            f"--from takes a Wan pipeline in diffusers' format, a folder or a hub id, and {config.from_!r} is none; a "
            "world of this package is gone on from with `train world --begin`"
        )
    if not 0.0 <= config.empty_prompt <= 1.0:
        raise ValueError(f"--empty-prompt is a share, 0 to 1; got {config.empty_prompt}")
    if config.loading.offload is not None:
        raise ValueError(
            "--loading.offload moves weights to the CPU and back between forwards, and what is trained has to stay "
            "where its optimiser is: leave it out"
        )
    if config.loading.quantisation is not None and getattr(config, "full", True):  # a student is trained whole
        raise ValueError(
            "--loading.quantisation leaves the transformer weights that no gradient can change: leave it out, or train "
            "adapters (train world --from, without --full)"
        )
    if config.loading.inverse_depth:
        raise ValueError(
            "a relative depth model gives every recorded frame a scale of its own, and no memory would fit together: "
            "train with a metric one (--loading.depth)"
        )
    asked = [f"mix.{name}" for name in UNUSED if getattr(config.mix, name)]
    if asked:
        raise ValueError(f"samples of a pretrained model have no {', '.join(asked)}: leave that at 0")


def open_teacher(config: Any, device: str, *runs: Path) -> tuple[MosaicWorld, EpisodeStore]:
    """The pretrained world, told the camera of the recordings, and the recordings; these are looked at first.

    Args:
        runs: folders of the runs that are to follow, and will perhaps go on from what lies there.

    Raises:
        ValueError: no episode as long as a clip, or a run of another recipe.
        FileNotFoundError: nothing is recorded.
    """
    store = EpisodeStore(config.data, "train")
    _long_enough(store, config)
    told = {"begin": None, "recipe": recipe_of(config, store)}
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"no run can be kept in {config.out} ({error}); choose another folder with --out") from error
    for folder in runs:
        check_resumable(folder, told, unknown=("shift",) if config.shift is None else ())  # the pipeline says that
    size = (config.height, config.width)
    loading = {each.name: getattr(config.loading, each.name) for each in fields(WanOptions)}
    model = WorldModel.from_pretrained(config.from_, size, loading)
    model.settings = replace(model.settings, image_from_camera=recording_k(store, size))
    return MosaicWorld(model, device=device), store


def recording_k(store: EpisodeStore, size: tuple[int, int]) -> tuple[tuple[float, ...], ...]:
    """K `[3, 3]`, as rows, of recorded frames that are resized to (height, width)."""
    recorded = tuple(store.load(0)["frames"].shape[2:4])
    scaled = rescale_intrinsics(torch.as_tensor(store.image_from_camera), recorded, size)
    return tuple(tuple(map(float, row)) for row in scaled)


def shifted(config: Any, model: WorldModel) -> Any:
    """The config, its shift that of the pipeline's own noise levels where it names none."""
    return replace(config, shift=float(flow_shift(model.scheduler))) if config.shift is None else config


def _long_enough(store: EpisodeStore, config: Any) -> list[int]:
    """The recorded episodes that a clip fits into.

    Raises:
        ValueError: there are none.
    """
    count = len(store) if config.episodes is None else min(config.episodes, len(store))
    found = [index for index in range(count) if len(store.load(index)) > config.clip]
    if not found:
        raise ValueError(f"no episode under {config.data} is longer than a clip of {config.clip} steps; record longer")
    return found


def build_long_enough_memories(
    world: MosaicWorld, store: EpisodeStore, config: Any, accelerator: Accelerator
) -> dict[int, Remembered]:
    """The recorded episodes that a clip fits into, remembered, and kept in the run's folder."""
    return build_all_memories(world, store, _long_enough(store, config), config.out / FOLDER, accelerator)


@exact_products()
@torch.no_grad()
def draw_sample(
    world: MosaicWorld,
    store: EpisodeStore,
    episodes: dict[int, Remembered],
    config: Any,
    seed: int,
    shortest: int,
) -> tuple[WorldState, Retrieved, Tensor, Tensor]:
    """A state, what it recalls for a clip ahead, the clip `[1, t, c, h, w]` and its cameras `[1, t, 4, 4, 4]`.

    Args:
        shortest: the least t; how many it is, is drawn evenly from there to `config.clip`.
    """
    rng = np.random.default_rng(seed)
    index = int(rng.choice(list(episodes)))
    episode = episodes[index]
    length = int(rng.integers(shortest, config.clip + 1))
    step = int(rng.integers(1, len(episode.keyframes) - length + 1))
    chosen = choose_past(episode.keyframes[:step], config.mix, rng)
    prompt = "" if rng.random() < config.empty_prompt else episode.captions[step]
    stored = store.load(index)
    frames = resized(stored["frames"][step - 1 : step + length], (world.height, world.width)).to(world.device)
    clip = torch.cat([frames[0, -1:], frames[1:].flatten(0, 1)])[None]
    latents = world.model.codec.encode_clip(clip)  # [1, 1 + t, c, h, w]
    previous_camera = episode.keyframes[step - 1].world_from_keyframe
    state = WorldState(
        pose=Pose(previous_camera.double().cpu().numpy()),
        history=latents[0, :1],
        history_cameras=previous_camera.expand(1, FRAMES_PER_STEP, 4, 4),
        memory=MosaicMemory(tuple(chosen)),
        prompt=prompt,
        text=world.model.text_encoder.encode([prompt])[0],
        seed=seed,
        step_index=step - 1,
    )
    cameras = torch.stack([each.world_from_camera for each in episode.keyframes[step : step + length]])[None]
    return state, retrieve_mixed(world, [state], cameras, None, config.mix, rng), latents[:, 1:], cameras


def leaning(generator: torch.Generator, shift: float, like: Tensor) -> Tensor:
    """A noise level `[1]`, leaning towards noise as Wan's schedule does."""
    sigma = torch.rand(1, generator=generator).to(like)
    return shift * sigma / (1 + (shift - 1) * sigma)


def noised(clean: Tensor, sigma: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents at a noise level, and the velocity that leads there."""
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    level = sigma.view(-1, 1, 1, 1, 1)
    return (1 - level) * clean + level * noise, noise - clean


def prepare(config: Config, model: WorldModel) -> None:
    """Chooses what is trained: the camera projections and a new adapter, or everything.

    Adapters that were loaded go on counting. The new one is learnt on top of them, and they stay as they are; where
    everything is trained they become part of the weights.
    """
    transformer = model.transformer
    if config.full:
        transformer.float()  # before adapters are added in, and for the optimiser: small steps would be rounded away
        fuse_adapters(transformer)
    else:
        from peft import LoraConfig

        loaded = list(getattr(transformer, "peft_config", {}))
        transformer.add_adapter(LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=TARGETS), ADAPTER)
        transformer.set_adapters([*loaded, ADAPTER])
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(config.full or "to_out_cameras" in name or f".{ADAPTER}." in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small steps on them would be rounded away
    transformer.enable_gradient_checkpointing()


def train(config: Config) -> WorldModel:
    """Trains, and writes what was trained to `weights/`.

    Raises:
        ValueError: as `check` and `open_teacher`, and for a batch that the processes do not divide, processes that
            cannot train together, a causal model that they would share out, adapters in float32 to frozen weights that
            are not, or a damaged file of what was encoded.
        ModuleNotFoundError: adapters need peft.
    """
    budget = budget_of(config, steps=2000)
    check(config)
    if not config.full:
        import_module("peft")  # before the pipeline is loaded
    torch.manual_seed(0)
    # A clip uses every weight once; kept in another precision meanwhile, those that are shared out would be whole.
    once_used = AutocastKwargs(cache_enabled=False)
    accelerator = Accelerator(mixed_precision=config.precision, kwargs_handlers=[once_used])
    check_processes(accelerator, budget[0], averaged=False, shared=True)
    each = config.batch // accelerator.num_processes
    if each * accelerator.num_processes != config.batch:
        raise ValueError(f"batch {config.batch} is not shared out evenly among {accelerator.num_processes} processes")
    if config.precision == "no" and not config.full and config.loading.dtype != "float32":
        raise ValueError(
            f"precision no (float32) does not go with frozen weights in {config.loading.dtype}: load them in float32 "
            "(--loading.dtype float32), or train with --precision bf16"
        )
    world, store = open_teacher(config, str(accelerator.device), config.out)
    model = world.model
    config = shifted(config, model)
    if model.transformer.config.causal and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "a causal model reads clean tokens outside its forward, where FSDP has not gathered its weights: train "
            "copies (mosaic_gym/training/multi_gpu.yaml), or a model that is not causal (without loading.causal)"
        )
    prepare(config, model)
    rate = config.learning_rate or (1e-5 if config.full else 1e-4)
    # The fingerprint is that of the weights as they were loaded: it was taken then.
    asked = {"averaged": False, "shared": True, "parts": model.fingerprint, "recipe": recipe_of(config, store)}
    asked["checkpoint_minutes"] = config.checkpoint_minutes
    run = Run(config.out, model.transformer, rate, *budget, accelerator, **asked)
    episodes = {} if run.finished else build_long_enough_memories(world, store, config, accelerator)
    run.start_clock()
    k = world.k[None]
    copied = isinstance(run.model, DistributedDataParallel)
    while not run.finished:
        generator = run.generator()
        losses = []
        for index in range(each):
            # 1. A clip, what came before it, and what memory gives for it.
            sample = draw_sample(world, store, episodes, config, run.seed + 7919 * index, shortest=1)
            state, retrieved, latents, cameras = sample
            # 2. Noise.
            sigma = leaning(generator, config.shift, latents)
            noisy, velocity = noised(latents, sigma, generator)
            # 3. What the network says leads there. Copies add up their gradients once a step, with the last sample's.
            last = index + 1 == each
            with run.model.no_sync() if copied and not last else nullcontext():
                with accelerator.autocast():
                    context = model.transformer.read(
                        state.history[None], state.history_cameras[None], retrieved, cameras, k,
                        (world.height, world.width), state.text[None],
                    )  # fmt: skip
                    said = run.model(noisy, sigma * TIMESTEPS, context)
                loss = F.mse_loss(said.float(), velocity) / each
                if not last:
                    accelerator.backward(loss)
            losses.append(loss)
        run.update(losses[-1], {"loss": sum(one.detach() for one in losses)})
    run.close()
    if accelerator.is_main_process:
        save_trained(config, store, accelerator.unwrap_model(run.model), run.trained())
    return model


def save_trained(config: Config, store: EpisodeStore, transformer: Any, trained: dict[str, Tensor]) -> None:
    """Writes `weights/`: the camera projections beside a LoRA adapter, or the whole transformer.

    An adapter belongs on top of what it was learnt on: whoever loads it gives the same `transformer` and the earlier
    adapters too, as the printed hint does.

    Args:
        trained: whole weights by name; the transformer's own may be shared out.
    """
    folder = config.out / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    if config.full:
        with torch.device("meta"):
            told = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
            whole = MosaicTransformer3DModel.from_config(told)
        whole.load_state_dict(trained, assign=True)
        whole.save_pretrained(folder / "transformer")
        print(f"trained weights are in {folder}; {played_whole(config, store, folder / 'transformer')}")
        return
    from peft import get_peft_model_state_dict

    cameras = {name: value for name, value in trained.items() if "to_out_cameras" in name}
    unit = {"metres_per_unit": str(transformer.config.metres_per_unit)}
    save_file(cameras, folder / "cameras.safetensors", metadata=unit)
    adapter = get_peft_model_state_dict(transformer, trained, adapter_name=ADAPTER)
    WanImageToVideoPipeline.save_lora_weights(folder, adapter)
    new = {"cameras": str(folder / "cameras.safetensors"), "lora": [*map(str, config.loading.lora), str(folder)]}
    print(f"trained weights are in {folder}; {played(config, store, **new)}")


def played_whole(config: Any, store: EpisodeStore, transformer: Path) -> str:
    """The same of a transformer that adapters, cameras and the one it was trained from have become part of."""
    own = replace(config.loading, lora=(), cameras=None)
    return played(replace(config, loading=own), store, transformer=str(transformer))


def played(config: Any, store: EpisodeStore, **new: Any) -> str:
    """How what was trained is stepped: as it was loaded for training, with what is new, seen by the recordings' camera.

    Args:
        new: options of `loading` that name what was trained.
    """
    usual, loading = WanOptions(), {}
    for each in fields(WanOptions):
        if (value := getattr(config.loading, each.name)) != getattr(usual, each.name):
            loading[each.name] = [*map(str, value)] if isinstance(value, tuple) else value
    k = recording_k(store, (config.height, config.width))
    sides = (config.width, config.height)
    across, down = (round(float(2 * np.rad2deg(np.arctan(0.5 * sides[i] / k[i][i]))), 4) for i in (0, 1))
    loading |= {"field_of_view_deg": across, "vertical_field_of_view_deg": down, **new}
    size = [config.height, config.width]
    return f"step them with gym.make('MosaicWorld-v0', checkpoint={config.from_!r}, resolution={size}, {loading=})"
