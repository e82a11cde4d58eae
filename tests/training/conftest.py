"""What tests of recipes share."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture
def a_precision_of_its_own() -> Iterator[None]:
    """For a recipe in another precision than others: accelerate lets a process have one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
