"""The world's transformer: diffusers' Wan blocks, with memory as tokens and as a warped latent.

Two passes, named after what they do. `read` sends the clean tokens (recent latents, recalled patches;
timestep 0) through the blocks once a step and keeps their keys and values. `forward` sends the noisy
tokens of the target frame, which look at themselves and at what was read. Clean tokens never see the
target, so however many denoising steps follow, reading is done once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding, WanTransformerBlock
from torch import Tensor, nn

from mosaic_gym.geometry.camera import cell_centres, invert_pose
from mosaic_gym.memory.mosaic import Recall
from mosaic_gym.model.attention import MosaicAttnProcessor, Positions, lifted_projection, rotary_angles

TIMESTEPS = 1000
"""Wan's timesteps run from 0 (clean) to this (noise): sigma times this."""


@dataclass(frozen=True)
class Context:
    """The clean tokens of one step, read.

    Attributes:
        keys_values: for each block, keys and values `[b, n, heads, d]`.
        exists: bool `[b, n]`.
        text: `[b, l, d]`, the prompt in the network's width.
        world_from_anchor: `[b, 4, 4]`: cameras are measured from the target's last one, for precision.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    exists: Tensor
    text: Tensor
    world_from_anchor: Tensor


class MosaicTransformer3DModel(ModelMixin, ConfigMixin):
    """A Wan transformer that is told where its tokens are in space.

    Args:
        latent_channels: of the codec.
        coverage_channels: of `Recall.covered`.
        num_attention_heads, attention_head_dim: heads, and their size, a multiple of 32.
        num_layers, ffn_dim: blocks, and the width of their feed-forward part.
        text_dim: of the prompt's vectors.
        freq_dim: of the timestep's sinusoids.
        patch_size: latent cells a token is (high, wide).
        rope_theta: base of the rotary frequencies.
        metres_per_unit: the length PRoPE counts as one.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 128,
        coverage_channels: int = 17,
        num_attention_heads: int = 4,
        attention_head_dim: int = 64,
        num_layers: int = 4,
        ffn_dim: int = 768,
        text_dim: int = 64,
        freq_dim: int = 128,
        patch_size: tuple[int, int] = (1, 1),
        rope_theta: float = 100.0,
        metres_per_unit: float = 4.0,
    ):
        super().__init__()
        if attention_head_dim % 32:
            raise ValueError(
                f"attention_head_dim is a multiple of 32 (half of it serves four cameras); got {attention_head_dim}"
            )
        width = num_attention_heads * attention_head_dim
        self.patch_embedding = nn.Conv2d(latent_channels, width, patch_size, stride=patch_size)
        self.warped_embedding = nn.Conv2d(latent_channels + coverage_channels, width, patch_size, stride=patch_size)
        self.kind_embedding = nn.Parameter(torch.randn(2, width) * 0.02)  # recent frame, recalled patch
        self.condition_embedder = WanTimeTextImageEmbedding(width, freq_dim, 6 * width, text_dim)
        self.blocks = nn.ModuleList(
            [WanTransformerBlock(width, ffn_dim, num_attention_heads, cross_attn_norm=True) for _ in range(num_layers)]
        )
        for block in self.blocks:
            block.attn1.processor = MosaicAttnProcessor()
            # Wan's gates begin near zero, and at any sane rate take a thousand steps to open; ours begin open.
            block.scale_shift_table.data.zero_()
            block.scale_shift_table.data[:, [2, 5]] = 1.0
        self.norm_out = FP32LayerNorm(width, 1e-6, elementwise_affine=False)
        self.proj_out = nn.Linear(width, latent_channels * patch_size[0] * patch_size[1])
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, width) / width**0.5)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def read(
        self,
        history: Tensor,
        history_cameras: Tensor,
        recalled: Recall,
        target_cameras: Tensor,
        image_from_camera: Tensor,
        size: tuple[int, int],
        text: Tensor,
    ) -> Context:
        """Sends the clean tokens through the blocks.

        Args:
            history: `[b, t, c, h, w]`, recent latents, oldest first.
            history_cameras: `[b, t, 4, 4, 4]`, world_from_camera.
            recalled: of the target.
            target_cameras: `[b, 4, 4, 4]`, world_from_camera.
            image_from_camera: `[b, 3, 3]`, K in pixels of frames of `size` (height, width).
            text: `[b, l, text_dim]`.
        """
        b, t, c, h, w = history.shape
        anchor = target_cameras[:, -1]
        # 1. Tokens: every cell of the recent latents, and the recalled patches.
        tokens = self.patch_embedding(history.flatten(0, 1)).flatten(2).transpose(1, 2)
        recent = tokens.reshape(b, -1, tokens.shape[-1]) + self.kind_embedding[0]
        # A patch is one latent cell; where a token spans several, it enters as a token of equal cells.
        patches = F.linear(recalled.patches, self.patch_embedding.weight.sum((-2, -1)), self.patch_embedding.bias)
        patches = patches + self.kind_embedding[1]
        tokens = torch.cat([recent, patches], dim=1)
        # 2. Where they are: recent cells on the grid before the target, patches where they land in the target.
        grid = self._grid(history, b)
        coordinates = torch.cat(
            [torch.cat([grid.new_full((*grid.shape[:2], 1), float(i)), grid], -1) for i in range(t)]
            + [self._landing(recalled.patch_uv, float(t))],
            dim=1,
        )
        per_frame = grid.shape[1]
        cameras = history_cameras[:, :, None].expand(-1, -1, per_frame, -1, -1, -1).flatten(1, 2)
        cameras = torch.cat([cameras, recalled.patch_cameras], dim=1)
        at = self._positions(coordinates, cameras, anchor, image_from_camera, size)
        # 3. Padding rows are nobody's key.
        exists = torch.cat([recalled.patch_exists.new_ones(b, t * per_frame), recalled.patch_exists], dim=1)
        at.key_mask = exists[:, None, None]
        _, timestep, text, _ = self.condition_embedder(torch.zeros(b, device=history.device), text)
        self._through_blocks(tokens, timestep, text, at, None)
        return Context(tuple(at.stored), exists, text, anchor)

    def forward(
        self,
        noisy: Tensor,
        sigma: Tensor,
        context: Context,
        recalled: Recall,
        target_cameras: Tensor,
        image_from_camera: Tensor,
        size: tuple[int, int],
        time_index: int = 1,
    ) -> Tensor:
        """The clean latent `[b, c, h, w]` that the network believes is behind the noisy one.

        The prediction is a correction of the Warped Latent: where memory is sure there is little left to say.

        Args:
            noisy: `[b, c, h, w]` at noise level `sigma` `[b]` in [0, 1].
            context: what `read` returned for the same batch.
            time_index: the target's latent frame index; the number of recent frames.
        """
        b, c, h, w = noisy.shape
        level = sigma.view(b, 1, 1, 1)
        # Scaled by how much signal it holds: pure noise says nothing, and then one step is a regression.
        tokens = self.patch_embedding(noisy * (1.0 - level))
        tokens = tokens + self.warped_embedding(torch.cat([recalled.warped, recalled.covered], dim=1))
        rows, columns = tokens.shape[-2:]
        tokens = tokens.flatten(2).transpose(1, 2)
        grid = self._grid(noisy, b)
        coordinates = torch.cat([grid.new_full((*grid.shape[:2], 1), float(time_index)), grid], dim=-1)
        cameras = target_cameras[:, None].expand(-1, grid.shape[1], -1, -1, -1)
        at = self._positions(coordinates, cameras, context.world_from_anchor, image_from_camera, size)
        at.key_mask = torch.cat([context.exists, context.exists.new_ones(b, grid.shape[1])], dim=1)[:, None, None]
        time_dim = self.config.num_attention_heads * self.config.attention_head_dim
        embedder = self.condition_embedder
        time = embedder.time_embedder(embedder.timesteps_proj(sigma * TIMESTEPS).to(tokens.dtype))
        timestep = embedder.time_proj(embedder.act_fn(time))
        tokens = self._through_blocks(tokens, timestep, context.text, at, context.keys_values)
        shift, scale = (self.scale_shift_table + time.view(b, 1, time_dim)).chunk(2, dim=1)
        tokens = self.proj_out((self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens))
        high, wide = self.config.patch_size
        change = tokens.view(b, rows, columns, c, high, wide).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
        return recalled.warped + change

    def _through_blocks(
        self, tokens: Tensor, timestep: Tensor, text: Tensor, at: Positions, cached: tuple | None
    ) -> Tensor:
        modulation = timestep.unflatten(1, (6, -1))
        for index, block in enumerate(self.blocks):
            placed = replace(at, cached=cached[index]) if cached is not None else at
            tokens = block(tokens, text, modulation, placed)
        return tokens

    def _grid(self, latent: Tensor, b: int) -> Tensor:
        """`[b, n, 2]`: (v, u) indices of a latent frame's tokens, the first (0, 0)."""
        high, wide = self.config.patch_size
        centres = cell_centres(latent.shape[-2] // high, latent.shape[-1] // wide, latent) - 0.5
        return centres.flip(-1).flatten(0, 1).expand(b, -1, -1)

    def _landing(self, uv: Tensor, time: float) -> Tensor:
        """Warped RoPE: (t, v', u') `[b, n, 3]` in token indices, the fraction kept; from uv `[b, n, 2]` in cells."""
        high, wide = self.config.patch_size
        v, u = uv[..., 1] / high - 0.5, uv[..., 0] / wide - 0.5
        return torch.stack([torch.full_like(v, time), v, u], dim=-1)

    def _positions(
        self, coordinates: Tensor, cameras: Tensor, anchor: Tensor, image_from_camera: Tensor, size: tuple[int, int]
    ) -> Positions:
        angles = rotary_angles(coordinates, self.config.attention_head_dim // 2, self.config.rope_theta)[:, :, None]
        camera_from_anchor = invert_pose(cameras) @ anchor[:, None, None]
        projection, inverse = lifted_projection(
            camera_from_anchor, image_from_camera[:, None, None], size, self.config.metres_per_unit
        )
        return Positions(angles.cos(), angles.sin(), projection, inverse)
