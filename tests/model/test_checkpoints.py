"""A world's folder: parts that it may lack, and names that are none."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mosaic_gym import Start
from mosaic_gym.geometry.control import ACTIONS
from mosaic_gym.model import checkpoints
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.device import check_device
from mosaic_gym.model.settings import FOLDERS
from mosaic_gym.model.shipped import WEIGHTS
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.tiny import tiny_model

OPTIONAL = "refiner", "reward_heads", "atlas"


@pytest.mark.parametrize("absent", [("refiner",), ("reward_heads",), ("atlas",), OPTIONAL])
def test_parts_that_a_world_does_without_are_saved_as_none(absent, tmp_path):
    model = replace(tiny_model(), **dict.fromkeys(absent))
    model.save_pretrained(tmp_path)
    assert not any((tmp_path / FOLDERS[name]).exists() for name in absent)
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
    with pytest.raises(ValueError, match=f"the weights of '{part}' in .* are not finite in .*{name}"):
        WorldModel.from_pretrained(tmp_path)


def test_what_does_not_fit_together_is_named(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "world.json"
    told = json.loads(path.read_text())
    unfit = {"control": {"thrust": 1.0}}
    for wrong, said in ((unfit, "has a value that is not allowed: control"), ({"height": 96}, "(96, 48)")):
        path.write_text(json.dumps({**told, **wrong}))
        with pytest.raises(ValueError, match=re.escape(said)):
            WorldModel.from_pretrained(tmp_path)
    path.write_text(json.dumps(told))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(ValueError, match="the part 'scheduler' in .* is damaged"):
        WorldModel.from_pretrained(tmp_path)


@pytest.fixture
def no_weights(monkeypatch):
    """Nothing is read but what is small."""

    def read(kind, folder, name):
        raise AssertionError(f"the weights of {name} were read")

    monkeypatch.setattr(checkpoints, "load_part", read)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"capacity": -3}, "capacity is a whole number from 0; got -3"),
        ({"capacity": "x"}, "capacity is a whole number from 0; got 'x'"),
        ({"height": 0}, "height is a whole number from 1; got 0"),
        ({"width": 64.0}, "width is a whole number from 1; got 64.0"),
        ({"denoising_steps": True}, "denoising_steps is a whole number from 1; got True"),
        ({"history": 0}, "history is a whole number from 1; got 0"),
        ({"max_sources": -1}, "max_sources is a whole number from 0; got -1"),
        ({"max_patches": None}, "max_patches is a whole number from 0; got None"),
        ({"guidance": None}, "guidance is a finite number from 1; got None"),
        ({"guidance": 0.5}, "guidance is a finite number from 1; got 0.5"),
        ({"guidance": np.nan}, "guidance is a finite number from 1; got nan"),
        ({"negative_prompt": 3}, "negative_prompt is text; got 3"),
        ({"scenario": ["my_way_home"]}, "scenario is text; got ['my_way_home']"),
        ({"image_from_camera": 5}, "image_from_camera is K in pixels"),
        ({"control": [0.5]}, "control is a dict of the fields of Control; got [0.5]"),
        ({"control": {"friction": "x"}}, "control is a dict of the fields of Control (friction is a finite number"),
        ({"control": {"thrust": 1.0}}, "control is a dict of the fields of Control ("),
    ],
)
def test_settings_of_another_type_or_range_are_named(wrong, said, tmp_path, no_weights):
    with pytest.raises(ValueError, match=re.escape(said)):
        replace(tiny_model().settings, **wrong)
    told = json.loads((WEIGHTS / "doom-tiny" / "world.json").read_text())
    (tmp_path / "world.json").write_text(json.dumps({**told, **wrong}))
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path / 'world.json'} has a value that is not allowed: {said}")
    ):
        WorldModel.from_pretrained(tmp_path)


def test_settings_of_numpys_numbers_are_saved_and_told_apart():
    model = tiny_model()
    k = np.array(model.settings.image_from_camera)
    same = replace(model.settings, height=np.int64(32), capacity=np.int32(16), image_from_camera=k)
    assert replace(model, settings=same).fingerprint == model.fingerprint


def test_start_images_that_are_none_are_named_before_weights_are_read(tmp_path, no_weights):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "starts.safetensors"
    images = load_file(path)["images"]
    for wrong, prompts, said in (
        (images.float(), ["a"] * 3, "are uint8 [n, H, W, 3]; got torch.float32"),
        (images[0], ["a"] * 32, "are uint8 [n, H, W, 3]; got torch.uint8 of shape (32, 48, 3)"),
        (images, ["a"], "holds 3 start images and 1 prompts"),
        (images, "abc", "are a list of texts; got 'abc'"),
        (images, [1, 2, 3], "are a list of texts; got [1, 2, 3]"),
        (images[:, :16].contiguous(), ["a"] * 3, "gives frames of (32, 48)"),
    ):
        save_file({"images": wrong}, path, metadata={"prompts": json.dumps(prompts)})
        with pytest.raises(ValueError, match=re.escape(said)):
            WorldModel.from_pretrained(tmp_path)


def test_another_size_is_refused_before_weights_are_read(no_weights):
    with pytest.raises(ValueError, match=r"'doom-tiny' was trained at resolution \[64, 64\]; got \[96, 64\]"):
        WorldModel.from_pretrained("doom-tiny", (96, 64))
    for place in ("doom-tiny", "nobody/nothing"):
        with pytest.raises(ValueError, match="loading is a dict of options for a Wan pipeline, or None; got 3"):
            WorldModel.from_pretrained(place, loading=3)


@pytest.mark.parametrize("device", ["banana", "", "meta", None, 0, True])
def test_a_device_that_is_none_is_named(device):
    with pytest.raises(ValueError, match=re.escape(f"such as 'cpu', 'cuda' or 'cuda:1'; got {device!r}")):
        check_device(device)


def test_a_device_that_is_not_there_is_named(monkeypatch):
    for kind in (torch.cuda, torch.mps):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    for device in ("cuda", "cuda:0", "mps", torch.device("mps")):
        kind = torch.device(device).type.upper()
        with pytest.raises(ValueError, match=f"this torch has no {kind} device; use device='cpu'"):
            check_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="'cuda:2' is not available: this torch has 2 CUDA device.s., counted from 0"):
        check_device("cuda:2")
    assert check_device("cuda:1") == torch.device("cuda:1") and check_device(torch.device("cpu")).type == "cpu"


def test_a_checkpoints_fingerprint_is_of_its_settings_and_networks_alone():
    model = tiny_model()
    order = "transformer", "refiner", "codec", "text_encoder", "atlas", "depth", "reward_heads"
    told = json.dumps(asdict(model.settings), sort_keys=True)
    assert model.fingerprint == checkpoints.fingerprint_of([getattr(model, name) for name in order], told)


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
