"""The device that networks run on, and errors that explain a lack of its memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def out_of_memory_guard(component: str) -> Iterator[None]:
    """Turns an out-of-memory error into one that names the component and the remedies; also a decorator.

    Args:
        component: what runs inside, in the user's words.

    Raises:
        MemoryError: the accelerator's memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"the accelerator has too little memory for {component}. These save memory: a smaller resolution, fewer "
            "members at once, guidance 1, and for a Wan pipeline loading={'dtype': 'bfloat16'}, {'offload': 'model'} "
            f"or {{'quantisation': '8bit'}}. ({str(error).splitlines()[0]})"
        ) from error


def without_autocast(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a method of an object with a `device`: it runs without gradients and without the caller's autocast.

    Networks run in the dtypes that their weights are loaded in. Autocast around a call would round products further,
    and silently change what is generated.
    """

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad(), torch.autocast(torch.device(self.device).type, enabled=False):
            return method(self, *args, **kwargs)

    return call


def check_device(device: str | torch.device) -> torch.device:
    """The device of a name, checked before any weights are loaded.

    Raises:
        ValueError: not the name of a device, or no such device is available to this torch.
    """
    expected = "device is a name such as 'cpu', 'cuda' or 'cuda:1'"
    if not isinstance(device, str | torch.device):
        raise ValueError(f"{expected}; got {device!r}")
    try:
        chosen = torch.device(device)
        kind = torch.get_device_module(chosen)  # fails for names without a backend
    except RuntimeError as error:
        raise ValueError(f"{expected}; got {str(device)!r}") from error
    count = kind.device_count() if kind.is_available() else 0
    if (chosen.index or 0) >= count:
        name = f"{chosen.type.upper()} device"
        available = f"{count} {name}(s), counted from 0" if count else f"no {name}"
        raise ValueError(f"device {str(device)!r} is not available: this torch has {available}; use device='cpu'")
    return chosen
