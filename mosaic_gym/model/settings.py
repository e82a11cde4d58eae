"""The content of world.json: the settings of a checkpoint, and the networks that its folder has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated

from mosaic_gym.geometry.camera import check_intrinsics
from mosaic_gym.geometry.control import control_from_settings
from mosaic_gym.validation import Number, Text, Whole, validate

FORMAT = "mosaic-world-5"
FOLDERS = {
    "transformer": "transformer",
    "refiner": "detail",  # name in files
    "codec": "codec",
    "text_encoder": "text_encoder",
    "depth": "depth",
    "reward_heads": "outcome",  # name in files
    "atlas": "atlas",
    "guide": "guide",
}
"""For each network of a `WorldModel`, the name of its folder, which is also its name in world.json."""
OPTIONAL_FOLDERS = {"detail", "outcome", "atlas", "guide"}  # name in files
"""Folders of networks that a world can do without."""


@dataclass(frozen=True)
class WorldSettings:
    """The settings of a checkpoint besides its weights.

    Attributes:
        height, width: of the frames, pixels.
        image_from_camera: K `[3, 3]` in pixels, as rows.
        control: what `geometry.control.control_settings` writes.
        denoising_steps: the number that the checkpoint was trained for.
        history: how many recent latent frames condition the next one.
        max_sources, max_patches: the budgets of retrieval, in keyframes to warp and in patches; 0 for none.
        capacity: how many keyframes an episode's memory holds; 0 for no memory.
        guidance: scale of guidance away from what the guide (see `WorldModel`), or without one the transformer, makes
            of `negative_prompt`; 1 for none.
        scenario: the simulator's scenario that the model was trained on; see `DoomWorld`.

    Raises:
        ValueError: a value of another type or range; the message names it.
    """

    height: Annotated[int, Whole(1)]
    width: Annotated[int, Whole(1)]
    image_from_camera: tuple[tuple[float, ...], ...]
    control: dict[str, float]
    denoising_steps: Annotated[int, Whole(1)] = 1
    history: Annotated[int, Whole(1)] = 1
    max_sources: Annotated[int, Whole(0)] = 3
    max_patches: Annotated[int, Whole(0)] = 32
    capacity: Annotated[int, Whole(0)] = 512
    guidance: Annotated[float, Number(least=1.0)] = 1.0
    negative_prompt: Annotated[str, Text()] = ""
    scenario: Annotated[str, Text()] = "my_way_home"

    def __post_init__(self) -> None:
        validate(self)
        object.__setattr__(self, "image_from_camera", check_intrinsics(self.image_from_camera))
        if not isinstance(self.control, Mapping):
            raise ValueError(f"control is a dict of the fields of Control; got {self.control!r}")
        try:
            control_from_settings(self.control)
        except (TypeError, ValueError) as error:
            raise ValueError(f"control is a dict of the fields of Control ({error})") from error


def load_settings(path: Path) -> tuple[WorldSettings, list[str]]:
    """Reads a world.json.

    Returns:
        the settings, and the names of the folders with networks. A file without `parts` has all of them.

    Raises:
        ValueError: the file is missing, damaged or of another version, or a value is not allowed.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: not JSON, or not text
        raise ValueError(f"{path} is damaged or cut short ({error}); copy the checkpoint's folder again") from error
    if not isinstance(settings, dict) or settings.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}; train or export the checkpoint again")
    known_parts = set(FOLDERS.values())
    needed_parts = known_parts - OPTIONAL_FOLDERS
    # Older files name no parts, and belong to worlds without a guide.
    parts = settings.pop("parts", [name for name in FOLDERS.values() if name != "guide"])
    if not isinstance(parts, list) or not needed_parts <= set(map(str, parts)) <= known_parts:
        raise ValueError(
            f"{path} names the parts {parts}; a world needs {sorted(needed_parts)} and can have "
            f"{sorted(OPTIONAL_FOLDERS)} as well: the file is damaged or belongs to another version"
        )
    known = {field.name for field in fields(WorldSettings)}
    needed = {field.name for field in fields(WorldSettings) if field.default is MISSING}
    missing, unknown = sorted(needed - set(settings)), sorted(set(settings) - known)
    if missing or unknown:
        raise ValueError(
            f"{path} lacks the fields {missing} and has the unknown fields {unknown}; it belongs to another version"
        )
    try:
        return WorldSettings(**settings), parts
    except ValueError as error:
        raise ValueError(
            f"{path} has a value that is not allowed: {error}. Correct it, or copy the checkpoint's folder again"
        ) from error
