"""Pretrained Wan pipelines as worlds: options, plan, loading, codec, prompts, adapters and camera projections."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "fuse_adapters":  # old spelling
        from mosaic_gym.deprecation import warn_renamed
        from mosaic_gym.model.wan.adapters import fuse_adapters

        warn_renamed(f"{__name__}.{name}", f"mosaic_gym.{name}")
        return fuse_adapters
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
