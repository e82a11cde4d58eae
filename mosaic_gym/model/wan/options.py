"""How a pretrained Wan pipeline is loaded: the options that `gym.make(..., loading={...})` takes, and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from mosaic_gym.validation import Flag, ListOf, Number, OneOf, PathOrId, Text, Whole, validate

DTYPES = ("float32", "bfloat16", "float16", "float64")
OFFLOADS = ("model", "sequential")
QUANTISATIONS = ("4bit", "8bit")
MOST_STEPS = 100
"""The largest number of denoising steps that an environment takes."""


@dataclass(frozen=True)
class WanOptions:
    """How a Wan folder or hub id is loaded; the fields are what `gym.make(..., loading={...})` takes.

    Attributes:
        dtype: of the networks: `float32`, `bfloat16`, `float16` (or `float64`, for tests).
        vae_dtype: of the autoencoder. None means `dtype` for a causal student, which decodes one continuous clip. For
            other models None means float32 or more: each of their steps starts from the last frame, which is decoded
            and encoded again every time, so that rounding errors accumulate.
        depth: a Hugging Face depth model, folder or id. A metric one needs no scale.
        inverse_depth: whether that model is relative, that is, predicts inverse depth up to an unknown scale.
        median_depth_m: for a relative model, the metres that its median prediction stands for where memory gives no
            scale.
        field_of_view_deg: the horizontal field of view that is assumed for every image.
        vertical_field_of_view_deg: the vertical one; None for square pixels. Recordings that were resized to another
            aspect ratio for training do not have square pixels, and a model that was trained on them needs this angle.
        guidance: scale of classifier-free guidance. 1 means none, which halves the cost. None takes the scale that the
            transformer's config records (1 for a distilled student), or Wan's 5 if it records none.
        negative_prompt: the prompt that guidance leads away from.
        denoising_steps: used unless the environment sets another number. None takes the number that the transformer's
            config records, as a distilled student's does, or Wan's 50 if it records none.
        causal: whether clean tokens are read by themselves and decoding continues one clip, as for a distilled student.
            A transformer whose config.json records it, as a student's does, needs no option.
        transformer: a folder whose transformer replaces the pipeline's, as written by `train world --from --full` or
            `train student`.
        lora: LoRA adapters, folders or ids; a single one needs no list. All are active, each with weight 1.
        cameras: a file of trained camera projections, as written by `train world --from`; None leaves them at zero.
        offload: None, `model` or `sequential`: which weights wait on the CPU.
        quantisation: None, `4bit` or `8bit` for the transformer, by bitsandbytes on a CUDA GPU.
        compile: whether to compile the transformer's repeated blocks.

    Raises:
        ValueError: a value of another type or outside its range, or two options that exclude each other.
    """

    dtype: Annotated[str, OneOf(*DTYPES)] = "bfloat16"
    vae_dtype: Annotated[str | None, OneOf(*DTYPES)] = None
    depth: Annotated[str, PathOrId()] = "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf"
    inverse_depth: Annotated[bool, Flag()] = False
    median_depth_m: Annotated[float, Number(above=0.0)] = 3.0
    field_of_view_deg: Annotated[float, Number(above=1.0, below=179.0)] = 70.0
    vertical_field_of_view_deg: Annotated[float | None, Number(above=1.0, below=179.0)] = None
    guidance: Annotated[float | None, Number(1.0)] = None
    negative_prompt: Annotated[str, Text()] = ""
    denoising_steps: Annotated[int | None, Whole(1, MOST_STEPS)] = None
    causal: Annotated[bool, Flag()] = False
    transformer: Annotated[str | None, PathOrId()] = None
    lora: Annotated[tuple[str, ...], ListOf(PathOrId())] = ()
    cameras: Annotated[str | None, PathOrId()] = None
    offload: Annotated[str | None, OneOf(*OFFLOADS)] = None
    quantisation: Annotated[str | None, OneOf(*QUANTISATIONS)] = None
    compile: Annotated[bool, Flag()] = False

    def __post_init__(self) -> None:
        if self.lora is None or isinstance(self.lora, str | Path):
            object.__setattr__(self, "lora", (self.lora,) if self.lora else ())
        validate(self, lambda name: f"loading option {name}")
        if self.compile and self.offload == "sequential":
            raise ValueError(
                "loading option compile needs weights that stay on one device during a step, and "
                "offload='sequential' moves them. Take offload='model', or leave compile out"
            )

    @classmethod
    def from_mapping(cls, loading: Mapping[str, Any]) -> WanOptions:
        """The options of a `loading={...}` argument.

        Raises:
            ValueError: a key that is no option (the message lists the known ones), or as for `WanOptions`.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(map(str, set(loading) - known))
        if unknown:
            raise ValueError(f"unknown loading options {unknown}; the known ones are {', '.join(sorted(known))}")
        return cls(**loading)
