"""Declarative checks of config fields: a constraint is part of the field's annotation, and `validate` applies all.

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
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Protocol, Union, get_args, get_origin, get_type_hints, runtime_checkable

import numpy as np


@runtime_checkable
class Constraint(Protocol):
    """A condition on a field's value."""

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
    """A whole number from `least` to `most`, both included: Python's, or as `as_whole` takes it."""

    least: int | None = None
    most: int | None = None

    @property
    def expected(self) -> str:
        return "a whole number" + _range(self.least, self.most)

    def accepts(self, value: Any) -> bool:
        number = as_whole(value)
        return number is not None and _within(number, self.least, self.most)

    def normalized(self, value: Any) -> int:
        return int(value)


@dataclass(frozen=True)
class Number:
    """A finite number from `least` to `most`, both included, above `above` and below `below`.

    NumPy's scalars, and arrays and tensors without dimensions, are accepted. True and False are not numbers.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    @property
    def expected(self) -> str:
        limits = [] if self.above is None else [f" above {_plain(self.above)}"]
        limits += [limit for limit in [_range(self.least, self.most)] if limit]
        limits += [] if self.below is None else [f" below {_plain(self.below)}"]
        return "a finite number" + " and".join(limits)

    def accepts(self, value: Any) -> bool:
        value = _without_dimensions(value)
        if not is_finite(value) or not _within(value, self.least, self.most):
            return False
        return (self.above is None or value > self.above) and (self.below is None or value < self.below)

    def normalized(self, value: Any) -> float:
        value = _without_dimensions(value)
        return int(value) if is_whole(value) else float(value)


@dataclass(frozen=True, init=False)
class OneOf:
    """One of some known texts."""

    known: tuple[str, ...]

    def __init__(self, *known: str) -> None:
        object.__setattr__(self, "known", known)

    @property
    def expected(self) -> str:
        return f"one of {', '.join(self.known)}"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.known

    def normalized(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True)
class Text:
    """Text."""

    @property
    def expected(self) -> str:
        return "text"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str)

    def normalized(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True)
class Flag:
    """True or False, NumPy's included."""

    @property
    def expected(self) -> str:
        return "True or False"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool | np.bool_)

    def normalized(self, value: Any) -> bool:
        return bool(value)


@dataclass(frozen=True)
class PathOrId:
    """Text that is not empty, or a `Path`: a folder, a file, or the id of something on the Hugging Face hub."""

    @property
    def expected(self) -> str:
        return "the path of a folder or file, or an id"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str | Path) and value != ""

    def normalized(self, value: Any) -> str | Path:
        return value


@dataclass(frozen=True)
class Folder:
    """The path of a folder, which need not exist yet; text becomes a `Path`."""

    @property
    def expected(self) -> str:
        return "the path of a folder"

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, Path | str) or value == "" or "\0" in str(value):
            return False
        try:
            return not Path(value).is_file()
        except OSError:  # a name that is too long
            return False

    def normalized(self, value: Any) -> Path:
        return Path(value)


@dataclass(frozen=True)
class ListOf:
    """A list or tuple whose items all meet a constraint; it becomes a tuple."""

    item: Constraint

    @property
    def expected(self) -> str:
        return f"a list, each item {self.item.expected}"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, list | tuple) and all(map(self.item.accepts, value))

    def normalized(self, value: Any) -> tuple[Any, ...]:
        return tuple(map(self.item.normalized, value))


def is_finite(value: object) -> bool:
    """Whether this is a finite real number. True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(-math.inf < value < math.inf)


def is_whole(value: object) -> bool:
    """Whether this is a whole number, NumPy's included. True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def as_whole(value: object) -> int | None:
    """A whole number as Python's `int`; None for anything else.

    NumPy's scalars are accepted, and arrays and tensors without dimensions. Booleans and floats are not, whatever their
    value.
    """
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")) or getattr(value, "ndim", 0):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _without_dimensions(value: Any) -> Any:
    """The scalar in an array or tensor without dimensions; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def as_float64(value: Any) -> np.ndarray:
    """Numbers as a float64 array: from lists, NumPy arrays, and torch tensors of any device and dtype.

    Raises:
        TypeError, ValueError: not an array of numbers.
    """
    if hasattr(value, "detach"):  # a tensor, perhaps with a gradient, on an accelerator or in bfloat16
        value = value.detach().cpu().double().numpy()
    try:
        return np.asarray(value, dtype=np.float64)
    except RuntimeError as error:  # torch raises it for a list of tensors with gradients
        raise ValueError(f"not an array of numbers: {error}") from error


def check(name: str, value: Any, constraint: Constraint, optional: bool = False) -> Any:
    """One value, checked and normalized.

    Args:
        name: what to call it in the message.
        optional: whether None is allowed.

    Raises:
        ValueError: the value does not meet the constraint. The message gives the name, what is expected, and the value.
    """
    if value is None and optional:
        return None
    if not constraint.accepts(value):
        expected = f"{constraint.expected}, or None" if optional else constraint.expected
        got = value.item() if isinstance(value, np.generic) else value
        raise ValueError(f"{name} is {expected}; got {got!r}")
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
def _constraints(kind: type) -> Sequence[tuple[str, Constraint, bool]]:
    """The field, its constraint and whether it may be None, for each constraint in a dataclass's annotations."""
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in fields(kind):
        hint = hints[field.name]
        members = get_args(hint) if _is_union(hint) else (hint,)
        optional = _allows_none(hint)
        for member in members:
            if get_origin(member) is Annotated:
                optional = optional or _allows_none(get_args(member)[0])
                found += [(field.name, item, optional) for item in member.__metadata__ if isinstance(item, Constraint)]
    return tuple(found)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _allows_none(hint: Any) -> bool:
    return _is_union(hint) and NoneType in get_args(hint)


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {_plain(least)} to {_plain(most)}"
    if least is not None:
        return f" from {_plain(least)}"
    return f" up to {_plain(most)}" if most is not None else ""


def _plain(number: float) -> str:
    """A limit as text: 1 for 1.0, and every digit of a large whole number."""
    return str(int(number)) if float(number).is_integer() else repr(number)
