"""Checks whether a folder is a complete Wan pipeline in diffusers' format; names what is missing without loading it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from mosaic_gym.model.shipped import shipped
from mosaic_gym.model.wan.requirements import check_tokenizer_requirements

INDEX = "model_index.json"
PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
CONFIGS = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
"""The components that a world needs, and the JSON file that configures each of them."""
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
"""The components that have weights, and the file that holds them unless an index beside it lists shards."""
TOKENIZER_JSON, SENTENCEPIECE_MODEL = "tokenizer.json", "spiece.model"
"""Files that may hold a tokenizer's vocabulary."""
WAN_ONLY = ("vae", "tokenizer")
"""Components for which our own checkpoints have no folder; they have one for each of the others."""


def lacks_index(folder: Path | str) -> bool:
    """Whether a folder holds components of a pipeline without the index that lists them."""
    folder = Path(folder)
    if (folder / INDEX).is_file() or (folder / "world.json").is_file():
        return False
    return any((folder / name).is_dir() for name in WAN_ONLY)


def check_whole(folder: Path) -> None:
    """Raises ValueError if a component of a folder is missing or incomplete."""
    for name in CONFIGS:
        part = folder / name
        if not part.is_dir() or not any(part.iterdir()):
            raise ValueError(f"{folder} lacks its component {name!r}; download the whole folder again")
        check_component(part, name)


def check_component(part: Path, name: str) -> None:
    """Raises ValueError if a file that the component needs is missing or cut short."""
    owner = f"the component {name!r}"
    _read_json(part / CONFIGS[name], owner)
    if name == "tokenizer":
        if (part / TOKENIZER_JSON).is_file():
            _read_json(part / TOKENIZER_JSON, owner)
        elif not (part / SENTENCEPIECE_MODEL).is_file():
            raise ValueError(f"{owner} has no vocabulary: {part} lacks {TOKENIZER_JSON}; download it again")
    if name not in WEIGHTS:
        return
    single = part / WEIGHTS[name]
    index = part / f"{single.name}.index.json"
    files = {single} if single.is_file() else set()
    if index.is_file():
        shards = _read_json(index, owner).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ValueError(f"{index} of {owner} names no shards; download it again")
        files |= {part / shard for shard in shards.values()}
    if not files:
        raise ValueError(
            f"{owner} has no safetensors weights that can be loaded: {part} lacks {single.name}, or {index.name} with "
            "the shards that it names; download it again"
        )
    for file in sorted(files):
        try:
            with safe_open(str(file), framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"the weights {file.name} of {owner} in {part} are missing or cut short; download them again"
            ) from error


