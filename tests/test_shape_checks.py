"""The checks that `conftest.py` hooks into the package are checks."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
from jaxtyping import Float, TypeCheckError, install_import_hook

from .shape_checks import checked

SOURCE = """
from __future__ import annotations
import numpy as np
from jaxtyping import Float

def dot(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], scale: float = 1.0) -> float:
    return scale * float(a @ b)
"""


def test_a_module_under_the_hook_refuses_a_wrong_shape(tmp_path, monkeypatch):
    (tmp_path / "shaped_module.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    with install_import_hook("shaped_module", "tests.shape_checks.checked"):
        module = importlib.import_module("shaped_module")
    monkeypatch.delitem(sys.modules, "shaped_module")
    assert module.dot(np.ones(3), np.ones(3), scale=2) == 6
    with pytest.raises(TypeCheckError, match="dot"):
        module.dot(np.ones(3), np.ones((3, 1)))


def test_what_states_no_shape_is_left_alone():
    def plain(a: int) -> int:
        return a

    def shaped(a: Float[np.ndarray, "h w"]) -> None: ...

    assert checked(plain) is plain
    assert checked(shaped) is not shaped
