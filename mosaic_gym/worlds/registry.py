"""The worlds by name. A world is imported when it is made, never before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mosaic_gym.worlds.protocol import World


def _make_doom(**kwargs: Any) -> World:
    from mosaic_gym.worlds.doom import DoomWorld

    return DoomWorld(**kwargs)


def _make_mosaic(**kwargs: Any) -> World:
    from mosaic_gym.worlds.mosaic import MosaicWorld

    return MosaicWorld.from_pretrained(**kwargs)


WORLDS: dict[str, Callable[..., World]] = {"doom": _make_doom, "mosaic": _make_mosaic}
"""Makers by name: `doom` is the game engine, `mosaic` the learned world of a checkpoint."""


def make_world(name: str, **kwargs: Any) -> World:
    """Makes a world.

    Args:
        name: a key of `WORLDS`.
        kwargs: what that world is built from: `scenario`, `height`, `width` and `control` for
            `doom`; what `MosaicWorld.from_pretrained` takes for `mosaic`.

    Raises:
        ValueError: an unknown name (the known ones are listed). And whatever that world raises for its arguments.
    """
    if name not in WORLDS:
        raise ValueError(f"unknown world {name!r}; the known ones are {', '.join(sorted(WORLDS))}")
    return WORLDS[name](**kwargs)
