"""The revisit benchmark: is what was left behind still there?

Two suites along held-out paths of the engine, with estimated depth. *Ahead*: one step from a true history, at
random places. *Return*: a true history looks around; then the dream runs freely, leaves all of it for at least
64 frames, and comes back over the same poses. Six arms: memory on, memory off, last frame only, memory on without the
atlas (as in a world that is not of its map), what transformer and detail network are given (warped memory beside the
atlas's pictures), and the warped memory alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic_gym.evaluation.paths import Path
    from mosaic_gym.model.checkpoints import WorldSettings

GOALS = {
    "psnr_ahead": (29.5, "one step ahead, dB"),
    "gain_ahead_over_warp": (1.5, "the same, gain over the warp alone, dB"),
    "psnr_return_engine": (24.0, "return against the engine, dB"),
    "gain_return_engine_over_off": (5.0, "the same, gain over memory off, dB"),
    "gain_return_engine_over_warp": (0.0, "the same, gain over the warp alone, dB"),
    "psnr_return_self": (25.0, "return against its own outward frames, dB"),
    "gain_return_self_over_off": (6.0, "the same, gain over memory off, dB"),
    "ssim_return_engine": (0.6, "SSIM of the return"),
    "depth_median_relative_error": (0.08, "depth, median relative error (at most)"),
    "steps_per_second": (20.0, "environment steps per second"),
}
SHEETS = 2
"""Return paths of which a contact sheet is made."""
AT_MOST = {"depth_median_relative_error"}
UNGRADED = {
    "gain_ahead_uncovered_over_warp": "gain ahead where memory covers nothing, dB",
    "gain_ahead_over_expected": "gain ahead over memory and atlas, dB",
    "gain_return_engine_over_expected": "gain of the return over memory and atlas, dB",
    "psnr_way_engine": "all of the way out and back, dB",
    "gain_way_engine_over_warp": "the same, gain over the warp alone, dB",
    "gain_way_engine_over_expected": "the same, gain over memory and atlas, dB",
    "gain_ahead_unplaced_over_warp": "gain ahead over the warp, map unknown, dB",
    "gain_return_engine_unplaced_over_warp": "gain of the return over the warp, map unknown, dB",
    "gain_way_engine_unplaced_over_warp": "gain of the way over the warp, map unknown, dB",
    "bound_ahead_realigned": "what realigning the warp could gain, dB",
}
"""Figures without a goal: the gain over those pixels that memory does not cover, which only a network can know (the
warp continues its edges into them); what transformer and detail network add to what they are given, with the map and
without; all pixels of the way out and back, most of which no memory covers; and what the best shifts of covered pixels
would gain."""


@dataclass(frozen=True)
class Config:
    """What `mosaic-gym evaluate revisit` takes."""

    checkpoint: str = "doom-tiny"
    """A shipped checkpoint, or a folder."""
    paths: int = 50
    """Paths of each suite."""
    denoising_steps: int | None = None
    """None for the shipped number."""
    json: FilePath | None = None
    """Where to write every figure."""
    out: FilePath | None = None
    """A folder for a contact sheet of the first return paths."""
    workers: int = 2
    """Processes, one thread each; 1 runs in this process, with as many threads as torch likes."""


def collect(kind: Callable[..., Path | None], count: int, settings: WorldSettings, label: str = "paths") -> list[Path]:
    """The first `count` paths of a kind, in the order of seeds, with a progress bar."""
    from tqdm import tqdm

    from mosaic_gym.evaluation.paths import seeds, simulator_of

    world = simulator_of(settings)
    paths: list[Path] = []
    with tqdm(total=count, desc=f"walking {label} in the engine", unit="path", mininterval=2.0) as bar:
        for seed in seeds():
            if len(paths) == count:
                break
            path = kind(world, seed)
            if path is not None:
                paths.append(path)
                bar.update()
    world.close()
    return paths


def run_part(
    config: Config, ahead: list[Path], back: list[Path], alone: bool, advance: Callable[[int], Any]
) -> dict[str, Any]:
    """A share of both suites: per-path figures of every arm. `advance(1)` is called after each path.

    Args:
        ahead, back: paths that go one step, and that go away and return.
        alone: whether no other worker needs the cores.
    """
    import torch

    from mosaic_gym.evaluation.depth import relative_errors
    from mosaic_gym.evaluation.rollout import VARIANTS, Variants, measure_ahead, measure_return
    from mosaic_gym.model.checkpoints import WorldModel

    if not alone:
        torch.set_num_threads(1)
    model = WorldModel.from_pretrained(config.checkpoint).to("cpu")
    variants = Variants(model, config.denoising_steps)
    told: dict[str, Any] = {"ahead": [], "return": [], "depth": relative_errors(model, ahead), "sheets": []}
    for path in ahead:
        state = variants.after_history(path)
        covered = variants.world.covered(state, path.poses(path.history))
        shown = {variant: variants.dream(variant, [state], [path])[0] for variant in VARIANTS}
        told["ahead"].append({variant: measure_ahead(path, frames, covered) for variant, frames in shown.items()})
        advance(1)
    for first in range(0, len(back), 5):
        group = back[first : first + 5]
        states = [variants.after_history(path) for path in group]
        shown = {variant: variants.dream(variant, states, group) for variant in VARIANTS}
        for i, path in enumerate(group):
            told["return"].append({variant: measure_return(path, shown[variant][i]) for variant in VARIANTS})
            if config.out is not None and first + i < SHEETS:
                told["sheets"].append((path, {variant: shown[variant][i] for variant in VARIANTS}))
            advance(1)
    return told


def gather(config: Config) -> dict[str, Any]:
    """Runs both suites in the workers, with a progress bar, and joins what they found.

    Which paths those are does not depend on the number of workers.
    """
    from tqdm import tqdm

    from mosaic_gym.evaluation.paths import ahead_path, return_path
    from mosaic_gym.model.checkpoints import WorldModel

    settings = WorldModel.from_pretrained(config.checkpoint).settings
    ahead = collect(ahead_path, config.paths, settings, "paths ahead")
    back = collect(return_path, config.paths, settings, "return paths")
    with tqdm(total=2 * config.paths, desc="paths", unit="path") as bar:
        if config.workers == 1:
            told = [run_part(config, ahead, back, True, bar.update)]
        else:
            told = _in_processes(config, ahead, back, bar)
    joined = {name: [item for part in told for item in part[name]] for name in told[0]}
    seeds = {"seeds_ahead": [path.seed for path in ahead], "seeds_return": [path.seed for path in back]}
    return {**joined, **seeds, "sheets": joined["sheets"][:SHEETS]}


def _in_processes(config: Config, ahead: list[Path], back: list[Path], bar: Any) -> list[dict[str, Any]]:
    context, count = get_context("spawn"), min(config.workers, config.paths)
    ends = [config.paths * part // count for part in range(count + 1)]
    with context.Manager() as manager, ProcessPoolExecutor(count, mp_context=context) as pool:
        queue = manager.Queue()
        parts = [
            pool.submit(run_part, config, ahead[first:end], back[first:end], False, queue.put)
            for first, end in pairwise(ends)
        ]
        while wait(parts, timeout=0.3).not_done:
            while not queue.empty():
                bar.update(queue.get())
        bar.update(bar.total - bar.n)
        return [part.result() for part in parts]


def figures(told: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The named figures, each with value, low, high and goal."""
    from mosaic_gym.evaluation.metrics import interval

    ahead, back = told["ahead"], told["return"]

    def over(rows: list[Any], figure: str, variant: str, less: str | None = None) -> dict[str, float]:
        return interval([row[variant][figure] - (row[less][figure] if less else 0.0) for row in rows])

    found = {
        "psnr_ahead": over(ahead, "psnr", "memory"),
        "gain_ahead_over_warp": over(ahead, "psnr", "memory", "warp"),
        "psnr_return_engine": over(back, "engine", "memory"),
        "gain_return_engine_over_off": over(back, "engine", "memory", "off"),
        "gain_return_engine_over_warp": over(back, "engine", "memory", "warp"),
        "psnr_return_self": over(back, "self", "memory"),
        "gain_return_self_over_off": over(back, "self", "memory", "off"),
        "ssim_return_engine": over(back, "ssim", "memory"),
        "depth_median_relative_error": interval(told["depth"]),
    }
    found = {name: {**figure, "goal": GOALS[name][0]} for name, figure in found.items()}
    found["psnr_way_engine"] = {**over(back, "way", "memory"), "goal": None}
    found["gain_way_engine_over_warp"] = {**over(back, "way", "memory", "warp"), "goal": None}
    measures = ("ahead", ahead, "psnr"), ("return_engine", back, "engine"), ("way_engine", back, "way")
    for name, rows, figure in measures:
        found[f"gain_{name}_over_expected"] = {**over(rows, figure, "memory", "expected"), "goal": None}
        found[f"gain_{name}_unplaced_over_warp"] = {**over(rows, figure, "unplaced", "warp"), "goal": None}
    bound = interval([row["warp"]["realigned"] - row["warp"]["psnr"] for row in ahead])
    found["bound_ahead_realigned"] = {**bound, "goal": None}
    partly = [row for row in ahead if "uncovered" in row["memory"]]
    if len(partly) > 1:
        found["gain_ahead_uncovered_over_warp"] = {**over(partly, "uncovered", "memory", "warp"), "goal": None}
    return found


