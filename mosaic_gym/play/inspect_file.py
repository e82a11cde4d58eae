"""`mosaic-gym inspect`: what a saved moment, a saved memory or a recorded episode holds, as a picture and for rerun."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from mosaic_gym.data.episodes import read_episode
from mosaic_gym.envs.snapshot import FORMAT as SNAPSHOT_FORMAT
from mosaic_gym.evaluation.reports.frames import enlarge, labeled
from mosaic_gym.memory.files import load_with_metadata
from mosaic_gym.memory.mosaic import FORMAT as MEMORY_FORMAT
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.play.overlays import curves, depth_picture, memory_from_above

SHEET, COLUMNS = 24, 8
"""Pictures of a sheet, and in a row of it."""
TILE_PX = 96
MAP_PX = 384
POINTS_EVERY = 4
"""Of the pixels of a picture, one in so many along each side becomes a point for rerun."""


@dataclass(frozen=True)
class InspectConfig:
    """Show what a file of `env.save`, of `memory.save`, or a recorded episode holds."""

    file: Path
    """A saved moment or memory (.safetensors), or the folder of a recorded episode."""
    out: Path = Path("out/inspect.png")
    """The picture: frames or keyframes, depth, memory from above, curves."""
    rerun: Path | None = None
    """A file for the rerun viewer (.rrd): frames, depth, cameras, points, curves (extra `inspect`)."""


@dataclass(frozen=True)
class Entry:
    """One step of what is inspected.

    Attributes:
        step: its index.
        image: uint8 `[H, W, 3]`, None for a memory of latents.
        depth_m: `[H, W]`, metres.
        world_from_camera: `[4, 4]`, metres.
        numbers: for the curves, by name.
    """

    step: int
    image: np.ndarray | None
    depth_m: np.ndarray
    world_from_camera: np.ndarray
    numbers: dict[str, float]


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        entries: keyframes or recorded steps, in order.
        memory: None for a recorded episode.
        image_from_camera: K in pixels of frames; None in a file of memory alone.
        title: one line about it.
    """

    entries: Sequence[Entry]
    memory: MosaicMemory | None
    image_from_camera: np.ndarray | None
    title: str


def read_contents(path: Path) -> Contents:
    """Reads a saved moment, a saved memory or a recorded episode.

    Raises:
        FileNotFoundError: nothing is there. ValueError: another kind of file, or a damaged one.
    """
    if path.is_dir():
        if not (path / "episode.json").is_file():
            raise FileNotFoundError(f"{path} is no recorded episode: it has no episode.json")
        return _episode(path)
    tensors, about = load_with_metadata(path, (SNAPSHOT_FORMAT, MEMORY_FORMAT), "moment or memory")
    if "members" not in about:
        memory = MosaicMemory.from_tensors(tensors, about)
        return Contents(_keyframes(memory), memory, None, f"memory of {len(memory)} keyframes")
    member = about["members"][0]
    own = {name.removeprefix("0."): value for name, value in tensors.items() if name.startswith("0.")}
    prefix = "state.memory."
    parts = {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)}
    memory = MosaicMemory.from_tensors(parts, member["state"]["memory"])
    k = own["view.image_from_camera"].numpy()
    title = f"step {member['steps']}, {len(memory)} keyframes, prompt {member['state']['prompt']!r}"
    return Contents(_keyframes(memory), memory, k, title)


def _episode(path: Path) -> Contents:
    metadata, arrays = read_episode(path)
    entries = [
        Entry(
            step,
            arrays["frames"][step, -1].numpy(),
            arrays["depth_m"][step, -1].float().numpy(),
            arrays["world_from_camera"][step, -1].numpy(),
            {"reward": float(arrays["reward"][step]), "forward": float(arrays["action"][step, 0])},
        )
        for step in range(len(arrays["frames"]))
    ]
    k = np.array(metadata["image_from_camera"])
    return Contents(entries, None, k, f"{metadata['scenario']}, seed {metadata['seed']}, {len(entries)} steps")


def _keyframes(memory: MosaicMemory) -> list[Entry]:
    entries = []
    for keyframe in memory.keyframes:
        image = None
        if keyframe.image is not None:
            colors = (keyframe.image.float().permute(1, 2, 0).numpy() + 1) * 127.5
            image = colors.clip(0, 255).astype(np.uint8)
        new = keyframe.alive.float() if keyframe.written is None else keyframe.written.float()
        numbers = {"new pixels": float(new.mean()), "generation": float(keyframe.generation.mean())}
        cameras, depth_m = keyframe.world_from_keyframe.numpy(), keyframe.depth_m.float().numpy()
        entries.append(Entry(keyframe.step, image, depth_m, cameras, numbers))
    return entries


