"""What is known of a Wan pipeline before its weights are read, and how it is then loaded."""

import copy
import json
import shutil
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from mosaic_gym.cli import EXTRAS
from mosaic_gym.geometry.camera import invert_pose
from mosaic_gym.model.attention import Positions, lifted_projection, rotary_angles, rotary_table
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.wan.adapters import fuse_adapters
from mosaic_gym.model.wan.cameras import METRES_PER_UNIT
from mosaic_gym.model.wan.loading import load_pipeline
from mosaic_gym.model.wan.options import WanOptions
from mosaic_gym.model.wan.plan import plan_pipeline
from tests.tiny_wan import SIZE, save_adapter, without

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
    wide = {part: tmp_path / f"wide_{part}.safetensors" for part in "AB"}
    for part, path in wide.items():
        save_file({name: each.repeat(2, 2) if f"lora_{part}" in name else each for name, each in weights.items()}, path)
    monkeypatch.setattr(
        "mosaic_gym.model.wan.loading.load_component", lambda *_, **__: pytest.fail("weights were read")
    )
    for place, size, loading, said in (
        (folder, (64, 80), {}, "take multiples of 32"),
        (folder, SIZE, {"depth": "no/such"}, "depth model 'no/such'"),
        (folder, SIZE, {"cameras": str(unfit)}, "belong to another transformer"),
        (folder, SIZE, {"lora": "no/such"}, "adapter 'no/such' cannot be loaded"),
        (folder, SIZE, {"lora": str(unfit)}, "none of its weights is for a Wan transformer"),
        (folder, SIZE, {"lora": str(wide["A"])}, "has shape .4, 64., and the layer that it adapts .32, 32."),
        (folder, SIZE, {"lora": str(wide["B"])}, "has shape .64, 4., and the layer that it adapts .32, 32."),
        (changed("narrow", "text_encoder", d_model=16), SIZE, {}, "text encoder.*16 numbers.*reads 32"),
        (changed("apart", "vae", z_dim=8), SIZE, {}, "has 8 channels, its transformer takes 6"),
        (changed("coarse", "vae", scale_factor_spatial=32), SIZE, {}, "take multiples of 64"),
        (changed("images", "transformer", in_channels=36), SIZE, {}, "takes its image through additional channels"),
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


@pytest.mark.parametrize("causal", [False, True])
def test_a_world_saved_as_its_pipeline_is_the_same_world_and_a_pipeline_of_diffusers(folder, depth, tmp_path, causal):
    told = {"dtype": "float32", "depth": str(depth)}
    adapter = str(save_adapter(tmp_path / "adapter", 0))
    model = WorldModel.from_pretrained(folder, SIZE, {**told, "causal": causal, "lora": adapter})
    with pytest.raises(ValueError, match="saved as its pipeline.*Fuse LoRA adapters first: .*fuse_adapters"):
        model.save_pretrained(tmp_path / "world")
    fuse_adapters(model.transformer)
    torch.nn.init.normal_(model.transformer.blocks[0].attn1.to_out_cameras.weight)
    model.pipeline.save_pretrained(tmp_path / "saved")
    again = WorldModel.from_pretrained(tmp_path / "saved", SIZE, told)
    assert again.fingerprint == replace(model).fingerprint, "that of the weights as they are now"
    assert again.transformer.config.causal == causal
    plain = WanImageToVideoPipeline.from_pretrained(tmp_path / "saved").transformer
    assert type(plain) is WanTransformer3DModel
    mine = model.transformer.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in plain.state_dict().items())


def test_a_transformer_is_causal_where_that_is_asked_for(folder):
    named = {"dtype": "float64", "transformer": str(folder / "transformer")}
    for causal in (False, True):
        assert plan_pipeline(folder, WanOptions(**named, causal=causal)).transformer.config.causal == causal


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_what_quantisation_lacks_is_named(folder, monkeypatch, kind):
    options = WanOptions(dtype="float32", quantisation=kind)
    without(monkeypatch, "bitsandbytes")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA GPU, and torch finds none: leave it out"):
        plan_pipeline(folder, options)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ModuleNotFoundError, match=r"needs bitsandbytes: pip install 'mosaic-gym\[quantisation\]'"):
        plan_pipeline(folder, options)


@pytest.mark.parametrize(("package", "lora"), [("ftfy", False), ("peft", True)])
def test_a_missing_package_is_named_before_anything_is_read(folder, depth, tmp_path, monkeypatch, package, lora):
    loading = {"depth": str(depth), "dtype": "float32", "lora": str(tmp_path / "adapter") if lora else ()}
    without(monkeypatch, package)
    for reader in ("plan.read_index", "plan.load_tokenizer", "loading.load_component", "loading.HuggingFaceDepth"):
        monkeypatch.setattr(f"mosaic_gym.model.wan.{reader}", lambda *_, **__: pytest.fail("something was read"))
    with pytest.raises(ModuleNotFoundError, match=rf" needs {package}: pip install 'mosaic-gym\[wan\]'") as caught:
        WorldModel.from_pretrained(folder, SIZE, loading)
    assert caught.value.name == package, "the command line finds the extra by it"


def test_adapters_alone_need_peft(folder, monkeypatch):
    without(monkeypatch, "peft")
    plan_pipeline(folder, EXACT)


def test_every_package_that_may_be_missing_is_in_the_extra_that_the_message_names():
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {extra: {row.split(">=")[0] for row in rows} for extra, rows in extras.items()}
    assert {"ftfy", "peft", "protobuf", "sentencepiece"} <= named["wan"]
    assert "bitsandbytes" in named["quantisation"]
    for package in ("ftfy", "peft", "protobuf", "sentencepiece", "bitsandbytes"):
        assert package in named[EXTRAS[package]], "what the command line names"


def test_a_gpu_without_room_is_no_fault_of_the_component(folder, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(AutoencoderKLWan, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError, match="^out of memory$"):
        load_pipeline(folder, EXACT)


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
    for unit, said in (
        ("1.0", "count 1.0 metres as one, and this transformer counts 4.0; train"),
        (None, "do not record"),
    ):
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
        at = Positions(*rotary_table(angles), *lifted_projection(invert_pose(poses), k, SIZE, unit))
        told = Positions(*(each.float() for each in (at.cosine, at.sine, at.projection, at.inverse)))
        with torch.no_grad():
            exact = layer(tokens, None, None, at)
            rough = copy.deepcopy(layer).bfloat16()(tokens.bfloat16(), None, None, told)
        return float((rough.double() - exact).norm() / exact.norm())

    assert error(METRES_PER_UNIT) < 0.5 * error(1.0)
