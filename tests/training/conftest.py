"""What tests of recipes share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from tests.tiny import record_few
from tests.training.tiny_run import train_parts


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A small recording; tests read it only."""
    return record_few(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def parts(data, tmp_path_factory) -> Path:
    """The trained parts of a tiny world; tests read them only."""
    return train_parts(data, tmp_path_factory.mktemp("parts"))


@pytest.fixture
def a_precision_of_its_own() -> Iterator[None]:
    """For a recipe in another precision than others: accelerate lets a process have one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
