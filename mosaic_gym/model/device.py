"""Where networks run, and what is said when there is no room for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def out_of_memory_guard(component: str) -> Iterator[None]:
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


def check_device(device: str | torch.device) -> torch.device:
    """The device that networks are to run on, before any are loaded to find out that there is none.

    Raises:
        ValueError: no name of a device, or one that this torch does not see.
    """
    expected = "device is a name such as 'cpu', 'cuda' or 'cuda:1'"
    if not isinstance(device, str | torch.device):
        raise ValueError(f"{expected}; got {device!r}")
    try:
        chosen = torch.device(device)
        kind = torch.get_device_module(chosen)  # torch knows more names than it has modules for
    except RuntimeError as error:
        raise ValueError(f"{expected}; got {str(device)!r}") from error
    count = kind.device_count() if kind.is_available() else 0
    if (chosen.index or 0) >= count:
        name = f"{chosen.type.upper()} device"
        seen = f"{count} {name}(s), counted from 0" if count else f"no {name}"
        raise ValueError(f"device {str(device)!r} was asked for and this torch sees {seen}; use device='cpu'")
    return chosen
