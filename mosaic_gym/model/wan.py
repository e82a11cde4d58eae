"""Pretrained Wan video models as worlds: loaded by diffusers' own means, under their own names.

Nothing is converted. The transformer's weights load into ours, which is Wan's with cameras; autoencoder, text
encoder, tokenizer and scheduler are the pipeline's own. What is new to them starts at zero.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from safetensors import SafetensorError, safe_open
from transformers import UMT5EncoderModel

from mosaic_gym.geometry.control import Control
from mosaic_gym.model.depth import HuggingFaceDepth
from mosaic_gym.model.transformer import MosaicTransformer3DModel
from mosaic_gym.model.wan_folder import check_component, check_whole, read_index

OFFLOADS = ("model", "sequential")
DTYPES = ("float32", "bfloat16", "float16", "float64")
QUANTISATIONS = ("4bit", "8bit")


@dataclass(frozen=True)
class WanOptions:
    """How a Wan folder or hub id is loaded; the fields are what `gym.make(..., loading={...})` takes.

    Attributes:
        dtype: of all networks: `float32`, `bfloat16`, `float16` (or `float64`, for tests).
        depth: a Hugging Face depth model, folder or id; metric ones need no scale.
        inverse_depth: whether that model says inverse depth.
        field_of_view_deg: the horizontal field of view that is assumed of every image.
        guidance: classifier-free guidance; 1 for none, which halves the cost.
        negative_prompt: what guidance leads away from.
        denoising_steps: unless the environment asks for another number.
        causal: clean tokens are read by themselves, and one clip goes on for ever: what a distilled student was trained
            for. (A student that `transformer` names says so itself.)
        transformer: a folder whose transformer takes the place of the pipeline's: one that `train world --from --full`
            or `train student` wrote.
        lora: adapters, folders or ids, or the only one's; all of them count, each with weight 1.
        cameras: a file of trained camera projections (`train world --from` writes one); None leaves them at zero.
        offload: None, `model` or `sequential`: what waits on the CPU.
        quantisation: None, `4bit` or `8bit`, of the transformer, through bitsandbytes.
        compile: compile the transformer's repeated blocks.
    """

    dtype: str = "bfloat16"
    depth: str = "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf"
    inverse_depth: bool = False
    field_of_view_deg: float = 70.0
    guidance: float = 5.0
    negative_prompt: str = ""
    denoising_steps: int = 50
    causal: bool = False
    transformer: str | None = None
    lora: tuple[str, ...] = ()
    cameras: str | None = None
    offload: str | None = None
    quantisation: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        lora = self.lora or ()
        object.__setattr__(self, "lora", (lora,) if isinstance(lora, str | Path) else tuple(lora))


def load_pipeline(checkpoint: Path | str, options: WanOptions) -> WanImageToVideoPipeline:
    """The pipeline of a Wan folder or hub id, with our transformer in it.

    Raises:
        ValueError: no Wan pipeline, a missing or partly copied component, one of another width, or an option that
            is none; the message names the component and the fix.
    """
    _check_options(options)
    told = read_index(checkpoint)
    if Path(checkpoint).is_dir():
        check_whole(Path(checkpoint), told)
    dtype = getattr(torch, options.dtype)
    networks = {
        "vae": _load_component(AutoencoderKLWan, checkpoint, "vae", dtype),
        "text_encoder": _load_component(UMT5EncoderModel, checkpoint, "text_encoder", dtype),
        "transformer": load_transformer(checkpoint, options, dtype),
    }
    transformer = networks["transformer"]
    pipeline = WanImageToVideoPipeline.from_pretrained(checkpoint, dtype=dtype, use_safetensors=True, **networks)
    width, expected = pipeline.text_encoder.config.d_model, transformer.config.text_dim
    if width != expected:
        raise ValueError(
            f"the text encoder of {checkpoint} says vectors of {width} numbers, its transformer reads {expected}; "
            "take both from one checkpoint"
        )
    if pipeline.vae.config.z_dim != transformer.config.in_channels:
        raise ValueError(
            f"the autoencoder (vae) of {checkpoint} has {pipeline.vae.config.z_dim} channels, its transformer takes "
            f"{transformer.config.in_channels}; take both from one checkpoint"
        )
    _load_adapters(pipeline, options.lora)
    if transformer.config.causal:  # few steps at even levels; multistep solvers need more of them
        shift = pipeline.scheduler.config.get("flow_shift") or pipeline.scheduler.config.get("shift") or 1.0
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return pipeline


def _load_adapters(pipeline: WanImageToVideoPipeline, adapters: tuple[str, ...]) -> None:
    """Puts adapters beside the transformer's weights, each with weight 1.

    Raises:
        ValueError: one that cannot be loaded.
    """
    names = [f"loaded_{index}" for index in range(len(adapters))]
    for name, adapter in zip(names, adapters, strict=True):
        try:
            pipeline.load_lora_weights(adapter, adapter_name=name, use_safetensors=True)
            if name not in getattr(pipeline.transformer, "peft_config", {}):
                raise ValueError("none of its weights is for a transformer of Wan's")
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise ValueError(
                f"the adapter {str(adapter)!r} cannot be loaded ({error}); give the folder or id of a LoRA adapter for "
                "this transformer: loading={'lora': [...]}"
            ) from error
    if names:  # each that is loaded silences those before it
        pipeline.set_adapters(names)


def fuse_adapters(transformer: MosaicTransformer3DModel) -> None:
    """Makes active adapters part of the weights, in place: they then have their own names again, and are whole."""
    if hasattr(transformer, "peft_config"):
        transformer.fuse_lora()
        transformer.unload_lora()


def _load_component(kind: type, checkpoint: Path | str, name: str, dtype: torch.dtype, **kwargs: Any) -> Any:
    """A network of a pipeline, or with another `subfolder` among `kwargs` of elsewhere.

    Raises:
        ValueError: it cannot be loaded, or lacks weights; the cameras' projections, which Wan lacks, it may.
    """
    told = {"subfolder": name, "use_safetensors": True, **kwargs}
    try:
        with _missing_unmentioned():
            network, found = kind.from_pretrained(str(checkpoint), dtype=dtype, output_loading_info=True, **told)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"the component {name!r} of {checkpoint} cannot be loaded ({error}); take another pipeline, or download "
            "this component again"
        ) from error
    missing = sorted(key for key in found["missing_keys"] if "to_out_cameras" not in key)
    if missing:
        raise ValueError(
            f"the weights of the component {name!r} of {checkpoint} lack {missing[:3]}; download that component again"
        )
    return network


def load_transformer(checkpoint: Path | str, options: WanOptions, dtype: torch.dtype) -> MosaicTransformer3DModel:
    """Wan's transformer weights in our transformer; the camera projections, which Wan lacks, at zero or as trained."""
    kwargs: dict[str, Any] = {"insertion": "parallel", "causal": options.causal}
    if options.transformer is not None:
        if not (Path(options.transformer) / "config.json").is_file():
            raise ValueError(
                f"loading option transformer names {str(options.transformer)!r}, which holds no config.json; give the "
                "folder weights/transformer of a run"
            )
        check_component(Path(options.transformer), "transformer")
        checkpoint, kwargs = options.transformer, {"subfolder": None}
    if options.quantisation is not None:
        from diffusers import BitsAndBytesConfig

        four = options.quantisation == "4bit"
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=four, load_in_8bit=not four, bnb_4bit_compute_dtype=dtype if four else None,
            llm_int8_skip_modules=["to_out_cameras"],  # of either kind; these may be missing, and are loaded apart
        )  # fmt: skip
    transformer = _load_component(MosaicTransformer3DModel, checkpoint, "transformer", dtype, **kwargs)
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


