"""Constraints in annotations: what they accept, what they refuse, and what the messages say."""

import json
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Optional

import numpy as np
import pytest
import torch

from mosaic_gym.validation import (
    Constraint,
    Flag,
    Folder,
    ListOf,
    Number,
    OneOf,
    PathOrId,
    Text,
    Whole,
    as_float64,
    check,
    is_finite,
    is_whole,
    option,
    validate,
)


@pytest.mark.parametrize(
    ("constraint", "value", "expected"),
    [
        (Whole(), -5, -5),
        (Whole(1), 1, 1),
        (Whole(most=3), np.int64(3), 3),
        (Whole(0, 255), np.uint8(255), 255),
        (Whole(0), torch.tensor(1), 1),
        (Whole(0), np.array(2, np.uint8), 2),
        (Number(), np.array(0.5), 0.5),
        (Number(0.0), torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), 0.5),
        (Number(), torch.tensor(2), 2),
        (Number(), -2.5, -2.5),
        (Number(), 10**400, 10**400),
        (Number(0.0, 1.0), 0, 0),
        (Number(0.0, 1.0), np.float64(1.0), 1.0),
        (Number(above=0.0), np.float32(0.5), 0.5),
        (Number(above=0.0), np.int32(2), 2),
        (Number(below=1.0), Fraction(1, 2), 0.5),
        (Number(above=0.0, most=1.0), 1.0, 1.0),
        (OneOf("bf16", "no"), "no", "no"),
        (OneOf("bf16", "no"), np.str_("bf16"), "bf16"),
        (Text(), "", ""),
        (Text(), np.str_("red"), "red"),
        (Flag(), False, False),
        (Flag(), np.True_, True),
        (PathOrId(), "owner/name", "owner/name"),
        (PathOrId(), Path("here"), Path("here")),
        (Folder(), "there", Path("there")),
        (Folder(), Path("there"), Path("there")),
        (ListOf(Text()), [], ()),
        (ListOf(Whole(1)), [1, np.int64(2)], (1, 2)),
        (ListOf(PathOrId()), ("a", Path("b")), ("a", Path("b"))),
    ],
)
def test_an_allowed_value_becomes_plain_python(constraint, value, expected):
    found = check("it", value, constraint)
    assert found == expected and type(found) is type(expected)
    if isinstance(found, tuple):
        assert [type(item) for item in found] == [type(item) for item in expected]


@pytest.mark.parametrize(
    ("constraint", "value", "message"),
    [
        (Whole(), 2.0, "a whole number; got 2.0"),
        (Whole(), "2", "a whole number; got '2'"),
        (Whole(0), True, "a whole number from 0; got True"),
        (Whole(0), np.True_, "a whole number from 0; got True"),
        (Whole(1), 0, "a whole number from 1; got 0"),
        (Whole(1), None, "a whole number from 1; got None"),
        (Whole(1, 100), np.int64(101), "a whole number from 1 to 100; got 101"),
        (Whole(most=2**31), 2**31 + 1, "a whole number up to 2147483648; got 2147483649"),
        (Whole(0), torch.tensor(1.0), "a whole number from 0; got tensor(1.)"),
        (Whole(0), torch.tensor(True), "a whole number from 0; got tensor(True)"),
        (Whole(0), torch.tensor([1]), "a whole number from 0; got tensor([1])"),
        (Whole(2), torch.tensor(1), "a whole number from 2; got tensor(1)"),
        (Number(), np.array(False), "a finite number; got array(False)"),
        (Number(), torch.tensor([1.0]), "a finite number; got tensor([1.])"),
        (Number(below=1.0), np.array(1.0), "a finite number below 1; got array(1.)"),
        (Number(), float("nan"), "a finite number; got nan"),
        (Number(), np.float64("inf"), "a finite number; got inf"),
        (Number(), "0.5", "a finite number; got '0.5'"),
        (Number(), False, "a finite number; got False"),
        (Number(), 1j, "a finite number; got 1j"),
        (Number(), [1.0], "a finite number; got [1.0]"),
        (Number(0.0, 1.0), 1.5, "a finite number from 0 to 1; got 1.5"),
        (Number(0.0, 1.0), -0.1, "a finite number from 0 to 1; got -0.1"),
        (Number(1.0), 0.5, "a finite number from 1; got 0.5"),
        (Number(most=0.123456789), 1, "a finite number up to 0.123456789; got 1"),
        (Number(above=0.0), 0, "a finite number above 0; got 0"),
        (Number(below=1.0), 1.0, "a finite number below 1; got 1.0"),
        (Number(above=1.0, below=179.0), 180.0, "a finite number above 1 and below 179; got 180.0"),
        (Number(above=0.0, most=1.0), 0.0, "a finite number above 0 and up to 1; got 0.0"),
        (Number(least=0.0, below=1.0), 1.0, "a finite number from 0 and below 1; got 1.0"),
        (OneOf("bf16", "no"), "fp16", "one of bf16, no; got 'fp16'"),
        (OneOf("bf16", "no"), "bf", "one of bf16, no; got 'bf'"),
        (OneOf("1", "2"), 1, "one of 1, 2; got 1"),
        (OneOf("a"), ["a"], "one of a; got ['a']"),
        (Text(), None, "text; got None"),
        (Text(), b"red", "text; got b'red'"),
        (Flag(), 1, "True or False; got 1"),
        (Flag(), "no", "True or False; got 'no'"),
        (Flag(), None, "True or False; got None"),
        (PathOrId(), 3, "the path of a folder or file, or an id; got 3"),
        (Folder(), 3, "the path of a folder; got 3"),
        (Folder(), "", "the path of a folder; got ''"),
        (Folder(), __file__, f"the path of a folder; got {__file__!r}"),
        (Folder(), "a" * 5000, f"the path of a folder; got {'a' * 5000!r}"),
        (Folder(), "a\0b", "the path of a folder; got 'a\\x00b'"),
        (PathOrId(), "", "the path of a folder or file, or an id; got ''"),
        (PathOrId(), ["a"], "the path of a folder or file, or an id; got ['a']"),
        (ListOf(Text()), "ab", "a list, each item text; got 'ab'"),
        (ListOf(Text()), {"a"}, "a list, each item text; got {'a'}"),
        (ListOf(Whole(1)), [1, 0], "a list, each item a whole number from 1; got [1, 0]"),
    ],
)
def test_any_other_value_is_refused_with_what_is_expected(constraint, value, message):
    with pytest.raises(ValueError) as caught:
        check("it", value, constraint)
    assert str(caught.value) == f"it is {message}"


