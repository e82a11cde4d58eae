"""Loads a pretrained Wan pipeline by diffusers' own means, under its own names.

Nothing is converted. The weights of the transformer load into ours, which is Wan's with cameras. Autoencoder, text
encoder, tokenizer and scheduler are the pipeline's own. Weights that Wan lacks start at zero.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, SchedulerMixin, WanImageToVideoPipeline
from transformers import UMT5EncoderModel

from mosaic_gym.model.depth import HuggingFaceDepth
from mosaic_gym.model.transformer import MosaicTransformer3DModel
from mosaic_gym.model.wan.adapters import load_adapters
from mosaic_gym.model.wan.cameras import load_cameras
from mosaic_gym.model.wan.folder import wrap_component_errors
from mosaic_gym.model.wan.options import WanOptions
from mosaic_gym.model.wan.plan import WanPlan, plan_pipeline, transformer_source


def load_pipeline(checkpoint: Path | str, options: WanOptions, plan: WanPlan | None = None) -> WanImageToVideoPipeline:
    """The pipeline of a Wan folder or hub id, with our transformer in it.

    This function and plain diffusers both load what its `save_pretrained` writes. Adapters have to be fused before
    saving (`fuse_adapters`).

    Args:
        plan: the result of `plan_pipeline` for the same arguments; None computes it.

    Raises:
        ModuleNotFoundError: as for `plan_pipeline`.
        ValueError: as for `plan_pipeline`, and for weights that are missing, damaged or of other shapes than planned.
        torch.OutOfMemoryError: quantized weights do not fit into the GPU's memory.
    """
    plan = plan or plan_pipeline(checkpoint, options)
    dtype = getattr(torch, options.dtype)
    parts = {
        "tokenizer": plan.tokenizer,
        "scheduler": plan.scheduler,
        "vae": load_component(AutoencoderKLWan, checkpoint, "vae", plan.vae_dtype),
        "text_encoder": load_component(UMT5EncoderModel, checkpoint, "text_encoder", dtype),
        "transformer": load_transformer(checkpoint, options, plan, dtype),
    }
    transformer = parts["transformer"]
    pipeline = WanImageToVideoPipeline.from_pretrained(checkpoint, dtype=dtype, use_safetensors=True, **parts)
    # model_index.json names each component's class, and diffusers loads only classes that it knows.
    pipeline.register_to_config(transformer=("diffusers", "WanTransformer3DModel"))
    load_adapters(pipeline, options.lora)
    if transformer.config.causal:  # few steps at even noise levels; multistep solvers need more steps
        shift = transformer.config.flow_shift or flow_shift(pipeline.scheduler)
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return pipeline


def flow_shift(scheduler: SchedulerMixin) -> float:
    """The shift of a scheduler's noise levels, under either of diffusers' names for it; 1 if it has none."""
    return scheduler.config.get("flow_shift") or scheduler.config.get("shift") or 1.0


def load_component(kind: type, checkpoint: Path | str, name: str, dtype: torch.dtype, **kwargs: Any) -> Any:
    """A network of a pipeline, or of another folder if `kwargs` sets another `subfolder`.

    Raises:
        ValueError: it cannot be loaded, or weights are missing other than the camera projections, which Wan lacks.
        torch.OutOfMemoryError: it is loaded directly to a GPU, as quantized weights are, and does not fit.
    """
    kwargs = {"subfolder": name, "use_safetensors": True, **kwargs}
    with wrap_component_errors(name, checkpoint), _without_missing_weights_warning():
        network, info = kind.from_pretrained(str(checkpoint), dtype=dtype, output_loading_info=True, **kwargs)
    missing = sorted(key for key in info["missing_keys"] if "to_out_cameras" not in key)
    if any(".lora_" in key for key in info["unexpected_keys"]):
        raise ValueError(
            f"the component {name!r} of {checkpoint} was saved with LoRA adapters beside its weights. Load its source "
            "again, fuse the adapters (mosaic_gym.fuse_adapters(model.transformer)), and save it again"
        )
    if missing:
        raise ValueError(
            f"the weights of the component {name!r} of {checkpoint} lack {missing[:3]}; download that component again"
        )
    return network


def load_transformer(
    checkpoint: Path | str, options: WanOptions, plan: WanPlan, dtype: torch.dtype
) -> MosaicTransformer3DModel:
    """Our transformer with Wan's weights; the camera projections, which Wan lacks, are zero or loaded as trained."""
    source, kwargs = transformer_source(checkpoint, options)
    kwargs["metres_per_unit"] = plan.transformer.config.metres_per_unit
    if options.quantisation is not None:
        from diffusers import BitsAndBytesConfig

        four = options.quantisation == "4bit"
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=four, load_in_8bit=not four, bnb_4bit_compute_dtype=dtype if four else None,
            llm_int8_skip_modules=["to_out_cameras"],  # of both kinds: these may be missing, and are loaded separately
        )  # fmt: skip
    transformer = load_component(MosaicTransformer3DModel, source, "transformer", dtype, **kwargs)
    transformer.initialize_cameras()
    if options.cameras is not None:
        load_cameras(transformer, options.cameras)
    return transformer


@contextmanager
def _without_missing_weights_warning() -> Iterator[None]:
    """Hides diffusers' warning about missing weights, which advises users to train the model first.

    Camera projections are missing by design, and other missing weights raise an error.
    """
    logger = logging.getLogger("diffusers.models.modeling_utils")

    def is_other_message(record: logging.LogRecord) -> bool:
        return "newly initialized" not in record.getMessage()

    logger.addFilter(is_other_message)
    try:
        yield
    finally:
        logger.removeFilter(is_other_message)


def load_depth(options: WanOptions) -> HuggingFaceDepth:
    """The depth estimator that the options name.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        return HuggingFaceDepth(options.depth, options.inverse_depth, options.median_depth_m)
    except (OSError, ValueError, ImportError) as error:  # ImportError: a package that this kind of model needs
        raise ValueError(
            f"the depth model {options.depth!r} cannot be loaded ({error}); give the folder or id of a Hugging Face "
            "depth model: loading={'depth': ...}"
        ) from error
