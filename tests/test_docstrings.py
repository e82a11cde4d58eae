"""How the API pages read the project's docstrings. Needs griffe, which `make docs` installs."""

import importlib.util
from pathlib import Path

import pytest

griffe = pytest.importorskip("griffe")
PATH = Path(__file__).parent.parent / "docs" / "docstrings.py"


@pytest.fixture(scope="module")
def split():
    spec = importlib.util.spec_from_file_location("docstrings", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.one_name_an_entry


def test_arguments_that_share_an_entry_get_one_each(split):
    docstring = "Crops.\n\nArgs:\n    image: uint8.\n    height, width: of the crop,\n        pixels.\n\nMore."
    assert split(docstring) == (
        "Crops.\n\nArgs:\n    image: uint8.\n    height: of the crop,\n        pixels.\n"
        "    width: of the crop,\n        pixels.\n\nMore."
    )


def test_errors_of_one_paragraph_get_an_entry_each(split):
    docstring = "Loads.\n\nRaises:\n    FileNotFoundError: no file. ValueError, TypeError: damaged,\n    or: worse."
    assert split(docstring) == (
        "Loads.\n\nRaises:\n    FileNotFoundError: no file.\n    ValueError, TypeError: damaged,\n        or: worse."
    )


def test_prose_stays_as_it_is(split):
    docstring = "Says that a, b: c.\n\n    height, width: not an entry\n\nReturns:\n    one, two: a pair."
    assert split(docstring) == docstring
