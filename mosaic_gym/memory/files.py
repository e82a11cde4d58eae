"""Safetensors files with JSON metadata: of memories, and of snapshots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_with_metadata(tensors: dict[str, Tensor], path: Path | str, metadata: dict[str, Any]) -> None:
    """Writes tensors and JSON metadata, the format's name among it, into one safetensors file.

    Raises:
        FileNotFoundError: no such folder. OSError: it cannot be written there, or the disk is full.
    """
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} to save {Path(path).name} in; make it first")
    separate, storages = {}, set()
    for name, value in tensors.items():
        # Safetensors takes no two tensors that share memory, as those of a keyframe and of its transformed copy do.
        storage = value.device, value.untyped_storage().data_ptr()
        value = value.contiguous()
        separate[name] = value.clone() if storage in storages else value
        storages.add(storage)
    try:
        save_file(separate, str(path), metadata={"about": json.dumps(metadata)})
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def load_with_metadata(path: Path | str, formats: Sequence[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata that `save_with_metadata` wrote.

    Args:
        formats: the format names that are accepted; kind: what to call the file in errors, such as "memory".

    Raises:
        FileNotFoundError: no such file. ValueError: another kind of file, truncated, or of another version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {kind} file at {path}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = json.loads((file.metadata() or {}).get("about", "{}"))
            if not isinstance(metadata, dict):
                raise ValueError(f"{path} is damaged (its metadata is no JSON object); save the {kind} again")
            if (form := metadata.pop("format", None)) not in formats:
                found = f"has the format {form}" if form else "names no format"
                raise ValueError(
                    f"{path} {found}, and is no {kind} ({' or '.join(formats)}); give a file of that kind, and save it "
                    "again with this version if it is of an earlier one"
                )
            # Cloned: tensors mapped from a file begin at any byte, and some CPUs' kernels round differently there.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); save the {kind} again") from error
