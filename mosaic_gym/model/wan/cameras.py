"""What lets a Wan model know its cameras: trained projections of a second attention, in a file of their own."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from mosaic_gym.model.transformer import MosaicTransformer3DModel

METRES_PER_UNIT = 4.0
"""The length that PRoPE counts as one, unless a transformer's config says another. In bfloat16 tokens far from the
present view lose precision by their distance: a tiny layer's answer to tokens 20 m away, among one another, is off by
0.017 of itself with 1, by 0.007 with 4, and by 0.005 with 8."""


def check_cameras(transformer: MosaicTransformer3DModel, path: Path | str) -> None:
    """Reads the head of a file of trained camera projections.

    Raises:
        ValueError: no such file, damaged, of another transformer, or trained with cameras told in another unit.
    """
    if not Path(path).is_file():
        inside = Path(path) / "cameras.safetensors"
        fix = f"give {inside}" if inside.is_file() else "give the cameras.safetensors of a run's weights"
        raise ValueError(f"{str(path)!r} is no file of camera projections: {fix}")
    mine = {name: list(value.shape) for name, value in transformer.state_dict().items() if "to_out_cameras" in name}
    try:
        with safe_open(str(path), framework="pt") as file:
            given = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            unit = (file.metadata() or {}).get("metres_per_unit")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} holds no camera projections, or is damaged; train or copy it again") from error
    if given != mine:
        raise ValueError(f"the camera projections in {path} belong to another transformer; train them for this one")
    expected = transformer.config.metres_per_unit
    if unit is None or float(unit) != expected:
        said = "do not say how many metres they count as one" if unit is None else f"count {unit} metres as one"
        raise ValueError(
            f"the camera projections in {path} {said}, this transformer {expected}; train them again (mosaic-gym train "
            "world --from), or set metres_per_unit in the transformer's config.json to what they were trained with"
        )


def load_cameras(transformer: MosaicTransformer3DModel, path: Path | str) -> None:
    """Puts trained camera projections into a transformer.

    Raises:
        ValueError: as `check_cameras`.
    """
    check_cameras(transformer, path)
    transformer.load_state_dict(load_file(path), strict=False)
