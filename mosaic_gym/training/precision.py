"""Settings of the process that a recipe needs while it runs, restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
