"""The generative model of one latent frame: an hourglass of convolutions around transformer blocks.

Convolutions at the latents' resolution read the noisy latent and what memory shows of the view. Transformer blocks over
patches of it attend to the recent frames and to retrieved patches, with Warped RoPE and PRoPE (`attention.py`,
*split*).

It predicts the velocity of flow matching, noise minus clean latents (Lipman et al., arXiv 2210.02747), preconditioned
so that the network's own output has unit variance at every noise level (Karras et al., arXiv 2206.00364, section 5).

Clean tokens (recent frames, patches, the prompt) never depend on the target. `read` computes their keys and values
once, and every denoising step reuses them.

Legend: `b` batch, `t` recent frames, `n` tokens, `d` width, `c h w` a latent frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from mosaic_gym.geometry.camera import cell_centres, invert_pose
from mosaic_gym.memory.pictures import COVERAGE_CHANNELS, MemoryInputs
from mosaic_gym.model.attention import block_diagonal, lifted_projection, rotary_angles, rotary_table

WAVES = 32
"""Frequencies of the noise level's embedding."""
OBJECTIVES = ("flow", "regression")
MOTION = 16
"""Numbers that describe the motion between the last recent frame and the four cameras of the target."""


@dataclass(frozen=True)
class Reading:
    """What the denoising steps of one view share.

    Attributes:
        memory: `[b, a, h, w]`, the warped latent and its coverage.
        fine: `[b, a, h, w]`, features of `memory`.
        motion: `[b, d]`, embedding of the motion and the prompt.
        keys_values: for each block, keys and values of clean tokens, `[b, heads, m, d / heads]` each.
        key_mask: bool `[b, 1, 1, m + n]`, clean tokens first; None if all exist.
        cosine, sine: `[n, r]`, the rotary table of target tokens.
        projection, inverse: `[b, p, p]`, PRoPE's matrices of the target's cameras.
    """

    memory: Tensor
    fine: Tensor
    motion: Tensor
    keys_values: tuple[tuple[Tensor, Tensor], ...]
    key_mask: Tensor | None
    cosine: Tensor
    sine: Tensor
    projection: Tensor
    inverse: Tensor

    def repeat(self, count: int) -> Reading:
        """The same for a batch that is repeated `count` times, `[count * b, ...]`."""

        def repeated(x: Tensor) -> Tensor:
            return x.repeat(count, *[1] * (x.ndim - 1))

        return Reading(
            repeated(self.memory),
            repeated(self.fine),
            repeated(self.motion),
            tuple((repeated(key), repeated(value)) for key, value in self.keys_values),
            None if self.key_mask is None else repeated(self.key_mask),
            self.cosine,
            self.sine,
            repeated(self.projection),
            repeated(self.inverse),
        )


