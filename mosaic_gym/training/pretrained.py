"""Shared parts of the recipes for a pretrained Wan: checks of their options, opening it, and how its result is used."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.camera import rescale_intrinsics
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.locate import is_wan
from mosaic_gym.model.wan.loading import flow_shift
from mosaic_gym.model.wan.options import WanOptions
from mosaic_gym.training.budget import recipe_of
from mosaic_gym.training.checkpoint import check_resumable
from mosaic_gym.training.samples import MemoryAugmentation
from mosaic_gym.worlds.mosaic import MosaicWorld

PRECISIONS = ("bf16", "no")
"""Precisions of matrix products; `no` is float32."""
UNUSED = ("degraded", "cropped", "place_noise_m", "no_place")
"""Fields of `MemoryAugmentation` that must be 0: a pretrained model has no map, and a clip starts at a true frame."""
AUGMENTATION = MemoryAugmentation(no_recent=0.0, single_warp=2 / 3, **dict.fromkeys(UNUSED, 0.0))
"""A third of the samples gets its memory by both warps, and a third by each alone."""


class PretrainedConfig(Protocol):
    """The fields that the configs of these recipes share; each config documents its own."""

    from_: str
    data: Path
    out: Path
    height: int
    width: int
    clip: int
    empty_prompt: float
    shift: float | None
    augmentation: MemoryAugmentation
    episodes: int | None
    loading: WanOptions


def check_trainable(loading: WanOptions, augmentation: MemoryAugmentation, all_weights: bool) -> None:
    """Checks that a model that is loaded like this can be trained on samples like this.

    Args:
        all_weights: whether the transformer's own weights are trained, and not adapters beside them.

    Raises:
        ValueError: it cannot; the message names the option.
    """
    if loading.offload is not None:
        raise ValueError(
            "--loading.offload moves weights to the CPU and back between forward passes, and trained weights have to "
            "stay where their optimizer is: leave it out"
        )
    if loading.quantisation is not None and all_weights:
        raise ValueError(
            "--loading.quantisation gives the transformer weights that no gradient can change: leave it out, or train "
            "adapters (train world --from, without --full)"
        )
    if loading.inverse_depth:
        raise ValueError(
            "a relative depth model gives every recorded frame a scale of its own, so that its keyframes do not fit "
            "together in memory: train with a metric one (--loading.depth)"
        )
    wrong = [f"augmentation.{name}" for name in UNUSED if getattr(augmentation, name)]
    if wrong:
        raise ValueError(f"samples of a pretrained model have no {', '.join(wrong)}: leave that at 0")


def open_pretrained(config: PretrainedConfig, device: str, *runs: Path) -> tuple[MosaicWorld, EpisodeStore]:
    """The pretrained world, with the camera of the recordings, and the recordings.

    Recordings and runs are checked before the pipeline is loaded.

    Args:
        runs: folders of the runs that will use it, which may resume from what is there.

    Raises:
        ValueError: `from_` is not a Wan pipeline, no episode is as long as a clip, or a folder holds a run of another
            recipe.
        FileNotFoundError: nothing is recorded.
    """
    if not is_wan(config.from_):
        raise ValueError(
            f"--from takes a Wan pipeline in diffusers' format, a folder or a hub id, and {str(config.from_)!r} is "
            "none; to train a world of this package further, use `train world --begin`"
        )
    store = EpisodeStore(config.data, "train")
    long_enough(store, config)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"no run can be stored in {config.out} ({error}); choose another folder with --out") from error
    identity = {"begin": None, "recipe": recipe_of(config, store)}
    unknown = ("shift",) if config.shift is None else ()  # known when the pipeline is loaded
    for folder in runs:
        check_resumable(folder, identity, unknown)
    size = (config.height, config.width)
    loading = {field.name: getattr(config.loading, field.name) for field in fields(WanOptions)}
    model = WorldModel.from_pretrained(config.from_, size, loading)
    model.settings = replace(model.settings, image_from_camera=resized_intrinsics(store, size))
    return MosaicWorld(model, device=device), store


def long_enough(store: EpisodeStore, config: PretrainedConfig) -> list[int]:
    """The indices of the recorded episodes that are longer than a clip.

    Raises:
        ValueError: there are none.
    """
    count = len(store) if config.episodes is None else min(config.episodes, len(store))
    indices = [index for index in range(count) if len(store.load(index)) > config.clip]
    if not indices:
        raise ValueError(f"no episode under {config.data} is longer than a clip of {config.clip} steps; record longer")
    return indices


def resized_intrinsics(store: EpisodeStore, size: tuple[int, int]) -> tuple[tuple[float, ...], ...]:
    """K `[3, 3]`, as rows, in pixels of recorded frames that are resized to (height, width)."""
    recorded = tuple(store.load(0)["frames"].shape[2:4])
    scaled = rescale_intrinsics(torch.as_tensor(store.image_from_camera), recorded, size)
    return tuple(tuple(map(float, row)) for row in scaled)


def resolve_shift(config: Any, model: WorldModel) -> Any:
    """The config with the shift of the pipeline's own noise levels, if it sets none."""
    return replace(config, shift=float(flow_shift(model.scheduler))) if config.shift is None else config


def usage(config: PretrainedConfig, store: EpisodeStore, **trained: Any) -> str:
    """The `gym.make` call that steps a trained model: with the recordings' camera, and loaded as for training.

    Args:
        trained: options of `loading` that name the trained weights.
    """
    defaults, loading = WanOptions(), {}
    for field in fields(WanOptions):
        if (value := getattr(config.loading, field.name)) != getattr(defaults, field.name):
            paths = [*map(str, value)] if isinstance(value, tuple) else value
            loading[field.name] = str(paths) if isinstance(paths, Path) else paths
    k = resized_intrinsics(store, (config.height, config.width))
    sides = (config.width, config.height)
    horizontal_deg, vertical_deg = (
        round(float(2 * np.rad2deg(np.arctan(0.5 * sides[i] / k[i][i]))), 4) for i in (0, 1)
    )
    loading |= {"field_of_view_deg": horizontal_deg, "vertical_field_of_view_deg": vertical_deg, **trained}
    size = [config.height, config.width]
    return f"step them with gym.make('MosaicWorld-v0', checkpoint={str(config.from_)!r}, resolution={size}, {loading=})"


def usage_of_transformer(config: Any, store: EpisodeStore, transformer: Path) -> str:
    """The same for a whole transformer, which adapters and camera projections have become part of."""
    loading = replace(config.loading, lora=(), cameras=None)
    return usage(replace(config, loading=loading), store, transformer=str(transformer))
