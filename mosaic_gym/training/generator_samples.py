"""Training samples of the generative model, drawn and retrieved in batches on the device of the recording.

A sample is one recorded step: its latent, the latent frames before it, and what a random part of the episode's past
shows in its view, by the operators that play uses (`memory.selection`, `memory.warp`). No sample needs the CPU when the
recording is on an accelerator.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from mosaic_gym.geometry.camera import rescale_intrinsics
from mosaic_gym.memory.pictures import LOG_DEPTH_SCALE, MemoryInputs, memory_coverage, warped_picture
from mosaic_gym.memory.selection import Selection, select_stacked
from mosaic_gym.memory.warp import WarpedViews, warp_frames
from mosaic_gym.memory.zbuffer import MAX_GAP
from mosaic_gym.model.codec import frames_to_float
from mosaic_gym.model.rgbd_codec import RGBDCodec
from mosaic_gym.model.text import PADDING
from mosaic_gym.training.encoded import EncodedRecording
from mosaic_gym.validation import Number, Whole, option, validate

SOURCES = 3
"""Keyframes that are warped into a view."""
PATCHES = 24
"""Patches that become tokens."""
COLOR_TOLERANCE = 0.16
"""Memory of a cell is valid where smoothed colors, in [-1, 1], differ from the true ones by less than this."""
DEPTH_TOLERANCE = 0.15
"""... and depth by less than this share."""
LEAST_COVERED = 0.05
"""Where memory covers less than this share of a cell, it is not valid there."""
MOST_UNCOVERED, LEAST_WEIGHT = 0.7, 0.05
"""Of candidates, one is taken in proportion to its uncovered share, up to the first, plus the second."""


@dataclass(frozen=True)
class Augmentation:
    """How the memories of training samples vary. All but the counts are shares of samples."""

    no_memory: Annotated[float, Number(0.0, 1.0)] = 0.04
    """Share of samples with an empty memory."""
    last_only: Annotated[float, Number(0.0, 1.0)] = 0.35
    """Share of samples with the latest keyframe alone."""
    max_keyframes: Annotated[int, Whole(1)] = 12
    """Most keyframes that are drawn from the past."""
    gap: Annotated[float, Number(0.0, 1.0)] = 0.4
    """Share of samples whose recent frames and memory end some steps before the target, so that more is invented."""
    max_gap: Annotated[int, Whole(1)] = 4
    """Most steps from the last recent frame to the target."""
    degraded: Annotated[float, Number(0.0, 1.0)] = 0.4
    """Share of samples whose memory went through the codec once or twice more, as generated memory has."""
    generated: Annotated[float, Number(0.0, 1.0)] = 0.25
    """Share of samples whose memory the model generated again from a noisy copy, so that it looks as in play."""
    recent_noise: Annotated[float, Number(0.0)] = 0.15
    """Largest standard deviation of noise on the recent latent frames and on patches, against drift."""
    no_prompt: Annotated[float, Number(0.0, 1.0)] = 0.2
    """Share of samples without a prompt, for classifier-free guidance."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        validate(self, lambda name: option(f"augmentation.{name}"))
        if self.no_memory + self.last_only > 1.0:
            raise ValueError(
                "--augmentation.no-memory and --augmentation.last-only are shares of the same samples, together at "
                f"most 1; got {self.no_memory} and {self.last_only}"
            )


@dataclass(frozen=True)
class Batch:
    """Training samples.

    Attributes:
        index: `[b]`, the recorded steps.
        memory: what memory shows.
        recent, recent_cameras: `[b, t, c, h, w]`, `[b, t, 4, 4, 4]`.
        cameras: `[b, 4, 4, 4]`, of the target.
        target: `[b, c + 1, h, w]`: clean latents, and whether memory is valid in each cell (1, else -1).
        prompts: `[b, l]`, byte tokens.
        warped, covered: the warped picture `[b, 4, H, W]`, holes filled, and its mask `[b, H, W]`.
    """

    index: Tensor
    memory: MemoryInputs
    recent: Tensor
    recent_cameras: Tensor
    cameras: Tensor
    target: Tensor
    prompts: Tensor
    warped: Tensor
    covered: Tensor

    @property
    def valid_share(self) -> Tensor:
        """The share of each cell that memory shows as it is, `[b, 1, h, w]`."""
        return self.memory.coverage[:, :4].mean(1, keepdim=True) * (self.target[:, -1:] > 0)


