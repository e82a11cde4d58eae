"""The world's transformer: Wan's, with memory among its tokens and cameras in its attention.

It is diffusers' `WanTransformer3DModel` by class and by the names of its weights, so any Wan checkpoint loads
into it as it is. What it is told besides is where every token lies in space.

Two insertions. *split* is for a model trained from scratch: half of every head is projective, the Warped Latent and
what memory and map let expect are added to the target's tokens, and the answer is a correction of the latter.
*parallel* is for a pretrained model: memory and Warped Latent are further tokens at timestep 0, and cameras enter
through a second attention whose output begins at zero, so that what was learned before stays exactly as it was.

Two ways to attend. *Causal*: `read` sends the clean tokens through the blocks once a step and keeps their keys
and values; `forward` sends the target's, which look at themselves and at what was read. However many denoising
steps follow, reading is done once. Otherwise all tokens see all, as Wan was trained, in `forward` alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn

from mosaic_gym.geometry.camera import cell_centres, invert_pose
from mosaic_gym.memory.mosaic import Retrieved
from mosaic_gym.model.attention import (
    MosaicAttnProcessor,
    Positions,
    TextAttnProcessor,
    lifted_projection,
    rotary_angles,
    turns,
    written_out,
)
from mosaic_gym.model.tokens import Context, Tokens

TIMESTEPS = 1000
"""Wan's timesteps run from 0 (clean) to this (noise): sigma times this."""
INSERTIONS = ("split", "parallel")
COVERAGE_CHANNELS = 17
"""Of `Recall.covered`."""


