"""The checkpoints inside the package. It imports no module of the package, so all loaders can list them in errors."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent.parent / "weights"
"""A folder for each shipped checkpoint, under the checkpoint's name."""


def shipped() -> list[str]:
    """Names of the shipped checkpoints, sorted."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/world.json"))