def test_none_is_allowed_only_where_it_is_optional():
    assert check("it", None, Whole(1), optional=True) is None
    with pytest.raises(ValueError, match="^it is a whole number from 1, or None; got 0$"):
        check("it", 0, Whole(1), optional=True)


@dataclass(frozen=True)
class Settings:
    count: Annotated[int, Whole(1)] = 1
    rate_: Annotated[float | None, Number(above=0.0)] = None
    name: Annotated[str, Text()] | None = None
    kind: Annotated[Optional[str], OneOf("a", "b")] = None  # noqa: UP045, either spelling of a union
    sizes: tuple[Annotated[int, Whole(1)], ...] = ()
    free: object = None

    def __post_init__(self) -> None:
        validate(self, option)


def test_a_config_is_checked_when_it_is_made_and_when_it_is_replaced():
    settings = Settings(count=np.int64(3), rate_=np.float32(0.5))
    assert json.dumps([settings.count, settings.rate_]) == "[3, 0.5]"
    for changes, message in (
        ({"count": 0}, "--count is a whole number from 1; got 0"),
        ({"count": None}, "--count is a whole number from 1; got None"),
        ({"rate_": 0}, "--rate is a finite number above 0, or None; got 0"),
        ({"name": 3}, "--name is text, or None; got 3"),
        ({"kind": "c"}, "--kind is one of a, b, or None; got 'c'"),
    ):
        with pytest.raises(ValueError) as made:
            Settings(**changes)
        with pytest.raises(ValueError) as replaced:
            replace(settings, **changes)
        assert str(made.value) == str(replaced.value) == message


def test_a_field_without_a_constraint_of_its_own_is_left_alone():
    settings = Settings(sizes=[0], free=print)
    assert settings.sizes == [0] and settings.free is print


def test_messages_name_fields_unless_a_spelling_is_given():
    @dataclass
    class Plain:
        min_coverage: Annotated[float, Number(0.0)] = 0.0

    plain = Plain(-1.0)
    with pytest.raises(ValueError, match="^min_coverage is a finite number from 0; got -1.0$"):
        validate(plain)
    assert option("min_coverage") == "--min-coverage" and option("from_") == "--from"


@pytest.mark.parametrize(
    "constraint", [Whole(), Number(), OneOf("a"), Text(), Flag(), PathOrId(), Folder(), ListOf(Text())]
)
def test_every_constraint_is_one(constraint):
    assert isinstance(constraint, Constraint)
    assert not isinstance("documentation", Constraint)


@pytest.mark.parametrize(
    ("value", "finite", "whole"),
    [
        (1, True, True),
        (np.int8(1), True, True),
        (1.0, True, False),
        (np.float16(1.5), True, False),
        (float("-inf"), False, False),
        (np.nan, False, False),
        (True, False, False),
        (np.False_, False, False),
        ("1", False, False),
        (None, False, False),
    ],
)
def test_what_counts_as_a_number(value, finite, whole):
    assert is_finite(value) is finite and is_whole(value) is whole


def test_numbers_become_float64_from_lists_arrays_and_tensors():
    tensor = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    for value in ([1, 2], np.array([1.0, 2.0], np.float16), tensor):
        found = as_float64(value)
        assert found.dtype == np.float64 and found.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("value", ["one", {}, [torch.tensor([1.0, 2.0], requires_grad=True)], [[1.0], [1.0, 2.0]]])
def test_what_is_no_array_of_numbers_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        as_float64(value)
