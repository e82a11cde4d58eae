"""The networks of a checkpoint, each in a folder of its own: saving, loading and fingerprints."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mosaic_gym.model.transformer import MosaicTransformer3DModel


def fingerprint_of(networks: Iterable[Any], metadata: str = "") -> str:
    """A hash of metadata and state dicts; of very large tensors, a sample of the numbers is hashed.

    An object that is not a network stands for its `model`, if it has one, and is ignored otherwise.
    """
    digest = hashlib.sha256(metadata.encode())
    for network in networks:
        if not isinstance(network, torch.nn.Module):
            network = getattr(network, "model", None)
        if isinstance(network, torch.nn.Module):
            for name, value in sorted(network.state_dict().items()):
                digest.update(name.encode())
                digest.update(_sampled(value))
    return digest.hexdigest()


def _sampled(value: Tensor) -> bytes:
    """A tensor's bytes; for more than a million numbers, the bytes of some thousands at equal distances."""
    flat = value.detach().flatten()
    if len(flat) > 1_000_000:
        flat = flat[:: len(flat) // 4096]
    return flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()


@torch.no_grad()
def round_to_half(network: torch.nn.Module) -> None:
    """Rounds weights in place to values that float16 holds exactly, so that files take half the space."""
    for value in network.state_dict().values():
        value.copy_(value.half() + 0.0)  # -0 becomes 0, so that equal weights have equal fingerprints


def save_part(part: Any, folder: Path) -> None:
    """Saves a network in diffusers' format, in float16 if that is exact."""
    if isinstance(part, torch.nn.Module):
        values = part.state_dict().values()
        if all(value.dtype == torch.float32 and torch.equal(value.half().float(), value) for value in values):
            part = copy.deepcopy(part).half()
    part.save_pretrained(folder)


def load_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of a checkpoint's folder.

    Raises:
        ValueError: the scheduler is missing or damaged.
    """
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise ValueError(f"checkpoint {folder} lacks its part 'scheduler'; copy the whole folder again")
    try:
        return FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"the part 'scheduler' in {folder} is damaged ({error}); copy the folder again") from error


def load_part(kinds: type | tuple[type, ...], folder: Path, name: str) -> torch.nn.Module:
    """The network in the subfolder `name` of a checkpoint's folder, in float32.

    Args:
        kinds: its class, or the classes that it can have: config.json names one of them.

    Raises:
        ValueError: the network is missing, damaged or of another version, or a weight is not finite.
    """
    path = folder / name / "diffusion_pytorch_model.safetensors"
    if not path.is_file() or not (folder / name / "config.json").is_file():
        raise ValueError(f"checkpoint {folder} lacks its part {name!r}; copy the whole folder again")
    kind = _kind_of(kinds, folder / name / "config.json")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            present = set(file.keys())
        # Networks with buffers that are computed and not saved would keep them empty with fast initialization.
        lean = kind is MosaicTransformer3DModel
        with torch.device("cpu"):  # whatever the process has as default device
            network = kind.from_pretrained(
                folder / name, use_safetensors=True, low_cpu_mem_usage=lean, torch_dtype=torch.float32
            )
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"the weights of {name!r} in {folder} are damaged, cut short or of another shape than in config.json; "
            "copy the folder again"
        ) from error
    missing = set(network.state_dict()) - present
    if missing:
        raise ValueError(
            f"the weights of {name!r} in {folder} lack {sorted(missing)[:3]}; they belong to another version"
        )
    # Weights that are mapped from a file start at any byte, and some CPU kernels round differently by alignment.
    for weights in (*network.parameters(), *network.buffers()):
        weights.data = weights.data.clone()
    broken = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"the weights of {name!r} in {folder} are not finite in {broken[:3]}; copy the folder again")
    return network


def _kind_of(kinds: type | tuple[type, ...], config: Path) -> type:
    """The class that a network's config names; the first one if it names none of them, so that its checks report it."""
    if isinstance(kinds, type):
        return kinds
    try:
        name = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return kinds[0]
    return next((kind for kind in kinds if kind.__name__ == name), kinds[0])
