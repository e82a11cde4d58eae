"""Files of tensors and what they are: of memories, and of snapshots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_with_metadata(tensors: dict[str, Tensor], path: Path | str, told: dict[str, Any]) -> None:
    """Writes tensors into one safetensors file, and in its metadata, as JSON, what they are: see `load_with_metadata`.

    Raises:
        FileNotFoundError: no such folder.
    """
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} to save {Path(path).name} in; make it first")
    apart, storages = {}, set()
    for name, value in tensors.items():
        # The format takes no two tensors that share memory, as those of a keyframe and of its moved copy do.
        storage = value.device, value.untyped_storage().data_ptr()
        apart[name] = value.clone() if storage in storages else value
        storages.add(storage)
    save_file(apart, str(path), metadata={"about": json.dumps(told)})


def load_with_metadata(path: Path | str, forms: Sequence[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file, and the JSON in its metadata.

    Args:
        forms: what its metadata may state as its format; kind: what to call it in errors.

    Raises:
        FileNotFoundError: no such file. ValueError: another kind of file, truncated, or of another version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {kind} file at {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            told = json.loads((file.metadata() or {}).get("about", "{}"))
            if not isinstance(told, dict):
                raise ValueError(f"{path} is damaged (its metadata is no JSON object); save the {kind} again")
            if (form := told.pop("format", None)) not in forms:
                said = f"says that it is a {form}" if form else "does not say what it is"
                raise ValueError(
                    f"{path} {said}, and is no {kind} ({' or '.join(forms)}); give a file of that kind, and save it "
                    "again with this version if it is of an earlier one"
                )
            # Copied: what is mapped from a file begins at any byte, and by that some CPUs' kernels round differently.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, told  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); save the {kind} again") from error
