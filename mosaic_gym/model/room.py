"""What is said when an accelerator's memory is too small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def room_for(component: str) -> Iterator[None]:
    """Names what there was no room for, and what would make some; also a decorator.

    Args:
        component: what runs meanwhile, as a user would call it.

    Raises:
        MemoryError: the accelerator's memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"the accelerator has no room for {component}. What makes some: a smaller resolution, fewer members at "
            "once, guidance 1, and of a Wan pipeline loading={'dtype': 'bfloat16'}, {'offload': 'model'} or "
            f"{{'quantisation': '8bit'}}. ({str(error).splitlines()[0]})"
        ) from error
