"""LoRA adapters of a Wan transformer: check a file before any weights are loaded, load adapters, fuse them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import WanImageToVideoPipeline

from mosaic_gym.model.transformer import MosaicTransformer3DModel


def check_adapter(transformer: MosaicTransformer3DModel, adapter: Path | str) -> None:
    """Reads an adapter and compares its shapes with the transformer's.

    Args:
        transformer: the network that the adapter is for; it may be on torch's `meta` device.
        adapter: folder, file or hub id.

    Raises:
        ValueError: the adapter cannot be read, is not for a Wan transformer, or is for one with layers of another size.
    """
    with _wrap_adapter_errors(adapter):
        weights = WanImageToVideoPipeline.lora_state_dict(adapter, use_safetensors=True)
        factors = {name: value for name, value in weights.items() if name.startswith("transformer.")}
        if not factors:
            raise ValueError("none of its weights is for a Wan transformer")
        layers = dict(transformer.named_modules())
        for name, factor in factors.items():
            layer, _, part = name.removeprefix("transformer.").partition(".lora_")
            if layer not in layers or part not in ("A.weight", "B.weight"):
                continue
            shape = layers[layer].weight.shape
            if (factor.shape[1:] != shape[1:]) if part == "A.weight" else (factor.shape[0] != shape[0]):
                raise ValueError(
                    f"its weight {name} has shape {tuple(factor.shape)}, and the layer that it adapts {tuple(shape)}: "
                    "it was trained for another model"
                )


def load_adapters(pipeline: WanImageToVideoPipeline, adapters: Sequence[Path | str]) -> None:
    """Loads adapters, folders or ids, beside the transformer's weights, each with weight 1.

    Raises:
        ValueError: one of them cannot be loaded.
    """
    names = [f"loaded_{index}" for index in range(len(adapters))]
    for name, adapter in zip(names, adapters, strict=True):
        with _wrap_adapter_errors(adapter):
            pipeline.load_lora_weights(adapter, adapter_name=name, use_safetensors=True)
    if names:  # loading an adapter deactivates those loaded before it
        pipeline.set_adapters(names)


@contextmanager
def _wrap_adapter_errors(adapter: Path | str) -> Iterator[None]:
    """Turns errors of loading an adapter into a ValueError that names it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # without a network, the hub's errors for an id are not OSErrors
        raise ValueError(
            f"the adapter {str(adapter)!r} cannot be loaded ({error}); give the folder or id of a LoRA adapter for "
            "this transformer: loading={'lora': [...]}"
        ) from error


def fuse_adapters(transformer: MosaicTransformer3DModel) -> None:
    """Adds the active adapters to the weights, in place. The weights then have their original names again."""
    if hasattr(transformer, "peft_config"):
        transformer.fuse_lora()
        transformer.unload_lora()
