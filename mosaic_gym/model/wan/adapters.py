"""LoRA adapters of a Wan transformer: looked at before its weights are read, put beside them, made part of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import WanImageToVideoPipeline

from mosaic_gym.model.transformer import MosaicTransformer3DModel


def check_adapter(transformer: MosaicTransformer3DModel, adapter: Path | str) -> None:
    """Reads an adapter, a folder or an id.

    Args:
        transformer: what it is for; on torch's `meta` device will do.

    Raises:
        ValueError: it cannot be read, is for no transformer of Wan's, or for one of other widths.
    """
    with _adapter_named(adapter):
        weights = WanImageToVideoPipeline.lora_state_dict(adapter, use_safetensors=True)
        factors = {name: each for name, each in weights.items() if name.startswith("transformer.")}
        if not factors:
            raise ValueError("none of its weights is for a transformer of Wan's")
        layers = dict(transformer.named_modules())
        for name, factor in factors.items():
            place, _, part = name.removeprefix("transformer.").partition(".lora_")
            if place not in layers or part not in ("A.weight", "B.weight"):
                continue
            shape = layers[place].weight.shape
            if (factor.shape[1:] != shape[1:]) if part == "A.weight" else (factor.shape[0] != shape[0]):
                raise ValueError(
                    f"its weight {name} has shape {tuple(factor.shape)}, and the layer that it adapts {tuple(shape)}: "
                    "it was trained for another model"
                )


def load_adapters(pipeline: WanImageToVideoPipeline, adapters: Sequence[Path | str]) -> None:
    """Puts adapters, folders or ids, beside the transformer's weights, each with weight 1.

    Raises:
        ValueError: one that cannot be loaded.
    """
    names = [f"loaded_{index}" for index in range(len(adapters))]
    for name, adapter in zip(names, adapters, strict=True):
        with _adapter_named(adapter):
            pipeline.load_lora_weights(adapter, adapter_name=name, use_safetensors=True)
    if names:  # each that is loaded silences those before it
        pipeline.set_adapters(names)


@contextmanager
def _adapter_named(adapter: Path | str) -> Iterator[None]:
    """Raises what goes wrong as a ValueError that names the adapter."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of an id without a network the hub raises what is no OSError
        raise ValueError(
            f"the adapter {str(adapter)!r} cannot be loaded ({error}); give the folder or id of a LoRA adapter for "
            "this transformer: loading={'lora': [...]}"
        ) from error


def fuse_adapters(transformer: MosaicTransformer3DModel) -> None:
    """Makes active adapters part of the weights, in place: they then have their own names again, and are whole."""
    if hasattr(transformer, "peft_config"):
        transformer.fuse_lora()
        transformer.unload_lora()