def load_cameras(transformer: MosaicTransformer3DModel, path: Path | str) -> None:
    """Puts trained camera projections into a transformer.

    Raises:
        ValueError: no such file, damaged, or of another transformer.
    """
    mine = {name: value for name, value in transformer.state_dict().items() if "to_out_cameras" in name}
    try:
        with safe_open(str(path), framework="pt") as file:
            given = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, FileNotFoundError) as error:
        raise ValueError(f"{path} holds no camera projections, or is damaged; train or copy it again") from error
    if {n: v.shape for n, v in given.items()} != {n: v.shape for n, v in mine.items()}:
        raise ValueError(f"the camera projections in {path} belong to another transformer; train them for this one")
    transformer.load_state_dict(given, strict=False)


def wan_settings(
    pipeline: WanImageToVideoPipeline, options: WanOptions, height: int, width: int
) -> dict[str, Any]:
    """The fields of `WorldSettings` for frames of height x width pixels.

    Raises:
        ValueError: a size that the autoencoder's stride times the transformer's patch does not divide.
    """
    patch = pipeline.transformer.config.patch_size[1]
    unit = pipeline.vae.config.scale_factor_spatial * patch
    if height % unit or width % unit:
        raise ValueError(
            f"resolution {height}x{width} is not made of tokens of {unit}x{unit} pixels (autoencoder stride "
            f"{unit // patch}, patches of {patch}): take multiples of {unit}"
        )
    focal = 0.5 * width / np.tan(np.deg2rad(options.field_of_view_deg) / 2)
    return {
        "height": height,
        "width": width,
        "image_from_camera": ((focal, 0.0, width / 2), (0.0, focal, height / 2), (0.0, 0.0, 1.0)),
        "control": asdict(Control()),
        "denoising_steps": options.denoising_steps,
        "max_patches": (height // unit) * (width // unit),
        "guidance": options.guidance,
        "negative_prompt": options.negative_prompt,
    }


def load_depth(options: WanOptions) -> HuggingFaceDepth:
    """The depth estimator that the options name.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        return HuggingFaceDepth(options.depth, options.inverse_depth)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the depth model {options.depth!r} cannot be loaded ({error}); give the folder or id of a Hugging Face "
            "depth model: loading={'depth': ...}"
        ) from error


def _check_options(options: WanOptions) -> None:
    for name, value, known in (
        ("dtype", options.dtype, DTYPES),
        ("offload", options.offload, (None, *OFFLOADS)),
        ("quantisation", options.quantisation, (None, *QUANTISATIONS)),
    ):
        if value not in known:
            raise ValueError(f"loading option {name} is one of {known}; got {value!r}")
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
    if not 1.0 < options.field_of_view_deg < 179.0:
        raise ValueError(f"field_of_view_deg lies between 1 and 179; got {options.field_of_view_deg}")
    if options.guidance < 1.0:
        raise ValueError(f"guidance is 1 (none) or more; got {options.guidance}")


