"""The demo: walk out, come back, and see whether the room is still there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path as FilePath


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym demo` takes."""

    out: FilePath = FilePath("out/demo")
    """The folder for the video and the contact sheet."""
    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    path: int = 0
    """Which held-out return path to walk, counted from 0."""
    paths: int = 4
    """Paths of each suite in the table that is printed; the card's table has 50."""
    workers: int = 2
    """Processes that measure the table."""


def demo(config: Config) -> None:
    """Writes the video and the contact sheet, and prints the figures measured here beside the card's.

    The card's are read from `figures.json` beside the weights, as `evaluate revisit --json` writes it.

    Raises:
        ValueError: a negative path, too few paths for an interval, or no worker.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from mosaic_gym.evaluation.paths import return_path
    from mosaic_gym.evaluation.report import ENGINE, save_sheet, save_video
    from mosaic_gym.evaluation.revisit import Config as RevisitConfig
    from mosaic_gym.evaluation.revisit import collect, figures, gather, print_figures, print_variants, variant_table
    from mosaic_gym.evaluation.rollout import VARIANTS, Variants
    from mosaic_gym.evaluation.speed import steps_per_second
    from mosaic_gym.model.checkpoints import WorldModel, resolve

    if config.path < 0 or config.paths < 2 or config.workers < 1:
        raise ValueError("path counts from 0; give at least 2 paths and 1 worker")
    # First: what fails here takes no finished suite with it.
    rate = steps_per_second(config.checkpoint, steps=40, warm_up=20)
    config.out.mkdir(parents=True, exist_ok=True)
    model = WorldModel.from_pretrained(config.checkpoint)
    path = collect(return_path, config.path + 1, model.settings, "return paths")[config.path]
    # One path alone is many small operations: a second thread only waits for the first.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    variants = Variants(model)
    state = variants.after_history(path)
    shown = {}
    for variant in tqdm(VARIANTS, desc="dreaming", unit="arm"):
        shown[variant] = variants.dream(variant, [state], [path])[0]
    torch.set_num_threads(threads)
    true = np.stack([view.frames for view in path.views])
    history = true[: path.history]
    columns = [
        ("dream with memory", np.concatenate([history, shown["memory"]])),
        ("dream without memory", np.concatenate([history, shown["off"]])),
        (ENGINE, true),
    ]
    video = save_video(config.out / "out_and_back.mp4", path, columns)
    picture = save_sheet(config.out / "contact_sheet.png", path, shown)

    told = gather(RevisitConfig(checkpoint=config.checkpoint, paths=config.paths, workers=config.workers))
    found = figures(told)
    found["steps_per_second"] = rate
    card = resolve(config.checkpoint) / "figures.json"
    shipped = json.loads(card.read_text()) if card.is_file() else None
    print(f"\nmeasured now on {config.paths} held-out paths a suite (wide intervals); card: the full benchmark")
    print_figures(found, shipped)
    print()
    print_variants(variant_table(told))
    print(f"\nvideo: {video}\ncontact sheet: {picture}")
