"""A world's weights as one folder: safetensors and JSON, nothing else is ever read.

    NAME/
      world.json            sizes, K, kinematics, budgets, the shipped number of denoising steps, the parts there are
      transformer/ detail/ codec/ text_encoder/ depth/ outcome/ atlas/ scheduler/    each as diffusers saves it
      starts.safetensors    start images, and their prompts in its metadata
      README.md             the card
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mosaic_gym.geometry.control import Control
from mosaic_gym.model.atlas import Atlas
from mosaic_gym.model.codec import LinearCodec
from mosaic_gym.model.depth import ConvDepth, DepthEstimator
from mosaic_gym.model.detail import DetailNet
from mosaic_gym.model.outcome import OutcomeHeads
from mosaic_gym.model.text import ByteTextEncoder
from mosaic_gym.model.transformer import MosaicTransformer3DModel

if TYPE_CHECKING:
    from diffusers import WanImageToVideoPipeline

    from mosaic_gym.model.wan_codec import WanCodec, WanPrompts

WEIGHTS = Path(__file__).parent.parent / "weights"
FORMAT = "mosaic-world-5"
WAN_SIZE = (352, 640)
"""Height and width of a Wan world's frames when no resolution is asked for, pixels."""
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
KINDS = {
    "transformer": MosaicTransformer3DModel,
    "detail": DetailNet,
    "codec": LinearCodec,
    "text_encoder": ByteTextEncoder,
    "depth": ConvDepth,
    "outcome": OutcomeHeads,
    "atlas": Atlas,
}
"""The networks of a folder, each in one of its own."""
OPTIONAL = {"detail", "outcome", "atlas"}
"""Networks that a world may do without."""


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
        guidance: classifier-free guidance, 1 for none, away from `negative_prompt`.
        scenario: what of the engine's it was trained on, and is to be compared with; see `DoomWorld`.
    """

    height: int
    width: int
    image_from_camera: tuple[tuple[float, ...], ...]
    control: dict[str, float]
    denoising_steps: int = 1
    history: int = 1
    max_sources: int = 3
    max_patches: int = 32
    capacity: int = 512
    guidance: float = 1.0
    negative_prompt: str = ""
    scenario: str = "my_way_home"


@dataclass
class WorldModel:
    """All the networks of a learned world, and how they are to be used."""

    settings: WorldSettings
    transformer: MosaicTransformer3DModel
    detail: DetailNet | None
    """None: frames are shown as the codec decodes them."""
    codec: LinearCodec | WanCodec
    text_encoder: ByteTextEncoder | WanPrompts
    depth: DepthEstimator
    outcome: OutcomeHeads | None
    """None: nothing is paid, and nothing ends."""
    atlas: Atlas | None
    """None: no map is known by heart."""
    scheduler: SchedulerMixin
    start_images: Tensor
    """uint8 `[n, H, W, 3]`; where there are none, a first frame is generated from the prompt."""
    start_prompts: tuple[str, ...]
    pipeline: WanImageToVideoPipeline | None = None
    """Of a pretrained world, what its parts came in; it places them."""
    offload: str | None = None

    def to(self, device: str | torch.device) -> WorldModel:
        """Moves every network, in place, and puts them in evaluation mode."""
        if torch.device(device).type == "cuda" and hasattr(self.codec, "channels_last"):
            self.codec.channels_last()
        if self.pipeline is not None:
            self.transformer.requires_grad_(False)
            self.codec.requires_grad_(False)
            if self.offload == "model":
                self.pipeline.enable_model_cpu_offload(device=device)
            elif self.offload == "sequential":
                self.pipeline.enable_sequential_cpu_offload(device=device)
            else:
                self.pipeline.to(device)
            self.codec.mean, self.codec.deviation = self.codec.mean.to(device), self.codec.deviation.to(device)
            self.depth.to(device)
            return self
        networks = self.transformer, self.detail, self.codec, self.text_encoder, self.depth, self.outcome, self.atlas
        for network in networks:
            if isinstance(network, torch.nn.Module):
                network.to(device).eval().requires_grad_(False)
        return self

    @cached_property
    def fingerprint(self) -> str:
        """Tells checkpoints apart: a hash of the settings, of the weights that a state depends on (see
        `fingerprint_of`), and of how a pipeline's are read."""
        networks = self.transformer, self.detail, self.codec, self.text_encoder, self.atlas, self.depth, self.outcome
        told = asdict(self.settings)
        if self.pipeline is not None:
            told["causal"] = self.transformer.config.causal
            told["depth"] = {name: getattr(self.depth, name, None) for name in ("inverse", "median_depth_m")}
        return fingerprint_of(networks, json.dumps(told, sort_keys=True))

    @cached_property
    def memory_fingerprint(self) -> str:
        """Tells apart whose memories are whose: a hash of the codec that keyframes are kept in, and of the atlas on
        whose map their places are."""
        return fingerprint_of((self.codec, self.atlas))

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes the folder described at the head of this file.

        Raises:
            ValueError: a pretrained pipeline, which has a format of its own.
        """
        if self.pipeline is not None:
            raise ValueError(
                "a Wan world is saved as its pipeline: model.pipeline.save_pretrained(folder). LoRA adapters are to be "
                "fused first: mosaic_gym.model.wan.fuse_adapters(model.transformer)"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        parts = [name for name in KINDS if getattr(self, name) is not None]
        for name in (*parts, "scheduler"):
            save_part(getattr(self, name), folder / name)
        for path in folder.glob("*/config.json"):  # diffusers notes where each part came from
            told = json.loads(path.read_text())
            told.pop("_name_or_path", None)
            path.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
        starts = {"images": self.start_images.contiguous()}
        save_file(starts, folder / "starts.safetensors", metadata={"prompts": json.dumps(self.start_prompts)})
        told = {"format": FORMAT, "parts": parts, **asdict(self.settings)}
        (folder / "world.json").write_text(json.dumps(told, indent=2) + "\n")

    @staticmethod
    def from_pretrained(
        checkpoint: Path | str, size: tuple[int, int] | None = None, loading: Mapping[str, Any] | None = None
    ) -> WorldModel:
        """Loads a shipped checkpoint by name, a folder, or a pretrained Wan pipeline by folder or hub id.

        Args:
            size: (height, width) of the frames of a Wan world; other checkpoints have their own.
            loading: how a Wan pipeline is loaded, the fields of `model.wan.WanOptions`.

        Raises:
            ValueError: unknown name (the known ones are listed), a missing part, or damaged weights.
        """
        if is_wan(checkpoint):
            return _wan_world(checkpoint, size or WAN_SIZE, loading or {})
        folder = resolve(checkpoint)
        if loading:
            raise ValueError(f"loading={dict(loading)} is for pretrained Wan pipelines; {checkpoint!r} is none")
        settings, parts = _load_settings(folder / "world.json")
        scheduler = _load_scheduler(folder)
        loaded = {name: _load_part(kind, folder, name) if name in parts else None for name, kind in KINDS.items()}
        images, prompts = _load_starts(folder / "starts.safetensors")
        size = (settings.height, settings.width)
        if tuple(images.shape[1:]) != (*size, 3):
            raise ValueError(
                f"{folder / 'world.json'} says frames of {size}, and starts.safetensors holds images of shape "
                f"{tuple(images.shape)}: one of them is another's; copy the whole folder again"
            )
        return WorldModel(
            settings=settings,
            scheduler=scheduler,
            start_images=images,
            start_prompts=prompts,
            **loaded,
        )


def shipped() -> list[str]:
    """Names of the checkpoints inside the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/world.json"))


