"""Options of `mosaic-gym evaluate world`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mosaic_gym.evaluation.metrics.classifier import LEAST_MAPS
from mosaic_gym.validation import Flag, Folder, OneOf, Whole, option, validate
from mosaic_gym.worlds.maps.rooms import SPLITS


@dataclass(frozen=True)
class Config:
    """Measure how well a world invents unseen maps, and how faithful it is to what it showed before."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder; `simulator` for the simulator on other maps."""
    split: Annotated[str, OneOf(*SPLITS)] = "heldout"
    """The maps that the world starts on."""
    paths: Annotated[int, Whole(LEAST_MAPS)] = 24
    """Maps; 400 for figures that are published."""
    json: Path | None = None
    """File for all figures."""
    out: Annotated[Path, Folder()] = Path("runs/world")
    """Folder of roll-outs, plots and contact sheets. The same command continues in it."""
    calibrate: Annotated[bool, Flag()] = False
    """Also measure worlds whose answer is known, and print what each figure catches."""
    train_maps: Annotated[int, Whole(16)] = 100
    """Maps of the split `train` whose frames are the training frames of `memorised_share`."""
    recording: Path | None = None
    """Folder of recorded maps that the world was trained on; their frames are then training frames too."""
    denoising_steps: Annotated[int | None, Whole(1)] = None
    """None for the shipped number."""
    workers: Annotated[int, Whole(1)] = 2
    """Processes of one thread each; 1 runs in this process."""

    def __post_init__(self) -> None:
        validate(self, option)