class MosaicTransformer3DModel(WanTransformer3DModel):
    """A Wan transformer that is told where its tokens are in space.

    Args:
        insertion: `split` or `parallel`, see above.
        causal: whether clean tokens are read by themselves, once a step.
        rope_theta: base of the rotary frequencies; Wan's is 10000.
        metres_per_unit: the length PRoPE counts as one.
        flow_shift, denoising_steps: the shift of the noise levels and their number that a distilled student was trained
            at, for whoever steps it; None for a model that was trained at all of them.
        guidance: that a student is stepped with, for its teacher's is in its weights; None where it is free.
        in_channels, out_channels: of the codec's latents. The others are `WanTransformer3DModel`'s.

    Raises:
        ValueError: an unknown insertion, a head size that four cameras do not divide, or a Wan model that is
            conditioned through further channels or image tokens.
    """

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        insertion: str = "parallel",
        causal: bool = False,
        rope_theta: float = 10000.0,
        metres_per_unit: float = 1.0,
        flow_shift: float | None = None,
        denoising_steps: int | None = None,
        guidance: float | None = None,
    ):
        _check_config(insertion, attention_head_dim, in_channels, out_channels, image_dim, patch_size)
        super().__init__(
            patch_size, num_attention_heads, attention_head_dim, in_channels, out_channels, text_dim, freq_dim,
            ffn_dim, num_layers, cross_attn_norm, qk_norm, eps, image_dim, added_kv_proj_dim, rope_max_seq_len,
            pos_embed_seq_len,
        )  # fmt: skip
        width = num_attention_heads * attention_head_dim
        for block in self.blocks:
            block.attn1.set_processor(MosaicAttnProcessor(insertion))
            block.attn2.set_processor(TextAttnProcessor())
        if insertion == "parallel":
            for block in self.blocks:
                block.attn1.to_out_cameras = nn.Linear(width, width)
                nn.init.zeros_(block.attn1.to_out_cameras.weight)
                nn.init.zeros_(block.attn1.to_out_cameras.bias)
            return
        high, wide = patch_size[1:]
        told = 2 * in_channels + COVERAGE_CHANNELS
        self.warped_embedding = nn.Conv2d(told, width, (high, wide), stride=(high, wide))
        self.kind_embedding = nn.Parameter(torch.randn(2, width) * 0.02)  # recent frame, recalled patch
        for block in self.blocks:
            # Wan's gates begin near zero, and at any sane rate take a thousand steps to open; ours begin open.
            block.scale_shift_table.data.zero_()
            block.scale_shift_table.data[:, [2, 5]] = 1.0
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def begin_cameras(self) -> None:
        """Sets the camera projections that a checkpoint of Wan's lacks, and loading leaves without memory, to zero."""
        for block in self.blocks if self.config.insertion == "parallel" else ():
            cameras = block.attn1.to_out_cameras
            # Of an offloaded layer the weights wait elsewhere; of a model that is nowhere yet, they are to come.
            if cameras.weight.is_meta and not hasattr(cameras, "_hf_hook") and not self.patch_embedding.weight.is_meta:
                cameras.to_empty(device="cpu").to(self.patch_embedding.weight.dtype)
                nn.init.zeros_(cameras.weight)
                nn.init.zeros_(cameras.bias)

    def to(self, *args: Any, **kwargs: Any) -> MosaicTransformer3DModel:
        """As any module's. A quantised model is moved while it is loaded, before its cameras could begin elsewhere."""
        self.begin_cameras()
        return super().to(*args, **kwargs)

    def read(
        self,
        history: Tensor,
        history_cameras: Tensor,
        retrieved: Retrieved,
        target_cameras: Tensor,
        image_from_camera: Tensor,
        size: tuple[int, int],
        text: Tensor,
        once: bool = False,
    ) -> Context:
        """Gathers what the target frames are predicted from; a causal model sends it through its blocks here.

        Args:
            history: `[b, t, c, h, w]`, recent latents, oldest first.
            history_cameras: `[b, t, 4, 4, 4]`, world_from_camera.
            recalled: of the target frames, members first: `b * t` views.
            target_cameras: `[b, t, 4, 4, 4]`, world_from_camera.
            image_from_camera: `[b, 3, 3]`, K in pixels of frames of `size` (height, width).
            text: `[b, l, text_dim]`.
            once: it will be looked at by one denoising step only, and goes through the blocks beside the target then:
                equal to rounding, and a third faster where calls cost more than arithmetic.
        """
        context = Context(retrieved, history, history_cameras, target_cameras, image_from_camera, size, text)
        if once or not self.config.causal:
            return context
        if hasattr(self, "_hf_hook"):  # as a call of forward would have fetched an offloaded model
            self._hf_hook.pre_forward(self)
        clean = self._clean_tokens(context)
        exists = clean.exists if len(history) > 1 else None  # one member alone is not padded
        at = self._positions(clean.coordinates, clean.cameras, clean.values, context)
        at.key_mask = None if exists is None else exists[:, None, None]
        _, modulation = self._clock(history.new_zeros(len(history)), clean.values)
        text = self.condition_embedder.text_embedder(text.to(clean.values.dtype))
        told = tuple(block.attn2.processor.told(block.attn2, text) for block in self.blocks)
        keys_values = self._read_blocks(clean.values, modulation, told, at)
        grid, cameras = self._target_places(retrieved.warped.unflatten(0, target_cameras.shape[:2]), context)
        target = self._positions(grid, cameras, clean.values, context)
        if exists is not None:
            target.key_mask = torch.cat([exists, exists.new_ones(grid.shape[:2])], dim=1)[:, None, None]
        return replace(context, told=told, keys_values=keys_values, target=target)

    def forward(self, noisy: Tensor, timestep: Tensor, context: Context) -> Tensor:
        """What the network says of noisy target frames, `[b, t, c, h, w]`.

        Of the insertion *split*: the clean latents it believes are behind them, as a correction of what memory and map
        let expect (where both are sure there is little left to say). Of *parallel*, as Wan: the velocity, noise
        minus clean.

        Args:
            noisy: `[b, t, c, h, w]`.
            timestep: `[b]`, 0 (clean) to 1000 (noise).
            context: what `read` returned for the same batch.
        """
        values = self._target_values(noisy, timestep, context)
        if context.keys_values is not None:
            clock, modulation = self._clock(timestep, values)
            tokens = self._through_blocks(values, modulation, context.told, context.target, context.keys_values)
        else:
            exists = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
            target = Tokens(values, *self._target_places(noisy, context), exists)
            clean = self._clean_tokens(context)
            clocks, modulations = self._clock(torch.cat([torch.zeros_like(timestep), timestep]), target.values)
            clock, (clean_modulation, modulation) = clocks.chunk(2)[1], modulations.chunk(2)
            counts = clean.values.shape[1], target.values.shape[1]
            each_token = torch.cat(
                [
                    each[:, None].expand(-1, n, -1, -1)
                    for each, n in zip((clean_modulation, modulation), counts, strict=True)
                ],
                dim=1,
            )
            both = clean.then(target)
            at = self._positions(both.coordinates, both.cameras, both.values, context)
            # One member is not padded; of several it would take waiting for an accelerator to learn that none is.
            at.key_mask = None if len(values) == 1 else both.exists[:, None, None]
            if self.config.causal:
                # Targets look at everything, clean tokens at one another.
                ours = torch.arange(sum(counts), device=target.values.device) >= counts[0]
                at.key_mask = both.exists[:, None, None] & (ours[:, None] | ~ours)
            text = self.condition_embedder.text_embedder(context.text.to(both.values.dtype))
            told = (text,) * len(self.blocks)
            tokens = self._through_blocks(
                both.values, each_token, told, at, None, counts[0], (clean_modulation, modulation)
            )
        shift, scale = (self.scale_shift_table + clock[:, None]).chunk(2, dim=1)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        said = self._onto_grid(self.proj_out(tokens), noisy)
        if self.config.insertion == "split":
            return context.retrieved.conditioning_latent.view_as(noisy) + said
        return said

    def _clean_tokens(self, context: Context) -> Tokens:
        """Recent latents on the grid before the target, and what memory gives."""
        retrieved, history = context.retrieved, context.history
        t = history.shape[1]
        recent = self._embed(history)
        tokens = [
            Tokens(
                recent,
                self._grid(history, 0),
                self._per_token(context.history_cameras, history),
                retrieved.patch_exists.new_ones(recent.shape[:2]),
            )
        ]
        # Warped RoPE: a patch lies where it lands in its target frame, the fraction kept.
        b, frames = context.cameras.shape[:2]
        patches = retrieved.patches.unflatten(0, (b, frames))  # [b, t, n, c * p * p]
        n = patches.shape[2]
        if n:
            high, wide = self.config.patch_size[1:]
            cells = patches.flatten(1, 2).unflatten(2, (-1, high, wide)).transpose(1, 2)  # [b, c, t * n, p, p]
            values = _tokens_of(self.patch_embedding, cells.to(recent.dtype))
            uv = retrieved.patch_uv.unflatten(0, (b, frames))
            time = torch.arange(t, t + frames, device=uv.device, dtype=uv.dtype)[:, None].expand(b, frames, n)
            landing = torch.stack([time, uv[..., 1] / high - 0.5, uv[..., 0] / wide - 0.5], dim=-1)
            exists = retrieved.patch_exists.unflatten(0, (b, frames)).flatten(1)
            cameras = retrieved.patch_cameras.unflatten(0, (b, frames)).flatten(1, 2)
            tokens.append(Tokens(values, landing.flatten(1, 2), cameras, exists))
        if self.config.insertion == "split":
            kinds = [each.values + self.kind_embedding[i] for i, each in enumerate(tokens)]
            tokens = [replace(each, values=values) for each, values in zip(tokens, kinds, strict=True)]
        elif bool(retrieved.warped_share.any()):
            tokens.append(self._warped_tokens(context, t))
        if len(tokens) == 1:
            return tokens[0]
        joined = reduce(Tokens.then, tokens)
        # One member alone needs no padding; without it attention needs no mask.
        return joined if b > 1 else joined.kept(joined.exists[0])

    def _warped_tokens(self, context: Context, first: int) -> Tokens:
        """The Warped Latent of the target frames as tokens of their own, where memory covers most of a token."""
        retrieved = context.retrieved
        warped = retrieved.warped.unflatten(0, context.cameras.shape[:2])
        values = self._embed(warped)
        shares = nn.functional.avg_pool2d(retrieved.warped_share[:, None], tuple(self.config.patch_size[1:]))
        exists = (shares > 0.5).flatten(1).unflatten(0, context.cameras.shape[:2]).flatten(1)
        return Tokens(values, self._grid(warped, first), self._per_token(context.cameras, warped), exists)

    def _target_values(self, noisy: Tensor, timestep: Tensor, context: Context) -> Tensor:
        """Tokens `[b, n, d]` of noisy target frames."""
        if self.config.insertion == "split":
            # Scaled by how much signal it holds: pure noise says nothing, and then one step is a regression.
            values = self._embed(noisy * (1.0 - timestep.view(-1, 1, 1, 1, 1) / TIMESTEPS))
            retrieved = context.retrieved
            told = torch.cat([retrieved.warped, retrieved.covered, retrieved.conditioning_latent], dim=1).to(
                values.dtype
            )
            return values + _tokens_of(self.warped_embedding, told).reshape(values.shape)
        return self._embed(noisy)

    def _target_places(self, like: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Coordinates and cameras of the tokens of target frames, which are shaped like `[b, t, c, h, w]`."""
        return self._grid(like, context.history.shape[1]), self._per_token(context.cameras, like)

    def _embed(self, latents: Tensor) -> Tensor:
        """`[b, n, d]` of latents `[b, t, c, h, w]`, frame by frame, row by row; t may be 0."""
        weight = self.patch_embedding.weight
        if not latents.shape[1]:
            return latents.new_zeros(len(latents), 0, len(weight), dtype=weight.dtype)  # an offloaded weight is nowhere
        return _tokens_of(self.patch_embedding, latents.transpose(1, 2).to(weight.dtype))

    def _clock(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The timestep's embedding `[b, d]`, and what modulates the blocks, `[b, 6, d]`."""
        embedder = self.condition_embedder
        waves = embedder.timesteps_proj(timestep).to(next(embedder.time_embedder.parameters()).dtype)
        clock = embedder.time_embedder(waves).type_as(like)
        return clock, embedder.time_proj(embedder.act_fn(clock)).unflatten(1, (6, -1))

    def _read_blocks(
        self, tokens: Tensor, modulation: Tensor, text: tuple[Any, ...], at: Positions
    ) -> tuple[tuple[Tensor, ...], ...]:
        """What each block's attention stores. The last block's output is not computed, because nothing reads it."""
        *blocks, last = self.blocks
        kept = []
        tokens = tokens.contiguous()
        checkpointing = torch.is_grad_enabled() and self.gradient_checkpointing
        for block, told in zip(blocks, text, strict=False):
            if checkpointing:
                tokens, stored = self._gradient_checkpointing_func(_read_block, block, tokens, told, modulation, at)
            else:
                tokens, stored = _read_block(block, tokens, told, modulation, at)
            kept.append(stored)
        placed = replace(at, stored=[])
        if hasattr(last, "_hf_hook"):  # an offloaded block fetches its weights when it is called
            last(tokens, text[-1], modulation, placed)
        else:
            _keep(last, tokens, modulation, placed)
        return (*kept, placed.stored[0])

    def _through_blocks(
        self,
        tokens: Tensor,
        modulation: Tensor,
        text: tuple[Any, ...],
        at: Positions,
        cached: tuple[Any, ...] | None,
        clean: int = 0,
        apart: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """What becomes of the tokens but the first `clean` of them, whose last keys and values are all that is needed.

        Args:
            text: for each block the prompt's vectors, or its keys and values.
            apart: the modulation `[b, 6, d]` of the clean ones, and of the others.
        """
        tokens = tokens.contiguous()
        checkpointing = torch.is_grad_enabled() and self.gradient_checkpointing
        *blocks, last = self.blocks
        # A model that is not causal stays Wan to rounding, gradients too, and these pass through float32 here.
        if not clean or not self.config.causal or checkpointing or hasattr(last, "_hf_hook"):
            blocks = self.blocks
        for index, block in enumerate(blocks):
            placed = replace(at, cached=cached[index]) if cached is not None else at
            if checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, text[index], modulation, placed)
            else:
                tokens = block(tokens, text[index], modulation, placed)
        if len(blocks) == len(self.blocks):
            return tokens[:, clean:]
        there, here = at.of(slice(None, clean)), at.of(slice(clean, None))
        there.stored = []
        _keep(last, tokens[:, :clean], apart[0], there)
        mask = at.key_mask
        # Of a mask with a row for every token, those of the others.
        here.key_mask = mask[..., clean:, :] if mask is not None and mask.shape[-2] > 1 else mask
        here.cached = there.stored[0]
        return last(tokens[:, clean:].contiguous(), text[-1], apart[1], here)

    def _onto_grid(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Latents `[b, t, c, h, w]` of projected tokens, laid out as Wan lays them: (rows, columns, channels)."""
        b, t, c, h, w = like.shape
        high, wide = self.config.patch_size[1:]
        blocks = tokens.view(b, t, h // high, w // wide, high, wide, -1)
        return blocks.permute(0, 1, 6, 2, 4, 3, 5).reshape(b, t, -1, h, w)

    def _grid(self, latents: Tensor, first: int) -> Tensor:
        """`[b, n, 3]`: (t, v, u) indices of the tokens of latents `[b, t, c, h, w]`, whose first frame is `first`."""
        b, t, _, h, w = latents.shape
        high, wide = self.config.patch_size[1:]
        like = latents if latents.dtype in (torch.float32, torch.float64) else latents.float()
        cells = (cell_centres(h // high, w // wide, like) - 0.5).flip(-1).flatten(0, 1)
        time = torch.arange(first, first + t, device=latents.device, dtype=cells.dtype).repeat_interleave(len(cells))
        return torch.cat([time[:, None], cells.repeat(t, 1)], dim=1).expand(b, -1, -1)

    def _per_token(self, cameras: Tensor, latents: Tensor) -> Tensor:
        """`[b, n, 4, 4, 4]` of the cameras `[b, t, 4, 4, 4]` of latents `[b, t, c, h, w]`."""
        high, wide = self.config.patch_size[1:]
        return cameras.repeat_interleave((latents.shape[-2] // high) * (latents.shape[-1] // wide), dim=1)

    def _positions(self, coordinates: Tensor, cameras: Tensor, values: Tensor, context: Context) -> Positions:
        """Of tokens at coordinates `[b, n, 3]`, seen by cameras `[b, n, 4, 4, 4]`; as precise as their values need."""
        heads = self.config.attention_head_dim
        rotary = heads // 2 if self.config.insertion == "split" else heads
        angles = rotary_angles(coordinates.double(), rotary, self.config.rope_theta)[:, :, None]
        # In float64, which neither autocast nor TF32 touches: far from the origin they would be off by decimetres.
        camera_from_anchor = invert_pose(cameras.double()) @ context.anchor.double()[:, None, None]
        k = context.image_from_camera.double()[:, None, None]
        projection, inverse = lifted_projection(camera_from_anchor, k, context.size, self.config.metres_per_unit)
        precise = torch.promote_types(values.dtype, torch.float32)
        # Through float32, as Wan's own tables go: then equal positions have equal numbers.
        cosine, sine = (each.float().to(precise) for each in turns(angles))
        projection, inverse = projection.to(precise), inverse.to(precise)
        if self.config.insertion == "split":
            projection, inverse = written_out(projection, heads // 2), written_out(inverse, heads // 2)
        return Positions(cosine, sine, projection, inverse)


def _read_block(
    block: nn.Module, tokens: Tensor, told: Any, modulation: Tensor, at: Positions
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What becomes of tokens `[b, n, d]`, and what the block's attention keeps of them.

    It is returned, for what a block does besides is lost where it runs once more for its gradients.
    """
    placed = replace(at, stored=[])
    return block(tokens, told, modulation, placed), placed.stored[0]


def _keep(block: nn.Module, tokens: Tensor, modulation: Tensor, at: Positions) -> None:
    """What the block's attention keeps of tokens `[b, n, d]` that look at nothing any more, to `at.stored`."""
    shift, scale = (block.scale_shift_table + modulation.float()).chunk(6, dim=1)[:2]
    normed = (block.norm1(tokens.float()) * (1 + scale) + shift).type_as(tokens)
    block.attn1.processor.keep(block.attn1, normed, at)


def _tokens_of(embedding: nn.Conv2d | nn.Conv3d, values: Tensor) -> Tensor:
    """`[b, n, d]` of `[b, c, ...]`. Of single cells as a matrix product, which a CPU does five times as fast."""
    if max(embedding.kernel_size) == 1:
        return nn.functional.linear(values.flatten(2).transpose(1, 2), embedding.weight.flatten(1), embedding.bias)
    return embedding(values).flatten(2).transpose(1, 2)


def _check_config(
    insertion: str,
    head: int,
    in_channels: int,
    out_channels: int | None,
    image_dim: int | None,
    patch_size: tuple[int, ...],
) -> None:
    if insertion not in INSERTIONS:
        raise ValueError(f"insertion is one of {INSERTIONS}; got {insertion!r}")
    least = 32 if insertion == "split" else 16
    if head % least:
        raise ValueError(f"attention_head_dim is a multiple of {least}, for four cameras share it; got {head}")
    if image_dim is not None or (out_channels or in_channels) != in_channels:
        raise ValueError(
            "this Wan transformer takes its image through further channels or image tokens "
            f"(in_channels {in_channels}, out_channels {out_channels}, image_dim {image_dim}); a world conditions on "
            "clean latent frames: take a text-to-video or TI2V model, such as Wan-AI/Wan2.2-TI2V-5B-Diffusers"
        )
    if patch_size[0] != 1 or patch_size[1] != patch_size[2]:
        raise ValueError(f"patch_size is (1, p, p), for a step is one latent frame; got {tuple(patch_size)}")
