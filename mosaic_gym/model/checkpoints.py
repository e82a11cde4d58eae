"""A world's weights as one folder: safetensors and JSON, nothing else is ever read.

NAME/
  world.json            sizes, K, kinematics, budgets, the shipped number of denoising steps, the parts there are
  transformer/ detail/ codec/ text_encoder/ depth/ outcome/ atlas/ scheduler/    each as diffusers saves it
  starts.safetensors    start images, and their prompts in its metadata
  README.md             the card
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import SchedulerMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mosaic_gym.geometry.camera import check_intrinsics
from mosaic_gym.geometry.control import control_from_settings
from mosaic_gym.model.atlas import Atlas
from mosaic_gym.model.codec import LinearCodec
from mosaic_gym.model.depth import ConvDepth, DepthEstimator
from mosaic_gym.model.parts import fingerprint_of, load_part, load_scheduler, save_part
from mosaic_gym.model.refiner import Refiner
from mosaic_gym.model.reward_heads import RewardTerminationHeads
from mosaic_gym.model.shipped import WEIGHTS, shipped
from mosaic_gym.model.text import ByteTextEncoder
from mosaic_gym.model.transformer import MosaicTransformer3DModel
from mosaic_gym.validation import is_finite, is_whole

if TYPE_CHECKING:
    from diffusers import WanImageToVideoPipeline

    from mosaic_gym.model.wan.codec import WanCodec, WanPrompts

FORMAT = "mosaic-world-5"
WAN_SIZE = (352, 640)
"""Height and width of a Wan world's frames when no resolution is asked for, pixels."""
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
KINDS = {
    "transformer": MosaicTransformer3DModel,
    "refiner": Refiner,
    "codec": LinearCodec,
    "text_encoder": ByteTextEncoder,
    "depth": ConvDepth,
    "reward_heads": RewardTerminationHeads,
    "atlas": Atlas,
}
"""The networks of a folder, each in one of its own."""
OPTIONAL = {"refiner", "reward_heads", "atlas"}
"""Networks that a world may do without."""
FOLDERS = {"refiner": "detail", "reward_heads": "outcome"}  # name in files
"""Names in a checkpoint's folder and in its world.json, where they differ from the attribute's."""
LEAST = {
    "height": 1,
    "width": 1,
    "denoising_steps": 1,
    "history": 1,
    "max_sources": 0,
    "max_patches": 0,
    "capacity": 0,
}
"""The whole numbers among a checkpoint's settings, and the least that each of them may be."""


