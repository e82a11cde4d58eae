"""Old spellings of public names, accepted for one version with a DeprecationWarning."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, TypeVar

Target = TypeVar("Target", bound=Callable[..., Any])

LIBRARIES = {"mosaic_gym", "gymnasium", "stable_baselines3", "dataclasses", "importlib", "_frozen_importlib"}
"""Packages whose frames stand between a user's line and a warning."""
_REPLACE = {getattr(dataclasses, name).__code__ for name in ("replace", "_replace") if hasattr(dataclasses, name)}


def warn_renamed(old: str, new: str) -> None:
    """Warns that `old` is spelled `new` from now on, at the user's line.

    Python shows a DeprecationWarning by default only if it is attributed to `__main__`. So the warning is attributed
    to the first frame outside `LIBRARIES`, which include the code that `dataclass` generates for them.
    """
    frame = _user_frame(sys._getframe(1))
    module = frame.f_globals.get("__name__") or "<unknown>"
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    message = f"{old} is deprecated: use {new}"
    warnings.warn_explicit(message, DeprecationWarning, frame.f_code.co_filename, frame.f_lineno, module, registry)


def _user_frame(frame: FrameType) -> FrameType:
    """The innermost frame whose module is in none of `LIBRARIES`; the outermost of all if there is none."""
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in LIBRARIES:
        frame = frame.f_back
    return frame


def current_arguments(arguments: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
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
            warn_renamed(f"the argument {old}", new)
            current[new] = current.pop(old)
    return current


def renamed_arguments(**renamed: str) -> Callable[[Target], Target]:
    """Decorates a function or a dataclass, so that it also takes arguments by the old names given as keywords.

    A dataclass's fields can be read by their old names too, and `dataclasses.replace` takes the old names.
    """

    def decorate(target: Target) -> Target:
        if inspect.isclass(target):
            return _rename_fields(target, renamed)

        @functools.wraps(target)
        def call(*args: Any, **kwargs: Any) -> Any:
            return target(*args, **current_arguments(kwargs, renamed))

        return call

    return decorate


def _rename_fields(target: Any, renamed: Mapping[str, str]) -> Any:
    """The class itself, whose `__init__` takes old names, and whose fields can be read by them."""
    initialize = target.__init__

    @functools.wraps(initialize)
    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        if any(old in kwargs for old in renamed):
            kwargs = _requested_fields(kwargs, renamed, sys._getframe(1))
        initialize(self, *args, **current_arguments(kwargs, renamed))

    target.__init__ = call
    for old, new in renamed.items():
        setattr(target, old, _renamed_field(old, new))
    return target


def _requested_fields(
    arguments: Mapping[str, Any], renamed: Mapping[str, str], frame: FrameType | None
) -> dict[str, Any]:
    """The arguments without those that `dataclasses.replace` added, if it calls: it passes the instance's own values.

    Args:
        frame: of the caller. `replace` is looked for a few frames up, because type checkers wrap functions.
    """
    requested = dict(arguments)
    for _ in range(8):
        if frame is None:
            break
        if frame.f_code in _REPLACE and set(frame.f_locals.get("changes", ())) == set(arguments):
            replaced = frame.f_locals.get("obj", frame.f_locals.get("self"))
            for old, new in renamed.items():
                if old in requested and requested.get(new) is getattr(replaced, new):
                    del requested[new]
            break
        frame = frame.f_back
    return requested


def _renamed_field(old: str, new: str) -> property:
    """A property of the old name that warns and reads the field of the new name."""

    def read(self: Any) -> Any:
        warn_renamed(f"{type(self).__name__}.{old}", new)
        return getattr(self, new)

    return property(read, doc=f"Deprecated: use `{new}`.")


def renamed_method(old: str, new: str, **renamed: str) -> Callable[..., Any]:
    """A method of the old name that warns and calls the one of the new name.

    Args:
        renamed: new names of arguments by old names.
    """

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        warn_renamed(f"{type(self).__name__}.{old}", new)
        return getattr(self, new)(*args, **{renamed.get(name, name): value for name, value in kwargs.items()})

    call.__name__, call.__doc__ = old, f"Deprecated: use `{new}`."
    return call