class HourglassTransformer(ModelMixin, ConfigMixin):
    """Velocity of a noisy latent frame, given memory, recent frames, cameras and a prompt.

    Args:
        channels: of the codec's latents.
        state_channels: further channels that are generated with the latents; see `training/generator.py`.
        coverage_channels: of `MemoryInputs.coverage`.
        widths: channels of the convolutions and width of the transformer.
        patch: latent cells along each side of a token.
        num_fine_blocks: convolutional blocks before and after the transformer.
        num_blocks: transformer blocks.
        head_dim: dimensions of a head, a multiple of 32.
        mlp_ratio: hidden units of a block over its width.
        text_dim: width of the prompt's vectors.
        rope_theta: base of the rotary frequencies.
        metres_per_unit: the length that PRoPE counts as one.
        objective: `flow` for a model that samples; `regression` for a baseline that gives the mean of what can follow,
            in one denoising step from zeros.

    Raises:
        ValueError: a width that the heads do not divide, heads that four cameras do not divide, or another objective.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 12,
        state_channels: int = 1,
        coverage_channels: int = COVERAGE_CHANNELS,
        widths: tuple[int, int] = (96, 256),
        patch: int = 2,
        num_fine_blocks: int = 2,
        num_blocks: int = 8,
        head_dim: int = 64,
        mlp_ratio: float = 3.0,
        text_dim: int = 64,
        rope_theta: float = 100.0,
        metres_per_unit: float = 2.0,
        objective: str = "flow",
    ):
        super().__init__()
        fine, width = widths
        if head_dim % 32 or width % head_dim:
            raise ValueError(
                f"head_dim is a multiple of 32, because four cameras share half of it, and divides the width {width}; "
                f"got {head_dim}"
            )
        if objective not in OBJECTIVES:
            raise ValueError(f"objective is one of {OBJECTIVES}; got {objective!r}")
        generated = channels + state_channels
        self.time_embedding = nn.Sequential(nn.Linear(2 * WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.motion_embedding = nn.Sequential(nn.Linear(MOTION, width), nn.SiLU(), nn.Linear(width, width))
        self.text_embedding = nn.Linear(text_dim, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.noisy_stem = nn.Conv2d(generated, fine, 3, padding=1)
        self.memory_stem = nn.Conv2d(channels + coverage_channels, fine, 3, padding=1)
        self.fine_in = nn.ModuleList([_FineBlock(fine, width) for _ in range(num_fine_blocks)])
        self.down = nn.Conv2d(fine, width, patch, stride=patch)
        self.recent_embedding = nn.Conv2d(channels, width, patch, stride=patch)
        self.patch_embedding = nn.Linear(channels * patch**2, width)
        self.kinds = nn.Parameter(torch.randn(3, width) * 0.02)  # recent frame, retrieved patch, prompt
        self.clean_mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.blocks = nn.ModuleList([_Block(width, head_dim, mlp_ratio) for _ in range(num_blocks)])
        self.up = nn.Conv2d(width, fine * patch**2, 1)
        self.fine_out = nn.ModuleList([_FineBlock(fine, width) for _ in range(num_fine_blocks)])
        self.norm_out = nn.GroupNorm(8, fine)
        self.proj_out = nn.Conv2d(fine, generated, 3, padding=1)
        # What is linear in the noisy latent and in memory need not pass the network.
        self.skip = nn.Conv2d(generated + channels + coverage_channels, generated, 1)
        self.skip_scale = nn.Linear(width, generated)
        for layer in (self.proj_out, self.skip):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def patch(self) -> int:
        """Latent cells along each side of a token."""
        return self.config.patch

    @property
    def generated_channels(self) -> int:
        """Channels of the noisy latent frame: the codec's, and the further ones."""
        return self.config.channels + self.config.state_channels

    def read(
        self,
        memory: MemoryInputs,
        recent: Float[Tensor, "b t c h w"],
        recent_cameras: Float[Tensor, "b t 4 4 4"],
        cameras: Float[Tensor, "b 4 4 4"],
        image_from_camera: Float[Tensor, "b 3 3"],
        size: tuple[int, int],
        text: Float[Tensor, "b l k"],
    ) -> Reading:
        """Everything that does not depend on the noisy latent.

        Args:
            memory: what memory shows of the view.
            recent: latent frames, oldest first; recent_cameras: theirs, world_from_camera, metres.
            cameras: of the target's four frames, world_from_camera, metres.
            image_from_camera: K in pixels of frames of `size` (height, width).
            text: vectors of the prompt.
        """
        b, t, _, h, w = recent.shape
        rows, columns = h // self.patch, w // self.patch
        anchor = cameras[:, -1]
        warped = torch.cat([memory.warped_latent, memory.coverage], 1)
        fine = self.memory_stem(warped)
        motion = self.motion_embedding(_motion(recent_cameras[:, -1, -1], cameras)) + self.text_embedding(text).mean(1)

        frames = self.recent_embedding(recent.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, (b, t))
        patches = self.patch_embedding(memory.patches)
        prompt = self.text_embedding(text)
        tokens = [frames.flatten(1, 2) + self.kinds[0], patches + self.kinds[1], prompt + self.kinds[2]]
        clean = torch.cat(tokens, 1)
        clean = clean + self.clean_mlp(clean)

        # Coordinates (time, row, column) in tokens; the target's time is 0.
        grid = (cell_centres(rows, columns, cameras) - 0.5).flip(-1).flatten(0, 1)  # [n, 2] (row, column)
        target = F.pad(grid, (1, 0))
        times = torch.arange(-t, 0, device=grid.device, dtype=grid.dtype).repeat_interleave(len(grid))
        placed = torch.cat([times[:, None], grid.repeat(t, 1)], 1).expand(b, -1, -1)
        landing = memory.patch_uv.flip(-1) / self.patch - 0.5
        coordinates = torch.cat([placed, F.pad(landing, (1, 0)), placed.new_zeros(b, text.shape[1], 3)], 1)
        rotary = self.config.head_dim // 2
        table = rotary_table(rotary_angles(coordinates.double(), rotary, self.config.rope_theta).float())
        cosine, sine = rotary_table(rotary_angles(target[None].double(), rotary, self.config.rope_theta).float()[0])

        # PRoPE's matrices: one for each recent frame, for each patch, and for the target; the prompt has the target's.
        world_from_camera = torch.cat([recent_cameras, memory.patch_cameras, cameras[:, None]], 1)
        projection, inverse = self._projections(world_from_camera, anchor, image_from_camera, size)
        keys_values = tuple(block.read(clean, table, inverse, t, rows * columns) for block in self.blocks)
        key_mask = None
        if not bool(memory.patch_exists.all()):
            exists = memory.patch_exists
            full = exists.new_ones(b, 1)
            parts = [full.expand(-1, t * len(grid)), exists, full.expand(-1, text.shape[1] + len(grid))]
            key_mask = torch.cat(parts, 1)[:, None, None]
        return Reading(warped, fine, motion, keys_values, key_mask, cosine, sine, projection[:, -1], inverse[:, -1])

    def forward(
        self, noisy: Float[Tensor, "b c h w"], noise_level: Float[Tensor, " b"], reading: Reading
    ) -> Float[Tensor, "b c h w"]:
        """The velocity, noise minus clean latents.

        Args:
            noisy: (1 - noise level) * clean + noise level * noise.
            noise_level: 0 (clean) to 1 (noise).
            reading: what `read` returned for the same batch.
        """
        waves = noise_level.float()[:, None] * torch.exp(torch.linspace(0.0, 5.0, WAVES, device=noisy.device))
        embedding = self.time_embedding(torch.cat([waves.sin(), waves.cos()], 1)) + reading.motion
        x = (self.noisy_stem(noisy) + reading.fine).contiguous(memory_format=torch.channels_last)
        for block in self.fine_in:
            x = block(x, embedding)
        coarse = self.down(x)
        rows, columns = coarse.shape[-2:]
        tokens = coarse.flatten(2).transpose(1, 2)
        modulation = self.modulation(embedding).unflatten(1, (6, -1))
        for block, keys_values in zip(self.blocks, reading.keys_values, strict=True):
            tokens = block(tokens, modulation, keys_values, reading, (rows, columns))
        coarse = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        x = x + F.pixel_shuffle(self.up(coarse), self.patch).contiguous(memory_format=torch.channels_last)
        for block in self.fine_out:
            x = block(x, embedding)
        skip = self.skip(torch.cat([noisy, reading.memory], 1))
        skip = skip * (1 + self.skip_scale(F.silu(embedding))[:, :, None, None])
        output = (self.proj_out(F.silu(self.norm_out(x))) + skip).to(noisy.dtype)
        # Of clean latents with unit variance, the first term is the best guess without a network.
        level = noise_level[:, None, None, None]
        variance = (1 - level).square() + level.square()
        return noisy * (2 * level - 1) / variance - output / variance.sqrt()

    def _projections(
        self, world_from_camera: Tensor, anchor: Tensor, image_from_camera: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """PRoPE's P and its inverse as block-diagonal matrices `[b, n, p, p]` of cameras `[b, n, 4, 4, 4]`."""
        half = self.config.head_dim // 2
        # In float64: far from the origin, rounding would shift cameras by decimetres.
        camera_from_anchor = invert_pose(world_from_camera.double()) @ anchor.double()[:, None, None]
        k = image_from_camera.double()[:, None, None]
        matrices = lifted_projection(camera_from_anchor, k, size, self.config.metres_per_unit)
        projection, inverse = (block_diagonal(matrix.float(), half) for matrix in matrices)
        return projection, inverse


def _motion(world_from_recent: Tensor, cameras: Tensor) -> Tensor:
    """Translation (right, ahead; metres) and heading (sine, 1 - cosine) of four cameras `[b, 4, 4, 4]`, relative to the
    last recent one `[b, 4, 4]`: `[b, 16]`."""
    relative = invert_pose(world_from_recent)[:, None] @ cameras
    parts = [relative[..., 0, 3], relative[..., 2, 3], 3 * relative[..., 0, 2], 3 * (1 - relative[..., 2, 2])]
    return torch.stack(parts, -1).flatten(1)


class _FineBlock(nn.Module):
    """A convolutional block, scaled and shifted by the embedding `[b, d]`; it starts as the identity."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.norm_in = nn.GroupNorm(8, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_out = nn.GroupNorm(8, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(F.silu(embedding))[:, :, None, None].chunk(2, 1)
        hidden = self.conv_in(F.silu(self.norm_in(x)))
        return x + self.conv_out(F.silu(self.norm_out(hidden) * (1 + scale) + shift))


class _Block(nn.Module):
    """Attention to the target's tokens and to clean ones, then an MLP with a depthwise convolution."""

    def __init__(self, width: int, head_dim: int, mlp_ratio: float):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.head_dim = head_dim
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.norm_q = nn.RMSNorm(head_dim)
        self.norm_k = nn.RMSNorm(head_dim)
        self.to_out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.mlp_out = nn.Linear(hidden, width)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))
        self.scale_shift_table.data[[2, 5]] = 1.0  # open gates
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)
        nn.init.zeros_(self.mlp_out.weight)
        nn.init.zeros_(self.mlp_out.bias)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))

    def read(
        self, clean: Tensor, table: tuple[Tensor, Tensor], inverse: Tensor, frames: int, per_frame: int
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of clean tokens `[b, m, d]`: recent frames, patches, prompt.

        Args:
            table: rotary cosine and sine, `[b, m, r]`.
            inverse: PRoPE's inverse matrices `[b, frames + patches + 1, p, p]`, the last one the target's.
            frames: recent frames; per_frame: tokens of each.
        """
        x = self.norm_attention(clean)
        key, value = self.norm_k(self._heads(self.to_k(x))), self._heads(self.to_v(x))
        half = self.head_dim // 2
        projected = torch.cat([key[..., :half], value[..., :half]], 2)  # [b, m, 2 * heads, p]
        recent, patches, prompt = projected.split(
            [frames * per_frame, inverse.shape[1] - frames - 1, clean.shape[1] - frames * per_frame
             - (inverse.shape[1] - frames - 1)], 1
        )  # fmt: skip
        recent = _project(recent.unflatten(1, (frames, -1)).flatten(2, 3), inverse[:, :frames])
        recent = recent.unflatten(2, (per_frame, -1)).flatten(1, 2)
        patches = _project(patches, inverse[:, frames:-1])
        prompt = _project(prompt.flatten(1, 2), inverse[:, -1]).view_as(prompt)
        key_projected, value_projected = torch.cat([recent, patches, prompt], 1).chunk(2, 2)
        cosine, sine = (part[:, :, None] for part in table)
        key = torch.cat([key_projected, _rotate(key[..., half:], cosine, sine)], -1)
        value = torch.cat([value_projected, value[..., half:]], -1)
        return key.transpose(1, 2), value.transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        keys_values: tuple[Tensor, Tensor],
        reading: Reading,
        grid: tuple[int, int],
    ) -> Tensor:
        """Target tokens `[b, n, d]`, modulated by `[b, 6, d]`, that attend to themselves and to clean ones."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (modulation + self.scale_shift_table)[:, :, None].unbind(1)
        hidden = self.norm_attention(x) * (1 + scale) + shift
        x = x + gate * self.to_out(self._attend(hidden, keys_values, reading))
        hidden = self.norm_mlp(x) * (1 + scale_mlp) + shift_mlp
        hidden = self.mlp_in(hidden).transpose(1, 2).unflatten(2, grid)
        hidden = F.silu(self.mlp_conv(hidden)).flatten(2).transpose(1, 2)
        return x + gate_mlp * self.mlp_out(hidden)

    def _attend(self, x: Tensor, keys_values: tuple[Tensor, Tensor], reading: Reading) -> Tensor:
        half = self.head_dim // 2
        query = self.norm_q(self._heads(self.to_q(x)))
        key, value = self.norm_k(self._heads(self.to_k(x))), self._heads(self.to_v(x))
        n, heads = query.shape[1:3]
        cosine, sine = reading.cosine[:, None], reading.sine[:, None]
        projected = _project(query[..., :half].flatten(1, 2), reading.projection.transpose(-1, -2))
        query = torch.cat([projected.unflatten(1, (n, heads)), _rotate(query[..., half:], cosine, sine)], -1)
        projected = torch.cat([key[..., :half], value[..., :half]], 2)
        projected = _project(projected.flatten(1, 2), reading.inverse).view_as(projected)
        key_projected, value_projected = projected.chunk(2, 2)
        key = torch.cat([key_projected, _rotate(key[..., half:], cosine, sine)], -1).transpose(1, 2)
        value = torch.cat([value_projected, value[..., half:]], -1).transpose(1, 2)
        key = torch.cat([keys_values[0], key.to(keys_values[0].dtype)], 2)
        value = torch.cat([keys_values[1], value.to(keys_values[1].dtype)], 2)
        out = _dot(query.transpose(1, 2).to(key.dtype), key, value, reading.key_mask).transpose(1, 2)
        projected = _project(out[..., :half].flatten(1, 2), reading.projection).unflatten(1, (n, heads))
        return torch.cat([projected, out[..., half:]], -1).flatten(2)


def _dot(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
    """Softmax attention of `[b, heads, n, d]` to `[b, heads, m, d]`; key_mask: bool `[b, 1, 1, m]`, None for all."""
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask)
    # With gradients, a CPU computes so few tokens twice as fast by plain products.
    b, heads, n, d = query.shape
    bias = query.new_zeros(b, 1, 1, key.shape[2])
    if key_mask is not None:
        bias = bias.masked_fill(~key_mask, -1e4)
    bias = bias.expand(b, heads, n, -1).flatten(0, 1)
    scores = torch.baddbmm(bias, query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=d**-0.5)
    return torch.bmm(scores.softmax(-1).to(value.dtype), value.flatten(0, 1)).unflatten(0, (b, heads))


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cosine, swapped, sine).type_as(x)


def _project(x: Float[Tensor, "... k p"], matrices: Float[Tensor, "... p p"]) -> Float[Tensor, "... k p"]:
    """Rows times transposed matrices, in float32: autocast would round the cameras."""
    with torch.autocast(x.device.type, enabled=False):
        return (x.to(matrices.dtype) @ matrices.transpose(-1, -2)).type_as(x)