@torch.no_grad()
def draw_batch(
    encoded: EncodedRecording,
    codec: RGBDCodec,
    count: int,
    history: int,
    augmentation: Augmentation,
    generator: torch.Generator,
    candidates: int = 1,
) -> Batch:
    """Draws samples; the generator is on the recording's device.

    Args:
        codec: frozen, on the same device.
        history: recent latent frames.
        candidates: samples that are drawn and warped for each that is taken; the more a sample has to invent, the more
            often it is taken. 1 for samples as they come.
    """
    device, drawn = encoded.latents.device, count * candidates
    index = torch.randint(len(encoded), (drawn,), generator=generator, device=device)
    index = torch.where(encoded.step_of[index] == 0, index + 1, index)  # the first step has no past
    gap = draw_gaps(encoded.step_of[index], augmentation, generator)
    past, alive = draw_past(encoded.step_of[index] - (gap - 1), augmentation, generator)
    view = retrieve_samples(encoded, index, past + (gap - 1)[:, None], alive)
    if candidates > 1:
        uncovered = 1.0 - view.covered.float().mean((1, 2))
        weight = uncovered.clamp_max(MOST_UNCOVERED) + LEAST_WEIGHT
        chosen = torch.multinomial(weight, count, generator=generator)
        index, gap, view = index[chosen], gap[chosen], view.rows(chosen)
    return make_batch(encoded, codec, index, view, gap, history, augmentation, generator)


@dataclass(frozen=True)
class SampleViews:
    """What memory shows of samples, before it is degraded and encoded.

    Attributes:
        steps: `[b, k]`, the recorded steps in memory.
        selection: of keyframes and patches.
        picture: `[b, 4, H, W]`, warped, holes filled.
        covered: bool `[b, H, W]`; cost: `[b, H, W]`, of the best source.
    """

    steps: Tensor
    selection: Selection
    picture: Tensor
    covered: Tensor
    cost: Tensor

    def rows(self, index: Tensor) -> SampleViews:
        """Some of the samples."""
        selection = Selection(**{f.name: getattr(self.selection, f.name)[index] for f in fields(Selection)})
        return SampleViews(self.steps[index], selection, self.picture[index], self.covered[index], self.cost[index])