@dataclass(frozen=True)
class WorldSettings:
    """What a checkpoint fixes besides weights.

    Attributes:
        height, width: of the frames, pixels.
        image_from_camera: K `[3, 3]` in pixels, as rows.
        control: what `geometry.control.control_settings` writes.
        denoising_steps: the shipped number, 1 or more.
        history: recent latent frames that are read, 1 or more.
        max_sources, max_patches: recall's budgets; 0 for nothing of that kind.
        capacity: keyframes an episode keeps; 0 for no memory.
        guidance: classifier-free guidance, 1 for none or more, away from `negative_prompt`.
        scenario: what of the engine's it was trained on, and is to be compared with; see `DoomWorld`.

    Raises:
        ValueError: a value of another type or range; the message names it.
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

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not is_whole(value) or value < least:
                raise ValueError(f"{name} is a whole number, {least} or more; got {value!r}")
            object.__setattr__(self, name, int(value))  # NumPy's are no JSON
        if not is_finite(self.guidance) or self.guidance < 1.0:
            raise ValueError(f"guidance is a finite number, 1 (none) or more; got {self.guidance!r}")
        for name in ("negative_prompt", "scenario"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is text; got {getattr(self, name)!r}")
        object.__setattr__(self, "image_from_camera", check_intrinsics(self.image_from_camera))
        if not isinstance(self.control, Mapping):
            raise ValueError(f"control is a dict of the fields of Control; got {self.control!r}")
        try:
            control_from_settings(self.control)
        except (TypeError, ValueError) as error:
            raise ValueError(f"control is a dict of the fields of Control ({error})") from error


@dataclass
class WorldModel:
    """All the networks of a learned world, and how they are to be used."""

    settings: WorldSettings
    transformer: MosaicTransformer3DModel
    refiner: Refiner | None
    """None: frames are shown as the codec decodes them."""
    codec: LinearCodec | WanCodec
    text_encoder: ByteTextEncoder | WanPrompts
    depth: DepthEstimator
    reward_heads: RewardTerminationHeads | None
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
        networks = (
            self.transformer,
            self.refiner,
            self.codec,
            self.text_encoder,
            self.depth,
            self.reward_heads,
            self.atlas,
        )
        for network in networks:
            if isinstance(network, torch.nn.Module):
                network.to(device).eval().requires_grad_(False)
            elif hasattr(network, "to"):  # a depth estimator around a model of Hugging Face's
                network.to(device)
        return self

    @torch.no_grad()
    def check_prompt(self, prompt: str) -> None:
        """Raises ValueError for a prompt that is longer than the text encoder reads."""
        # Where counting is not a step of its own, only encoding tells.
        read = getattr(self.text_encoder, "tokenize", self.text_encoder.encode)
        read([prompt])

    @cached_property
    def fingerprint(self) -> str:
        """Tells checkpoints apart: a hash of the settings, of the weights that a state depends on (see
        `fingerprint_of`), and of how a pipeline's, and a depth model's of Hugging Face's, are read.

        Taken once: another `depth` is to be set before.
        """
        networks = (
            self.transformer,
            self.refiner,
            self.codec,
            self.text_encoder,
            self.atlas,
            self.depth,
            self.reward_heads,
        )
        told = asdict(self.settings)
        if self.pipeline is not None:
            told["causal"] = self.transformer.config.causal
        if self.pipeline is not None or not isinstance(self.depth, torch.nn.Module):
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
            ValueError: a pretrained pipeline, which has a format of its own, or a depth estimator that is no
                `ConvDepth`; nothing is written then.
        """
        if self.pipeline is not None:
            raise ValueError(
                "a Wan world is saved as its pipeline: model.pipeline.save_pretrained(folder). LoRA adapters are to be "
                "fused first: mosaic_gym.fuse_adapters(model.transformer)"
            )
        if not isinstance(self.depth, ConvDepth):
            raise ValueError(
                f"a world's folder holds a ConvDepth, and this world's depth is a {type(self.depth).__name__}, which "
                "stays where it came from: save with a ConvDepth (dataclasses.replace(model, depth=ConvDepth())), and "
                "set model.depth again after loading, before a world is made of it"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        parts = [name for name in KINDS if getattr(self, name) is not None]
        for name in (*parts, "scheduler"):
            save_part(getattr(self, name), folder / FOLDERS.get(name, name))
        for path in folder.glob("*/config.json"):  # diffusers notes where each part came from
            told = json.loads(path.read_text())
            told.pop("_name_or_path", None)
            path.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
        starts = {"images": self.start_images.contiguous()}
        save_file(starts, folder / "starts.safetensors", metadata={"prompts": json.dumps(self.start_prompts)})
        told = {"format": FORMAT, "parts": [FOLDERS.get(name, name) for name in parts], **asdict(self.settings)}
        (folder / "world.json").write_text(json.dumps(told, indent=2) + "\n")

    @staticmethod
    def from_pretrained(
        checkpoint: Path | str, size: tuple[int, int] | None = None, loading: Mapping[str, Any] | None = None
    ) -> WorldModel:
        """Loads a shipped checkpoint by name, a folder, or a pretrained Wan pipeline by folder or hub id.

        Args:
            size: (height, width) of the frames of a Wan world; other checkpoints have their own, and take that or
                None.
            loading: how a Wan pipeline is loaded, the fields of `model.wan.WanOptions`.

        Raises:
            ValueError: unknown name (the known ones are listed), another size than the checkpoint's, settings or start
                images that are none (all of that before any weights are read), a missing part, or damaged weights.
        """
        if not isinstance(loading, Mapping | None):
            raise ValueError(f"loading is a dict of options for a Wan pipeline, or None; got {loading!r}")
        if is_wan(checkpoint):
            return _wan_world(checkpoint, size or WAN_SIZE, loading or {})
        folder = resolve(checkpoint)
        if loading:
            raise ValueError(f"loading={dict(loading)} is for pretrained Wan pipelines; {checkpoint!r} is none")
        settings, parts = _load_settings(folder / "world.json")
        trained = (settings.height, settings.width)
        if size is not None and tuple(size) != trained:
            raise ValueError(
                f"checkpoint {str(checkpoint)!r} was trained at resolution {list(trained)}; got {list(size)}: ask for "
                "the checkpoint's, or for none"
            )
        images, prompts = _load_starts(folder / "starts.safetensors")
        if tuple(images.shape[1:]) != (*trained, 3):
            raise ValueError(
                f"{folder / 'world.json'} says frames of {trained}, and starts.safetensors holds images of shape "
                f"{tuple(images.shape)}: one of them is another's; copy the whole folder again"
            )
        scheduler = load_scheduler(folder)
        written = {name: FOLDERS.get(name, name) for name in KINDS}
        loaded = {
            name: load_part(kind, folder, written[name]) if written[name] in parts else None
            for name, kind in KINDS.items()
        }
        return WorldModel(
            settings=settings,
            scheduler=scheduler,
            start_images=images,
            start_prompts=prompts,
            **loaded,
        )


def is_wan(checkpoint: Path | str) -> bool:
    """Whether this names a diffusers pipeline: a folder with a model_index.json, or what may be a hub id.

    A hub id is owner/name; where `owner` is a folder here, `owner/name` is a path.
    """
    folder = Path(checkpoint)
    if (folder / "model_index.json").is_file() or (folder / "world.json").is_file():
        return (folder / "model_index.json").is_file()
    if folder.exists():
        from mosaic_gym.model.wan.folder import lacks_index  # here, for pipelines take seconds to import

        return lacks_index(folder)  # cut short as it is, it is told as one
    return HUB_ID.fullmatch(str(checkpoint)) is not None and not folder.parent.exists()


def _wan_world(checkpoint: Path | str, size: tuple[int, int], loading: Mapping[str, Any]) -> WorldModel:
    """A world around a pretrained Wan pipeline."""
    # Pipelines take seconds to import, and a shipped checkpoint needs none.
    from mosaic_gym.model.wan.codec import WanCodec, WanPrompts
    from mosaic_gym.model.wan.pipeline import WanOptions, load_depth, load_pipeline, plan_pipeline, wan_settings

    known = {field.name for field in fields(WanOptions)}
    unknown = sorted(map(str, set(loading) - known))
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
        settings=settings,
        transformer=pipeline.transformer,
        refiner=None,
        codec=WanCodec(pipeline.vae, restarts=not pipeline.transformer.config.causal),
        text_encoder=WanPrompts(pipeline),
        depth=depth,
        reward_heads=None,
        atlas=None,
        scheduler=pipeline.scheduler,
        start_images=torch.empty(0, *size, 3, dtype=torch.uint8),
        start_prompts=(),
        pipeline=pipeline,
        offload=options.offload,
    )
    _ = model.fingerprint, model.memory_fingerprint  # taken while the weights are all here: offloading takes them away
    return model


