"""Trained camera projections of a Wan transformer: a second attention's output weights, in a file of their own."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from mosaic_gym.model.transformer import MosaicTransformer3DModel

METRES_PER_UNIT = 4.0
"""The length that PRoPE counts as one, unless a transformer's config sets another. In bfloat16, tokens lose precision
with their distance from the present view. The output of a tiny layer for tokens 20 m away is off by a relative error of
0.017 with 1, 0.007 with 4, and 0.005 with 8."""


def check_cameras(transformer: MosaicTransformer3DModel, path: Path | str) -> None:
    """Reads the header of a file of trained camera projections and compares it with the transformer.

    Raises:
        ValueError: there is no such file, it is damaged, it belongs to another transformer, or it was trained with
            another unit of length.
    """
    if not Path(path).is_file():
        inside = Path(path) / "cameras.safetensors"
        fix = f"give {inside}" if inside.is_file() else "give the cameras.safetensors of a run's weights"
        raise ValueError(f"{str(path)!r} is not a file of camera projections: {fix}")
    shapes = {name: list(value.shape) for name, value in transformer.state_dict().items() if "to_out_cameras" in name}
    try:
        with safe_open(str(path), framework="pt") as file:
            stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            unit = (file.metadata() or {}).get("metres_per_unit")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} holds no camera projections, or is damaged; train or copy it again") from error
    if stored != shapes:
        raise ValueError(f"the camera projections in {path} belong to another transformer; train them for this one")
    expected = transformer.config.metres_per_unit
    if unit is None or float(unit) != expected:
        found = "do not record the metres that they count as one" if unit is None else f"count {unit} metres as one"
        raise ValueError(
            f"the camera projections in {path} {found}, and this transformer counts {expected}; train them again "
            "(mosaic-gym train world --from), or set metres_per_unit in the transformer's config.json to the value "
            "that they were trained with"
        )


def load_cameras(transformer: MosaicTransformer3DModel, path: Path | str) -> None:
    """Loads trained camera projections into a transformer.

    Raises:
        ValueError: as for `check_cameras`.
    """
    check_cameras(transformer, path)
    transformer.load_state_dict(load_file(path), strict=False)
