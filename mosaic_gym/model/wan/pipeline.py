"""Pretrained Wan video models as worlds: loaded by diffusers' own means, under their own names.

Nothing is converted. The transformer's weights load into ours, which is Wan's with cameras; autoencoder, text
encoder, tokenizer and scheduler are the pipeline's own. What is new to them starts at zero.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, SchedulerMixin, WanImageToVideoPipeline
from transformers import PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from mosaic_gym.geometry.control import Control
from mosaic_gym.model.depth import HuggingFaceDepth
from mosaic_gym.model.transformer import MosaicTransformer3DModel
from mosaic_gym.model.wan.adapters import check_adapter, load_adapters
from mosaic_gym.model.wan.adapters import fuse_adapters as fuse_adapters  # errors and the README name it so
from mosaic_gym.model.wan.cameras import METRES_PER_UNIT, check_cameras, load_cameras
from mosaic_gym.model.wan.folder import (
    check_component,
    check_whole,
    component_named,
    load_scheduler,
    load_tokenizer,
    planned,
    read_index,
)
from mosaic_gym.validation import is_whole

OFFLOADS = ("model", "sequential")
DTYPES = ("float32", "bfloat16", "float16", "float64")
QUANTISATIONS = ("4bit", "8bit")
WAN_STEPS = 50
"""Denoising steps of a model that records none, as Wan's pipeline takes them."""
MOST_STEPS = 100
"""As many denoising steps as an environment takes."""
WAN_GUIDANCE = 5.0
"""Guidance of a model that records none, likewise."""


@dataclass(frozen=True)
class WanOptions:
    """How a Wan folder or hub id is loaded; the fields are what `gym.make(..., loading={...})` takes.

    Attributes:
        dtype: of the networks: `float32`, `bfloat16`, `float16` (or `float64`, for tests).
        vae_dtype: of the autoencoder. None for `dtype` where one clip goes on for ever, as a causal student's does; and
            for float32 at least where every step begins from the last frame anew, for it is then decoded and encoded
            again and again, and each time its rounding stays.
        depth: a Hugging Face depth model, folder or id; metric ones need no scale.
        inverse_depth: whether that model is a relative one, which says inverse depth up to scale.
        median_depth_m: metres that such a model's median answer counts as, where memory does not say.
        field_of_view_deg: the horizontal field of view that is assumed of every image.
        vertical_field_of_view_deg: likewise; None for square pixels. Recordings that were resized to another shape for
            training have others, and what was trained on them is to be stepped so.
        guidance: classifier-free guidance; 1 for none, which halves the cost. None for what the transformer records, as
            a distilled student does (1), and for Wan's 5 where it records none.
        negative_prompt: what guidance leads away from.
        denoising_steps: unless the environment asks for another number; None for those that the transformer records, as
            a distilled student does, and for Wan's 50 where it records none.
        causal: clean tokens are read by themselves, and one clip goes on for ever: what a distilled student was trained
            for. A transformer whose config.json records it, as a student's does, is read so without being asked.
        transformer: a folder whose transformer takes the place of the pipeline's: one that `train world --from --full`
            or `train student` wrote.
        lora: adapters, folders or ids, or the only one's; all of them count, each with weight 1.
        cameras: a file of trained camera projections (`train world --from` writes one); None leaves them at zero.
        offload: None, `model` or `sequential`: what waits on the CPU.
        quantisation: None, `4bit` or `8bit`, of the transformer, through bitsandbytes, on a CUDA GPU.
        compile: compile the transformer's repeated blocks.
    """

    dtype: str = "bfloat16"
    vae_dtype: str | None = None
    depth: str = "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf"
    inverse_depth: bool = False
    median_depth_m: float = 3.0
    field_of_view_deg: float = 70.0
    vertical_field_of_view_deg: float | None = None
    guidance: float | None = None
    negative_prompt: str = ""
    denoising_steps: int | None = None
    causal: bool = False
    transformer: str | None = None
    lora: tuple[str, ...] = ()
    cameras: str | None = None
    offload: str | None = None
    quantisation: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        lora = self.lora or ()
        # What is no list of names is kept as it is, and refused where all options are checked.
        several = isinstance(lora, list | tuple)
        object.__setattr__(self, "lora", tuple(lora) if several else (lora,))


