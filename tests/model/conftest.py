"""A Wan pipeline and a depth model on disk, for whoever loads them."""

import pytest

from tests.tiny import save_depth
from tests.tiny_wan import save_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("wan") / "pipeline")


@pytest.fixture(scope="module")
def depth(tmp_path_factory):
    return save_depth(tmp_path_factory.mktemp("depth"))
