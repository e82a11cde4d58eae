"""Declarative checks of config fields: a constraint stands in the field's annotation, and `validate` applies all.

    @dataclass(frozen=True)
    class Config:
        steps: Annotated[int | None, Whole(1)] = None
        rate: Annotated[float, Number(above=0.0)] = 1e-4

        def __post_init__(self) -> None:
            validate(self)

A field whose type allows None may be None. Checks that relate several fields follow `validate` in `__post_init__`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Protocol, Union, get_args, get_origin, get_type_hints, runtime_checkable


@runtime_checkable
class Constraint(Protocol):
    """What a field's value must be."""

    @property
    def expected(self) -> str:
        """A noun phrase for messages, such as "a whole number from 1"."""
        ...

    def accepts(self, value: Any) -> bool:
        """Whether the value is allowed."""
        ...

    def normalized(self, value: Any) -> Any:
        """An accepted value as plain Python, so that NumPy's numbers can be written as JSON."""
        ...


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`; True and False are none."""

    least: int | None = None
    most: int | None = None

    @property
    def expected(self) -> str:
        return "a whole number" + _span(self.least, self.most)

    def accepts(self, value: Any) -> bool:
        return is_whole(value) and _within(value, self.least, self.most)

    def normalized(self, value: Any) -> int:
        return int(value)


@dataclass(frozen=True)
class Number:
    """A finite number, `least` or more, above `above`, up to `most`, below `below`; True and False are none."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    @property
    def expected(self) -> str:
        limits = [f" above {self.above:g}"] if self.above is not None else []
        limits += [_span(self.least, self.most)] if self.least is not None or self.most is not None else []
        limits += [f" below {self.below:g}"] if self.below is not None else []
        return "a finite number" + " and".join(limits)

    def accepts(self, value: Any) -> bool:
        if not is_finite(value) or not _within(value, self.least, self.most):
            return False
        return (self.above is None or value > self.above) and (self.below is None or value < self.below)

    def normalized(self, value: Any) -> float:
        return value if isinstance(value, int) else float(value)


@dataclass(frozen=True)
class OneOf:
    """One of some known values."""

    known: tuple[Any, ...]

    def __init__(self, *known: Any) -> None:
        object.__setattr__(self, "known", known)

    @property
    def expected(self) -> str:
        return f"one of {', '.join(map(str, self.known))}"

    def accepts(self, value: Any) -> bool:
        return any(type(value) is type(option) and value == option for option in self.known)

    def normalized(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class Text:
    """Text."""

    @property
    def expected(self) -> str:
        return "text"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str)

    def normalized(self, value: Any) -> str:
        return value


@dataclass(frozen=True)
class Flag:
    """True or False, NumPy's included."""

    @property
    def expected(self) -> str:
        return "True or False"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool) or type(value).__name__ == "bool" and hasattr(value, "dtype")

    def normalized(self, value: Any) -> bool:
        return bool(value)


def is_finite(value: object) -> bool:
    """Whether this is a finite real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(-math.inf < value < math.inf)


def is_whole(value: object) -> bool:
    """Whether this is a whole number, NumPy's included; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check(name: str, value: Any, constraint: Constraint, optional: bool = False) -> Any:
    """One value, checked and normalized.

    Args:
        name: what to call it in the message.
        optional: whether None is allowed.

    Raises:
        ValueError: the value is not what the constraint expects; the message says what is.
    """
    if value is None and optional:
        return None
    if not constraint.accepts(value):
        expected = f"{constraint.expected}, or None" if optional else constraint.expected
        raise ValueError(f"{name} is {expected}; got {value!r}")
    return constraint.normalized(value)


def validate(config: Any, spell: Callable[[str], str] = str) -> None:
    """Checks every annotated field of a dataclass, and stores the normalized values, in frozen ones too.

    Args:
        spell: how messages spell a field's name, such as `option` for a command's options.

    Raises:
        ValueError: the first field whose value its constraint does not allow.
    """
    for name, constraint, optional in _constraints(type(config)):
        value = check(spell(name), getattr(config, name), constraint, optional)
        object.__setattr__(config, name, value)


def option(name: str) -> str:
    """A field's name as the command line spells it: `--min-coverage`."""
    return f"--{name.rstrip('_').replace('_', '-')}"


@cache
def _constraints(kind: type) -> Collection[tuple[str, Constraint, bool]]:
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in fields(kind):
        hint = hints[field.name]
        optional = _allows_none(hint)
        for part in (hint, *get_args(hint)):
            if get_origin(part) is Annotated:
                found += [(field.name, row, optional) for row in part.__metadata__ if isinstance(row, Constraint)]
    return tuple(found)


def _allows_none(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _span(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    if least is not None:
        return f" from {least:g}"
    return f" up to {most:g}" if most is not None else ""