@dataclass(frozen=True)
class WanPlan:
    """What a pipeline will be, known before any of its weights are read.

    Attributes:
        transformer, vae: the networks, on torch's `meta` device.
        vae_dtype: of the autoencoder.
        tokenizer, scheduler: the pipeline's own, which have no weights.
    """

    transformer: MosaicTransformer3DModel
    vae: AutoencoderKLWan
    vae_dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase
    scheduler: SchedulerMixin


def plan_pipeline(checkpoint: Path | str, options: WanOptions) -> WanPlan:
    """Looks through a Wan folder or hub id without loading tens of gigabytes.

    Raises:
        ValueError: no Wan pipeline, a missing, damaged or partly copied component, two that do not fit each other, a
            scheduler that is none for flow matching, an option that is none, camera projections or adapters of another
            model; the message names the fix.

    Warns:
        UserWarning: a model that has never met clean tokens beside noisy ones, and nothing that was trained on them.
    """
    _check_options(options)
    told = read_index(checkpoint)
    if Path(checkpoint).is_dir():
        check_whole(Path(checkpoint))
    tokenizer, scheduler = load_tokenizer(checkpoint, told), load_scheduler(checkpoint, told)
    place, kwargs = _transformer_at(checkpoint, options)
    transformer = planned(MosaicTransformer3DModel, place, {"metres_per_unit": METRES_PER_UNIT}, **kwargs)
    vae = planned(AutoencoderKLWan, checkpoint, {}, subfolder="vae")
    width, expected = _text_width(checkpoint), transformer.config.text_dim
    if width != expected:
        raise ValueError(
            f"the text encoder of {checkpoint} says vectors of {width} numbers, its transformer reads {expected}; "
            "take both from one checkpoint"
        )
    if vae.config.z_dim != transformer.config.in_channels:
        raise ValueError(
            f"the autoencoder (vae) of {checkpoint} has {vae.config.z_dim} channels, its transformer takes "
            f"{transformer.config.in_channels}; take both from one checkpoint"
        )
    for adapter in options.lora:
        check_adapter(transformer, adapter)
    if options.cameras is not None:
        check_cameras(transformer, options.cameras)
    if not (told.get("expand_timesteps") or options.transformer or options.lora or options.cameras):
        warnings.warn(
            f"{checkpoint} was trained with one timestep for all tokens (its model_index.json sets no "
            "expand_timesteps): clean tokens of history and memory, at timestep 0 beside noisy ones, are new to it and "
            f"its pictures will be off. Fine-tune it (mosaic-gym train world --from {checkpoint}), or take a TI2V "
            "model, such as Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            stacklevel=2,
        )
    dtype = getattr(torch, options.vae_dtype or options.dtype)
    if options.vae_dtype is None and not transformer.config.causal:
        dtype = torch.promote_types(dtype, torch.float32)
    return WanPlan(transformer, vae, dtype, tokenizer, scheduler)


def _text_width(checkpoint: Path | str) -> int:
    """How many numbers a prompt's vectors have."""
    with component_named("text_encoder", checkpoint):
        return UMT5Config.from_pretrained(str(checkpoint), subfolder="text_encoder").d_model


def load_pipeline(checkpoint: Path | str, options: WanOptions, plan: WanPlan | None = None) -> WanImageToVideoPipeline:
    """The pipeline of a Wan folder or hub id, with our transformer in it.

    What its `save_pretrained` writes, this function and plain diffusers load again; adapters have to be fused before
    (`fuse_adapters`).

    Args:
        plan: what `plan_pipeline` said of the same; None asks it.

    Raises:
        ValueError: as `plan_pipeline`, and for weights that are missing, damaged or of other shapes than planned.
        torch.OutOfMemoryError: quantised weights that the GPU has no room for.
    """
    plan = plan or plan_pipeline(checkpoint, options)
    dtype = getattr(torch, options.dtype)
    parts = {
        "tokenizer": plan.tokenizer,
        "scheduler": plan.scheduler,
        "vae": _load_component(AutoencoderKLWan, checkpoint, "vae", plan.vae_dtype),
        "text_encoder": _load_component(UMT5EncoderModel, checkpoint, "text_encoder", dtype),
        "transformer": load_transformer(checkpoint, options, plan, dtype),
    }
    transformer = parts["transformer"]
    pipeline = WanImageToVideoPipeline.from_pretrained(checkpoint, dtype=dtype, use_safetensors=True, **parts)
    # model_index.json names each component's class, and a pipeline takes none that diffusers does not know.
    pipeline.register_to_config(transformer=("diffusers", "WanTransformer3DModel"))
    load_adapters(pipeline, options.lora)
    if transformer.config.causal:  # few steps at even levels; multistep solvers need more of them
        shift = transformer.config.flow_shift or flow_shift(pipeline.scheduler)
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return pipeline


