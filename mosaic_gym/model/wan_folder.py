"""Whether a folder is a whole Wan pipeline in diffusers' format; partial downloads are named, and not loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from safetensors import SafetensorError, safe_open

from mosaic_gym.model.checkpoints import shipped

INDEX = "model_index.json"
PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
CONFIGS = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
"""The components that a world needs, and the JSON file that each of them begins with."""
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
"""The components that have weights, and the file they are in unless an index beside it names shards."""
VOCABULARIES = ("tokenizer.json", "spiece.model")
"""What a tokenizer's words may be in."""


def check_whole(folder: Path, told: dict[str, Any]) -> None:
    """Raises ValueError if a component that the index names is missing, or only partly there."""
    for name in CONFIGS:
        if told.get(name, [None, None])[1] is None:
            raise ValueError(f"{folder}/{INDEX} names no {name}; a world needs all of {', '.join(CONFIGS)}")
        part = folder / name
        if not part.is_dir() or not any(part.iterdir()):
            raise ValueError(f"{folder} lacks its component {name!r}; download the whole folder again")
        check_component(part, name)


def check_component(part: Path, name: str) -> None:
    """Raises ValueError if a file that the component needs is missing or cut short."""
    _read_json(part / CONFIGS[name], f"the component {name!r}")
    if name == "tokenizer":
        if not any((part / file).is_file() for file in VOCABULARIES):
            raise ValueError(f"the component {name!r} has no words: {part} lacks {VOCABULARIES[0]}; download it again")
        if (part / VOCABULARIES[0]).is_file():
            _read_json(part / VOCABULARIES[0], f"the component {name!r}")
    if name not in WEIGHTS:
        return
    single = part / WEIGHTS[name]
    index = part / f"{single.name}.index.json"
    files = {single} if single.is_file() else set()
    if index.is_file():
        shards = _read_json(index, f"the component {name!r}").get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ValueError(f"{index} of the component {name!r} names no shards; download it again")
        files |= {part / shard for shard in shards.values()}
    if not files:
        raise ValueError(
            f"the component {name!r} has no safetensors weights that can be loaded: {part} lacks {single.name}, or "
            f"{index.name} with the shards that it names; download it again"
        )
    for file in sorted(files):
        try:
            with safe_open(str(file), framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"the weights {file.name} of the component {name!r} in {part} are missing or cut short; download "
                "them again"
            ) from error


def planned(
    kind: type[ModelMixin], checkpoint: Path | str, lacking: dict[str, Any], subfolder: str | None, **changed: Any
) -> Any:
    """A network as its config describes it, on torch's `meta` device: no weights are read.

    Args:
        kind: its class.
        lacking: what its config is to say where it says nothing; `changed` goes before what it says.

    Raises:
        ValueError: there is no config, or it describes no network of this kind.
    """
    try:
        told = {**lacking, **kind.load_config(str(checkpoint), subfolder=subfolder), **changed}
        with torch.device("meta"):
            return kind.from_config(told)
    except (OSError, TypeError) as error:
        raise ValueError(
            f"the component {subfolder or 'transformer'!r} of {checkpoint} has no config that describes a "
            f"{kind.__name__} ({error}); take another pipeline, or download this component again"
        ) from error


def _read_json(path: Path, whose: str) -> dict[str, Any]:
    """What a JSON file says.

    Raises:
        ValueError: it is missing or damaged; the message tells whose it is.
    """
    try:
        told = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{whose} lacks {path}; download it again") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} of {whose} is damaged or cut short ({error}); download it again") from error
    if not isinstance(told, dict):
        raise ValueError(f"{path} of {whose} is damaged, for it says {str(told)[:40]}; download it again")
    return told


def read_index(checkpoint: Path | str) -> dict[str, Any]:
    """What the index of a Wan folder or hub id says.

    Raises:
        ValueError: there is none, it is damaged, or of another kind of pipeline.
    """
    if (Path(checkpoint) / INDEX).is_file():
        told = _read_json(Path(checkpoint) / INDEX, "the pipeline")
    else:
        try:
            told = DiffusionPipeline.load_config(str(checkpoint))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{str(checkpoint)!r} is neither a folder with a {INDEX} nor an id that the hub knows (or there is no "
                f"network); give one of {shipped()}, or the folder or id of a Wan pipeline in diffusers' format"
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
