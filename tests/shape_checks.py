"""Run-time checks of jaxtyping's shapes, for tests only: they would break `torch.compile`."""

import re
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_SHAPED = re.compile(r"\b(Shaped|Bool|Num|Inexact|Float|Complex|Integer|U?Int|Real)\d*\[")
# An int is welcome where a float is expected, as everywhere in Python.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its arguments checked if its signature states a shape; as it is otherwise.

    What has no shape says itself what is wrong with its arguments, and tests ask whether it does.
    """
    annotations = function.__annotations__.values()
    if any(_SHAPED.search(hint if isinstance(hint, str) else repr(hint)) for hint in annotations):
        return _check(function)
    return function
