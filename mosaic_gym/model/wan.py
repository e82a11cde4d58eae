"""Pretrained Wan video models as worlds: loaded by diffusers' own means, under their own names.

Nothing is converted. The transformer's weights load into ours, which is Wan's with cameras; autoencoder, text
encoder, tokenizer and scheduler are the pipeline's own. What is new to them starts at zero.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
)
from safetensors import SafetensorError, safe_open

from mosaic_gym.geometry.control import Control
from mosaic_gym.model.depth import HuggingFaceDepth
from mosaic_gym.model.transformer import MosaicTransformer3DModel

INDEX = "model_index.json"
PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
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
        lora: adapters, folders or ids, loaded one after the other.
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


def load_pipeline(checkpoint: Path | str, options: WanOptions) -> WanImageToVideoPipeline:
    """The pipeline of a Wan folder or hub id, with our transformer in it.

    Raises:
        ValueError: no Wan pipeline, a missing or partly copied component, one of another width, or an option that
            is none; the message names the component and the fix.
    """
    _check_options(options)
    told = _read_index(checkpoint)
    if Path(checkpoint).is_dir():
        check_whole(Path(checkpoint), told)
    dtype = getattr(torch, options.dtype)
    transformer = load_transformer(checkpoint, options, dtype)
    pipeline = WanImageToVideoPipeline.from_pretrained(
        checkpoint, transformer=transformer, dtype=dtype, use_safetensors=True
    )
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
    for adapter in options.lora:
        pipeline.load_lora_weights(adapter, use_safetensors=True)
    if transformer.config.causal:  # few steps at even levels; multistep solvers need more of them
        shift = pipeline.scheduler.config.get("flow_shift") or pipeline.scheduler.config.get("shift") or 1.0
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return pipeline


def load_transformer(checkpoint: Path | str, options: WanOptions, dtype: torch.dtype) -> MosaicTransformer3DModel:
    """Wan's transformer weights in our transformer; the camera projections, which Wan lacks, at zero or as trained."""
    kwargs: dict[str, Any] = {"subfolder": "transformer", "insertion": "parallel", "causal": options.causal}
    if options.transformer is not None:
        if not (Path(options.transformer) / "config.json").is_file():
            raise ValueError(f"loading option transformer names {options.transformer!r}, which holds no config.json")
        checkpoint, kwargs = options.transformer, {}
    if options.quantisation is not None:
        from diffusers import BitsAndBytesConfig

        four = options.quantisation == "4bit"
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=four, load_in_8bit=not four, bnb_4bit_compute_dtype=dtype if four else None,
            llm_int8_skip_modules=["to_out_cameras"],  # of either kind; these may be missing, and are loaded apart
        )  # fmt: skip
    with _cameras_unmentioned():
        transformer, told = MosaicTransformer3DModel.from_pretrained(
            checkpoint, dtype=dtype, output_loading_info=True, use_safetensors=True, **kwargs
        )
    missing = [name for name in told["missing_keys"] if "to_out_cameras" not in name]
    if missing:
        raise ValueError(f"the transformer of {checkpoint} lacks {sorted(missing)[:3]}; copy its folder again")
    transformer.begin_cameras()
    if options.cameras is not None:
        load_cameras(transformer, options.cameras)
    return transformer


@contextmanager
def _cameras_unmentioned() -> Iterator[None]:
    """Without diffusers' notice of weights that a checkpoint lacks, which tells users to train the model first."""
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


def check_whole(folder: Path, told: dict[str, Any]) -> None:
    """Raises ValueError if a component that the index names is missing, or only partly there."""
    for name in PARTS:
        if told.get(name, [None, None])[1] is None:
            raise ValueError(f"{folder}/{INDEX} names no {name}; a world needs all of {', '.join(PARTS)}")
        part = folder / name
        if not part.is_dir() or not any(part.iterdir()):
            raise ValueError(f"{folder} lacks its component {name!r}; download the whole folder again")
    for name in ("transformer", "vae", "text_encoder"):
        part = folder / name
        if not (part / "config.json").is_file():
            raise ValueError(f"the component {name!r} in {folder} lacks its config.json; download it again")
        named = {shard for index in part.glob("*.safetensors.index.json") for shard in _shards(index)}
        files = {part / shard for shard in named} | set(part.glob("*.safetensors"))
        if not files:
            raise ValueError(f"the component {name!r} in {folder} has no safetensors weights; download it again")
        for file in sorted(files):
            try:
                with safe_open(str(file), framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"the weights {file.name} of the component {name!r} in {folder} are missing or cut short; download "
                    "them again"
                ) from error


def _shards(index: Path) -> set[str]:
    return set(json.loads(index.read_text())["weight_map"].values())


def _read_index(checkpoint: Path | str) -> dict[str, Any]:
    try:
        told = DiffusionPipeline.load_config(str(checkpoint))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(checkpoint)!r} is neither a folder with a {INDEX} nor an id that the hub knows (or there is no "
            "network); give the folder or id of a Wan pipeline in diffusers' format"
        ) from error
    if told.get("_class_name") not in PIPELINES:
        raise ValueError(
            f"{checkpoint} is a {told.get('_class_name')}, no Wan pipeline; the known ones are {', '.join(PIPELINES)}"
        )
    if told.get("transformer_2", [None, None])[1] is not None:
        raise ValueError(
            f"{checkpoint} has a second transformer (transformer_2) for low noise; a world uses one. Take a model with "
            "one transformer, such as Wan-AI/Wan2.2-TI2V-5B-Diffusers"
        )
    return told


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
    if not 1.0 < options.field_of_view_deg < 179.0:
        raise ValueError(f"field_of_view_deg lies between 1 and 179; got {options.field_of_view_deg}")
    if options.guidance < 1.0:
        raise ValueError(f"guidance is 1 (none) or more; got {options.guidance}")


