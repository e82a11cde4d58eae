"""The plan of a Wan pipeline: its parts, checked before any weights are read."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, SchedulerMixin
from transformers import PreTrainedTokenizerBase, UMT5Config

from mosaic_gym.geometry.control import Control, control_settings
from mosaic_gym.model.transformer import MosaicTransformer3DModel
from mosaic_gym.model.wan.adapters import check_adapter
from mosaic_gym.model.wan.cameras import METRES_PER_UNIT, check_cameras
from mosaic_gym.model.wan.folder import (
    check_component,
    check_whole,
    load_scheduler,
    load_tokenizer,
    network_from_config,
    read_index,
    wrap_component_errors,
)
from mosaic_gym.model.wan.options import WanOptions
from mosaic_gym.model.wan.requirements import check_requirements

WAN_STEPS = 50
"""Denoising steps of Wan's pipeline, for a transformer whose config records none."""
WAN_GUIDANCE = 5.0
"""Guidance scale of Wan's pipeline, for a transformer whose config records none."""


@dataclass(frozen=True)
class WanPlan:
    """The parts of a pipeline that are known before any weights are read.

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
    """Checks a Wan folder or hub id without loading tens of gigabytes.

    Raises:
        ModuleNotFoundError: an optional package that the pipeline needs is missing; the message names the extra.
        ValueError: this is not a Wan pipeline; a component is missing, damaged or incomplete; two components do not fit
            each other; the scheduler does not sample by flow matching; camera projections or adapters are of another
            model. The message names the fix.

    Warns:
        UserWarning: the model was trained without clean tokens beside noisy ones, and no option names weights that were
            trained with them.
    """
    check_requirements(options)
    index = read_index(checkpoint)
    if Path(checkpoint).is_dir():
        check_whole(Path(checkpoint))
    tokenizer, scheduler = load_tokenizer(checkpoint, index), load_scheduler(checkpoint, index)
    source, kwargs = transformer_source(checkpoint, options)
    transformer = network_from_config(MosaicTransformer3DModel, source, {"metres_per_unit": METRES_PER_UNIT}, **kwargs)
    vae = network_from_config(AutoencoderKLWan, checkpoint, {}, subfolder="vae")
    _check_widths(checkpoint, transformer, vae)
    for adapter in options.lora:
        check_adapter(transformer, adapter)
    if options.cameras is not None:
        check_cameras(transformer, options.cameras)
    if not (index.get("expand_timesteps") or options.transformer or options.lora or options.cameras):
        warnings.warn(
            f"{checkpoint} was trained with one timestep for all tokens (its model_index.json does not set "
            "expand_timesteps). Clean tokens of history and memory, at timestep 0 beside noisy ones, are new to it, "
            f"and its frames will be wrong. Fine-tune it (mosaic-gym train world --from {checkpoint}), or take a TI2V "
            "model, such as Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            stacklevel=2,
        )
    vae_dtype = getattr(torch, options.vae_dtype or options.dtype)
    if options.vae_dtype is None and not transformer.config.causal:
        vae_dtype = torch.promote_types(vae_dtype, torch.float32)
    return WanPlan(transformer, vae, vae_dtype, tokenizer, scheduler)


def transformer_source(checkpoint: Path | str, options: WanOptions) -> tuple[Path | str, dict[str, Any]]:
    """Where the transformer is, and the keyword arguments of its `from_pretrained`.

    Raises:
        ValueError: the option `transformer` does not name a complete transformer.
    """
    causal = {"causal": True} if options.causal else {}  # otherwise as its config records
    if options.transformer is None:
        return checkpoint, {"subfolder": "transformer", "insertion": "parallel", **causal}
    if not (Path(options.transformer) / "config.json").is_file():
        raise ValueError(
            f"loading option transformer names {str(options.transformer)!r}, which holds no config.json; give the "
            "folder weights/transformer of a run"
        )
    check_component(Path(options.transformer), "transformer")
    return options.transformer, {"subfolder": None, **causal}


def _check_widths(checkpoint: Path | str, transformer: MosaicTransformer3DModel, vae: AutoencoderKLWan) -> None:
    """Raises ValueError if the transformer does not fit the text encoder or the autoencoder."""
    with wrap_component_errors("text_encoder", checkpoint):
        text_dim = UMT5Config.from_pretrained(str(checkpoint), subfolder="text_encoder").d_model
    if text_dim != transformer.config.text_dim:
        raise ValueError(
            f"the text encoder of {checkpoint} gives vectors of {text_dim} numbers, its transformer reads "
            f"{transformer.config.text_dim}; take both from one checkpoint"
        )
    if vae.config.z_dim != transformer.config.in_channels:
        raise ValueError(
            f"the autoencoder (vae) of {checkpoint} has {vae.config.z_dim} channels, its transformer takes "
            f"{transformer.config.in_channels}; take both from one checkpoint"
        )


def wan_settings(plan: WanPlan, options: WanOptions, height: int, width: int) -> dict[str, Any]:
    """The fields of `WorldSettings` for frames of height x width pixels.

    Raises:
        ValueError: the autoencoder's stride times the transformer's patch size does not divide the size.
    """
    patch = plan.transformer.config.patch_size[1]
    token_px = plan.vae.config.scale_factor_spatial * patch
    if height % token_px or width % token_px:
        raise ValueError(
            f"resolution {height}x{width} cannot be divided into tokens of {token_px}x{token_px} pixels (autoencoder "
            f"stride {token_px // patch}, patches of {patch}): take multiples of {token_px}"
        )

    def choose(name: str, default: float) -> float:
        """The option, else the value that the transformer's config records, else the default."""
        values = getattr(options, name), getattr(plan.transformer.config, name), default
        return next(value for value in values if value is not None)

    def focal_px(side: int, field_of_view_deg: float) -> float:
        return float(0.5 * side / np.tan(np.deg2rad(field_of_view_deg) / 2))

    fx = fy = focal_px(width, options.field_of_view_deg)
    if options.vertical_field_of_view_deg is not None:
        fy = focal_px(height, options.vertical_field_of_view_deg)
    return {
        "height": height,
        "width": width,
        "image_from_camera": ((fx, 0.0, width / 2), (0.0, fy, height / 2), (0.0, 0.0, 1.0)),
        "control": control_settings(Control()),
        "denoising_steps": choose("denoising_steps", WAN_STEPS),
        "max_patches": (height // token_px) * (width // token_px),
        "guidance": choose("guidance", WAN_GUIDANCE),
        "negative_prompt": options.negative_prompt,
    }