def draw_contents(contents: Contents) -> np.ndarray:
    """The picture, uint8 `[H, W, 3]`: frames with their depth below, the view from above, and curves.

    Raises:
        ValueError: nothing to draw.
    """
    if not contents.entries:
        raise ValueError("the memory is empty: there is nothing to draw")
    every = math.ceil(len(contents.entries) / SHEET)
    tiles = []
    for entry in contents.entries[::every]:
        depth = depth_picture(entry.depth_m)
        parts = [depth] if entry.image is None else [entry.image, depth]
        scale = max(1, TILE_PX // parts[0].shape[1])
        tiles.append(labeled(np.concatenate([enlarge(part, scale) for part in parts]), f"{entry.step}"))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % min(COLUMNS, len(tiles)))
    columns = min(COLUMNS, len(tiles))
    rows = [np.concatenate(tiles[first : first + columns], 1) for first in range(0, len(tiles), columns)]
    places = np.stack([entry.world_from_camera for entry in contents.entries])
    heading_rad = float(np.arctan2(places[-1, 0, 2], places[-1, 2, 2]))
    above = memory_from_above(contents.memory, places[:, [0, 2], 3].astype(float), heading_rad, MAP_PX)
    series = {name: [entry.numbers[name] for entry in contents.entries] for name in contents.entries[0].numbers}
    side = np.concatenate([above, curves(series, MAP_PX)])
    sheet = np.concatenate(rows)
    height = max(len(sheet), len(side))
    padded = [np.pad(part, ((0, height - len(part)), (0, 0), (0, 0))) for part in (sheet, side)]
    return labeled(np.concatenate(padded, 1), contents.title)


def log_contents(contents: Contents, path: Path) -> None:
    """Writes a recording for the rerun viewer.

    Raises:
        ModuleNotFoundError: rerun is not installed.
    """
    try:
        import rerun
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--rerun needs the rerun SDK: pip install mosaic-gym[inspect]") from error
    recording: Any = rerun.RecordingStream("mosaic_gym")
    recording.save(path)
    recording.log("world", rerun.ViewCoordinates.RDF, static=True)
    for index, entry in enumerate(contents.entries):
        recording.set_time("step", sequence=entry.step)
        camera = entry.world_from_camera
        name = f"world/keyframes/{index}" if contents.memory is not None else "world/camera"
        recording.log(name, rerun.Transform3D(translation=camera[:3, 3], mat3x3=camera[:3, :3]))
        height, width = entry.depth_m.shape
        if contents.image_from_camera is not None:
            resolution = [width, height]
            pinhole = rerun.Pinhole(image_from_camera=contents.image_from_camera, resolution=resolution)
            recording.log(f"{name}/view", pinhole)
            points, colors = _points(entry, contents.image_from_camera)
            recording.log(f"{name}/points", rerun.Points3D(points, colors=colors, radii=0.03))
        if entry.image is not None:
            recording.log(f"{name}/view/image", rerun.Image(entry.image))
        recording.log(f"{name}/view/depth", rerun.DepthImage(entry.depth_m, meter=1.0))
        for label, value in entry.numbers.items():
            recording.log(f"curves/{label.replace(' ', '_')}", rerun.Scalars(value))
    recording.flush()


def _points(entry: Entry, image_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points `[n, 3]` in the camera's axes, metres, and their colors `[n, 3]`."""
    height, width = entry.depth_m.shape
    v, u = np.mgrid[0:height:POINTS_EVERY, 0:width:POINTS_EVERY] + 0.5
    z = entry.depth_m[::POINTS_EVERY, ::POINTS_EVERY]
    (fx, _, cx), (_, fy, cy), _ = image_from_camera
    points = np.stack([(u - cx) / fx * z, (v - cy) / fy * z, z], -1).reshape(-1, 3)
    image = np.full((height, width, 3), 160, np.uint8) if entry.image is None else entry.image
    return points, image[::POINTS_EVERY, ::POINTS_EVERY].reshape(-1, 3)


def inspect_file(config: InspectConfig) -> None:
    """Writes the picture, and the recording for rerun if one is asked for.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as `read_contents`, `draw_contents` and `log_contents`.
    """
    contents = read_contents(config.file)
    picture = draw_contents(contents)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(config.out, picture)
    print(f"{contents.title}: {config.out}")
    if config.rerun is not None:
        config.rerun.parent.mkdir(parents=True, exist_ok=True)
        log_contents(contents, config.rerun)
        print(f"for the rerun viewer: {config.rerun}")
