"""From the name of a checkpoint to its files: shipped, a folder, or a repository on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from mosaic_gym.model.settings import load_settings
from mosaic_gym.model.shipped import WEIGHTS, shipped

WAN_INDEX = "model_index.json"
WORLD_INDEX = "world.json"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_wan(checkpoint: Path | str) -> bool:
    """Whether this names a Wan pipeline in diffusers' format: a folder or hub repository with a model_index.json.

    Folders that hold components of a pipeline without the index count as well, so that loading can name what is
    missing. The files of the hub decide for `owner/name`, unless `owner` is a folder here: then it is a path.

    Raises:
        ValueError: the hub does not know the repository or cannot be reached, or it has neither kind of index.
    """
    folder = Path(checkpoint)
    if (folder / WAN_INDEX).is_file() or (folder / WORLD_INDEX).is_file():
        return (folder / WAN_INDEX).is_file()
    if folder.exists():
        from mosaic_gym.model.wan.folder import lacks_index  # imports transformers, which takes seconds

        return lacks_index(folder)
    return _is_hub_id(checkpoint) and _hub_index(str(checkpoint)).name == WAN_INDEX


def resolve(checkpoint: Path | str) -> Path:
    """The folder of a world's checkpoint; of one on the hub, the files that a world needs are downloaded first.

    Raises:
        ValueError: there is no such checkpoint; the message lists the shipped ones.
    """
    for folder in (WEIGHTS / str(checkpoint), Path(checkpoint)):
        if (folder / WORLD_INDEX).is_file():
            return folder
    if _is_fine_tuned_part(Path(checkpoint)):
        raise ValueError(
            f"{str(checkpoint)!r} holds weights that were trained for a Wan pipeline, without the pipeline itself: "
            "pass the pipeline as checkpoint and this folder in `loading`, as the training run printed at its end"
        )
    if not Path(checkpoint).exists() and _is_hub_id(checkpoint):
        index = _hub_index(str(checkpoint))
        if index.name == WORLD_INDEX:
            return _download_world(str(checkpoint), index)
    missing = " (there is no such folder)" if "/" in str(checkpoint) and not Path(checkpoint).exists() else ""
    raise ValueError(
        f"unknown checkpoint {str(checkpoint)!r}{missing}: give one of {shipped()}, the folder or hub id of a world "
        f"(it holds a {WORLD_INDEX}), or the folder or hub id of a Wan pipeline in diffusers' format"
    )


def _is_hub_id(checkpoint: Path | str) -> bool:
    return HUB_ID.fullmatch(str(checkpoint)) is not None and not Path(checkpoint).parent.exists()


def _hub_index(repository: str) -> Path:
    """Downloads the index of a repository; its file name says whether it is a Wan pipeline or a world.

    Raises:
        ValueError: the repository is unknown or cannot be reached, or has neither index.
    """
    reasons = []
    for name in (WAN_INDEX, WORLD_INDEX):
        try:
            return Path(hf_hub_download(repository, name))
        except (EntryNotFoundError, OSError, ValueError) as error:  # OSError: every other answer of the hub
            reasons.append(error)
    if any(
        isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError) for error in reasons
    ):
        raise ValueError(
            f"the hub repository {repository!r} has neither a {WORLD_INDEX} (a world) nor a {WAN_INDEX} (a Wan "
            f"pipeline in diffusers' format): take another, or one of {shipped()}"
        ) from reasons[-1]
    raise ValueError(
        f"{str(repository)!r} is neither a folder with a {WORLD_INDEX} or {WAN_INDEX} nor a hub repository that can be "
        f"reached ({_first_line(reasons[-1])}): check the id, sign in if it is private (hf auth login), and connect to "
        f"the network or set HF_HUB_OFFLINE=0 to download it; or give one of {shipped()}"
    ) from reasons[-1]


def _download_world(repository: str, index: Path) -> Path:
    """Downloads a world's files, and no others; offline, finds them in the hub's cache.

    Raises:
        ValueError: world.json is damaged or of another version, or a file cannot be downloaded.
    """
    _, parts = load_settings(index)
    needed = [WORLD_INDEX, "starts.safetensors", "figures.json", "scheduler/scheduler_config.json"]
    for part in parts:
        needed += [f"{part}/config.json", f"{part}/diffusion_pytorch_model.safetensors"]
    try:
        return Path(snapshot_download(repository, allow_patterns=needed))
    except (EntryNotFoundError, OSError) as error:
        raise ValueError(
            f"the files of the world {repository!r} cannot be downloaded ({_first_line(error)}): connect to the "
            "network, and try again; what has arrived is not downloaded again"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _is_fine_tuned_part(folder: Path) -> bool:
    """Whether fine-tuning or distilling a Wan pipeline wrote this folder; a pipeline loads it as a part."""
    if not folder.is_dir():
        return False
    if (folder / "cameras.safetensors").is_file() or [path.name for path in folder.iterdir()] == ["transformer"]:
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config.get("_class_name") == "MosaicTransformer3DModel"
    except (OSError, ValueError, AttributeError):
        return False
