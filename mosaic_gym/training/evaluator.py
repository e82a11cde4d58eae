"""Recipe: the evaluation net, trained on frames of `train` maps that are drawn from the simulator directly."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from mosaic_gym.evaluation.net import KINDS, EvaluationNet
from mosaic_gym.evaluation.true_frames import TRAIN_THEMES, TrueFrames, draw_frames
from mosaic_gym.model.parts import round_to_half, save_part
from mosaic_gym.training.budget import budget_of, check_one_budget, check_widths, recipe_of
from mosaic_gym.training.precision import float32_by_default
from mosaic_gym.training.run import Run
from mosaic_gym.validation import Folder, ListOf, Number, Whole, option, validate
from mosaic_gym.worlds.doom import DoomWorld

CLEAR = 0.6
"""A frame counts in the accuracy of themes if one theme fills at least this share of it."""


@dataclass(frozen=True)
class Config:
    """Train the evaluation net, which measures generated worlds."""

    out: Annotated[Path, Folder()] = Path("runs/evaluator")
    """The run's folder: drawn frames, checkpoints, log, and the finished weights in `weights/`."""
    maps: Annotated[int, Whole(2)] = 300
    """Maps of the split `train` whose frames are drawn."""
    test_maps: Annotated[int, Whole(1)] = 40
    """Maps of the split `heldout` that the accuracy is measured on."""
    steps_per_map: Annotated[int, Whole(2)] = 40
    """Frames of a map."""
    minutes: Annotated[float | None, Number(above=0.0)] = None
    """Wall time of training, earlier parts included, without the time to draw frames; 8 without --steps."""
    steps: Annotated[int | None, Whole(1)] = None
    """Optimizer steps of the whole run, instead of minutes."""
    batch: Annotated[int, Whole(1)] = 48
    """Frames in a batch."""
    learning_rate: Annotated[float, Number(0.0)] = 2e-3
    """The peak."""
    widths: Annotated[tuple[int, ...], ListOf(Whole(8))] = (32, 64, 96, 128)
    """Channels at half, quarter, eighth and sixteenth resolution, multiples of 8."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range, or for both budgets."""
        validate(self, option)
        check_one_budget(self)
        check_widths(self.widths)


def drawn(config: Config, split: str, maps: int) -> dict[str, np.ndarray]:
    """Frames, theme shares and kinds of all maps, read from the run's folder if they were drawn before."""
    from tqdm import tqdm

    file = config.out / f"{split}_{maps}x{config.steps_per_map}.npz"
    if not file.is_file():
        config.out.mkdir(parents=True, exist_ok=True)
        with closing(DoomWorld("rooms", split=split)) as world:
            indices = tqdm(range(maps), desc=f"drawing {split} maps", unit="map", mininterval=2.0)
            found: list[TrueFrames] = [draw_frames(world, index, split, config.steps_per_map) for index in indices]
        arrays = {name: np.concatenate([getattr(row, name) for row in found]) for name in ("frames", "themes", "kinds")}
        part = file.with_suffix(".part")
        with part.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        part.rename(file)
    with np.load(file) as arrays:
        return dict(arrays)


def draw(data: dict[str, Tensor], batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random frames `[b, 3, H, W]` in [-1, 1], half of them mirrored and of other brightness, and their targets."""
    index = torch.randint(len(data["frames"]), (batch,), generator=generator)
    frames = data["frames"][index].permute(0, 3, 1, 2).float() / 127.5 - 1
    flip = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
    frames = torch.where(flip, frames.flip(-1), frames)
    gain = 0.85 + 0.3 * torch.rand(batch, 1, 1, 1, generator=generator)
    return ((frames + 1) * gain - 1).clamp(-1, 1), data["themes"][index], data["kinds"][index]


def accuracies(net: EvaluationNet, data: dict[str, np.ndarray]) -> dict[str, float]:
    """Held-out accuracies.

    Returns:
        `theme`: share of the frames that one theme fills to `CLEAR` whose theme is named. `kinds`: mean over kinds of
        the area under the ROC curve.
    """
    _, themes, kinds = net.read(data["frames"])
    clear = data["themes"].max(1) >= CLEAR
    right = themes.argmax(1)[clear] == data["themes"].argmax(1)[clear]
    areas = [_area(kinds[:, i], data["kinds"][:, i] > 0) for i in range(len(KINDS))]
    return {"theme": round(float(right.mean()), 4), "kinds": round(float(np.nanmean(areas)), 4)}


def _area(scores: np.ndarray, positive: np.ndarray) -> float:
    """The area under the ROC curve, by ranks; NaN where one class is missing."""
    count = positive.sum()
    if count in (0, len(positive)):
        return float("nan")
    ranks = scores.argsort().argsort() + 1.0
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


@float32_by_default()
def train(config: Config) -> EvaluationNet:
    """Trains, prints the held-out accuracies, and writes the averaged weights, rounded to float16."""
    budget = budget_of(config, minutes=8.0)
    torch.manual_seed(0)
    data = {name: torch.tensor(array) for name, array in drawn(config, "train", config.maps).items()}
    test = drawn(config, "heldout", config.test_maps)
    rarity = (1 / data["kinds"].mean(0).clamp_min(0.02)).sqrt()  # rare kinds count more
    net = EvaluationNet(TRAIN_THEMES, config.widths)
    accelerator = Accelerator(cpu=True)
    run = Run(config.out, net, config.learning_rate, *budget, accelerator, recipe=recipe_of(config))
    with run:
        run.start_clock()
        while not run.finished:
            frames, themes, kinds = draw(data, config.batch, run.generator(accelerator.device))
            _, theme_logits, kind_logits = run.model(frames)
            theme_loss = -(themes * theme_logits.log_softmax(1)).sum(1).mean()
            run.update(theme_loss + 2.0 * F.binary_cross_entropy_with_logits(kind_logits, kinds, pos_weight=rarity))
    finished = run.average.eval()
    round_to_half(finished)
    found = accuracies(finished, test)
    print(f"evaluation net: theme accuracy {found['theme']:.3f}, things' area under the curve {found['kinds']:.3f}")
    save_part(finished, config.out / "weights")
    (config.out / "weights" / "accuracy.json").write_text(json.dumps(found) + "\n")
    return finished