@contextmanager
def wrap_component_errors(name: str, checkpoint: Path | str) -> Iterator[None]:
    """Turns errors of loading a component into a ValueError that names it.

    Two kinds pass unchanged, because the component is not at fault: an accelerator without enough memory, and a
    package that is not installed.
    """
    try:
        yield
    except (torch.OutOfMemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # damaged files raise errors of many classes, in tokenizers plain Exception
        raise ValueError(
            f"the component {name!r} of {checkpoint} cannot be loaded ({type(error).__name__}: {error}); take another "
            "pipeline, or download this component again"
        ) from error


def load_tokenizer(checkpoint: Path | str, index: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a Wan folder or hub id, of the class that its index names.

    Raises:
        ValueError: it cannot be loaded, or cannot tokenize a prompt.
        ModuleNotFoundError: it is a SentencePiece model, and a package that reads those is missing.
    """
    with wrap_component_errors("tokenizer", checkpoint):
        kind = _component_class(index, "tokenizer", transformers, PreTrainedTokenizerBase)
        try:
            tokenizer = kind.from_pretrained(str(checkpoint), subfolder="tokenizer")
        except Exception:  # transformers names another package than those that are missing
            if not _has_tokenizer_json(checkpoint):
                check_tokenizer_requirements()
            raise
        tokenizer([""], padding="max_length", max_length=1)  # fails here, not in play, if the padding token is missing
        return tokenizer


def _has_tokenizer_json(checkpoint: Path | str) -> bool:
    """Whether a folder, or the local copy of a hub id, has its tokenizer in the format that needs no other package."""
    if Path(checkpoint).is_dir():
        return (Path(checkpoint) / "tokenizer" / TOKENIZER_JSON).is_file()
    return isinstance(try_to_load_from_cache(str(checkpoint), f"tokenizer/{TOKENIZER_JSON}"), str)


def load_scheduler(checkpoint: Path | str, index: dict[str, Any]) -> SchedulerMixin:
    """The scheduler of a Wan folder or hub id, of the class that its index names.

    Raises:
        ValueError: it cannot be loaded, or does not sample by flow matching, as Wan was trained.
    """
    with wrap_component_errors("scheduler", checkpoint):
        kind = _component_class(index, "scheduler", diffusers, SchedulerMixin)
        scheduler = kind.from_pretrained(str(checkpoint), subfolder="scheduler")
    required = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    found = {name: scheduler.config.get(name) for name in required}
    # A step sets where sampling starts, which a few schedulers do not support.
    if not hasattr(scheduler, "set_begin_index") or not (kind.__name__.startswith("FlowMatch") or found == required):
        raise ValueError(
            f"the component 'scheduler' of {checkpoint}, a {kind.__name__} with {found}, does not sample by flow "
            "matching, as Wan was trained; download it again, or take a FlowMatchEulerDiscreteScheduler, or a "
            f"UniPCMultistepScheduler whose {CONFIGS['scheduler']} sets {required}"
        )
    return scheduler


def _component_class(index: dict[str, Any], name: str, library: ModuleType, base: type) -> type:
    """The class that an index names for a component.

    Raises:
        ValueError: the library has no such class, or it is not a subclass of `base`.
    """
    found = getattr(library, _class_name(index, name), None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{INDEX} names {index[name]}, and {library.__name__} has no {name} of that name")
    return found


def _class_name(index: dict[str, Any], name: str) -> str | None:
    """The class of a component, whose entry is [library, class]; None if the index has no such entry."""
    entry = index.get(name)
    return entry[1] if isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], str) else None


def network_from_config(
    kind: type[ModelMixin], checkpoint: Path | str, defaults: dict[str, Any], subfolder: str | None, **overrides: Any
) -> Any:
    """A network built from its config on torch's `meta` device; no weights are read.

    Args:
        kind: its class.
        defaults: values for entries that its config lacks.
        overrides: values that replace those of its config.

    Raises:
        ValueError: there is no config, or it does not describe a network of this class.
    """
    try:
        config = {**defaults, **kind.load_config(str(checkpoint), subfolder=subfolder), **overrides}
        with torch.device("meta"):
            return kind.from_config(config)
    except (OSError, TypeError) as error:
        raise ValueError(
            f"the component {subfolder or 'transformer'!r} of {checkpoint} has no config that describes a "
            f"{kind.__name__} ({error}); take another pipeline, or download this component again"
        ) from error


def _read_json(path: Path, owner: str) -> dict[str, Any]:
    """The content of a JSON file.

    Args:
        owner: what the file belongs to, for messages.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{owner} lacks {path}; download it again") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} of {owner} is damaged or cut short ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} of {owner} is damaged, it holds {str(content)[:40]}; download it again")
    return content


def read_index(checkpoint: Path | str) -> dict[str, Any]:
    """The index of a Wan folder or hub id.

    Raises:
        ValueError: there is none, it is damaged, belongs to another kind of pipeline, or lacks a component.
    """
    if lacks_index(checkpoint):
        raise ValueError(
            f"{checkpoint} holds components of a pipeline and no {INDEX}, which lists them; download the whole folder "
            "again"
        )
    if (Path(checkpoint) / INDEX).is_file():
        index = _read_json(Path(checkpoint) / INDEX, "the pipeline")
    else:
        try:
            index = DiffusionPipeline.load_config(str(checkpoint))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{str(checkpoint)!r} is neither a folder with a {INDEX} nor an id that the hub knows (or there is no "
                f"network); give one of {shipped()}, or the folder or id of a Wan pipeline in diffusers' format"
            ) from error
    if index.get("_class_name") not in PIPELINES:
        raise ValueError(
            f"{checkpoint} is a {index.get('_class_name')}, no Wan pipeline; the known ones are {', '.join(PIPELINES)}"
        )
    missing = [name for name in CONFIGS if _class_name(index, name) is None]
    if missing:
        raise ValueError(
            f"{INDEX} of {checkpoint} names no {', no '.join(missing)}; a world needs all of {', '.join(CONFIGS)}: "
            "download the whole pipeline again, or take another"
        )
    if _class_name(index, "transformer_2") is not None:
        raise ValueError(
            f"{checkpoint} has a second transformer (transformer_2) for low noise; a world uses one. Take a model with "
            "one transformer, such as Wan-AI/Wan2.2-TI2V-5B-Diffusers"
        )
    return index