def resolve(checkpoint: Path | str) -> Path:
    """The folder of a checkpoint given by name or path.

    Raises:
        ValueError: it is neither; lists the names that are known.
    """
    for folder in (WEIGHTS / str(checkpoint), Path(checkpoint)):
        if (folder / "world.json").is_file():
            return folder
    if _is_part_of_wan(Path(checkpoint)):
        raise ValueError(
            f"{str(checkpoint)!r} holds what a Wan pipeline was trained to, and no world by itself: give the pipeline "
            "as checkpoint, and this in `loading`, as the run said when it was over"
        )
    absent = " (there is no such folder)" if "/" in str(checkpoint) and not Path(checkpoint).exists() else ""
    raise ValueError(
        f"unknown checkpoint {str(checkpoint)!r}{absent}: give one of {shipped()}, a folder that holds a world.json, "
        "or the folder or hub id of a Wan pipeline in diffusers' format"
    )


def _is_part_of_wan(folder: Path) -> bool:
    """Whether a folder is what fine-tuning or distilling a Wan pipeline wrote, which a pipeline takes a part of."""
    if not folder.is_dir():
        return False
    if (folder / "cameras.safetensors").is_file() or [each.name for each in folder.iterdir()] == ["transformer"]:
        return True
    try:
        return json.loads((folder / "config.json").read_text()).get("_class_name") == MosaicTransformer3DModel.__name__
    except (OSError, ValueError, AttributeError):
        return False


def _load_settings(path: Path) -> tuple[WorldSettings, list[str]]:
    """What world.json says, and the names of the networks that are there; all are where it does not say."""
    try:
        told = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path} is damaged or cut short ({error}); copy the checkpoint's folder again") from error
    if not isinstance(told, dict) or told.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}; train or export the checkpoint again")
    folders = {name: FOLDERS.get(name, name) for name in KINDS}
    optional = {folders[name] for name in OPTIONAL}
    needed = set(folders.values()) - optional
    parts = told.pop("parts", list(folders.values()))
    if not isinstance(parts, list) or not needed <= set(map(str, parts)) <= set(folders.values()):
        raise ValueError(
            f"{path} names the parts {parts}; a world has {sorted(needed)}, and may have {sorted(optional)}: it is "
            "damaged or belongs to another version"
        )
    known = {field.name for field in fields(WorldSettings)}
    needed = {field.name for field in fields(WorldSettings) if field.default is MISSING}
    lacking, strange = sorted(needed - set(told)), sorted(set(told) - known)
    if lacking or strange:
        raise ValueError(f"{path} lacks {lacking} and does not know {strange}; it belongs to another version")
    try:
        return WorldSettings(**told), parts
    except ValueError as error:
        raise ValueError(
            f"{path} says what does not fit: {error}. Put that right, or copy the checkpoint's folder again"
        ) from error


def _load_starts(path: Path) -> tuple[Tensor, tuple[str, ...]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            images, prompts = file.get_tensor("images"), json.loads(file.metadata()["prompts"])
    except (SafetensorError, OSError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is missing or damaged; copy the checkpoint's folder again") from error
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(
            f"the start images in {path} are uint8 [n, H, W, 3]; got {images.dtype} of shape {tuple(images.shape)}: "
            "copy the checkpoint's folder again"
        )
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"the prompts in {path} are a list of texts; got {prompts!r}: copy the folder again")
    if len(prompts) != len(images):
        raise ValueError(
            f"{path} holds {len(images)} start images and {len(prompts)} prompts, and each has one: copy the "
            "checkpoint's folder again"
        )
    return images, tuple(prompts)
