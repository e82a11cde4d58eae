"""The figures of edited memories tell a world that follows edits from one that does not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mosaic_gym.evaluation.suites import edits
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.tiny_pictures import tiny_picture_model
from tests.worlds.test_picture_world import FlatDepth


def flat(*_, **__) -> MosaicWorld:
    return MosaicWorld(replace(tiny_picture_model(), depth=FlatDepth()))


def test_a_world_that_follows_edits_reaches_every_figure(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(MosaicWorld, "from_pretrained", flat)
    figures = edits.evaluate(edits.Config(cases=4, json=tmp_path / "edits.json"))
    assert {name: figure["value"] for name, figure in figures.items()} == dict.fromkeys(edits.GOALS, 1.0)
    assert json.loads((tmp_path / "edits.json").read_text())["moved_right"]["cases"] == 4
    assert "goal 0.90, 4 cases" in capsys.readouterr().out


def test_a_world_that_ignores_edits_reaches_none(monkeypatch):
    world = flat()
    case = edits.make_case(world, 0)
    monkeypatch.setattr(MosaicMemory, "edit", lambda memory, *_: memory)
    results = edits.measure_case(world, case)
    assert results["displacement_error"] > 0.9
    assert results["moved_right"] == results["removed_gone"] == results["duplicated_twice"] == 0.0


def test_a_view_without_a_usable_square_is_skipped(monkeypatch):
    monkeypatch.setattr(edits, "RANGE_M", (50.0, 60.0))
    assert edits.make_case(flat(), 0) is None
    monkeypatch.setattr(MosaicWorld, "from_pretrained", flat)
    with pytest.raises(ValueError, match="give more --cases"):
        edits.evaluate(edits.Config(cases=1))