def variant_table(told: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Every measure with its interval, by arm."""
    from mosaic_gym.evaluation.metrics import interval
    from mosaic_gym.evaluation.rollout import VARIANTS

    table = {}
    for variant in VARIANTS:
        table[variant] = {"ahead": interval([row[variant]["psnr"] for row in told["ahead"]])}
        for name in ("engine", "self", "ssim", "way"):
            table[variant][f"return_{name}"] = interval([row[variant][name] for row in told["return"]])
    return table


def print_figures(found: dict[str, dict[str, float]], shipped: dict[str, dict[str, float]] | None = None) -> None:
    """A table of figures with intervals and goals; beside them, if given, those of the checkpoint's card."""
    for name, (goal, words) in GOALS.items():
        if name not in found:
            continue
        figure, sign = found[name], "<=" if name in AT_MOST else ">="
        met = figure["value"] <= goal if name in AT_MOST else figure["value"] >= goal
        line = f"{words:<46} {figure['value']:8.3f} [{figure['low']:.3f}, {figure['high']:.3f}]  goal {sign} {goal:g}"
        card = f"   card: {shipped[name]['value']:.3f}" if shipped and name in shipped else ""
        print(f"{line}  {'met' if met else 'MISSED'}{card}")
    for name, words in UNGRADED.items():
        if name in found:
            figure = found[name]
            print(f"{words:<46} {figure['value']:8.3f} [{figure['low']:.3f}, {figure['high']:.3f}]  no goal")


def print_variants(table: dict[str, dict[str, dict[str, float]]]) -> None:
    """One line an arm."""
    from mosaic_gym.evaluation.rollout import VARIANTS

    print(f"{'arm':<28}{'ahead dB':>10}{'return dB':>11}{'self dB':>9}{'SSIM':>7}{'way dB':>8}")
    for variant, row in table.items():
        names = ("ahead", "return_engine", "return_self", "return_ssim", "return_way")
        ahead, engine, own, ssim, way = (row[name]["value"] for name in names)
        numbers = f"{ahead:10.2f}{engine:11.2f}{own:9.2f}{ssim:7.3f}{way:8.2f}"
        print(f"{VARIANTS[variant]:<28}{numbers}")


def evaluate(config: Config) -> dict[str, Any]:
    """Runs the benchmark, prints both tables, and writes what was asked for.

    The JSON holds every figure under its name, as value, low, high and goal, and beside them what made them.

    Raises:
        ValueError: fewer than two paths, or no worker.
    """
    import torch

    from mosaic_gym.evaluation.speed import steps_per_second
    from mosaic_gym.model.checkpoints import WorldModel

    if config.paths < 2 or config.workers < 1:
        raise ValueError("give at least 2 paths and 1 worker")
    # First: what fails here takes no finished suite with it.
    rate = steps_per_second(config.checkpoint, steps=60, warm_up=60)
    told = gather(config)
    found = figures(told)
    found["steps_per_second"] = {**rate, "goal": GOALS["steps_per_second"][0]}
    print(f"\n{config.checkpoint}: {config.paths} held-out paths a suite, 95 % intervals over paths")
    print_figures(found)
    table = variant_table(told)
    print()
    print_variants(table)
    if config.out is not None:
        from mosaic_gym.evaluation.report import save_sheet

        config.out.mkdir(parents=True, exist_ok=True)
        for path, shown in told["sheets"]:
            print(f"contact sheet: {save_sheet(config.out / f'return_{path.seed}.png', path, shown)}")
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "checkpoint": config.checkpoint,
            "paths": config.paths,
            "denoising_steps": config.denoising_steps
            or WorldModel.from_pretrained(config.checkpoint).settings.denoising_steps,
            "threads": torch.get_num_threads(),
            "seeds_ahead": told["seeds_ahead"],
            "seeds_return": told["seeds_return"],
        }
        config.json.write_text(json.dumps({**found, "arms": table, **about}, indent=2) + "\n")
        print(f"figures: {config.json}")
    return {"figures": found, "arms": table}
