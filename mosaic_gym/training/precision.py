"""Settings of the process that a recipe needs while it runs, restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_bfloat16_products(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: CUDA since Ampere, and CPUs with AVX-512 BF16 or AMX.

    Elsewhere such products are emulated, up to a hundred times slower than float32.
    """
    if device.type == "cpu":
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def fast_autocast(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the device multiplies it in hardware, else no change."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16_products(device))


@contextmanager
def exact_products() -> Iterator[None]:
    """Full float32 matrix products inside the block; also a decorator.

    A `Run` on an accelerator trains with TF32 products. Computed so, positions of patches are off by centimetres.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """New tensors are float32 inside the block, whatever `torch.set_default_dtype` was called with; also a decorator.

    Networks are made with the default dtype, and recorded arrays are float32.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
