"""A world's folder: parts that it may lack, and names that are none."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mosaic_gym import Start
from mosaic_gym.geometry.control import ACTIONS
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.tiny import tiny_model

OPTIONAL = "detail", "outcome", "atlas"


@pytest.mark.parametrize("absent", [("detail",), ("outcome",), ("atlas",), OPTIONAL])
def test_parts_that_a_world_does_without_are_saved_as_none(absent, tmp_path):
    model = replace(tiny_model(), **dict.fromkeys(absent))
    model.save_pretrained(tmp_path)
    assert not any((tmp_path / name).exists() for name in absent)
    loaded = WorldModel.from_pretrained(tmp_path)
    assert [name for name in OPTIONAL if getattr(loaded, name) is None] == list(absent)
    assert loaded.fingerprint == model.fingerprint
    world = MosaicWorld(loaded)
    state, _ = world.start(Start(0))
    _, (view,) = world.step([state], torch.tensor([ACTIONS["forward"]]).numpy())
    assert view.frames.shape[0] == 4


def test_parts_that_there_should_be_are_missed(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "world.json"
    told = json.loads(path.read_text())
    without = {name: value for name, value in told.items() if name != "parts"}
    path.write_text(json.dumps(without))  # as older versions wrote it: all parts are there
    assert WorldModel.from_pretrained(tmp_path).atlas is not None
    (tmp_path / "atlas" / "config.json").unlink()
    for said in (told, without):
        path.write_text(json.dumps(said))
        with pytest.raises(ValueError, match="lacks its part 'atlas'"):
            WorldModel.from_pretrained(tmp_path)
    for parts in (["transformer"], [*told["parts"], "sound"], "all"):
        path.write_text(json.dumps({**told, "parts": parts}))
        with pytest.raises(ValueError, match="names the parts"):
            WorldModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["transformer", "detail", "codec", "text_encoder", "depth", "outcome", "atlas"])
def test_weights_that_are_no_numbers_are_named_before_they_are_used(part, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    name = next(name for name, value in weights.items() if value.is_floating_point() and value.numel() > 1)
    weights[name].view(-1)[1] = torch.nan
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"the weights of '{part}' in .* are no numbers in .*{name}"):
        WorldModel.from_pretrained(tmp_path)


def test_what_does_not_fit_together_is_named(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "world.json"
    told = json.loads(path.read_text())
    unfit = {"control": {"thrust": 1.0}}
    for wrong, said in ((unfit, "says of control what does not fit"), ({"height": 96}, "(96, 48)")):
        path.write_text(json.dumps({**told, **wrong}))
        with pytest.raises(ValueError, match=re.escape(said)):
            WorldModel.from_pretrained(tmp_path)
    path.write_text(json.dumps(told))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(ValueError, match="the part 'scheduler' in .* is damaged"):
        WorldModel.from_pretrained(tmp_path)


def test_a_path_that_is_not_there_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/nope", "./nope", "a/b/c", "/nope", str(tmp_path / "nope")):
        with pytest.raises(ValueError, match=f"unknown checkpoint '{name}' .there is no such folder.*doom-tiny"):
            WorldModel.from_pretrained(name)
    with pytest.raises(ValueError, match="unknown checkpoint 'runs': give one of .*doom-tiny"):
        WorldModel.from_pretrained("runs")
    with pytest.raises(ValueError, match="'nobody/nothing' is neither.*doom-tiny"):
        WorldModel.from_pretrained("nobody/nothing")
