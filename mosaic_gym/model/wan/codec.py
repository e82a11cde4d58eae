"""A Wan pipeline's causal autoencoder, decoding one latent frame at a time, and its text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from jaxtyping import Float
from torch import Tensor, nn

from mosaic_gym.model.device import out_of_memory_guard

PROMPT_TOKENS = 512
"""The prompt length that Wan's transformers were trained with; shorter prompts are padded with zeros."""

Stream = tuple[Any, ...]
"""The decoder's state of one clip: () before its first latent; after the first, that latent `[c, h, w]` alone, from
which the rest is computed; later the last frame `[3, H, W]`, followed by the cache of every causal convolution."""


class WanCodec(nn.Module):
    """Wan's causal autoencoder, one latent frame at a time.

    The caches of the causal convolutions are a value, passed in and returned. A clip that is decoded in pieces
    therefore equals the clip decoded at once, and states can be forked.

    Args:
        vae: diffusers' autoencoder.
        restarts: whether every step starts a new clip from the last frame, as an image-to-video model was trained to;
            otherwise one clip continues over all steps.
    """

    has_depth = False
    """Whether latents hold depth too; without it, an estimator follows the decoder."""

    def __init__(self, vae: AutoencoderKLWan, restarts: bool = True):
        super().__init__()
        self.vae = vae
        self.restarts = restarts
        self.register_buffer(
            "mean", torch.tensor(vae.config.latents_mean, dtype=torch.float32).view(1, -1, 1, 1, 1), persistent=False
        )
        self.register_buffer(
            "deviation",
            torch.tensor(vae.config.latents_std, dtype=torch.float32).view(1, -1, 1, 1, 1),
            persistent=False,
        )

    def channels_last(self) -> WanCodec:
        """Stores the weights with channels last, in place: GPUs' half-precision convolutions use this layout."""
        for layer in self.vae.modules():
            if isinstance(layer, nn.Conv3d):
                layer.to(memory_format=torch.channels_last_3d)
            elif isinstance(layer, nn.Conv2d):
                layer.to(memory_format=torch.channels_last)
        return self

    @property
    def channels(self) -> int:
        return self.vae.config.z_dim

    @property
    def stride(self) -> int:
        return self.vae.config.scale_factor_spatial

    @property
    def image_stride(self) -> int:
        """A keyframe image is the latent itself. Resampling it on its grid is the paper's Warped Latent."""
        return self.stride

    instants = slice(-1, None)
    """The instants that a latent shows: only the last of the four."""

    def keyframe_image(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The latents themselves. They are lifted with the depth and the camera of their last video frame."""
        return latents

    def from_keyframe_images(self, warped_frames: Float[Tensor, "b 4 c h w"]) -> Float[Tensor, "b c h w"]:
        """The last of four keyframe images `[b, 4, c, h, w]`, as `[b, c, h, w]`."""
        return warped_frames[:, self.instants][:, 0]

    def encode(
        self, frames: Float[Tensor, "b 4 3 H W"], before: Float[Tensor, "b 3 H W"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Latents `[b, c, h, w]` of real frames `[b, 4, 3, H, W]` in [-1, 1].

        Args:
            before: the frame before them `[b, 3, H, W]`; None for a camera at rest, whose last frame is encoded as an
                image.

        Raises:
            ValueError: the stride does not divide the size.
        """
        if frames.shape[-2] % self.stride or frames.shape[-1] % self.stride:
            raise ValueError(
                f"Wan's autoencoder takes multiples of {self.stride} pixels; got {frames.shape[-2]}x{frames.shape[-1]}"
            )
        clip = frames[:, -1:] if before is None else torch.cat([before[:, None], frames], dim=1)
        return self.encode_clip(clip)[:, -1]

    def encode_clip(self, frames: Float[Tensor, "b f 3 H W"]) -> Float[Tensor, "b t c h w"]:
        """Latents `[b, 1 + t, c, h, w]` of a clip of `1 + 4 * t` frames in [-1, 1]; the first encodes one image."""
        moments = self.vae.encode(frames.transpose(1, 2).to(self.vae.dtype)).latent_dist
        return ((moments.mode().to(self.mean.dtype) - self.mean) / self.deviation).transpose(1, 2)

    @out_of_memory_guard("decoding frames")
    def decode_next(
        self, latents: Float[Tensor, "b c h w"], streams: Sequence[Stream]
    ) -> tuple[Float[Tensor, "b f 3 H W"], list[Stream]]:
        """Decodes the next latent of every clip.

        Args:
            latents: `[b, c, h, w]`.
            streams: for each clip, what `start_clips` or the last call returned for it; () for a new clip, whose first
                latent is one frame. Either all clips are new, or none is.

        Returns:
            The frames, one of a new clip and else four, and the new streams.
        """
        frames: list[Tensor | None] = [None] * len(latents)
        next_streams: list[Stream] = [()] * len(latents)
        for indices in _groups_of_equal_layout(streams):
            decoded, cache = self._decode(latents[indices], self._cache_of([streams[i] for i in indices]))
            for row, i in enumerate(indices):
                frames[i], next_streams[i] = decoded[row], (decoded[row, -1].clone(), *_cache_row(cache, row))
        return torch.stack(frames), next_streams

    def start_clips(self, latents: Float[Tensor, "b c h w"]) -> list[Stream]:
        """Streams of clips whose first latent, an image's `[b, c, h, w]`, is decoded.

        A stream holds a copy of that latent only. The caches of the convolutions are about a thousand times as large
        (0.7 GiB for a 352x640 frame of Wan 2.2). Where every step starts a new clip, they would fill every state, and
        never be used.
        """
        return [(latent.clone(),) for latent in latents]

    @out_of_memory_guard("decoding frames")
    def last_frame(self, latent: Tensor, stream: Stream) -> Float[Tensor, "3 H W"]:
        """The last decoded frame `[3, H, W]`; after the first latent of a clip, it is decoded here."""
        if len(stream) == 1:
            return self._decode(stream[0][None], None)[0][0, -1]
        return stream[0]

    def _cache_of(self, streams: Sequence[Stream]) -> list[Any] | None:
        """The caches of every causal convolution for clips whose streams have equal layout; None for new clips."""
        if not streams[0]:
            return None
        if len(streams[0]) == 1:
            return self._decode(torch.stack([first for (first,) in streams]), None)[1]
        return [_concatenated(parts) for parts in zip(*(stream[1:] for stream in streams))]  # noqa: B905

    def _decode(self, latents: Tensor, cache: list[Any] | None) -> tuple[Tensor, list[Any]]:
        """Decodes the next latent `[b, c, h, w]` of clips whose streams have equal layout.

        Args:
            cache: of every causal convolution, changed in place; None for new clips.

        Returns:
            The frames `[b, f, 3, H, W]` and the cache.
        """
        vae = self.vae
        if hasattr(vae, "_hf_hook"):  # vae.decode() does this for an offloaded autoencoder; its parts do not
            vae._hf_hook.pre_forward(vae)
        options = {}
        if cache is None:
            cache, options = [None] * vae._cached_conv_counts["decoder"], {"first_chunk": True}
        scaled = (latents[:, :, None] * self.deviation + self.mean).to(vae.dtype)
        out = vae.decoder(vae.post_quant_conv(scaled), feat_cache=cache, feat_idx=[0], **options)
        if vae.config.patch_size is not None:
            out = unpatchify(out, patch_size=vae.config.patch_size)
        return out.float().clamp(-1.0, 1.0).transpose(1, 2), cache


def _groups_of_equal_layout(streams: Sequence[Stream]) -> list[list[int]]:
    """Indices of clips that can be decoded together: their streams have the same parts."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, stream in enumerate(streams):
        kind = tuple("tensor" if isinstance(part, Tensor) else part for part in stream)
        groups.setdefault(kind, []).append(index)
    return list(groups.values())


def _cache_row(cache: Sequence[Any], row: int) -> list[Any]:
    """One clip's part of a batch's cache, copied: a view would keep the whole batch in memory."""
    return [part[row : row + 1].clone() if isinstance(part, Tensor) and len(part) > 1 else part for part in cache]


def _concatenated(parts: Sequence[Any]) -> Any:
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) and len(parts) > 1 else parts[0]


class WanPrompts:
    """UMT5 and its tokenizer, as Wan's pipeline uses them.

    Args:
        pipeline: with text encoder and tokenizer.
    """

    def __init__(self, pipeline: WanImageToVideoPipeline):
        self.pipeline = pipeline

    @property
    def model(self) -> nn.Module:
        """The text encoder."""
        return self.pipeline.text_encoder

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of prompts.

        Raises:
            ValueError: a prompt has more than `PROMPT_TOKENS` tokens.
        """
        tokens_of_prompts = [self.pipeline.tokenizer(prompt).input_ids for prompt in prompts]
        for tokens in tokens_of_prompts:
            if len(tokens) > PROMPT_TOKENS:
                raise ValueError(f"a prompt has at most {PROMPT_TOKENS} tokens; this one has {len(tokens)}. Shorten it")
        return tokens_of_prompts

    @out_of_memory_guard("the text encoder")
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Vectors `[b, 512, d]` of prompts, zero after each prompt's end.

        Raises:
            ValueError: a prompt has more than `PROMPT_TOKENS` tokens; it is not truncated.
            MemoryError: the text encoder does not fit into the accelerator's memory.
        """
        self.tokenize(prompts)
        device = self.pipeline._execution_device
        embeds, _ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=PROMPT_TOKENS, device=device
        )
        return embeds
