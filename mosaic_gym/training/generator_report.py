"""Reports of a generator in training: figures and sheets of held-out maps. They do not affect the training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mosaic_gym.geometry.control import pose_at
from mosaic_gym.geometry.steering import DepthWalker
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.sampler import sample_flow
from mosaic_gym.model.text import PADDING
from mosaic_gym.training.encoded import EncodedRecording
from mosaic_gym.training.flow import Generator, draw_noise, flow_loss
from mosaic_gym.training.generator_samples import Augmentation, draw_batch
from mosaic_gym.training.precision import fast_autocast
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.protocol import Start

SAMPLES, PART = 256, 64
"""Held-out samples of a report, and how many are computed together."""
SHEET_ROWS = 12
"""Samples in a report's sheet."""
WALKS, WALK_STEPS, EVERY = 6, 32, 4
"""Free walks of a report, their steps, and the steps between two pictures of the sheet."""


@torch.no_grad()
def report(
    model: WorldModel, test: EncodedRecording, folder: Path, step: int, history: int, augmentation: Augmentation
) -> dict[str, float]:
    """Figures of held-out samples and walks, appended to `figures.jsonl`, and two sheets.

    `sheet-STEP.png` has a row for each sample: warped memory, sample, truth, with depth below. `walk-STEP.png` has a
    row for each free walk from a true first frame.

    Returns:
        `loss`: flow-matching loss; `sharpness`: gradient energy of sampled pictures over the true ones', where memory
        shows nothing; `validity`: share of covered cells whose validity is predicted; `walk_sharpness`: gradient
        energy at the end of the walks over that of true frames.
    """
    figures, rows = _sample_figures(model, test, history, augmentation)
    walks, energy = _walk(model, test)
    true_energy = float(_energy(test.recorded.pictures(torch.arange(0, len(test), 37))).mean())
    figures = {"step": step, **figures, "walk_sharpness": round(energy / true_energy, 4)}
    with (folder / "figures.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")
    _write_samples(rows[:: max(1, SAMPLES // SHEET_ROWS)][:SHEET_ROWS], folder / f"sheet-{step:07d}.png")
    _enlarge(walks, folder / f"walk-{step:07d}.png")
    return figures


def _sample_figures(
    model: WorldModel, test: EncodedRecording, history: int, augmentation: Augmentation
) -> tuple[dict[str, float], Tensor]:
    """Figures of one step ahead, and the pictures `[n, 4, H, 3 W]`: warped memory, sample, truth."""
    device, codec = test.latents.device, model.codec
    generator = torch.Generator(device).manual_seed(0)
    networks = Generator(model.transformer, model.text_encoder)
    size, k = tuple(test.recorded.frames.shape[1:3]), test.recorded.image_from_camera
    losses, energies, right, rows = [], [], [], []
    with fast_autocast(device):
        for _ in range(SAMPLES // PART):
            batch = draw_batch(test, codec, PART, history, augmentation, generator)
            noise, level = draw_noise(batch.target, model.transformer.config.objective, generator)
            reading = networks.read(batch, k, size)
            noisy = torch.lerp(batch.target, noise, level[:, None, None, None])
            velocity = model.transformer(noisy, level, reading)
            losses.append(float(flow_loss(velocity, noise, batch.target, batch.valid_share)))
            negative = None
            if model.guide is not None:
                unprompted = replace(batch, prompts=torch.full_like(batch.prompts, PADDING))
                negative = Generator(model.guide, model.text_encoder).read(unprompted, k, size)
            sampled = sample_flow(
                model.transformer, reading, noise, model.settings.denoising_steps,
                negative=negative, guidance=model.settings.guidance, guide=model.guide,
            )  # fmt: skip
            picture = codec.decode_pictures(sampled[:, :-1]).float()
            true = test.recorded.pictures(batch.index)
            valid = (sampled[:, -1:] > 0).repeat_interleave(codec.stride, -1).repeat_interleave(codec.stride, -2)
            output = torch.where(valid & batch.covered[:, None], batch.warped, picture)
            hidden = ~batch.covered[:, None, :-1, :-1]
            energies.append([float((_energy(x) * hidden).sum()) for x in (output, true)])
            cells = batch.memory.coverage[:, :4].mean(1, keepdim=True) > 0.5
            right.append(float(((sampled[:, -1:] > 0) == (batch.target[:, -1:] > 0))[cells].float().mean()))
            rows.append(torch.cat([batch.warped, output, true], -1))
    sampled_energy, true_energy = (sum(column) for column in zip(*energies, strict=True))
    figures = {
        "loss": round(sum(losses) / len(losses), 4),
        "sharpness": round(sampled_energy / max(true_energy, 1e-9), 4),
        "validity": round(sum(right) / len(right), 4),
    }
    return figures, torch.cat(rows)


def _walk(model: WorldModel, test: EncodedRecording) -> tuple[np.ndarray, float]:
    """A sheet of free walks from true first frames, uint8 `[rows, columns, 3]`, and the gradient energy at their end.

    The walker steers by the generated depth.
    """
    world = MosaicWorld(model, device=str(test.latents.device))
    starts = test.recorded.first[:-1].cpu().tolist()
    starts = starts[:: max(1, len(starts) // WALKS)][:WALKS]
    states, views, walkers = [], [], []
    for seed, index in enumerate(starts):
        image = test.recorded.frames[index].cpu().numpy()
        start = Start(seed=seed, image=image, world_from_camera=pose_at(0.0, 0.0, 0.0, 0.0).world_from_camera,
                      prompt=test.recorded.captions[index])  # fmt: skip
        state, view = world.start(start)
        states.append(state)
        views.append(view)
        walkers.append(DepthWalker(np.random.default_rng(seed)))
    columns = [_last_frames(views)]
    for step in range(1, WALK_STEPS + 1):
        actions = np.stack([walker.act(view.depth_m) for walker, view in zip(walkers, views, strict=True)])
        states, views = world.step(states, actions)
        if step % EVERY == 0:
            columns.append(_last_frames(views))
    ends = torch.from_numpy(np.stack([view.frames[-1] for view in views])).movedim(-1, 1).float() / 127.5 - 1
    return np.concatenate(columns, 1), float(_energy(ends).mean())


def _last_frames(views: Sequence[object]) -> np.ndarray:
    return np.concatenate([view.frames[-1] for view in views])


def _energy(pictures: Tensor) -> Tensor:
    """Squared color gradients `[b, 1, H - 1, W - 1]`."""
    colors = pictures[:, :3]
    squares = colors.diff(dim=-1)[:, :, :-1].square() + colors.diff(dim=-2)[..., :-1].square()
    return squares.mean(1, keepdim=True)


def _write_samples(pictures: Tensor, path: Path) -> None:
    """Pictures `[n, 4, H, W]` in two columns, each with its depth below."""
    colors = ((pictures[:, :3].clamp(-1, 1) + 1) * 127.5).byte()
    depth = ((pictures[:, 3:].clamp(-2, 2) + 2) * 63.75).byte().expand(-1, 3, -1, -1)
    tiles = torch.cat([colors, depth], 2).permute(0, 2, 3, 1).cpu()
    half = len(tiles) // 2
    _enlarge(torch.cat([tiles[:half].flatten(0, 1), tiles[half : 2 * half].flatten(0, 1)], 1).numpy(), path)


def _enlarge(image: np.ndarray, path: Path) -> None:
    """Writes an image at twice its size."""
    picture = Image.fromarray(image)
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(path)
