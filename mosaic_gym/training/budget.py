"""The length of a training run, and the options that identify it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mosaic_gym.data.episodes import EpisodeStore

PARTS = ("codec", "depth", "reward_heads", "atlas", "begin")
"""Fields of a recipe's config that name folders of weights; a fingerprint of those weights is compared instead."""
CHANGEABLE = (
    "out", "data", "minutes", "steps", "workers", "compiled", "checkpoint_minutes", "report_minutes", *PARTS
)  # fmt: skip
"""Fields of a recipe's config that may differ when a run is resumed."""
CHANGEABLE_INSIDE = ("compile",)
"""The same for fields of a nested config such as `loading`: compiling only changes rounding."""


class Budgeted(Protocol):
    """The options of a recipe's config that set how long it trains."""

    minutes: float | None
    steps: int | None


def budget_of(
    config: Budgeted, minutes: float | None = None, steps: int | None = None
) -> tuple[float | None, int | None]:
    """The minutes or the steps of a config; the arguments are the default where it has neither.

    Raises:
        ValueError: the config has both, or a budget that is not positive.
    """
    if config.minutes is not None or config.steps is not None:
        minutes, steps = config.minutes, config.steps
    check_budget(minutes, steps)
    return minutes, steps


def check_budget(minutes: float | None, steps: int | None) -> None:
    """Raises ValueError unless exactly one of the two is given and positive."""
    if (minutes is None) == (steps is None):
        raise ValueError("give a run exactly one budget: --minutes or --steps")
    if minutes is not None and not 0.0 < minutes < math.inf:
        raise ValueError(f"--minutes is a finite number above 0; got {minutes}")
    if steps is not None and steps < 1:
        raise ValueError(f"--steps is a whole number from 1; got {steps}")


def check_one_budget(config: Budgeted) -> None:
    """Raises ValueError for a config with both --minutes and --steps; with neither, a recipe has a default."""
    if config.minutes is not None and config.steps is not None:
        check_budget(config.minutes, config.steps)


def check_widths(widths: Sequence[int]) -> None:
    """Raises ValueError unless there is a width and all are multiples of 8, the groups of their normalization."""
    if not widths or any(width % 8 for width in widths):
        raise ValueError(f"--widths are multiples of 8, at least one; got {tuple(widths)}")


def recipe_of(config: Any, *recordings: EpisodeStore) -> dict[str, str]:
    """The identity of a run: the options that may not change when it is resumed, and a fingerprint of its recordings.

    Fields of a nested config are named with a dot, as on the command line: `augmentation.last_only`.
    """
    recipe: dict[str, str] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in CHANGEABLE:
            continue
        if not is_dataclass(value):
            recipe[field.name] = str(value)
            continue
        names = (inner.name for inner in fields(value) if inner.name not in CHANGEABLE_INSIDE)
        recipe |= {f"{field.name}.{name}": str(getattr(value, name)) for name in names}
    return {**recipe, "data": " ".join(recording.fingerprint for recording in recordings)}