def flow_shift(scheduler: SchedulerMixin) -> float:
    """The shift of a scheduler's noise levels, under either of diffusers' names for it; 1 where it has none."""
    return scheduler.config.get("flow_shift") or scheduler.config.get("shift") or 1.0


def _load_component(kind: type, checkpoint: Path | str, name: str, dtype: torch.dtype, **kwargs: Any) -> Any:
    """A network of a pipeline, or with another `subfolder` among `kwargs` of elsewhere.

    Raises:
        ValueError: it cannot be loaded, or lacks weights; the cameras' projections, which Wan lacks, it may.
        torch.OutOfMemoryError: it is loaded to a GPU, as quantised ones are, that has no room for it.
    """
    told = {"subfolder": name, "use_safetensors": True, **kwargs}
    with component_named(name, checkpoint), _missing_unmentioned():
        network, found = kind.from_pretrained(str(checkpoint), dtype=dtype, output_loading_info=True, **told)
    missing = sorted(key for key in found["missing_keys"] if "to_out_cameras" not in key)
    if any(".lora_" in key for key in found["unexpected_keys"]):
        raise ValueError(
            f"the component {name!r} of {checkpoint} was written with LoRA adapters beside its weights. Load what it "
            "was made of, make them part of the weights (mosaic_gym.fuse_adapters(model.transformer)), and save again"
        )
    if missing:
        raise ValueError(
            f"the weights of the component {name!r} of {checkpoint} lack {missing[:3]}; download that component again"
        )
    return network


def _transformer_at(checkpoint: Path | str, options: WanOptions) -> tuple[Path | str, dict[str, Any]]:
    """Where the transformer is, and how `from_pretrained` is to take it.

    Raises:
        ValueError: the option names no whole transformer.
    """
    causal = {"causal": True} if options.causal else {}  # else as its config says
    if options.transformer is None:
        return checkpoint, {"subfolder": "transformer", "insertion": "parallel", **causal}
    if not (Path(options.transformer) / "config.json").is_file():
        raise ValueError(
            f"loading option transformer names {str(options.transformer)!r}, which holds no config.json; give the "
            "folder weights/transformer of a run"
        )
    check_component(Path(options.transformer), "transformer")
    return options.transformer, {"subfolder": None, **causal}


def load_transformer(
    checkpoint: Path | str, options: WanOptions, plan: WanPlan, dtype: torch.dtype
) -> MosaicTransformer3DModel:
    """Wan's transformer weights in our transformer; the camera projections, which Wan lacks, at zero or as trained."""
    place, kwargs = _transformer_at(checkpoint, options)
    kwargs["metres_per_unit"] = plan.transformer.config.metres_per_unit
    if options.quantisation is not None:
        from diffusers import BitsAndBytesConfig

        four = options.quantisation == "4bit"
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=four, load_in_8bit=not four, bnb_4bit_compute_dtype=dtype if four else None,
            llm_int8_skip_modules=["to_out_cameras"],  # of either kind; these may be missing, and are loaded apart
        )  # fmt: skip
    transformer = _load_component(MosaicTransformer3DModel, place, "transformer", dtype, **kwargs)
    transformer.begin_cameras()
    if options.cameras is not None:
        load_cameras(transformer, options.cameras)
    return transformer


@contextmanager
def _missing_unmentioned() -> Iterator[None]:
    """Without diffusers' notice of weights that a checkpoint lacks, which tells users to train the model first.

    Cameras' projections are lacking by design, and where others are there is an error.
    """
    logger = logging.getLogger("diffusers.models.modeling_utils")

    def others(record: logging.LogRecord) -> bool:
        return "newly initialized" not in record.getMessage()

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


