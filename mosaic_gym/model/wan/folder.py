"""Whether a folder is a whole Wan pipeline in diffusers' format; partial downloads are named, and not loaded."""

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
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from mosaic_gym.model.shipped import shipped

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
WAN_ALONE = ("vae", "tokenizer")
"""Components that no world of ours has a folder for; it has one for each of the others."""


def lacks_index(folder: Path | str) -> bool:
    """Whether a folder holds components of a pipeline, and not the index that says what they are."""
    folder = Path(folder)
    if (folder / INDEX).is_file() or (folder / "world.json").is_file():
        return False
    return any((folder / name).is_dir() for name in WAN_ALONE)


def check_whole(folder: Path) -> None:
    """Raises ValueError if a component of a folder is missing, or only partly there."""
    for name in CONFIGS:
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


@contextmanager
def component_named(name: str, checkpoint: Path | str) -> Iterator[None]:
    """Raises what goes wrong in loading a component as a ValueError that names it.

    An accelerator without room is no fault of the component's: that error stays as it is.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # loaders raise whatever damaged files lead to; of tokenizers' words a plain Exception
        raise ValueError(
            f"the component {name!r} of {checkpoint} cannot be loaded ({type(error).__name__}: {error}); take another "
            "pipeline, or download this component again"
        ) from error


def load_tokenizer(checkpoint: Path | str, told: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a Wan folder or hub id, of the class that its index names.

    Raises:
        ValueError: it cannot be loaded, or reads no prompt.
    """
    with component_named("tokenizer", checkpoint):
        kind = _class_named(told, "tokenizer", transformers, PreTrainedTokenizerBase)
        tokenizer = kind.from_pretrained(str(checkpoint), subfolder="tokenizer")
        tokenizer([""], padding="max_length", max_length=1)  # one that lost its padding token fails here, not in play
        return tokenizer


def load_scheduler(checkpoint: Path | str, told: dict[str, Any]) -> SchedulerMixin:
    """The scheduler of a Wan folder or hub id, of the class that its index names.

    Raises:
        ValueError: it cannot be loaded, or does not sample by flow matching, as Wan was trained.
    """
    with component_named("scheduler", checkpoint):
        kind = _class_named(told, "scheduler", diffusers, SchedulerMixin)
        scheduler = kind.from_pretrained(str(checkpoint), subfolder="scheduler")
    asked = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    says = {name: scheduler.config.get(name) for name in asked}
    # A step sets where sampling begins, which a few schedulers know nothing of.
    if not hasattr(scheduler, "set_begin_index") or not (kind.__name__.startswith("FlowMatch") or says == asked):
        raise ValueError(
            f"the component 'scheduler' of {checkpoint}, a {kind.__name__} with {says}, does not sample by flow "
            "matching, as Wan was trained; download it again, or take a FlowMatchEulerDiscreteScheduler, or a "
            f"UniPCMultistepScheduler whose {CONFIGS['scheduler']} says {asked}"
        )
    return scheduler


def _class_named(told: dict[str, Any], name: str, library: ModuleType, kind: type) -> type:
    """The class that an index names for a component.

    Raises:
        ValueError: the library has no such class of this kind.
    """
    found = getattr(library, _named(told, name), None)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"{INDEX} says {told[name]}, and {library.__name__} has no {name} of that name")
    return found


def _named(told: dict[str, Any], name: str) -> str | None:
    """The class of a component, which an index tells as [library, class]; None where it tells of none."""
    said = told.get(name)
    return said[1] if isinstance(said, list | tuple) and len(said) == 2 and isinstance(said[1], str) else None


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
        ValueError: there is none, it is damaged, of another kind of pipeline, or lacks a component.
    """
    if lacks_index(checkpoint):
        raise ValueError(
            f"{checkpoint} holds components of a pipeline and no {INDEX}, which says what they are; download the whole "
            "folder again"
        )
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
    lacking = [name for name in CONFIGS if _named(told, name) is None]
    if lacking:
        raise ValueError(
            f"{INDEX} of {checkpoint} names no {', no '.join(lacking)}; a world needs all of {', '.join(CONFIGS)}: "
            "download the whole pipeline again, or take another"
        )
    if _named(told, "transformer_2") is not None:
        raise ValueError(
            f"{checkpoint} has a second transformer (transformer_2) for low noise; a world uses one. Take a model with "
            "one transformer, such as Wan-AI/Wan2.2-TI2V-5B-Diffusers"
        )
    return told