def is_wan(checkpoint: Path | str) -> bool:
    """Whether this names a diffusers pipeline: a folder with a model_index.json, or what may be a hub id.

    A hub id is owner/name; where `owner` is a folder here, `owner/name` is a path.
    """
    folder = Path(checkpoint)
    if folder.exists():
        return (folder / "model_index.json").is_file()
    return HUB_ID.fullmatch(str(checkpoint)) is not None and not folder.parent.exists()


def _wan_world(checkpoint: Path | str, size: tuple[int, int], loading: Mapping[str, Any]) -> WorldModel:
    """A world around a pretrained Wan pipeline."""
    # Pipelines take seconds to import, and a shipped checkpoint needs none.
    from mosaic_gym.model.wan import WanOptions, load_depth, load_pipeline, plan_pipeline, wan_settings
    from mosaic_gym.model.wan_codec import WanCodec, WanPrompts

    known = {field.name for field in fields(WanOptions)}
    unknown = sorted(set(loading) - known)
    if unknown:
        raise ValueError(f"unknown loading options {unknown}; the known ones are {', '.join(sorted(known))}")
    options = WanOptions(**loading)
    # What takes seconds comes before what takes tens of gigabytes: mistakes show there.
    plan = plan_pipeline(checkpoint, options)
    settings = WorldSettings(**wan_settings(plan, options, *size))
    depth = load_depth(options)
    pipeline = load_pipeline(checkpoint, options, plan)
    if options.compile:
        # How many tokens are recalled differs from step to step.
        pipeline.transformer.compile_repeated_blocks(dynamic=True)
    model = WorldModel(
        settings,
        pipeline.transformer,
        None,
        WanCodec(pipeline.vae, restarts=not pipeline.transformer.config.causal),
        WanPrompts(pipeline),
        depth,
        None,
        None,
        pipeline.scheduler,
        torch.empty(0, *size, 3, dtype=torch.uint8),
        (),
        pipeline,
        options.offload,
    )
    _ = model.fingerprint, model.memory_fingerprint  # taken while the weights are all here: offloading takes them away
    return model


def fingerprint_of(networks: Iterable[Any], told: str = "") -> str:
    """Tells weights apart: a hash of `told` and of the networks' weights, of very large ones a sample.

    What is no network counts by its `model`, if it has one.
    """
    digest = hashlib.sha256(told.encode())
    for network in networks:
        if not isinstance(network, torch.nn.Module):
            network = getattr(network, "model", None)
        if isinstance(network, torch.nn.Module):
            for name, value in sorted(network.state_dict().items()):
                digest.update(name.encode())
                digest.update(_sampled(value))
    return digest.hexdigest()


