"""What is known of a Wan pipeline before its weights are read, and how it is then loaded."""

import copy
import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from mosaic_gym.geometry.camera import invert_pose
from mosaic_gym.model.attention import Positions, lifted_projection, rotary_angles, turns
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.wan import WanOptions, load_pipeline, plan_pipeline
from mosaic_gym.model.wan_cameras import METRES_PER_UNIT
from tests.tiny_wan import SIZE, save_adapter

EXACT = WanOptions(dtype="float64")


def test_mistakes_show_before_anything_large_is_loaded(folder, depth, tmp_path, monkeypatch):
    def changed(name, part, **changes):
        place = shutil.copytree(folder, tmp_path / name)
        path = place / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return place

    save_adapter(tmp_path / "adapter", 0)
    weights = load_file(tmp_path / "adapter" / "pytorch_lora_weights.safetensors")
    unfit = tmp_path / "unfit.safetensors"
    save_file({name.replace("transformer.", "unet."): value for name, value in weights.items()}, unfit)
    monkeypatch.setattr("mosaic_gym.model.wan._load_component", lambda *_, **__: pytest.fail("weights were read"))
    for place, size, loading, said in (
        (folder, (64, 80), {}, "take multiples of 32"),
        (folder, SIZE, {"depth": "no/such"}, "depth model 'no/such'"),
        (folder, SIZE, {"cameras": str(unfit)}, "belong to another transformer"),
        (folder, SIZE, {"lora": "no/such"}, "adapter 'no/such' cannot be loaded"),
        (folder, SIZE, {"lora": str(unfit)}, "none of its weights is for a transformer"),
        (changed("narrow", "text_encoder", d_model=16), SIZE, {}, "text encoder.*16 numbers.*reads 32"),
        (changed("apart", "vae", z_dim=8), SIZE, {}, "has 8 channels, its transformer takes 6"),
        (changed("coarse", "vae", scale_factor_spatial=32), SIZE, {}, "take multiples of 64"),
        (changed("images", "transformer", in_channels=36), SIZE, {}, "takes its image through further channels"),
        (changed("odd", "transformer", num_layers="two"), SIZE, {}, "'transformer' of .*odd has no config that"),
    ):
        with pytest.raises(ValueError, match=said):
            WorldModel.from_pretrained(place, size, {"depth": str(depth), "dtype": "float32", **loading})


def test_the_autoencoder_is_precise_where_its_rounding_would_be_fed_back(folder, depth):
    for loading, expected in (
        ({}, torch.float32),
        ({"causal": True}, torch.bfloat16),
        ({"vae_dtype": "bfloat16"}, torch.bfloat16),
        ({"causal": True, "vae_dtype": "float32"}, torch.float32),
        ({"dtype": "float64"}, torch.float64),
    ):
        told = {"dtype": "bfloat16", "depth": str(depth), **loading}
        model = WorldModel.from_pretrained(folder, SIZE, told)
        assert model.codec.vae.dtype == model.pipeline.vae.dtype == expected, loading
        assert model.transformer.patch_embedding.weight.dtype == getattr(torch, told["dtype"])
        assert model.pipeline.text_encoder.dtype == getattr(torch, told["dtype"])


def test_a_model_that_has_never_met_clean_tokens_is_named(folder, tmp_path):
    student = str(folder / "transformer")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plan_pipeline(folder, EXACT)
    place = shutil.copytree(folder, tmp_path / "copy")
    index = json.loads((place / "model_index.json").read_text())
    silent = {name: said for name, said in index.items() if name != "expand_timesteps"}
    for told in (silent, {**index, "expand_timesteps": False}):
        (place / "model_index.json").write_text(json.dumps(told))
        with pytest.warns(UserWarning, match="one timestep for all tokens.*mosaic-gym train world --from .*copy"):
            plan_pipeline(place, EXACT)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            plan_pipeline(place, WanOptions(dtype="float64", transformer=student))
            plan_pipeline(place, WanOptions(dtype="float64", lora=str(save_adapter(tmp_path / "adapter", 0))))


def test_cameras_are_told_in_units_of_four_metres_unless_a_config_says_otherwise(folder, tmp_path):
    mine = load_pipeline(folder, EXACT).transformer
    assert mine.config.metres_per_unit == 4.0
    mine.register_to_config(metres_per_unit=2.0)
    mine.save_pretrained(tmp_path / "two")
    other = load_pipeline(folder, WanOptions(dtype="float64", transformer=str(tmp_path / "two"))).transformer
    assert other.config.metres_per_unit == 2.0
    cameras = {name: value + 1.0 for name, value in mine.state_dict().items() if "to_out_cameras" in name}
    path = tmp_path / "cameras.safetensors"
    for unit, said in (("1.0", "count 1.0 metres as one, this transformer 4.0; train them"), (None, "do not say")):
        save_file(cameras, path, metadata=None if unit is None else {"metres_per_unit": unit})
        with pytest.raises(ValueError, match=said):
            load_pipeline(folder, WanOptions(dtype="float64", cameras=str(path)))
    save_file(cameras, path, metadata={"metres_per_unit": "4.0"})
    trained = load_pipeline(folder, WanOptions(dtype="float64", cameras=str(path))).transformer.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in cameras.items())


def test_cameras_twenty_metres_away_keep_their_precision_in_bfloat16(folder):
    layer = load_pipeline(folder, EXACT).transformer.blocks[0].attn1
    torch.manual_seed(0)
    torch.nn.init.normal_(layer.to_out_cameras.weight, std=0.2)
    torch.nn.init.zeros_(layer.to_out[0].weight)  # what cameras say is all that is left
    torch.nn.init.zeros_(layer.to_out[0].bias)
    tokens = torch.randn(1, 64, 32, dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(1, 64, 4, 1, 1)
    poses[..., 0, 3] = 20.0 + torch.linspace(-1.0, 1.0, 64, dtype=torch.float64)[:, None]
    k = torch.tensor([[60.0, 0.0, 48.0], [0.0, 60.0, 32.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    angles = rotary_angles(torch.zeros(1, 64, 3, dtype=torch.float64), 16, 10000.0)[:, :, None]

    def error(unit):
        at = Positions(*turns(angles), *lifted_projection(invert_pose(poses), k, SIZE, unit))
        told = Positions(*(each.float() for each in (at.cosine, at.sine, at.projection, at.inverse)))
        with torch.no_grad():
            exact = layer(tokens, None, None, at)
            rough = copy.deepcopy(layer).bfloat16()(tokens.bfloat16(), None, None, told)
        return float((rough.double() - exact).norm() / exact.norm())

    assert error(METRES_PER_UNIT) < 0.5 * error(1.0)
