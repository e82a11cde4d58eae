"""A world's weights as one folder: safetensors and JSON, nothing else is ever read.

    NAME/
      world.json            sizes, K, kinematics, budgets, the shipped number of denoising steps
      transformer/ detail/ codec/ text_encoder/ depth/ outcome/ scheduler/    each as diffusers saves it
      starts.safetensors    start images, and their prompts in its metadata
      README.md             the card
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mosaic_gym.model.codec import LinearCodec
from mosaic_gym.model.depth import ConvDepth, DepthEstimator
from mosaic_gym.model.detail import DetailNet
from mosaic_gym.model.outcome import OutcomeHeads
from mosaic_gym.model.text import ByteTextEncoder
from mosaic_gym.model.transformer import MosaicTransformer3DModel

WEIGHTS = Path(__file__).parent.parent / "weights"
FORMAT = "mosaic-world-2"


@dataclass(frozen=True)
class WorldSettings:
    """What a checkpoint fixes besides weights.

    Attributes:
        height, width: of the frames, pixels.
        image_from_camera: K `[3, 3]` in pixels, as rows.
        control: the fields of `geometry.control.Control`.
        denoising_steps: the shipped number.
        history: recent latent frames that are read.
        max_sources, max_patches: recall's budgets.
        capacity: keyframes an episode keeps.
    """

    height: int
    width: int
    image_from_camera: tuple[tuple[float, ...], ...]
    control: dict[str, float]
    denoising_steps: int = 1
    history: int = 1
    max_sources: int = 4
    max_patches: int = 32
    capacity: int = 512


@dataclass
class WorldModel:
    """All the networks of a learned world, and how they are to be used."""

    settings: WorldSettings
    transformer: MosaicTransformer3DModel
    detail: DetailNet
    codec: LinearCodec
    text_encoder: ByteTextEncoder
    depth: DepthEstimator
    outcome: OutcomeHeads
    scheduler: FlowMatchEulerDiscreteScheduler
    start_images: Tensor
    """uint8 `[n, H, W, 3]`."""
    start_prompts: tuple[str, ...]

    def to(self, device: str | torch.device) -> WorldModel:
        """Moves every network, in place, and puts them in evaluation mode."""
        for network in (self.transformer, self.detail, self.codec, self.text_encoder, self.depth, self.outcome):
            if isinstance(network, torch.nn.Module):
                network.to(device).eval().requires_grad_(False)
        return self

    @cached_property
    def fingerprint(self) -> str:
        """Tells checkpoints apart: a hash of the settings and of every weight that a state depends on."""
        digest = hashlib.sha256(json.dumps(asdict(self.settings), sort_keys=True).encode())
        for network in (self.transformer, self.detail, self.codec, self.text_encoder):
            for name, value in sorted(network.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes the folder described at the head of this file."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("transformer", "detail", "codec", "text_encoder", "depth", "outcome", "scheduler"):
            getattr(self, name).save_pretrained(folder / name)
        for path in folder.glob("*/config.json"):  # diffusers notes where each part came from
            told = json.loads(path.read_text())
            told.pop("_name_or_path", None)
            path.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
        starts = {"images": self.start_images.contiguous()}
        save_file(starts, folder / "starts.safetensors", metadata={"prompts": json.dumps(self.start_prompts)})
        told = {"format": FORMAT, **asdict(self.settings)}
        (folder / "world.json").write_text(json.dumps(told, indent=2) + "\n")

    @staticmethod
    def from_pretrained(checkpoint: Path | str) -> WorldModel:
        """Loads a shipped checkpoint by name, or a folder.

        Raises:
            ValueError: unknown name (the known ones are listed), a missing part, or damaged weights.
        """
        folder = resolve(checkpoint)
        told = json.loads((folder / "world.json").read_text())
        if told.pop("format", None) != FORMAT:
            raise ValueError(f"{folder}/world.json is not of format {FORMAT}; train or export the checkpoint again")
        parts = {
            "transformer": MosaicTransformer3DModel,
            "detail": DetailNet,
            "codec": LinearCodec,
            "text_encoder": ByteTextEncoder,
            "depth": ConvDepth,
            "outcome": OutcomeHeads,
        }
        loaded = {name: _load_part(kind, folder, name) for name, kind in parts.items()}
        images, prompts = _load_starts(folder / "starts.safetensors")
        told["image_from_camera"] = tuple(tuple(row) for row in told["image_from_camera"])
        return WorldModel(
            settings=WorldSettings(**told),
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
            start_images=images,
            start_prompts=prompts,
            **loaded,
        )


def shipped() -> list[str]:
    """Names of the checkpoints inside the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/world.json"))


def resolve(checkpoint: Path | str) -> Path:
    """The folder of a checkpoint given by name or path.

    Raises:
        ValueError: it is neither; lists the names that are known.
    """
    for folder in (WEIGHTS / str(checkpoint), Path(checkpoint)):
        if (folder / "world.json").is_file():
            return folder
    raise ValueError(
        f"unknown checkpoint {str(checkpoint)!r}: give one of {shipped()}, or a folder that holds a world.json"
    )


def _load_part(kind: type, folder: Path, name: str) -> torch.nn.Module:
    weights = folder / name / "diffusion_pytorch_model.safetensors"
    if not weights.is_file() or not (folder / name / "config.json").is_file():
        raise ValueError(f"checkpoint {folder} lacks its part {name!r}; copy the whole folder again")
    try:
        with safe_open(str(weights), framework="pt") as file:
            present = set(file.keys())
        network = kind.from_pretrained(folder / name, use_safetensors=True, low_cpu_mem_usage=False)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"the weights of {name!r} in {folder} are damaged or cut short; copy the folder again"
        ) from error
    missing = set(network.state_dict()) - present
    if missing:
        raise ValueError(
            f"the weights of {name!r} in {folder} lack {sorted(missing)[:3]}; they belong to another version"
        )
    return network


def _load_starts(path: Path) -> tuple[Tensor, tuple[str, ...]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.get_tensor("images"), tuple(json.loads(file.metadata()["prompts"]))
    except (SafetensorError, OSError, FileNotFoundError) as error:
        raise ValueError(f"{path} is missing or damaged; copy the checkpoint's folder again") from error
