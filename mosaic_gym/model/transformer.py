"""The world's transformer: Wan's, with memory among its tokens and cameras in its attention.

It subclasses diffusers' `WanTransformer3DModel` and keeps the names of its weights, so every Wan checkpoint loads
unchanged. In addition, every token has real-valued coordinates and four cameras.

Two insertions of memory and cameras. *split* is for a model trained from scratch: half of every head is projective,
the Warped Latent and the conditioning latent are added to the target's tokens, and the output is a correction of the
conditioning latent. *parallel* is for a pretrained model: memory and Warped Latent are further tokens at timestep 0,
and cameras enter through a second attention whose output projection starts at zero, so that the pretrained model is
unchanged at first.

Two attention patterns. *Causal*: `read` passes the clean tokens through the blocks once per step and caches their keys
and values; `forward` passes the target's tokens, which attend to themselves and to the cache. The cost of reading does
not depend on the number of denoising steps. Otherwise all tokens attend to all, as Wan was trained, and `forward` does
everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn

from mosaic_gym.memory.retrieval import Retrieved
from mosaic_gym.model.attention import MosaicAttnProcessor, Positions, TextAttnProcessor, token_positions
from mosaic_gym.model.blocks import fill_cache, run_blocks, run_last_block
from mosaic_gym.model.tokens import Context, Tokens, patch_embed, token_cameras, token_coordinates, unpatchify

TIMESTEPS = 1000
"""Wan's timesteps run from 0 (clean) to this (noise): sigma times this."""
INSERTIONS = ("split", "parallel")
COVERAGE_CHANNELS = 17
"""Channels of `Retrieved.coverage_mask`."""


