"""The optional packages that a pretrained Wan pipeline needs, checked before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from mosaic_gym.model.wan.options import WanOptions


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def require(module: str, purpose: str, extra: str) -> None:
    """Checks that an optional package is installed.

    Args:
        module: its import name.
        purpose: what needs it, the subject of the message.
        extra: the extra of this package that installs it.

    Raises:
        ModuleNotFoundError: it is missing; the message names the extra.
    """
    if not is_installed(module):
        package = module.rpartition(".")[2]
        raise ModuleNotFoundError(f"{purpose} needs {package}: pip install 'mosaic-gym[{extra}]'", name=package)


def check_requirements(options: WanOptions) -> None:
    """Checks that this machine has what a pipeline with these options needs besides weights.

    Raises:
        ModuleNotFoundError: an optional package is missing; the message names the extra that installs it.
        ValueError: quantized weights without a CUDA GPU.
    """
    require("ftfy", "the prompt of a Wan pipeline", "wan")
    if options.lora:
        require("peft", "loading option lora", "wan")
    if options.quantisation is not None:
        if not torch.cuda.is_available():
            raise ValueError("loading option quantisation needs a CUDA GPU, and torch finds none: leave it out")
        require("bitsandbytes", "loading option quantisation", "quantisation")


def check_tokenizer_requirements() -> None:
    """Checks that a tokenizer can be read from a SentencePiece model (`spiece.model`).

    transformers converts such a model with both packages. Without them it takes the file for a tiktoken one, and its
    error asks for tiktoken, which does not help.

    Raises:
        ModuleNotFoundError: one of the packages is missing; the message names the extra.
    """
    for module in ("sentencepiece", "google.protobuf"):
        require(module, "a tokenizer without tokenizer.json, read from spiece.model,", "wan")
