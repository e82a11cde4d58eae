"""Worlds by name. The module of a world is imported when the world is made."""

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
"""Makers by name: `doom` is the simulator, `mosaic` the learned world of a checkpoint."""


def make_world(name: str, **kwargs: Any) -> World:
    """Makes a world.

    Args:
        name: a key of `WORLDS`.
        kwargs: arguments of that world: `scenario`, `height`, `width`, `control` and `timeout_tics` of `doom`; those of
            `MosaicWorld.from_pretrained` for `mosaic`.

    Raises:
        ValueError: an unknown name; the message lists the known ones. Each world also raises for its own arguments.
    """
    if name not in WORLDS:
        raise ValueError(f"unknown world {name!r}; the known ones are {', '.join(sorted(WORLDS))}")
    return WORLDS[name](**kwargs)
