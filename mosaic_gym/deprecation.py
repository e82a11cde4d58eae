"""Old spellings of public names, accepted for one version with a DeprecationWarning."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Target = TypeVar("Target", bound=Callable[..., Any])


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warns that `old` is spelled `new` from now on.

    Args:
        stacklevel: as `warnings.warn` counts it, so that the warning names the caller's line.
    """
    warnings.warn(f"{old} is deprecated: use {new}", DeprecationWarning, stacklevel=stacklevel)


def current_arguments(arguments: Mapping[str, Any], renamed: Mapping[str, str], stacklevel: int = 4) -> dict[str, Any]:
    """Keyword arguments with old names replaced by new ones, with a warning for each.

    Args:
        arguments: as a caller passed them.
        renamed: new names by old names.

    Raises:
        TypeError: an argument is passed under both names.
    """
    current = dict(arguments)
    for old, new in renamed.items():
        if old in current:
            if new in current:
                raise TypeError(f"{old} is the old name of {new}: pass {new} only")
            warn_renamed(f"the argument {old}", new, stacklevel)
            current[new] = current.pop(old)
    return current


def renamed_arguments(**renamed: str) -> Callable[[Target], Target]:
    """Decorates a function or a class, so that it also takes arguments by the old names given as keywords."""

    def decorate(target: Target) -> Target:
        function = target.__init__ if inspect.isclass(target) else target

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **current_arguments(kwargs, renamed))

        if not inspect.isclass(target):
            return call
        target.__init__ = call
        return target

    return decorate


def renamed_method(old: str, new: str) -> Callable[..., Any]:
    """A method of the old name that warns and calls the one of the new name."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        warn_renamed(f"{type(self).__name__}.{old}", new)
        return getattr(self, new)(*args, **kwargs)

    call.__name__, call.__doc__ = old, f"Deprecated: use `{new}`."
    return call
