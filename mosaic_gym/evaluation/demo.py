"""The demo: walk out, come back, and compare the room with memory on, with memory off, and in the simulator."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mosaic_gym.validation import Whole, option, validate

if TYPE_CHECKING:
    import numpy as np

    from mosaic_gym.evaluation.suites.paths import TruePath
    from mosaic_gym.model.checkpoints import WorldModel


@dataclass(frozen=True)
class Config:
    """Walk out and back in the learned world and in the simulator, and write videos and a contact sheet."""

    out: Path = Path("out/demo")
    """The folder for the videos and the contact sheet."""
    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    path: Annotated[int, Whole(0)] = 0
    """Which held-out return path to walk, counted from 0."""
    paths: Annotated[int, Whole(2)] = 4
    """Paths of each suite in the printed table; the checkpoint's card has 50."""
    workers: Annotated[int, Whole(1)] = 2
    """Processes that measure the table."""

    def __post_init__(self) -> None:
        validate(self, option)


def demo(config: Config) -> None:
    """Writes two videos and a contact sheet of one return path, and prints the figures of a few paths.

    The files are `out_and_back.mp4`, `demo.webp` (an animated picture of the same walk, for web pages) and
    `contact_sheet.png`. Beside the figures stand those of the checkpoint's card, read from `figures.json` beside the
    weights, as `evaluate revisit --json` writes it.
    """
    from mosaic_gym.evaluation.speed.steps import steps_per_second
    from mosaic_gym.evaluation.suites import revisit, revisit_figures
    from mosaic_gym.evaluation.suites.paths import collect, return_path
    from mosaic_gym.model.checkpoints import WorldModel, resolve

    # The timing comes first, so that its failure does not discard a finished suite.
    rate = steps_per_second(config.checkpoint, steps=40, warm_up=20)
    config.out.mkdir(parents=True, exist_ok=True)
    model = WorldModel.from_pretrained(config.checkpoint)
    path = collect(return_path, config.path + 1, model.settings, "return paths")[config.path]
    files = write_pictures(config.out, path, generate_variants(model, path))

    measured = revisit.Config(checkpoint=config.checkpoint, paths=config.paths, workers=config.workers)
    results = revisit.measure(measured)
    figures = revisit_figures.named_figures(results)
    figures["steps_per_second"] = rate
    file = resolve(config.checkpoint) / "figures.json"
    card = revisit_figures.current_names(json.loads(file.read_text())) if file.is_file() else None
    print(f"\nmeasured now on {config.paths} held-out paths a suite (wide intervals); card: the full benchmark")
    revisit_figures.print_figures(figures, card)
    print()
    revisit_figures.print_variants(revisit_figures.variant_table(results))
    print()
    for name, written in files.items():
        print(f"{name}: {written}")


def generate_variants(model: WorldModel, path: TruePath) -> dict[str, np.ndarray]:
    """Frames uint8 `[steps, 4, H, W, 3]` of the way out and back, by variant."""
    import torch
    from tqdm import tqdm

    from mosaic_gym.evaluation.suites.rollout import VARIANTS, Variants

    # One path means many small operations, which a second thread does not speed up.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    variants = Variants(model)
    state = variants.after_history(path)
    frames = {}
    for variant in tqdm(VARIANTS, desc="generating", unit="variant"):
        frames[variant] = variants.rollout(variant, [state], [path])[0]
    torch.set_num_threads(threads)
    return frames


def write_pictures(out: Path, path: TruePath, frames: dict[str, np.ndarray]) -> dict[str, Path]:
    """Writes the videos and the contact sheet; returns the files by a description of each.

    Args:
        frames: from `generate_variants`.
    """
    import numpy as np

    from mosaic_gym.evaluation.reports.video import save_animation, save_video
    from mosaic_gym.evaluation.suites.pictures import TRUTH, phase, save_return_sheet, true_frames

    true = true_frames(path)
    memory_on, memory_off = (np.concatenate([true[: path.history], frames[name]]) for name in ("memory", "off"))
    columns = [(TRUTH, true), ("memory on", memory_on), ("memory off", memory_off)]
    captions = [phase(path, step) for step in range(len(path.views))]
    return {
        "video": save_video(out / "out_and_back.mp4", columns, captions),
        "animated picture": save_animation(out / "demo.webp", columns, captions),
        "contact sheet": save_return_sheet(out / "contact_sheet.png", path, frames),
    }