@torch.no_grad()
def retrieve_samples(encoded: EncodedRecording, index: Tensor, past: Tensor, alive: Tensor) -> SampleViews:
    """What memories of the steps `past` `[b, k]` back, where `alive`, show in the views of steps `[b]`."""
    recorded, device = encoded.recorded, index.device
    cameras = recorded.cameras[index]
    rows = torch.where(alive, index[:, None] - past, index[:, None])
    grid = tuple(cells // encoded.patch for cells in encoded.latents.shape[-2:])
    patch_k = rescale_intrinsics(recorded.image_from_camera, tuple(recorded.frames.shape[1:3]), grid)
    zeros = torch.zeros(*rows.shape, grid[0] * grid[1], device=device)
    selection = select_stacked(
        encoded.points_m[rows], zeros, alive[..., None].expand_as(zeros).contiguous(), recorded.cameras[rows, -1],
        cameras[:, [0, -1]], patch_k, grid, SOURCES, PATCHES,
    )  # fmt: skip
    warped = _warp(encoded, rows, selection, cameras)
    return SampleViews(rows, selection, warped_picture(warped), warped.covered[:, 0], warped.cost[:, 0])


def draw_gaps(step_of: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Steps from the last recent frame to the target `[b]`: mostly one, and never more than the episode has."""
    uniform = torch.rand(len(step_of), 2, generator=generator, device=step_of.device)
    longer = 2 + (uniform[:, 0] * (augmentation.max_gap - 1)).long()
    gap = torch.where(uniform[:, 1] < augmentation.gap, longer.clamp_max(augmentation.max_gap), 1)
    return torch.minimum(gap, step_of)


def draw_past(step_of: Tensor, augmentation: Augmentation, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The past steps in each sample's memory, as distances back `[b, k]`, and which of them exist, bool `[b, k]`.

    Half of the memories are a stretch of the past, half are single moments of it; four of five hold the latest step.
    """
    device, b = step_of.device, len(step_of)
    most, longest = augmentation.max_keyframes, max(int(step_of.max()), 1)
    uniform = torch.rand(b, 5, generator=generator, device=device)
    back = torch.arange(1, longest + 1, device=device)
    order = torch.rand(b, longest, generator=generator, device=device)
    centre = 1 + uniform[:, :1] * (step_of[:, None] - 1)
    order = torch.where(uniform[:, 1:2] < 0.5, order, (back - centre).abs())
    order = order.masked_fill(back > step_of[:, None], torch.inf)
    order[:, 0] = torch.where(uniform[:, 2] < 0.8, -1.0, order[:, 0])  # the latest step comes first
    keep = min(most, longest)
    values, chosen = order.topk(keep, dim=1, largest=False)
    number = 1 + (uniform[:, 3:4] * most).long()
    kind = uniform[:, 4:5]
    number = torch.where(kind < augmentation.no_memory + augmentation.last_only, 1, number)
    alive = (torch.arange(keep, device=device) < number) & values.isfinite() & (kind >= augmentation.no_memory)
    latest_only = (kind >= augmentation.no_memory) & (kind < augmentation.no_memory + augmentation.last_only)
    chosen = torch.where(latest_only, 0, chosen)
    return chosen + 1, alive


@torch.no_grad()
def make_batch(
    encoded: EncodedRecording,
    codec: RGBDCodec,
    index: Tensor,
    view: SampleViews,
    gap: Tensor,
    history: int,
    augmentation: Augmentation,
    generator: torch.Generator,
) -> Batch:
    """The samples of steps `[b]`.

    Args:
        view: what memory shows of them.
        gap: steps `[b]` from the last recent frame to the target.
    """
    recorded, device, b = encoded.recorded, index.device, len(index)
    cameras, selection = recorded.cameras[index], view.selection
    picture, covered = view.picture, view.covered
    valid = memory_validity(picture, recorded.pictures(index), covered, codec.stride)

    degraded = torch.rand(b, 2, generator=generator, device=device)
    generation = torch.where(degraded[:, 0] < augmentation.degraded, 1 + (degraded[:, 1] < 0.4).long(), 0)
    worn = degrade(picture, generation, codec)
    warped_latent = codec.encode_pictures(worn)
    grid = tuple(encoded.latents.shape[-2:])
    coverage = memory_coverage(covered, view.cost, generation[:, None, None].float() * covered, grid)

    back = torch.arange(history, 0, -1, device=device)
    recent_rows = index[:, None] - torch.minimum(back + gap[:, None] - 1, encoded.step_of[index][:, None])
    recent = encoded.latents[recent_rows].float()
    noise = torch.randn(recent.shape, generator=generator, device=device)
    strength = augmentation.recent_noise * torch.rand(b, 1, 1, 1, 1, generator=generator, device=device)
    drop = torch.rand(b, 1, generator=generator, device=device) < augmentation.no_prompt
    patches, patch_cameras = _patches(encoded, view.steps, selection, cameras)
    patch_noise = torch.randn(patches.shape, generator=generator, device=device)
    patches = patches + strength[:, 0, 0] * patch_noise * selection.patch_exists[..., None]
    return Batch(
        index=index,
        memory=MemoryInputs(
            warped_latent, coverage, patches, selection.patch_uv * encoded.patch, patch_cameras, selection.patch_exists
        ),
        recent=recent + strength * noise,
        recent_cameras=recorded.cameras[recent_rows],
        cameras=cameras,
        target=torch.cat([encoded.latents[index].float(), valid], 1),
        prompts=encoded.prompts[index].long().masked_fill(drop, PADDING),
        warped=worn,
        covered=covered,
    )


def _warp(encoded: EncodedRecording, rows: Tensor, selection: Selection, cameras: Tensor) -> WarpedViews:
    """The selected sources, warped into the last of each sample's cameras."""
    recorded = encoded.recorded
    exists = selection.sources >= 0
    sources = rows.gather(1, selection.sources.clamp_min(0))  # [b, s]
    colors = frames_to_float(recorded.frames[sources])
    depth_m = recorded.depth_m[sources].float().clamp_min(0.05)
    return warp_frames(
        colors,
        depth_m,
        torch.zeros_like(depth_m),
        exists[..., None, None].expand(depth_m.shape),
        recorded.cameras[sources, -1],
        cameras[:, -1:],
        recorded.image_from_camera.expand(len(rows), 3, 3),
        MAX_GAP,
    )


def memory_validity(picture: Tensor, true: Tensor, covered: Tensor, stride: int) -> Tensor:
    """1 in latent cells where what memory covers is shown as it is, -1 elsewhere, `[b, 1, h, w]`.

    Colors are compared after smoothing, since a warp moves fine texture by a fraction of a pixel.

    Args:
        picture: warped, `[b, 4, H, W]`; true: the recorded picture; covered: bool `[b, H, W]`.
        stride: width and height of a latent cell, pixels.
    """
    mask = covered[:, None].float()
    error = F.avg_pool2d((picture - true) * mask, 3, stride=1, padding=1).abs()
    share = F.avg_pool2d(mask, stride)
    colors = F.avg_pool2d(error[:, :3].mean(1, keepdim=True), stride) / share.clamp_min(1e-3)
    depth = F.avg_pool2d(error[:, 3:], stride) * LOG_DEPTH_SCALE / share.clamp_min(1e-3)
    valid = (share > LEAST_COVERED) & (colors < COLOR_TOLERANCE) & (depth < DEPTH_TOLERANCE)
    return torch.where(valid, 1.0, -1.0)


def degrade(picture: Tensor, rounds: Tensor, codec: RGBDCodec) -> Tensor:
    """Pictures that went through the codec `rounds` `[b]` times, as generated memory has."""
    picture = picture.clone()
    for number in range(1, int(rounds.max()) + 1):
        chosen = (rounds >= number).nonzero()[:, 0]
        decoded = codec.decode_pictures(codec.encode_pictures(picture[chosen]))
        picture[chosen] = torch.cat([decoded[:, :3].clamp(-1, 1), decoded[:, 3:]], 1)
    return picture


def _patches(encoded: EncodedRecording, rows: Tensor, selection: Selection, cameras: Tensor) -> tuple[Tensor, Tensor]:
    """Latents `[b, n, c * 4]` and cameras `[b, n, 4, 4, 4]` of the selected patches; padding has the target's."""
    exists = selection.patch_exists
    keyframe, cell = selection.patches.unbind(-1)
    steps = rows.gather(1, keyframe)  # [b, n]
    patch = encoded.patch
    columns = encoded.latents.shape[-1] // patch
    row, column = cell // columns * patch, cell % columns * patch
    inside = torch.arange(patch, device=rows.device)
    y = (row[..., None] + inside)[..., :, None]
    x = (column[..., None] + inside)[..., None, :]
    values = encoded.latents[steps[..., None, None], :, y, x]  # [b, n, p, p, c]
    values = values.permute(0, 1, 4, 2, 3).flatten(2).float()  # as pixel_unshuffle orders them
    patch_cameras = encoded.recorded.cameras[steps]
    own = cameras[:, None].expand_as(patch_cameras)
    return values * exists[..., None], torch.where(exists[..., None, None, None], patch_cameras, own)
