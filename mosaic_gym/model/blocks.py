"""Passes of tokens through a transformer's blocks, with a KV cache of the clean tokens.

Both functions take `checkpoint`, the function that runs a block with gradient checkpointing, or None to run it plainly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mosaic_gym.model.attention import Positions


def fill_cache(
    blocks: Sequence[nn.Module],
    hidden_states: Tensor,
    modulation: Tensor,
    texts: Sequence[Any],
    positions: Positions,
    checkpoint: Callable[..., Any] | None,
) -> tuple[tuple[Tensor, ...], ...]:
    """Keys and values of clean tokens in each block. The last block's output is not needed.

    Args:
        hidden_states: `[b, n, d]`.
        modulation: `[b, 6, d]`.
        texts: for each block, keys and values of the prompt.
    """
    *blocks, last = blocks
    cache = []
    hidden_states = hidden_states.contiguous()
    for block, text in zip(blocks, texts, strict=False):
        arguments = block, hidden_states, text, modulation, positions
        if checkpoint is not None:
            hidden_states, keys_values = checkpoint(_run_block_with_cache, *arguments)
        else:
            hidden_states, keys_values = _run_block_with_cache(*arguments)
        cache.append(keys_values)
    positions = replace(positions, kv_output=[])
    if hasattr(last, "_hf_hook"):  # an offloaded block fetches its weights when it is called
        last(hidden_states, texts[-1], modulation, positions)
    else:
        _cache_block_input(last, hidden_states, modulation, positions)
    return (*cache, positions.kv_output[0])


def run_blocks(
    blocks: Sequence[nn.Module],
    hidden_states: Tensor,
    modulation: Tensor,
    texts: Sequence[Any],
    positions: Positions,
    checkpoint: Callable[..., Any] | None,
    kv_caches: Sequence[tuple[Tensor, ...]] | None = None,
) -> Tensor:
    """Tokens `[b, n, d]` after all blocks.

    Args:
        hidden_states: `[b, n, d]`.
        modulation: `[b, 6, d]`, or `[b, n, 6, d]` if it differs between tokens.
        texts: for each block the prompt's vectors, or its keys and values.
        kv_caches: for each block, keys and values of further tokens to attend to.
    """
    hidden_states = hidden_states.contiguous()
    for index, block in enumerate(blocks):
        placed = replace(positions, kv_cache=kv_caches[index]) if kv_caches is not None else positions
        if checkpoint is not None:
            hidden_states = checkpoint(block, hidden_states, texts[index], modulation, placed)
        else:
            hidden_states = block(hidden_states, texts[index], modulation, placed)
    return hidden_states


def run_last_block(
    block: nn.Module,
    hidden_states: Tensor,
    modulations: tuple[Tensor, Tensor],
    text: Tensor,
    positions: Positions,
    clean: int,
) -> Tensor:
    """Target tokens after the last block, which needs only keys and values of the clean tokens before them.

    Args:
        hidden_states: `[b, n, d]`, of which the first `clean` are clean tokens.
        modulations: `[b, 6, d]` of the clean tokens, and of the target's.
        text: the prompt's vectors.
    """
    clean_positions, target_positions = positions.select(slice(None, clean)), positions.select(slice(clean, None))
    clean_positions.kv_output = []
    _cache_block_input(block, hidden_states[:, :clean], modulations[0], clean_positions)
    mask = positions.key_mask
    # A mask with a row for every token is cut to the rows of the target's.
    target_positions.key_mask = mask[..., clean:, :] if mask is not None and mask.shape[-2] > 1 else mask
    target_positions.kv_cache = clean_positions.kv_output[0]
    return block(hidden_states[:, clean:].contiguous(), text, modulations[1], target_positions)


def _run_block_with_cache(
    block: nn.Module, hidden_states: Tensor, text: Any, modulation: Tensor, positions: Positions
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output `[b, n, d]` of a block, and the keys and values of its self-attention.

    Both are returned values, because gradient checkpointing runs the function again and loses its side effects.
    """
    positions = replace(positions, kv_output=[])
    return block(hidden_states, text, modulation, positions), positions.kv_output[0]


def _cache_block_input(block: nn.Module, hidden_states: Tensor, modulation: Tensor, positions: Positions) -> None:
    """Adds keys and values of tokens `[b, n, d]` to `positions.kv_output`, without the rest of the block."""
    shift, scale = (block.scale_shift_table + modulation.float()).chunk(6, dim=1)[:2]
    normed = (block.norm1(hidden_states.float()) * (1 + scale) + shift).type_as(hidden_states)
    block.attn1.processor.cache_keys_values(block.attn1, normed, positions)
