"""A world's networks as one object, and as one folder of safetensors and JSON files. No other format is ever read.

NAME/
  world.json            sizes, K, kinematics, budgets, denoising steps, names of the folders; see `settings.py`
  transformer/ guide/ detail/ codec/ text_encoder/ depth/ outcome/ atlas/ scheduler/    each in diffusers' format
  starts.safetensors    start images, with their prompts in the metadata
  README.md             the model card
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import SchedulerMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mosaic_gym.model.atlas import Atlas
from mosaic_gym.model.codec import LinearCodec
from mosaic_gym.model.depth import ConvDepth, DepthEstimator
from mosaic_gym.model.hourglass import HourglassTransformer
from mosaic_gym.model.locate import is_wan, resolve
from mosaic_gym.model.parts import fingerprint_of, load_part, load_scheduler, save_part
from mosaic_gym.model.refiner import Refiner
from mosaic_gym.model.reward_heads import RewardTerminationHeads
from mosaic_gym.model.rgbd_codec import RGBDCodec
from mosaic_gym.model.settings import FOLDERS, FORMAT, WorldSettings, load_settings
from mosaic_gym.model.text import ByteTextEncoder
from mosaic_gym.model.transformer import MosaicTransformer3DModel

if TYPE_CHECKING:
    from diffusers import WanImageToVideoPipeline

    from mosaic_gym.model.wan.codec import WanCodec, WanPrompts

WAN_SIZE = (352, 640)
"""Height and width of a Wan world's frames when no resolution is requested, pixels."""
NETWORKS: dict[str, tuple[type, ...]] = {
    "transformer": (MosaicTransformer3DModel, HourglassTransformer),
    "refiner": (Refiner,),
    "codec": (LinearCodec, RGBDCodec),
    "text_encoder": (ByteTextEncoder,),
    "depth": (ConvDepth,),
    "reward_heads": (RewardTerminationHeads,),
    "atlas": (Atlas,),
    "guide": (HourglassTransformer,),
}
"""The classes that a network can have, by its attribute in `WorldModel`; its config.json names one of them."""


