"""Checkpoint files of a run: where they are, how they are replaced whole, and whether a run may resume from them.

A checkpoint is a folder `checkpoint` of safetensors files, with `run.json` written last. A new one is written beside
it as `checkpoint.new` and renamed, so that an interruption at any moment leaves a whole one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

Tensors = dict[str, torch.Tensor]
"""Named tensors of one file."""
OPTIONS = {
    "dream": "rollout",  # name in files
    "mix.forget": "augmentation.no_memory",  # name in files
    "mix.last_only": "augmentation.last_only",  # name in files
    "mix.most": "augmentation.max_keyframes",  # name in files
    "mix.worn": "augmentation.degraded",  # name in files
    "mix.wedge": "augmentation.cropped",  # name in files
    "mix.away": "augmentation.no_recent",  # name in files
    "mix.longest_away": "augmentation.max_recent_steps",  # name in files
    "mix.astray": "augmentation.place_noise_m",  # name in files
    "mix.unplaced": "augmentation.no_place",  # name in files
    "mix.alone": "augmentation.single_warp",  # name in files
}
"""Present names of options by the names in `run.json` files of earlier versions."""
NETWORKS = {"detail": "refiner"}  # name in files
"""Present names of networks by the names that begin tensors' names in checkpoints of earlier versions."""


def checkpoint_in(folder: Path) -> Path | None:
    """The folder of a run's newest whole checkpoint; None if there is none."""
    for checkpoint in (folder / "checkpoint.new", folder / "checkpoint"):  # the first: interrupted before its rename
        if (checkpoint / "run.json").exists():
            return checkpoint
    return None


def finish_rename(folder: Path) -> None:
    """Gives a whole `checkpoint.new` its final name, if a run was interrupted just before it did."""
    newest = checkpoint_in(folder)
    if newest is not None and newest.name == "checkpoint.new":
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        newest.rename(folder / "checkpoint")


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """The content of `run.json`, with options under their present names."""
    metadata = json.loads((checkpoint / "run.json").read_text())
    if metadata.get("recipe") is not None:
        metadata["recipe"] = {OPTIONS.get(name, name): value for name, value in metadata["recipe"].items()}
    return metadata


def read_tensors(checkpoint: Path, name: str) -> Tensors:
    """The tensors of one file (`model`, `average` or `optimizer`), whole, under their present names, on the CPU."""
    tensors = {}
    for key, value in load_file(checkpoint / f"{name}.safetensors").items():
        first, dot, rest = key.partition(".")
        tensors[f"{NETWORKS.get(first, first)}{dot}{rest}"] = value
    return tensors


def write_checkpoint(
    folder: Path, files: Mapping[str, Tensors], metadata: Mapping[str, Any], accelerator: Accelerator
) -> None:
    """Writes a checkpoint; the previous one stays until the new one is whole.

    Every process has to call it, because sharded tensors are gathered from all; the main process writes.

    Args:
        files: tensors by the name of the file that they go into.
        metadata: the content of `run.json`.
    """
    fresh, final = folder / "checkpoint.new", folder / "checkpoint"
    is_main = accelerator.is_main_process
    if is_main:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    for name, tensors in files.items():
        whole = _gather(tensors, keep=is_main)
        if is_main:
            save_file(whole, fresh / f"{name}.safetensors")
    if not is_main:
        return
    (fresh / "run.json").write_text(json.dumps(metadata))
    shutil.rmtree(final, ignore_errors=True)
    fresh.rename(final)


def _gather(tensors: Tensors, keep: bool) -> Tensors:
    """Whole tensors, if they are to be kept; sharded ones are gathered from all processes."""
    whole = {}
    for name, value in tensors.items():
        # One by one and moved to the CPU: together they may not fit on one accelerator.
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            whole[name] = (full.cpu() if isinstance(value, DTensor) else full).contiguous()
    return whole


def shard_like(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's shard of a tensor that all processes have whole, if `like` is sharded; else the whole tensor."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def check_resumable(folder: Path, identity: Mapping[str, Any], unknown: Collection[str] = ()) -> None:
    """Compares a run with the one that a folder holds, if any; only `run.json` is read.

    Args:
        identity: `begin`, `parts` and `recipe` of the run, as `Run` takes them. Keys that are left out are not
            compared: `parts` is only known after weights are loaded.
        unknown: options of the recipe that are not known yet, and are not compared either.

    Raises:
        ValueError: the folder holds a run that started from other weights, was trained against other parts, or has
            another recipe.
    """
    checkpoint = checkpoint_in(folder)
    if checkpoint is None:
        return
    metadata = read_metadata(checkpoint)
    if "begin" in identity and metadata.get("begin") != identity["begin"]:
        raise ValueError(
            f"{folder} holds a run that started from {metadata.get('begin') or 'no weights'}, not from "
            f"{identity['begin'] or 'no weights'}; start from the same, or choose another folder with --out"
        )
    if "parts" in identity and metadata.get("parts") != identity["parts"]:
        raise ValueError(
            f"{folder} holds a run that was trained against other weights (codec, depth estimator, heads and atlas, or "
            "a pretrained pipeline); go on with the same, or choose another folder with --out"
        )
    saved, wanted = metadata.get("recipe"), identity.get("recipe")
    if saved is None or wanted is None:
        return
    differences = [
        "of another recording" if name == "data" else f"with {name}={saved.get(name)}, not {wanted.get(name)}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name) and name not in unknown
    ]
    if differences:
        raise ValueError(
            f"{folder} holds a run {', '.join(differences)}; ask for the same, or choose another folder with --out"
        )