def _sampled(value: Tensor) -> bytes:
    """A tensor's bytes; of one with more than a million numbers, those of some thousands spread over it."""
    flat = value.detach().flatten()
    if len(flat) > 1_000_000:
        flat = flat[:: len(flat) // 4096]
    return flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def resolve(checkpoint: Path | str) -> Path:
    """The folder of a checkpoint given by name or path.

    Raises:
        ValueError: it is neither; lists the names that are known.
    """
    for folder in (WEIGHTS / str(checkpoint), Path(checkpoint)):
        if (folder / "world.json").is_file():
            return folder
    absent = " (there is no such folder)" if "/" in str(checkpoint) and not Path(checkpoint).exists() else ""
    raise ValueError(
        f"unknown checkpoint {str(checkpoint)!r}{absent}: give one of {shipped()}, a folder that holds a world.json, "
        "or the folder or hub id of a Wan pipeline in diffusers' format"
    )


@torch.no_grad()
def round_to_half(network: torch.nn.Module) -> None:
    """Rounds weights, in place, to what float16 can hold: saved, they then take half the room and lose nothing."""
    for value in network.state_dict().values():
        value.copy_(value.half() + 0.0)  # the least negative ones become a zero; a fingerprint would tell -0 from 0


def save_part(part: Any, folder: Path) -> None:
    """Saves a network as diffusers does, in float16 if that is exact."""
    if isinstance(part, torch.nn.Module):
        values = part.state_dict().values()
        if all(value.dtype == torch.float32 and torch.equal(value.half().float(), value) for value in values):
            part = copy.deepcopy(part).half()
    part.save_pretrained(folder)


def _load_settings(path: Path) -> tuple[WorldSettings, list[str]]:
    """What world.json says, and the names of the networks that are there; all are where it does not say."""
    try:
        told = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); copy the checkpoint's folder again") from error
    if not isinstance(told, dict) or told.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}; train or export the checkpoint again")
    parts = told.pop("parts", list(KINDS))
    if not isinstance(parts, list) or not KINDS.keys() - OPTIONAL <= set(map(str, parts)) <= KINDS.keys():
        raise ValueError(
            f"{path} names the parts {parts}; a world has {sorted(KINDS.keys() - OPTIONAL)}, and may have "
            f"{sorted(OPTIONAL)}: it is damaged or belongs to another version"
        )
    known = {field.name for field in fields(WorldSettings)}
    needed = {field.name for field in fields(WorldSettings) if field.default is MISSING}
    lacking, strange = sorted(needed - set(told)), sorted(set(told) - known)
    if lacking or strange:
        raise ValueError(f"{path} lacks {lacking} and does not know {strange}; it belongs to another version")
    told["image_from_camera"] = tuple(tuple(row) for row in told["image_from_camera"])
    try:
        Control(**told["control"])
    except TypeError as error:
        raise ValueError(f"{path} says of control what does not fit ({error}): it is of another version") from error
    return WorldSettings(**told), parts


def _load_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise ValueError(f"checkpoint {folder} lacks its part 'scheduler'; copy the whole folder again")
    try:
        return FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"the part 'scheduler' in {folder} is damaged ({error}); copy the folder again") from error


def _load_part(kind: type, folder: Path, name: str) -> torch.nn.Module:
    path = folder / name / "diffusion_pytorch_model.safetensors"
    if not path.is_file() or not (folder / name / "config.json").is_file():
        raise ValueError(f"checkpoint {folder} lacks its part {name!r}; copy the whole folder again")
    try:
        with safe_open(str(path), framework="pt") as file:
            present = set(file.keys())
        # Without fast initialisation the few buffers that are computed, not saved, would stay empty.
        lean = kind is MosaicTransformer3DModel
        network = kind.from_pretrained(
            folder / name, use_safetensors=True, low_cpu_mem_usage=lean, torch_dtype=torch.float32
        )
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"the weights of {name!r} in {folder} are damaged, cut short or of another shape than config.json says; "
            "copy the folder again"
        ) from error
    missing = set(network.state_dict()) - present
    if missing:
        raise ValueError(
            f"the weights of {name!r} in {folder} lack {sorted(missing)[:3]}; they belong to another version"
        )
    # What is mapped from a file begins at any byte, and some CPUs' kernels round differently by where numbers begin.
    for weights in (*network.parameters(), *network.buffers()):
        weights.data = weights.data.clone()
    broken = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"the weights of {name!r} in {folder} are no numbers in {broken[:3]}; copy the folder again")
    return network


def _load_starts(path: Path) -> tuple[Tensor, tuple[str, ...]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.get_tensor("images"), tuple(json.loads(file.metadata()["prompts"]))
    except (SafetensorError, OSError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is missing or damaged; copy the checkpoint's folder again") from error
