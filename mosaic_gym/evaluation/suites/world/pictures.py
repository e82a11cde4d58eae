"""Contact sheets of the best, median and worst map by a figure, and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_gym.evaluation.metrics.image import decibels, squared_error
from mosaic_gym.evaluation.metrics.sharpness import gradient_energy
from mosaic_gym.evaluation.reports.sheet import save_contact_sheet
from mosaic_gym.evaluation.suites.world.faithfulness import return_psnr
from mosaic_gym.evaluation.suites.world.rollouts import Rollout
from mosaic_gym.evaluation.suites.world.scenes import Scene

WALK_STEPS = (0, 1, 2, 4, 8, 16, 24, 32, 48, 64)
PATH_COLUMNS = 10


def save_sheets(folder: Path, scenes: Sequence[Scene], rollouts: Sequence[Rollout]) -> list[Path]:
    """Sheets of the return after a look around, of the way out and back from the start alone, and of the free walk."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(zip(scenes, rollouts, strict=True))
    returns = [return_psnr(scene, rollout.seen) for scene, rollout in rows]
    mirrors = [_mirror(rollout.invented) for rollout in rollouts]
    sharp = [_sharpness(scene, rollout) for scene, rollout in rows]
    names = "return_psnr_seen", "mirror_psnr", "sharpness_16"
    files = []
    for name, values, better in zip(names, (returns, mirrors, -np.abs(np.log(sharp))), (1, 1, 1), strict=True):
        order = np.argsort(values)[::-better]
        lines, captions = [], []
        for word, i in zip(("best", "median", "worst"), order[[0, len(order) // 2, -1]], strict=True):
            scene, rollout = rows[i]
            value = sharp[i] if name == "sharpness_16" else values[i]
            label = f"{word}, map {scene.index}, {name} {value:.2f}"
            frames, true, captions = _columns(name, scene, rollout)
            lines += [(f"truth: {label}", true), ("world", frames)]
        files.append(save_contact_sheet(folder / f"{name}.png", lines, captions))
    return files


def _columns(name: str, scene: Scene, rollout: Rollout) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Frames of the world, of the truth, and captions."""
    if name == "sharpness_16":
        steps = list(WALK_STEPS)
        return rollout.walk[steps], scene.walk_frames[steps], [f"step {step}" for step in steps]
    frames = rollout.seen if name == "return_psnr_seen" else rollout.invented
    steps = np.linspace(0, len(frames) - 1, PATH_COLUMNS).round().astype(int)
    captions = [f"{'out' if i < PATH_COLUMNS / 2 else 'back'}" for i in range(PATH_COLUMNS)]
    return frames[steps], scene.path_frames[steps], captions


def _mirror(frames: np.ndarray) -> float:
    half = (len(frames) - 1) // 2
    return decibels(float(squared_error(frames[:half], frames[:-1][::-1][:half]).mean()))


def _sharpness(scene: Scene, rollout: Rollout) -> float:
    steps = slice(15, 19)
    return float(
        gradient_energy(rollout.walk[steps]).mean() / max(gradient_energy(scene.walk_frames[steps]).mean(), 1e-6)
    )


def save_plot(
    file: Path,
    scenes: Sequence[Scene],
    rollouts: Sequence[Rollout],
    figures: Mapping[str, Any],
    ceiling: Mapping[str, Any],
) -> Path | None:
    """Sharpness over the walk's steps, AUC over steps, depth, and the PSNR of returns; None without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (one, two, three, four) = plt.subplots(1, 4, figsize=(15, 3.2), layout="constrained")
    ours, true = (
        np.stack([gradient_energy(frames) for frames in walks]).mean(0)
        for walks in ([row.walk for row in rollouts], [scene.walk_frames for scene in scenes])
    )
    one.plot(ours / np.maximum(true, 1e-9))
    one.axhline(1.0, color="0.7")
    one.set(xlabel="step of the free walk", title="gradient energy over the true", ylim=(0, None))
    for at, color in (("pixels", "tab:red"), ("layout", "tab:blue")):
        for known, style in ((figures, "o-"), (ceiling, "o:")):
            rows = [known[f"auc_{at}_{step}"] for step in (4, 16, 64)]
            values = np.array([[row["value"], row["low"], row["high"]] for row in rows])
            errors = np.abs(values[:, 1:] - values[:, :1]).T
            label = f"{at}" if known is figures else f"{at}, simulator"
            two.errorbar(range(3), values[:, 0], errors, fmt=style, color=color, capsize=3, label=label)
    two.set(xlabel="step of the free walk", title="AUC of a classifier", ylim=(0.3, 1.02))
    two.set_xticks(range(3), ("4", "16", "64"))
    two.legend(fontsize=7)
    for walks, label in (([r.walk_depth for r in rollouts], "world"), ([s.walk_depth for s in scenes], "truth")):
        medians = np.median(np.stack(walks)[:, 1:].reshape(-1, walks[0][0].size), axis=1)
        three.hist(np.clip(medians, 0, 12), bins=24, histtype="step", density=True, label=label)
    three.set(xlabel="median depth of a frame, m", title="depth in view")
    three.legend(fontsize=7)
    four.hist([return_psnr(*row) for row in zip(scenes, [r.seen for r in rollouts], strict=True)], bins=20)
    four.set(xlabel="PSNR of a return, dB", title="returns to what was seen, maps")
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file