@dataclass
class WorldModel:
    """All the networks of a learned world, and the settings that they are used with."""

    settings: WorldSettings
    transformer: MosaicTransformer3DModel | HourglassTransformer
    refiner: Refiner | None
    """None: frames are output as the codec decodes them."""
    codec: LinearCodec | RGBDCodec | WanCodec
    text_encoder: ByteTextEncoder | WanPrompts
    depth: DepthEstimator
    reward_heads: RewardTerminationHeads | None
    """None: every reward is 0, and no episode terminates."""
    atlas: Atlas | None
    """None: the world has no map."""
    scheduler: SchedulerMixin
    start_images: Tensor
    """uint8 `[n, H, W, 3]`; if n is 0, the first frame is generated from the prompt."""
    start_prompts: tuple[str, ...]
    pipeline: WanImageToVideoPipeline | None = None
    """The pipeline that holds and places the networks of a pretrained Wan world; None for other worlds."""
    offload: str | None = None
    guide: HourglassTransformer | None = None
    """The transformer as it was early in training. Sampling is guided away from its output (autoguidance, Karras et
    al., arXiv 2406.02507); None for guidance by the transformer itself."""

    def to(self, device: str | torch.device) -> WorldModel:
        """Moves every network, in place, and puts them in evaluation mode."""
        if torch.device(device).type == "cuda" and hasattr(self.codec, "channels_last"):
            self.codec.channels_last()
        if self.pipeline is not None:
            self._place_pipeline(device)
            return self
        for network in (getattr(self, name) for name in NETWORKS):
            if isinstance(network, torch.nn.Module):
                network.to(device).eval().requires_grad_(False)
            elif hasattr(network, "to"):  # a depth estimator around a Hugging Face model
                network.to(device)
        return self

    def _place_pipeline(self, device: str | torch.device) -> None:
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

    @torch.no_grad()
    def check_prompt(self, prompt: str) -> None:
        """Raises ValueError for a prompt that is longer than the text encoder reads."""
        # A text encoder without a tokenizer finds the length only by encoding.
        read = getattr(self.text_encoder, "tokenize", self.text_encoder.encode)
        read([prompt])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that a state depends on: settings and weights, see `fingerprint_of`.

        For a Wan pipeline and a Hugging Face depth model it includes the options that change their output. It is
        computed once, so replace `depth` before its first use.
        """
        networks = (
            self.transformer,
            self.refiner,
            self.codec,
            self.text_encoder,
            self.atlas,
            self.depth,
            self.reward_heads,
            self.guide,
        )
        metadata = asdict(self.settings)
        if self.pipeline is not None:
            metadata["causal"] = self.transformer.config.causal
        if self.pipeline is not None or not isinstance(self.depth, torch.nn.Module):
            metadata["depth"] = {name: getattr(self.depth, name, None) for name in ("inverse", "median_depth_m")}
        return fingerprint_of(networks, json.dumps(metadata, sort_keys=True))

    @cached_property
    def memory_fingerprint(self) -> str:
        """Hash of what a saved memory depends on: the codec of its latents, and the atlas of its places."""
        return fingerprint_of((self.codec, self.atlas))

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes the folder described at the head of this file.

        Raises:
            ValueError: the model is a Wan pipeline, which has a format of its own, or its depth estimator is not a
                `ConvDepth`. Nothing is written then.
        """
        if self.pipeline is not None:
            raise ValueError(
                "a Wan world is saved as its pipeline: model.pipeline.save_pretrained(folder). Fuse LoRA adapters "
                "first: mosaic_gym.fuse_adapters(model.transformer)"
            )
        if not isinstance(self.depth, ConvDepth):
            raise ValueError(
                f"a world's folder holds a ConvDepth, and this world's depth is a {type(self.depth).__name__}, which "
                "is not saved: save with a ConvDepth (dataclasses.replace(model, depth=ConvDepth())), and set "
                "model.depth again after loading, before a world is made of it"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        parts = {name: FOLDERS[name] for name in NETWORKS if getattr(self, name) is not None}
        for name, part in {**parts, "scheduler": "scheduler"}.items():
            save_part(getattr(self, name), folder / part)
        for path in folder.glob("*/config.json"):  # diffusers writes the path that each part was loaded from
            config = json.loads(path.read_text(encoding="utf-8"))
            config.pop("_name_or_path", None)
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        starts = {"images": self.start_images.contiguous()}
        save_file(starts, folder / "starts.safetensors", metadata={"prompts": json.dumps(self.start_prompts)})
        metadata = {"format": FORMAT, "parts": list(parts.values()), **asdict(self.settings)}
        (folder / "world.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def from_pretrained(
        checkpoint: Path | str, size: tuple[int, int] | None = None, loading: Mapping[str, Any] | None = None
    ) -> WorldModel:
        """Loads a world (shipped name, folder or hub id) or a pretrained Wan pipeline (folder or hub id).

        Args:
            size: (height, width) of the frames of a Wan world. Any other checkpoint has a size of its own: pass that
                or None.
            loading: options for loading a Wan pipeline, the fields of `model.wan.options.WanOptions`.

        Raises:
            ValueError: the checkpoint is unknown (the message lists the shipped ones) or the hub cannot be reached; the
                size is not the checkpoint's; settings or start images are not valid; a part is missing; weights are
                damaged. Everything but the last two is checked before any weights are read.
        """
        if not isinstance(loading, Mapping | None):
            raise ValueError(f"loading is a dict of options for a Wan pipeline, or None; got {loading!r}")
        if is_wan(checkpoint):
            return _load_wan(checkpoint, size or WAN_SIZE, loading or {})
        folder = resolve(checkpoint)
        if loading:
            raise ValueError(f"loading={dict(loading)} is for pretrained Wan pipelines; {checkpoint!r} is none")
        settings, parts = load_settings(folder / "world.json")
        trained = (settings.height, settings.width)
        if size is not None and tuple(size) != trained:
            raise ValueError(
                f"checkpoint {str(checkpoint)!r} was trained at resolution {list(trained)}; got {list(size)}: request "
                "that resolution, or None"
            )
        images, prompts = _load_starts(folder / "starts.safetensors")
        if tuple(images.shape[1:]) != (*trained, 3):
            raise ValueError(
                f"{folder / 'world.json'} gives frames of {trained}, and starts.safetensors holds images of shape "
                f"{tuple(images.shape)}: the two files do not belong together; copy the whole folder again"
            )
        scheduler = load_scheduler(folder)
        networks = {
            name: load_part(kinds, folder, FOLDERS[name]) if FOLDERS[name] in parts else None
            for name, kinds in NETWORKS.items()
        }
        return WorldModel(
            settings=settings, scheduler=scheduler, start_images=images, start_prompts=prompts, **networks
        )


def _load_wan(checkpoint: Path | str, size: tuple[int, int], loading: Mapping[str, Any]) -> WorldModel:
    """A world around a pretrained Wan pipeline."""
    # Importing pipelines takes seconds, and other checkpoints do not need them.
    from mosaic_gym.model.wan.codec import WanCodec, WanPrompts
    from mosaic_gym.model.wan.loading import load_depth, load_pipeline
    from mosaic_gym.model.wan.options import WanOptions
    from mosaic_gym.model.wan.plan import plan_pipeline, wan_settings

    options = WanOptions.from_mapping(loading)
    # Checks that take seconds come before weights of tens of gigabytes.
    plan = plan_pipeline(checkpoint, options)
    settings = WorldSettings(**wan_settings(plan, options, *size))
    depth = load_depth(options)
    pipeline = load_pipeline(checkpoint, options, plan)
    if options.compile:
        # The number of retrieved tokens differs from step to step.
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
    _ = model.fingerprint, model.memory_fingerprint  # computed now: offloading moves the weights out of reach
    return model


def _load_starts(path: Path) -> tuple[Tensor, tuple[str, ...]]:
    """Start images, uint8 `[n, H, W, 3]`, and a prompt for each.

    Raises:
        ValueError: the file is missing or damaged, or images and prompts do not fit.
    """
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
            f"{path} holds {len(images)} start images and {len(prompts)} prompts, and needs one prompt for each image: "
            "copy the checkpoint's folder again"
        )
    return images, tuple(prompts)
