"""The revisit benchmark: whether the world shows a place again as it was before.

Two suites along held-out paths of the simulator, with estimated depth. *Ahead*: one step after a true history, at
random places. *Return*: a true history looks around; then the world generates freely, leaves all places of the history
for at least 64 frames, and comes back over the same poses.

Six variants of the checkpoint: memory on; memory off; last frame only; memory on without the atlas, as in a map that
the atlas does not know; the inputs of transformer and refiner (warped memory and the atlas's pictures); and the warped
memory alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mosaic_gym.evaluation.suites.revisit_figures import (
    GOALS,
    named_figures,
    print_figures,
    print_variants,
    variant_table,
)
from mosaic_gym.validation import Whole, option, validate

if TYPE_CHECKING:
    from mosaic_gym.evaluation.suites.paths import TruePath

SHEETS = 2
"""Number of return paths with a contact sheet."""
PATHS_TOGETHER = 5
"""Return paths that are generated in one batch."""


@dataclass(frozen=True)
class Config:
    """Measure whether the world shows a place again as it was before."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    paths: Annotated[int, Whole(2)] = 50
    """Paths of each suite."""
    denoising_steps: Annotated[int | None, Whole(1)] = None
    """None for the shipped number."""
    json: Path | None = None
    """File for all figures."""
    out: Path | None = None
    """A folder for contact sheets of the first return paths."""
    workers: Annotated[int, Whole(1)] = 2
    """Processes of one thread each; 1 runs in this process, with torch's default number of threads."""

    def __post_init__(self) -> None:
        validate(self, option)


def measure_paths(
    config: Config, ahead: list[TruePath], back: list[TruePath], single_thread: bool, advance: Callable[[int], Any]
) -> dict[str, Any]:
    """Figures of every variant on some paths.

    Args:
        ahead: paths of the suite *ahead*.
        back: paths of the suite *return*.
        single_thread: whether torch uses one thread, because other workers share the cores.
        advance: called with 1 after each path.

    Returns:
        `ahead`, `return`: a row for each path, with one dict of figures by variant. `depth`: one error for each path of
        *ahead*. `sheets`: path and frames by variant of the first return paths, if `config.out` is set.
    """
    import torch

    from mosaic_gym.evaluation.suites.depth import relative_errors
    from mosaic_gym.evaluation.suites.rollout import VARIANTS, Variants, measure_ahead, measure_return
    from mosaic_gym.model.checkpoints import WorldModel

    if single_thread:
        torch.set_num_threads(1)
    model = WorldModel.from_pretrained(config.checkpoint).to("cpu")
    variants = Variants(model, config.denoising_steps)
    results: dict[str, Any] = {"ahead": [], "return": [], "depth": relative_errors(model, ahead), "sheets": []}
    for path in ahead:
        state = variants.after_history(path)
        covered = variants.world.coverage_mask(state, path.poses(path.history))
        frames = {variant: variants.rollout(variant, [state], [path])[0] for variant in VARIANTS}
        results["ahead"].append({variant: measure_ahead(path, frames[variant], covered) for variant in VARIANTS})
        advance(1)
    for first in range(0, len(back), PATHS_TOGETHER):
        group = back[first : first + PATHS_TOGETHER]
        states = [variants.after_history(path) for path in group]
        frames = {variant: variants.rollout(variant, states, group) for variant in VARIANTS}
        for i, path in enumerate(group):
            results["return"].append({variant: measure_return(path, frames[variant][i]) for variant in VARIANTS})
            if config.out is not None and first + i < SHEETS:
                results["sheets"].append((path, {variant: frames[variant][i] for variant in VARIANTS}))
            advance(1)
    return results


def measure(config: Config) -> dict[str, Any]:
    """Measures both suites in the workers, with a progress bar.

    The paths do not depend on the number of workers.

    Returns:
        As `measure_paths`, and `seeds_ahead`, `seeds_return`.
    """
    from tqdm import tqdm

    from mosaic_gym.evaluation.suites.paths import ahead_path, collect, return_path
    from mosaic_gym.model.checkpoints import WorldModel

    settings = WorldModel.from_pretrained(config.checkpoint).settings
    ahead = collect(ahead_path, config.paths, settings, "paths ahead")
    back = collect(return_path, config.paths, settings, "return paths")
    with tqdm(total=2 * config.paths, desc="paths", unit="path") as bar:
        if config.workers == 1:
            parts = [measure_paths(config, ahead, back, False, bar.update)]
        else:
            parts = _measure_in_processes(config, ahead, back, bar)
    joined = {name: [row for part in parts for row in part[name]] for name in parts[0]}
    seeds = {"seeds_ahead": [path.seed for path in ahead], "seeds_return": [path.seed for path in back]}
    return {**joined, **seeds, "sheets": joined["sheets"][:SHEETS]}


def _measure_in_processes(
    config: Config, ahead: list[TruePath], back: list[TruePath], bar: Any
) -> list[dict[str, Any]]:
    from concurrent.futures import ProcessPoolExecutor, wait
    from multiprocessing import get_context
    from multiprocessing.managers import SyncManager

    from mosaic_gym.processes import end_with_parent, workers_end_on_error

    context, count = get_context("spawn"), min(config.workers, config.paths)
    ends = [config.paths * part // count for part in range(count + 1)]
    manager = SyncManager(ctx=context)
    manager.start(end_with_parent)
    with (
        manager,
        ProcessPoolExecutor(count, mp_context=context, initializer=end_with_parent) as pool,
        workers_end_on_error(),
    ):
        queue = manager.Queue()
        parts = [
            pool.submit(measure_paths, config, ahead[first:end], back[first:end], True, queue.put)
            for first, end in pairwise(ends)
        ]
        while wait(parts, timeout=0.3).not_done:
            while not queue.empty():
                bar.update(queue.get())
        bar.update(bar.total - bar.n)
        return [part.result() for part in parts]


def evaluate(config: Config) -> dict[str, Any]:
    """Runs the benchmark, prints both tables, and writes the files that the config names.

    The JSON file holds each named figure as value, low, high and goal, the table of variants, and what produced them.
    """
    import torch

    from mosaic_gym.evaluation.speed.steps import steps_per_second
    from mosaic_gym.model.checkpoints import WorldModel

    # The timing comes first, so that its failure does not discard a finished suite.
    rate = steps_per_second(config.checkpoint, steps=60, warm_up=60)
    results = measure(config)
    figures = named_figures(results)
    figures["steps_per_second"] = {**rate, "goal": GOALS["steps_per_second"][0]}
    print(f"\n{config.checkpoint}: {config.paths} held-out paths a suite, 95 % intervals over paths")
    print_figures(figures)
    table = variant_table(results)
    print()
    print_variants(table)
    if config.out is not None:
        from mosaic_gym.evaluation.suites.pictures import save_return_sheet

        config.out.mkdir(parents=True, exist_ok=True)
        for path, frames in results["sheets"]:
            print(f"contact sheet: {save_return_sheet(config.out / f'return_{path.seed}.png', path, frames)}")
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        metadata = {
            "checkpoint": config.checkpoint,
            "paths": config.paths,
            "denoising_steps": config.denoising_steps
            or WorldModel.from_pretrained(config.checkpoint).settings.denoising_steps,
            "threads": torch.get_num_threads(),
            "seeds_ahead": results["seeds_ahead"],
            "seeds_return": results["seeds_return"],
        }
        config.json.write_text(json.dumps({**figures, "variants": table, **metadata}, indent=2) + "\n")
        print(f"figures: {config.json}")
    return {"figures": figures, "variants": table}
