"""Recipe: the depth estimator, trained on the simulator's depth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tensordict import TensorDict
from torch import Tensor

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.model.codec import frames_to_float
from mosaic_gym.model.depth import ConvDepth, relative_error
from mosaic_gym.model.parts import round_to_half, save_part
from mosaic_gym.training.budget import budget_of, check_one_budget, check_widths, recipe_of
from mosaic_gym.training.precision import fast_autocast, float32_by_default
from mosaic_gym.training.run import Run
from mosaic_gym.validation import Folder, ListOf, Number, Whole, option, validate


@dataclass(frozen=True)
class Config:
    """Train the depth estimator on the simulator's depth."""

    data: Annotated[Path, Folder()] = Path("data/my_way_home")
    """Recorded episodes."""
    out: Annotated[Path, Folder()] = Path("runs/depth")
    """The run's folder: checkpoints, log, and the finished weights in `weights/`."""
    minutes: Annotated[float | None, Number(above=0.0)] = None
    """Wall time of training, earlier parts included, without the time to read the recording; 9 without --steps."""
    steps: Annotated[int | None, Whole(1)] = None
    """Optimizer steps of the whole run, instead of minutes."""
    batch: Annotated[int, Whole(1)] = 24
    """Frames in a batch."""
    learning_rate: Annotated[float, Number(0.0)] = 2e-3
    """The peak."""
    widths: Annotated[tuple[int, ...], ListOf(Whole(8))] = (24, 48, 96, 128)
    """Channels at half, quarter, eighth and sixteenth resolution, multiples of 8."""
    episodes: Annotated[int | None, Whole(1)] = None
    """Recorded episodes to train on, spread over the recording, None for all: all frames of them are in memory."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range, or for both budgets."""
        validate(self, option)
        check_one_budget(self)
        check_widths(self.widths)


def draw(frames: Tensor, depths_m: Tensor, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random frames `[b, 3, H, W]` in [-1, 1] and their depths `[b, H, W]`, metres.

    Args:
        frames: uint8 `[n, H, W, 3]`.
        depths_m: `[n, H, W]`.
    """
    index = torch.randint(len(frames), (batch,), generator=generator, device=frames.device)
    return frames_to_float(frames[index]), depths_m[index].float()


def depth_loss(log_depth: Tensor, depth_m: Tensor) -> Tensor:
    """Absolute error of log depth, and of its differences between neighboring pixels, which keeps edges sharp."""
    target = depth_m.clamp_min(0.05).log()
    error = (log_depth - target).abs().mean()
    for axis in (-1, -2):
        error = error + 0.5 * (log_depth.diff(dim=axis) - target.diff(dim=axis)).abs().mean()
    return error


@torch.no_grad()
def median_relative_error(model: ConvDepth, episodes: list[TensorDict], intrinsics: Tensor, every: int = 7) -> float:
    """The median over all pixels, on the last frame of every `every`-th step."""
    errors = []
    for episode in episodes:
        frames = frames_to_float(episode["frames"][::every, 3])
        depth_m = episode["depth_m"][::every, 3].float()
        estimate = model.estimate(frames, intrinsics.expand(len(frames), 3, 3))
        errors.append(relative_error(estimate, depth_m).flatten())
    return float(torch.cat(errors).median())


@float32_by_default()
def train(config: Config) -> ConvDepth:
    """Trains, prints the held-out error, and writes the averaged weights, rounded to float16."""
    budget = budget_of(config, minutes=9.0)
    torch.manual_seed(0)
    accelerator = Accelerator()
    device = accelerator.device
    store, heldout = EpisodeStore(config.data, "train"), EpisodeStore(config.data, "heldout")
    tests = [heldout.load(index) for index in range(len(heldout))]
    intrinsics = torch.as_tensor(store.image_from_camera, dtype=torch.float32)
    model = ConvDepth(widths=config.widths)
    with Run(config.out, model, config.learning_rate, *budget, accelerator, recipe=recipe_of(config, store)) as run:
        # The accelerator holds the whole recording: copying frames to it one by one would take longer than the step.
        every = 1 if config.episodes is None else max(1, len(store) // config.episodes)
        recording = [store.all(key, every=every).flatten(0, 1).to(device) for key in ("frames", "depth_m")]
        run.start_clock()
        k = intrinsics.to(device).expand(config.batch, 3, 3)
        while not run.finished:
            frames, depth_m = draw(*recording, config.batch, run.generator(device))
            with fast_autocast(accelerator.device):
                log_depth = run.model(frames, k)
            run.update(depth_loss(log_depth.float(), depth_m))
            if run.writer and run.step_index % 500 == 0:
                images = torch.cat([depth_m[:4], log_depth[:4].exp()], dim=0)[:, None] / 20.0
                images = F.interpolate(images.clamp(0, 1), scale_factor=3)
                run.writer.add_images("true_above_estimate", images, run.step_index)
    finished = run.average.to("cpu").eval()
    round_to_half(finished)
    error = median_relative_error(finished, tests, intrinsics)
    print(f"depth: median relative error {100 * error:.2f} % on held-out frames")
    save_part(finished, config.out / "weights")
    return finished
