"""What a Wan pipeline sees and hears through: its causal autoencoder, one latent frame at a time, and its prompts."""

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
"""What Wan's transformers were trained with; shorter prompts are padded with zeros."""

Stream = tuple[Any, ...]
"""Where one clip's decoding stands: () before its first latent; behind it that latent `[c, h, w]` alone, from which all
else follows; later its last frame `[3, H, W]`, then what every causal convolution keeps."""


class WanCodec(nn.Module):
    """Wan's causal autoencoder, one latent frame at a time.

    Decoding goes on where it stopped: what every causal convolution keeps of the frames before is a value, passed
    in and returned, so a clip decoded in pieces equals the clip decoded at once, and states can be forked.

    Args:
        vae: diffusers' autoencoder.
        restarts: whether every step begins a clip of its own from the last frame, as an image-to-video model was
            trained to; otherwise one clip goes on for ever.
    """

    def __init__(self, vae: AutoencoderKLWan, restarts: bool = True):
        super().__init__()
        self.vae = vae
        self.restarts = restarts
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1), persistent=False)

    def channels_last(self) -> WanCodec:
        """Lays the weights out with channels last, in place: what GPUs' convolutions in half precision work on."""
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
        """A still is the latent itself: resampling it is the paper's Warped Latent, on its own grid."""
        return self.stride

    instants = slice(-1, None)
    """A latent made of stills is the last one's."""

    def keyframe_image(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The latents: they belong to their last instant, whose depth and camera place them."""
        return latents

    def from_keyframe_images(self, warped_frames: Float[Tensor, "b 4 c h w"]) -> Float[Tensor, "b c h w"]:
        """Of four stills `[b, 4, c, h, w]` the last, `[b, c, h, w]`."""
        return warped_frames[:, self.instants][:, 0]

    def encode(
        self, frames: Float[Tensor, "b 4 3 H W"], before: Float[Tensor, "b 3 H W"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Latents `[b, c, h, w]` of real frames `[b, 4, 3, H, W]` in [-1, 1].

        Args:
            before: the frame in front of them; None for a body at rest, whose last frame is encoded as an image.

        Raises:
            ValueError: a size the stride does not divide.
        """
        if frames.shape[-2] % self.stride or frames.shape[-1] % self.stride:
            raise ValueError(
                f"Wan's autoencoder takes sizes that {self.stride} divides; got {frames.shape[-2]}x{frames.shape[-1]}"
            )
        clip = frames[:, -1:] if before is None else torch.cat([before[:, None], frames], dim=1)
        return self.encode_clip(clip)[:, -1]

    def encode_clip(self, frames: Float[Tensor, "b f 3 H W"]) -> Float[Tensor, "b t c h w"]:
        """Latents `[b, 1 + t, c, h, w]` of a clip of `1 + 4 * t` frames in [-1, 1]; the first is an image's."""
        moments = self.vae.encode(frames.transpose(1, 2).to(self.vae.dtype)).latent_dist
        return ((moments.mode().to(self.mean.dtype) - self.mean) / self.deviation).transpose(1, 2)

    @out_of_memory_guard("decoding frames")
    def decode_next(
        self, latents: Float[Tensor, "b c h w"], streams: Sequence[Stream]
    ) -> tuple[Float[Tensor, "b f 3 H W"], list[Stream]]:
        """The frames of one more latent of every clip, and where the clips then stand.

        Args:
            latents: `[b, c, h, w]`.
            streams: for each clip what `begin` or the last call returned for it; () for a clip that begins, whose first
                latent is one frame. All clips begin, or none does.
        """
        frames: list[Tensor | None] = [None] * len(latents)
        after: list[Stream] = [()] * len(latents)
        for members in _alike(streams):
            shown, cache = self._decode(latents[members], self._cache_of([streams[i] for i in members]))
            for row, i in enumerate(members):
                frames[i], after[i] = shown[row], (shown[row, -1].clone(), *_row(cache, row))
        return torch.stack(frames), after

    def begin(self, latents: Float[Tensor, "b c h w"]) -> list[Stream]:
        """Clips that have shown their first latent, an image's `[b, c, h, w]`.

        Each keeps a copy of it and no more. What its convolutions keep is some thousand times as large (0.7 GiB of a
        352x640 frame in Wan 2.2's), and where every step begins a clip, it would lie in every state for nothing.
        """
        return [(latent.clone(),) for latent in latents]

    @out_of_memory_guard("decoding frames")
    def present(self, latent: Tensor, stream: Stream) -> Float[Tensor, "3 H W"]:
        """The last frame `[3, H, W]` that was shown; of a clip that has only begun it is decoded here."""
        if len(stream) == 1:
            return self._decode(stream[0][None], None)[0][0, -1]
        return stream[0]

    def _cache_of(self, streams: Sequence[Stream]) -> list[Any] | None:
        """What every causal convolution keeps of clips that stand alike; None of such as begin."""
        if not streams[0]:
            return None
        if len(streams[0]) == 1:
            return self._decode(torch.stack([first for (first,) in streams]), None)[1]
        return [_joined(parts) for parts in zip(*(stream[1:] for stream in streams))]  # noqa: B905

    def _decode(self, latents: Tensor, cache: list[Any] | None) -> tuple[Tensor, list[Any]]:
        """The frames `[b, f, 3, H, W]` of one more latent of clips that stand alike, and their cache, changed in place.

        Args:
            cache: what every causal convolution keeps; None for clips that begin.
        """
        vae = self.vae
        if hasattr(vae, "_hf_hook"):  # decode() would have moved an offloaded autoencoder to its device
            vae._hf_hook.pre_forward(vae)
        told = {}
        if cache is None:
            cache, told = [None] * vae._cached_conv_counts["decoder"], {"first_chunk": True}
        scaled = (latents[:, :, None] * self.deviation + self.mean).to(vae.dtype)
        out = vae.decoder(vae.post_quant_conv(scaled), feat_cache=cache, feat_idx=[0], **told)
        if vae.config.patch_size is not None:
            out = unpatchify(out, patch_size=vae.config.patch_size)
        return out.float().clamp(-1.0, 1.0).transpose(1, 2), cache


def _alike(streams: Sequence[Stream]) -> list[list[int]]:
    """Members whose clips stand alike, and can be decoded together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, stream in enumerate(streams):
        kind = tuple("tensor" if isinstance(part, Tensor) else part for part in stream)
        groups.setdefault(kind, []).append(index)
    return list(groups.values())


def _row(cache: Sequence[Any], row: int) -> list[Any]:
    """One clip's share of a batch's cache, on its own: a view would keep the others' alive."""
    return [part[row : row + 1].clone() if isinstance(part, Tensor) and len(part) > 1 else part for part in cache]


def _joined(parts: Sequence[Any]) -> Any:
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
        """The text encoder, whose weights what is said depends on."""
        return self.pipeline.text_encoder

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of prompts.

        Raises:
            ValueError: a prompt longer than Wan reads.
        """
        told = [self.pipeline.tokenizer(prompt).input_ids for prompt in prompts]
        for tokens in told:
            if len(tokens) > PROMPT_TOKENS:
                raise ValueError(f"a prompt has at most {PROMPT_TOKENS} tokens; this one has {len(tokens)}. Shorten it")
        return told

    @out_of_memory_guard("the text encoder")
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """`[b, 512, d]` of prompts; what is behind a prompt's end is zero.

        Raises:
            ValueError: a prompt longer than Wan reads; it is not cut.
            MemoryError: the accelerator has no room for the text encoder.
        """
        self.tokenize(prompts)
        device = self.pipeline._execution_device
        embeds, _ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=PROMPT_TOKENS, device=device
        )
        return embeds