class MosaicTransformer3DModel(WanTransformer3DModel):
    """A Wan transformer whose tokens have positions in space.

    Args:
        insertion: `split` or `parallel`, see above.
        causal: whether clean tokens are read separately, once per step.
        rope_theta: base of the rotary frequencies; Wan's is 10000.
        metres_per_unit: the length that PRoPE counts as one.
        flow_shift, denoising_steps: shift and number of the noise levels that a distilled student was trained at; None
            for a model that was trained at all noise levels.
        guidance: scale of classifier-free guidance to use; a student's weights contain its teacher's guidance, so it
            has 1. None if the user chooses.
        in_channels, out_channels: of the codec's latents. All other arguments are those of `WanTransformer3DModel`.

    Raises:
        ValueError: an unknown insertion, a head size that four cameras do not divide, or a Wan model that is
            conditioned through additional channels or image tokens.
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
        memory_channels = 2 * in_channels + COVERAGE_CHANNELS
        self.warped_embedding = nn.Conv2d(memory_channels, width, (high, wide), stride=(high, wide))
        self.kind_embedding = nn.Parameter(torch.randn(2, width) * 0.02)  # recent frame, retrieved patch
        for block in self.blocks:
            # Wan's gates start near zero and need a thousand steps to open; in a model from scratch they start open.
            block.scale_shift_table.data.zero_()
            block.scale_shift_table.data[:, [2, 5]] = 1.0
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    @property
    def patch(self) -> int:
        """Latent cells along each side of a token."""
        return self.config.patch_size[1]

    def initialize_cameras(self) -> None:
        """Sets the camera projections to zero where loading left them on the meta device, as Wan's checkpoints do."""
        for block in self.blocks if self.config.insertion == "parallel" else ():
            cameras = block.attn1.to_out_cameras
            # Offloaded layers, whose weights are elsewhere, and models that are all on the meta device are skipped.
            if cameras.weight.is_meta and not hasattr(cameras, "_hf_hook") and not self.patch_embedding.weight.is_meta:
                cameras.to_empty(device="cpu").to(self.patch_embedding.weight.dtype)
                nn.init.zeros_(cameras.weight)
                nn.init.zeros_(cameras.bias)

    def to(self, *args: Any, **kwargs: Any) -> MosaicTransformer3DModel:
        """As `nn.Module.to`. Loading moves a quantized model, and its cameras have to be initialized before that."""
        self.initialize_cameras()
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
        single_step: bool = False,
    ) -> Context:
        """Collects what the target frames are predicted from; a causal model fills its KV cache here.

        Args:
            history: `[b, t, c, h, w]`, recent latents, oldest first.
            history_cameras: `[b, t, 4, 4, 4]`, world_from_camera.
            retrieved: what memory retrieved for the target frames: `b * t` views, one member's frames side by side.
            target_cameras: `[b, t, 4, 4, 4]`, world_from_camera.
            image_from_camera: `[b, 3, 3]`, K in pixels of frames of `size` (height, width).
            text: `[b, l, text_dim]`.
            single_step: only one denoising step uses the context. Clean tokens then pass through the blocks together
                with the target's: equal up to rounding, and a third faster if calls cost more than arithmetic.
        """
        context = Context(retrieved, history, history_cameras, target_cameras, image_from_camera, size, text)
        if single_step or not self.config.causal:
            return context
        if hasattr(self, "_hf_hook"):  # fetches the weights of an offloaded model, as calling forward would
            self._hf_hook.pre_forward(self)
        clean = self._clean_tokens(context)
        exists = clean.exists if len(history) > 1 else None  # one member alone has no padding
        positions = self._positions(clean.coordinates, clean.cameras, clean.values, context)
        positions.key_mask = None if exists is None else exists[:, None, None]
        _, modulation = self._embed_timestep(history.new_zeros(len(history)), clean.values)
        text = self.condition_embedder.text_embedder(text.to(clean.values.dtype))
        text_keys_values = tuple(block.attn2.processor.keys_values(block.attn2, text) for block in self.blocks)
        keys_values = fill_cache(self.blocks, clean.values, modulation, text_keys_values, positions, self._checkpoint)
        grid, cameras = self._target_places(retrieved.warped_latent.unflatten(0, target_cameras.shape[:2]), context)
        target_positions = self._positions(grid, cameras, clean.values, context)
        if exists is not None:
            target_positions.key_mask = torch.cat([exists, exists.new_ones(grid.shape[:2])], dim=1)[:, None, None]
        return replace(
            context, text_keys_values=text_keys_values, keys_values=keys_values, target_positions=target_positions
        )

    def forward(self, noisy: Tensor, timestep: Tensor, context: Context) -> Tensor:
        """The prediction for noisy target frames, `[b, t, c, h, w]`.

        *split* predicts the clean latents, as a correction of the conditioning latent. *parallel* predicts the
        velocity, noise minus clean latents, as Wan does.

        Args:
            noisy: `[b, t, c, h, w]`.
            timestep: `[b]`, 0 (clean) to 1000 (noise).
            context: what `read` returned for the same batch.
        """
        hidden_states = self._embed_target(noisy, timestep, context)
        if context.keys_values is None:
            hidden_states, temb = self._attend_jointly(hidden_states, noisy, timestep, context)
        else:
            temb, modulation = self._embed_timestep(timestep, hidden_states)
            hidden_states = run_blocks(
                self.blocks,
                hidden_states,
                modulation,
                context.text_keys_values,
                context.target_positions,
                self._checkpoint,
                context.keys_values,
            )
        shift, scale = (self.scale_shift_table + temb[:, None]).chunk(2, dim=1)
        hidden_states = (self.norm_out(hidden_states.float()) * (1 + scale) + shift).type_as(hidden_states)
        output = unpatchify(self.proj_out(hidden_states), noisy, self.config.patch_size)
        if self.config.insertion == "split":
            return context.retrieved.conditioning_latent.view_as(noisy) + output
        return output

    def _attend_jointly(
        self, values: Tensor, noisy: Tensor, timestep: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Clean and target tokens in one pass, without a cache.

        Args:
            values: `[b, n, d]`, embedded target tokens.

        Returns:
            the target's tokens after the blocks `[b, n, d]`, and their timestep embedding `[b, d]`.
        """
        exists = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        target = Tokens(values, *self._target_places(noisy, context), exists)
        clean = self._clean_tokens(context)
        tembs, modulations = self._embed_timestep(torch.cat([torch.zeros_like(timestep), timestep]), target.values)
        temb, (clean_modulation, modulation) = tembs.chunk(2)[1], modulations.chunk(2)
        counts = clean.values.shape[1], target.values.shape[1]
        parts = zip((clean_modulation, modulation), counts, strict=True)
        modulation_per_token = torch.cat([part[:, None].expand(-1, n, -1, -1) for part, n in parts], dim=1)
        tokens = clean.concatenate(target)
        positions = self._positions(tokens.coordinates, tokens.cameras, tokens.values, context)
        # One member has no padding. For several, finding out that there is none would wait for the accelerator.
        positions.key_mask = None if len(values) == 1 else tokens.exists[:, None, None]
        if self.config.causal:
            # Target tokens attend to everything, clean tokens to clean tokens only.
            is_target = torch.arange(sum(counts), device=target.values.device) >= counts[0]
            positions.key_mask = tokens.exists[:, None, None] & (is_target[:, None] | ~is_target)
        text = self.condition_embedder.text_embedder(context.text.to(tokens.values.dtype))
        texts = (text,) * len(self.blocks)
        arguments = modulation_per_token, texts, positions, self._checkpoint
        *blocks, last = self.blocks
        # A model that is not causal equals Wan up to rounding, gradients included. The shorter path through the last
        # block goes through float32, so such a model does not take it.
        if not counts[0] or not self.config.causal or self._checkpoint is not None or hasattr(last, "_hf_hook"):
            return run_blocks(self.blocks, tokens.values, *arguments)[:, counts[0] :], temb
        hidden_states = run_blocks(blocks, tokens.values, *arguments)
        modulations = clean_modulation, modulation
        return run_last_block(last, hidden_states, modulations, text, positions, counts[0]), temb

    def _clean_tokens(self, context: Context) -> Tokens:
        """Tokens of recent latents, on the grid before the target, and of what memory retrieved."""
        retrieved, history = context.retrieved, context.history
        t = history.shape[1]
        recent = self._embed(history)
        patch_size = self.config.patch_size
        tokens = [
            Tokens(
                recent,
                token_coordinates(history, 0, patch_size),
                token_cameras(context.history_cameras, history, patch_size),
                retrieved.patch_exists.new_ones(recent.shape[:2]),
            )
        ]
        if retrieved.patches.shape[-2]:
            tokens.append(self._patch_tokens(context, recent.dtype))
        if self.config.insertion == "split":
            embedded = [part.values + self.kind_embedding[kind] for kind, part in enumerate(tokens)]
            tokens = [replace(part, values=values) for part, values in zip(tokens, embedded, strict=True)]
        elif bool(retrieved.latent_coverage.any()):
            tokens.append(self._warped_tokens(context, t))
        if len(tokens) == 1:
            return tokens[0]
        joined = reduce(Tokens.concatenate, tokens)
        # One member alone needs no padding, and attention without padding needs no mask.
        return joined if len(history) > 1 else joined.select(joined.exists[0])

    def _patch_tokens(self, context: Context, dtype: torch.dtype) -> Tokens:
        """Retrieved patches. Warped RoPE: a patch has the real-valued coordinates at which it lands in its frame."""
        retrieved, t = context.retrieved, context.history.shape[1]
        high, wide = self.config.patch_size[1:]
        b, frames = context.cameras.shape[:2]
        patches = retrieved.patches.unflatten(0, (b, frames))  # [b, t, n, c * p * p]
        n = patches.shape[2]
        cells = patches.flatten(1, 2).unflatten(2, (-1, high, wide)).transpose(1, 2)  # [b, c, t * n, p, p]
        values = patch_embed(self.patch_embedding, cells.to(dtype))
        uv = retrieved.patch_uv.unflatten(0, (b, frames))
        time = torch.arange(t, t + frames, device=uv.device, dtype=uv.dtype)[:, None].expand(b, frames, n)
        landing = torch.stack([time, uv[..., 1] / high - 0.5, uv[..., 0] / wide - 0.5], dim=-1)
        exists = retrieved.patch_exists.unflatten(0, (b, frames)).flatten(1)
        cameras = retrieved.patch_cameras.unflatten(0, (b, frames)).flatten(1, 2)
        return Tokens(values, landing.flatten(1, 2), cameras, exists)

    def _warped_tokens(self, context: Context, first: int) -> Tokens:
        """The Warped Latent of the target frames as tokens of its own, where memory covers most of a token."""
        retrieved, patch_size = context.retrieved, self.config.patch_size
        warped = retrieved.warped_latent.unflatten(0, context.cameras.shape[:2])
        values = self._embed(warped)
        shares = nn.functional.avg_pool2d(retrieved.latent_coverage[:, None], tuple(patch_size[1:]))
        exists = (shares > 0.5).flatten(1).unflatten(0, context.cameras.shape[:2]).flatten(1)
        coordinates = token_coordinates(warped, first, patch_size)
        return Tokens(values, coordinates, token_cameras(context.cameras, warped, patch_size), exists)

    def _embed_target(self, noisy: Tensor, timestep: Tensor, context: Context) -> Tensor:
        """Tokens `[b, n, d]` of noisy target frames."""
        if self.config.insertion != "split":
            return self._embed(noisy)
        # Scaled by the share of signal: pure noise carries none, and one step from it is then a regression.
        values = self._embed(noisy * (1.0 - timestep.view(-1, 1, 1, 1, 1) / TIMESTEPS))
        retrieved = context.retrieved
        from_memory = torch.cat(
            [retrieved.warped_latent, retrieved.coverage_mask, retrieved.conditioning_latent], dim=1
        )
        return values + patch_embed(self.warped_embedding, from_memory.to(values.dtype)).reshape(values.shape)

    def _target_places(self, latents: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Coordinates and cameras of the tokens of target frames with the shape of `latents`, `[b, t, c, h, w]`."""
        patch_size = self.config.patch_size
        coordinates = token_coordinates(latents, context.history.shape[1], patch_size)
        return coordinates, token_cameras(context.cameras, latents, patch_size)

    def _embed(self, latents: Tensor) -> Tensor:
        """`[b, n, d]` of latents `[b, t, c, h, w]`, frame by frame, row by row; t can be 0."""
        weight = self.patch_embedding.weight
        if not latents.shape[1]:  # without the weight's device, which is meta for an offloaded model
            return latents.new_zeros(len(latents), 0, len(weight), dtype=weight.dtype)
        return patch_embed(self.patch_embedding, latents.transpose(1, 2).to(weight.dtype))

    def _embed_timestep(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The timestep embedding `[b, d]`, and the modulation of the blocks `[b, 6, d]`."""
        embedder = self.condition_embedder
        waves = embedder.timesteps_proj(timestep).to(next(embedder.time_embedder.parameters()).dtype)
        temb = embedder.time_embedder(waves).type_as(like)
        return temb, embedder.time_proj(embedder.act_fn(temb)).unflatten(1, (6, -1))

    def _positions(self, coordinates: Tensor, cameras: Tensor, values: Tensor, context: Context) -> Positions:
        """Positions of tokens `[b, n, d]` with coordinates `[b, n, 3]` and cameras `[b, n, 4, 4, 4]`."""
        config = self.config
        return token_positions(
            coordinates,
            cameras,
            context.anchor,
            context.image_from_camera,
            context.size,
            config.metres_per_unit,
            config.rope_theta,
            config.attention_head_dim,
            config.insertion,
            values.dtype,
        )

    @property
    def _checkpoint(self) -> Callable[..., Any] | None:
        """The function that runs a block with gradient checkpointing; None if gradients are not checkpointed."""
        return self._gradient_checkpointing_func if torch.is_grad_enabled() and self.gradient_checkpointing else None


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
        raise ValueError(f"attention_head_dim is a multiple of {least}, because four cameras share it; got {head}")
    if image_dim is not None or (out_channels or in_channels) != in_channels:
        raise ValueError(
            "this Wan transformer takes its image through additional channels or image tokens "
            f"(in_channels {in_channels}, out_channels {out_channels}, image_dim {image_dim}), and a world conditions "
            "on clean latent frames: use a text-to-video or TI2V model, such as Wan-AI/Wan2.2-TI2V-5B-Diffusers"
        )
    if patch_size[0] != 1 or patch_size[1] != patch_size[2]:
        raise ValueError(f"patch_size is (1, p, p), because a step is one latent frame; got {tuple(patch_size)}")
