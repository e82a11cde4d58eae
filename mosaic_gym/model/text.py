"""A small text encoder over bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

PADDING = 256
"""The token after a prompt's last byte."""
MAX_PROMPT_BYTES = 160
"""Length of new text encoders: what the longest captions of recordings need."""


class ByteTextEncoder(ModelMixin, ConfigMixin):
    """UTF-8 bytes through one transformer layer, pooled into a few vectors for the world model's cross attention.

    Args:
        width: of every vector.
        length: the largest number of bytes; a longer prompt is an error and is not truncated.
        outputs: the number of vectors for a prompt.
    """

    @register_to_config
    def __init__(self, width: int = 64, length: int = MAX_PROMPT_BYTES, outputs: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(PADDING + 1, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.queries = nn.Parameter(torch.randn(outputs, width) * 0.5)
        self.pool = nn.MultiheadAttention(width, 4, batch_first=True)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Byte tokens `[b, length]`.

        Raises:
            ValueError: a prompt is longer than `length` bytes.
        """
        tokens = torch.full((len(prompts), self.config.length), PADDING, dtype=torch.long, device="cpu")
        for row, prompt in zip(tokens, prompts, strict=True):
            data = prompt.encode()
            if len(data) > self.config.length:
                raise ValueError(
                    f"a prompt has at most {self.config.length} bytes; this one has {len(data)}: {prompt!r}. Shorten it"
                )
            row[: len(data)] = torch.tensor(list(data), dtype=torch.long, device="cpu")
        return tokens.to(self.embedding.weight.device)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[b, outputs, width]` of byte tokens `[b, length]`."""
        hidden = self.layer(self.embedding(tokens) + self.position)
        pooled, _ = self.pool(self.queries.expand(len(tokens), -1, -1), hidden, hidden, need_weights=False)
        return pooled

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """`[b, outputs, width]` of prompts."""
        return self(self.tokenize(prompts))