def wan_settings(plan: WanPlan, options: WanOptions, height: int, width: int) -> dict[str, Any]:
    """The fields of `WorldSettings` for frames of height x width pixels.

    Raises:
        ValueError: a size that the autoencoder's stride times the transformer's patch does not divide.
    """
    patch = plan.transformer.config.patch_size[1]
    unit = plan.vae.config.scale_factor_spatial * patch
    if height % unit or width % unit:
        raise ValueError(
            f"resolution {height}x{width} is not made of tokens of {unit}x{unit} pixels (autoencoder stride "
            f"{unit // patch}, patches of {patch}): take multiples of {unit}"
        )

    def asked(name: str, usual: float) -> float:
        """What the options ask for, else what the transformer records, else what is usual."""
        told = getattr(options, name), getattr(plan.transformer.config, name), usual
        return next(each for each in told if each is not None)

    def focal(side: int, field_of_view_deg: float) -> float:
        return float(0.5 * side / np.tan(np.deg2rad(field_of_view_deg) / 2))

    across = down = focal(width, options.field_of_view_deg)
    if options.vertical_field_of_view_deg is not None:
        down = focal(height, options.vertical_field_of_view_deg)
    return {
        "height": height,
        "width": width,
        "image_from_camera": ((across, 0.0, width / 2), (0.0, down, height / 2), (0.0, 0.0, 1.0)),
        "control": asdict(Control()),
        "denoising_steps": asked("denoising_steps", WAN_STEPS),
        "max_patches": (height // unit) * (width // unit),
        "guidance": asked("guidance", WAN_GUIDANCE),
        "negative_prompt": options.negative_prompt,
    }


def load_depth(options: WanOptions) -> HuggingFaceDepth:
    """The depth estimator that the options name.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        return HuggingFaceDepth(options.depth, options.inverse_depth, options.median_depth_m)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the depth model {options.depth!r} cannot be loaded ({error}); give the folder or id of a Hugging Face "
            "depth model: loading={'depth': ...}"
        ) from error


def _check_options(options: WanOptions) -> None:
    for name, value, known in (
        ("dtype", options.dtype, DTYPES),
        ("vae_dtype", options.vae_dtype, (None, *DTYPES)),
        ("offload", options.offload, (None, *OFFLOADS)),
        ("quantisation", options.quantisation, (None, *QUANTISATIONS)),
    ):
        if value not in known:
            raise ValueError(f"loading option {name} is one of {known}; got {value!r}")
    if options.quantisation is not None and not torch.cuda.is_available():
        raise ValueError("loading option quantisation needs a CUDA GPU, and this torch sees none: leave it out")
    if options.quantisation is not None and find_spec("bitsandbytes") is None:
        raise ValueError("loading option quantisation needs bitsandbytes: pip install 'mosaic-gym[quantisation]'")
    if options.compile and options.offload == "sequential":
        raise ValueError(
            "loading option compile is for weights that stay where they are during a step; with offload='sequential' "
            "they do not. Take offload='model', or leave compile out"
        )
    places = [("depth", options.depth), *(("lora", each) for each in options.lora)]
    places += [(name, value) for name in ("transformer", "cameras") if (value := getattr(options, name)) is not None]
    for name, value in places:
        if not isinstance(value, str | Path):
            raise ValueError(f"loading option {name} names a folder, a file or an id; got {value!r}")
    for name in ("inverse_depth", "causal", "compile"):
        if not isinstance(value := getattr(options, name), bool):
            raise ValueError(f"loading option {name} is True or False; got {value!r}")
    angles = ("field_of_view_deg", "vertical_field_of_view_deg")
    numbers = {name: getattr(options, name) for name in (*angles, "median_depth_m", "guidance")}
    for name in ("vertical_field_of_view_deg", "guidance"):
        if numbers[name] is None:
            del numbers[name]
    for name, value in numbers.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise ValueError(f"loading option {name} is a number; got {value!r}")
    for name in angles:
        if name in numbers and not 1.0 < numbers[name] < 179.0:
            raise ValueError(f"{name} lies between 1 and 179; got {numbers[name]}")
    if not 0.0 < options.median_depth_m < np.inf:
        raise ValueError(f"median_depth_m is a finite number of metres above 0; got {options.median_depth_m}")
    if options.guidance is not None and not 1.0 <= options.guidance < np.inf:
        raise ValueError(f"guidance is 1 (none) or more; got {options.guidance}")
    steps = options.denoising_steps
    if steps is not None and not (is_whole(steps) and 1 <= steps <= MOST_STEPS):
        raise ValueError(
            f"loading option denoising_steps is a whole number from 1 to {MOST_STEPS}, or None; got {steps!r}"
        )
    if not isinstance(options.negative_prompt, str):
        raise ValueError(f"loading option negative_prompt is a string; got {options.negative_prompt!r}")
