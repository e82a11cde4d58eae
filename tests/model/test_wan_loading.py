"""Pretrained Wan as files: loaded whole or not at all, under its own names, with adapters; or told what is wrong."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from safetensors.torch import load_file, save_file

from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.transformer import MosaicTransformer3DModel
from mosaic_gym.model.wan.adapters import fuse_adapters
from mosaic_gym.model.wan.codec import WanCodec
from mosaic_gym.model.wan.loading import load_pipeline
from mosaic_gym.model.wan.options import WanOptions
from tests.tiny import pickled_only
from tests.tiny_wan import (
    CHANNELS,
    EXACT,
    GRID,
    SIZE,
    TEXT,
    context_for,
    in_ours,
    save_adapter,
    tiny_pipeline,
    tiny_transformer,
    tiny_vae,
)


def test_weights_load_by_their_own_names_and_cameras_begin_at_zero(folder, caplog):
    said = logging.getLogger("diffusers.models.modeling_utils")
    said.addHandler(caplog.handler)  # diffusers tells Python's own logger nothing
    pipeline = load_pipeline(folder, EXACT)
    said.removeHandler(caplog.handler)
    assert "TRAIN" not in caplog.text, "cameras are missing by design; nobody has to train before use"
    saved = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    mine = pipeline.transformer.state_dict()
    assert all(torch.equal(mine[name], value.double()) for name, value in saved.items())
    assert all(value.abs().max() == 0 for name, value in mine.items() if "to_out_cameras" in name)


def test_cameras_left_without_memory_begin_at_zero_when_the_model_is_moved():
    ours = in_ours(tiny_transformer())
    for block in ours.blocks:
        block.attn1.to_out_cameras.to("meta")
    ours.to("cpu")
    cameras = [value for name, value in ours.state_dict().items() if "to_out_cameras" in name]
    assert len(cameras) == 4 and all(value.device.type == "cpu" and value.abs().max() == 0 for value in cameras)


def test_weights_with_channels_last_decode_the_same():
    latents = torch.randn(1, 3, CHANNELS, *GRID, generator=torch.Generator().manual_seed(4))
    shown = []
    for codec in (WanCodec(tiny_vae().eval()), WanCodec(tiny_vae().eval()).channels_last()):
        with torch.no_grad():
            streams = codec.start_clips(latents[:, 0])
            for latent in latents[:, 1:].unbind(1):
                frames, streams = codec.decode_next(latent, streams)
        shown.append(frames)
    assert (shown[0] - shown[1]).abs().max() < 1e-4


def test_what_is_no_whole_wan_pipeline_is_named(folder, tmp_path):
    def copied(name):
        return shutil.copytree(folder, tmp_path / name)

    def broken(name, part, change):
        place = copied(name)
        change(place / part)
        return place

    def cut(path):
        path.write_bytes(path.read_bytes()[:-100])

    def told(path, **changes):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def lacking(path):
        kept = load_file(path)
        kept.pop(sorted(kept)[-1])
        save_file(kept, path, metadata={"format": "pt"})

    def renamed(path):
        path.rename(path.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))

    def wordless(path):
        for each in path.iterdir():
            if each.name != "tokenizer_config.json":
                each.unlink()

    def emptied(path):
        path.rename(path.with_name("other"))

    weights = "diffusion_pytorch_model.safetensors"
    index = f"{weights}.index.json"
    cases = [
        (broken("short", "vae/config.json", cut), "vae/config.json of the component 'vae' is damaged or cut short"),
        (broken("no", "vae/config.json", Path.unlink), "'vae' lacks .*config.json; download"),
        (broken("plan", "scheduler/scheduler_config.json", emptied), "'scheduler' lacks .*scheduler_config.json"),
        (broken("words", "tokenizer", wordless), "'tokenizer' has no vocabulary.*lacks tokenizer.json; download"),
        (broken("word", "tokenizer/tokenizer.json", cut), "tokenizer.json of the component 'tokenizer' is damaged"),
        (broken("index", "model_index.json", cut), "model_index.json of the pipeline is damaged or cut short"),
        (broken("thin", f"vae/{weights}", lacking), "component 'vae' of .*thin lack .'quant_conv.weight'.; download"),
        (broken("dumb", "text_encoder/model.safetensors", lacking), "'text_encoder' of .* lack .*'shared.weight'.;"),
        (broken("lone", f"transformer/{weights}", renamed), f"'transformer'.*lacks {weights}, or .*{index}"),
        (
            broken("list", "transformer", lambda path: (path / index).write_text('{"weight_map": {')),
            "index.json of the component 'transformer' is damaged or cut short",
        ),
        (
            broken("none", "transformer", lambda path: (path / index).write_text('{"weight_map": 1}')),
            "'transformer' names no shards",
        ),
        (
            broken("wide", "vae/config.json", lambda path: told(path, base_dim=8)),
            "component 'vae' of .*wide cannot be loaded.*expected shape",
        ),
        (broken("cut", f"vae/{weights}", cut), "'vae'.*cut short"),
        (broken("gone", "text_encoder", shutil.rmtree), "lacks its component 'text_encoder'"),
        (broken("bare", f"transformer/{weights}", lambda path: path.unlink()), "'transformer'.*no safetensors"),
        (broken("other", "model_index.json", lambda path: told(path, _class_name="FluxPipeline")), "no Wan pipeline"),
        (
            broken("two", "model_index.json", lambda path: told(path, transformer_2=["diffusers", "X"])),
            "transformer_2",
        ),
        (
            broken(
                "shards", "transformer",
                lambda path: (path / f"{weights}.index.json").write_text('{"weight_map": {"a": "2.safetensors"}}'),
            ),
            "2.safetensors.*'transformer'.*missing",
        ),
    ]  # fmt: skip
    for place, said in cases:
        with pytest.raises(ValueError, match=said):
            load_pipeline(place, EXACT)
    with pytest.raises(ValueError, match="neither a folder"):
        load_pipeline("nobody/nothing", EXACT)
    with pytest.raises(ValueError, match="give one of .*doom-tiny"):
        load_pipeline("nobody/nothing", EXACT)
    narrow = tiny_pipeline(text_width=16)
    narrow.save_pretrained(tmp_path / "narrow")
    with pytest.raises(ValueError, match="text encoder.*16 numbers.*reads 32"):
        load_pipeline(tmp_path / "narrow", EXACT)


def test_a_transformer_lacking_weights_is_named(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "copy")
    path = place / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights.pop("blocks.1.ffn.net.2.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="'transformer'.*lack .*blocks.1.ffn"):
        load_pipeline(place, EXACT)


def test_weights_in_shards_load_and_a_partial_student_is_named(folder, tmp_path):
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shards = sorted((tmp_path / "shards" / "transformer").glob("*.safetensors"))
    assert len(shards) > 1 and not (tmp_path / "shards" / "transformer" / shards[0].name.split("-0")[0]).exists()
    loaded = load_pipeline(tmp_path / "shards", EXACT)
    for part in ("vae", "text_encoder"):
        one, other = getattr(pipeline, part).state_dict(), getattr(loaded, part).state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[name].double(), other[name]) for name in one)
    shards[0].unlink()
    student = str(tmp_path / "shards" / "transformer")
    with pytest.raises(ValueError, match="'transformer'.*missing or cut short"):
        load_pipeline(folder, WanOptions(dtype="float64", transformer=student))


@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight"])
def test_a_text_encoder_may_name_its_shared_weights_either_way(folder, kept, tmp_path):
    place = shutil.copytree(folder, tmp_path / "copy")
    path = place / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    words = {weights.pop(name) for name in ("shared.weight", "encoder.embed_tokens.weight") if name in weights}.pop()
    save_file({**weights, kept: words}, path, metadata={"format": "pt"})
    loaded = load_pipeline(place, EXACT).text_encoder
    assert torch.equal(loaded.get_input_embeddings().weight, words.double())


def test_a_fingerprint_is_of_the_depth_model_and_the_text_encoder_too(folder, depth, tmp_path):
    def world(pipeline, estimator):
        return WorldModel.from_pretrained(pipeline, SIZE, {"depth": str(estimator), "dtype": "float32"})

    def other(path, name):
        weights = load_file(path / name)
        last = sorted(weights)[-1]
        save_file({**weights, last: weights[last] + 0.5}, path / name, metadata={"format": "pt"})

    estimator = shutil.copytree(depth, tmp_path / "depth")
    other(estimator, "model.safetensors")
    pipeline = shutil.copytree(folder, tmp_path / "pipeline")
    other(pipeline / "text_encoder", "model.safetensors")
    mine = world(folder, depth).fingerprint
    assert world(folder, depth).fingerprint == mine
    assert world(folder, estimator).fingerprint != mine, "depth"
    assert world(pipeline, depth).fingerprint != mine, "text encoder"


@pytest.mark.parametrize(
    ("part", "name"),
    [("transformer", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")],
)
def test_pickled_weights_are_refused_unread(folder, depth, part, name, tmp_path):
    place = shutil.copytree(folder, tmp_path / "copy")
    pickled_only(place / part, name, tmp_path / "sprung")
    with pytest.raises((ValueError, OSError), match="safetensors"):
        WorldModel.from_pretrained(place, SIZE, {"depth": str(depth), "dtype": "float32"})
    assert not (tmp_path / "sprung").exists()


def test_a_pickled_depth_model_is_refused_unread(folder, depth, tmp_path):
    place = shutil.copytree(depth, tmp_path / "depth")
    pickled_only(place, "model", tmp_path / "sprung")
    with pytest.raises((ValueError, OSError), match="safetensors"):
        WorldModel.from_pretrained(folder, SIZE, {"depth": str(place), "dtype": "float32"})
    assert not (tmp_path / "sprung").exists()


PATH = "the path of a folder or file, or an id"


@pytest.mark.parametrize(
    ("loading", "message"),
    [
        ({"dtype": "int4"}, "loading option dtype is one of float32, bfloat16, float16, float64; got 'int4'"),
        ({"dtype": None}, "loading option dtype is one of float32, bfloat16, float16, float64; got None"),
        ({"vae_dtype": "int4"}, "loading option vae_dtype is one of .*, or None; got 'int4'"),
        ({"depth": None}, f"loading option depth is {PATH}; got None"),
        ({"inverse_depth": "no"}, "loading option inverse_depth is True or False; got 'no'"),
        ({"median_depth_m": 0.0}, "loading option median_depth_m is a finite number above 0; got 0.0"),
        ({"median_depth_m": float("inf")}, "loading option median_depth_m is a finite number above 0; got inf"),
        ({"median_depth_m": True}, "loading option median_depth_m is a finite number above 0; got True"),
        ({"field_of_view_deg": None}, "option field_of_view_deg is a finite number above 1 and below 179; got None"),
        ({"vertical_field_of_view_deg": 180.0}, "vertical_field_of_view_deg is .* below 179, or None; got 180.0"),
        ({"guidance": 0.5}, "loading option guidance is a finite number from 1, or None; got 0.5"),
        ({"guidance": "5"}, "loading option guidance is a finite number from 1, or None; got '5'"),
        ({"negative_prompt": None}, "loading option negative_prompt is text; got None"),
        ({"denoising_steps": 0}, "loading option denoising_steps is a whole number from 1 to 100, or None; got 0"),
        ({"denoising_steps": 2.5}, "loading option denoising_steps is a whole number from 1 to 100, or None; got 2.5"),
        ({"denoising_steps": 101}, "loading option denoising_steps is a whole number from 1 to 100, or None; got 101"),
        ({"causal": "no"}, "loading option causal is True or False; got 'no'"),
        ({"compile": "no"}, "loading option compile is True or False; got 'no'"),
        ({"transformer": ["one"]}, f"loading option transformer is {PATH}, or None; got ..one.."),
        ({"lora": [3]}, f"loading option lora is a list, each item {PATH}; got .3."),
        ({"lora": 3}, f"loading option lora is a list, each item {PATH}; got 3"),
        ({"cameras": ["one"]}, f"loading option cameras is {PATH}, or None; got ..one.."),
        ({"offload": "disk"}, "loading option offload is one of model, sequential, or None; got 'disk'"),
        ({"quantisation": "2bit"}, "loading option quantisation is one of 4bit, 8bit, or None; got '2bit'"),
        ({"offload": "sequential", "compile": True}, "Take offload='model', or leave compile out"),
        ({"speed": 3, 4: 5}, "unknown loading options .'4', 'speed'.; the known ones are cameras, causal, .*vae_dtype"),
    ],
)
def test_options_that_are_none_are_named_before_anything_is_read(folder, loading, message, monkeypatch):
    monkeypatch.setattr("mosaic_gym.model.wan.plan.read_index", lambda *_: pytest.fail("the pipeline was read"))
    with pytest.raises(ValueError, match=message):
        WanOptions.from_mapping(loading)
    with pytest.raises(ValueError, match=message):
        WorldModel.from_pretrained(folder, SIZE, loading)


def test_options_may_be_numbers_of_numpy_and_paths(tmp_path):
    options = WanOptions(guidance=np.float32(2.5), denoising_steps=np.int64(4), causal=np.True_, cameras=tmp_path)
    assert (options.guidance, options.denoising_steps, options.causal) == (2.5, 4, True)
    assert [type(value) for value in (options.guidance, options.denoising_steps, options.causal)] == [float, int, bool]
    assert options.cameras == tmp_path
    for lora, expected in (("one", ("one",)), (tmp_path, (tmp_path,)), (["a", "b"], ("a", "b")), (None, ()), ("", ())):
        assert WanOptions(lora=lora).lora == expected


def test_options_that_name_what_is_not_there_are_told(folder, depth):
    for loading, message in (
        ({"cameras": str(folder)}, "is not a file of camera projections: give the cameras.safetensors"),
        ({"depth": "no/such"}, "depth model 'no/such'"),
        ({"lora": "no/such"}, "adapter 'no/such' cannot be loaded"),
    ):
        with pytest.raises(ValueError, match=message):
            WorldModel.from_pretrained(folder, SIZE, {"depth": str(depth), "dtype": "float32", **loading})
    with pytest.raises(ValueError, match="take multiples of 32"):
        WorldModel.from_pretrained(folder, (64, 80), {"depth": str(depth), "dtype": "float32"})
    with pytest.raises(ValueError, match="saved as its pipeline"):
        WorldModel.from_pretrained(folder, SIZE, {"depth": str(depth), "dtype": "float32"}).save_pretrained(folder)
    with pytest.raises(ValueError, match="for pretrained Wan pipelines"):
        WorldModel.from_pretrained("doom-tiny", None, {"dtype": "float32"})


def test_a_depth_model_that_needs_a_missing_package_is_told(folder, depth, monkeypatch):
    def lacking(*_):
        raise ImportError("DPTImageProcessor requires the timm library")

    monkeypatch.setattr("mosaic_gym.model.wan.loading.HuggingFaceDepth", lacking)
    with pytest.raises(ValueError, match="depth model .* cannot be loaded .*requires the timm library"):
        WorldModel.from_pretrained(folder, SIZE, {"depth": str(depth), "dtype": "float32"})


def test_pixels_are_square_unless_a_vertical_field_of_view_says_otherwise(folder, depth):
    loading = {"depth": str(depth), "dtype": "float32", "field_of_view_deg": 90.0}
    for told, down in (({}, 48.0), ({"vertical_field_of_view_deg": 90.0}, 32.0)):
        settings = WorldModel.from_pretrained(folder, (64, 96), {**loading, **told}).settings
        (fx, _, cx), (_, fy, cy), _ = settings.image_from_camera
        assert (cx, cy) == (48.0, 32.0) and (fx, fy) == pytest.approx((48.0, down))


def test_a_hub_that_does_not_answer_is_told_with_the_adapter(folder, depth, monkeypatch):
    class Unreachable(Exception):
        pass

    def ask(*_, **__):
        raise Unreachable("Name or service not known")

    monkeypatch.setattr(WanImageToVideoPipeline, "lora_state_dict", ask)
    with pytest.raises(ValueError, match="adapter 'some/adapter' cannot be loaded .Name or service.* loading={'lora'"):
        WorldModel.from_pretrained(folder, SIZE, {"depth": str(depth), "lora": "some/adapter"})


def test_a_pipeline_that_was_saved_with_adapters_beside_its_weights_is_told(folder, depth, tmp_path):
    loading = {"depth": str(depth), "dtype": "float32", "lora": str(save_adapter(tmp_path / "adapter", 1))}
    model = WorldModel.from_pretrained(folder, SIZE, loading)
    model.pipeline.save_pretrained(tmp_path / "unfused")
    with pytest.raises(ValueError, match="'transformer' .* LoRA adapters beside its weights.*fuse_adapters"):
        WorldModel.from_pretrained(tmp_path / "unfused", SIZE, {**loading, "lora": ()})


def test_what_a_pipeline_was_trained_to_is_no_checkpoint(tmp_path):
    (tmp_path / "run" / "transformer").mkdir(parents=True)
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "cameras.safetensors").touch()
    told = tmp_path / "run" / "transformer" / "config.json"
    for said in ({"_class_name": "MosaicTransformer3DModel"}, ["damaged"]):
        told.write_text(json.dumps(said))
        places = [tmp_path / "run", tmp_path / "tuned", *([told.parent] if isinstance(said, dict) else [])]
        for place in places:
            with pytest.raises(ValueError, match="pass the pipeline as checkpoint and this folder in `loading`"):
                WorldModel.from_pretrained(place)
    with pytest.raises(ValueError, match="unknown checkpoint"):
        WorldModel.from_pretrained(told.parent)


def test_an_image_to_video_model_of_many_channels_is_refused():
    with pytest.raises(ValueError, match="TI2V"):
        MosaicTransformer3DModel(num_attention_heads=2, attention_head_dim=16, in_channels=36, out_channels=16)
    with pytest.raises(ValueError, match="insertion is one of"):
        MosaicTransformer3DModel(insertion="sideways")


def test_lora_adapters_load_and_matter(folder, tmp_path):
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = load_pipeline(folder, EXACT)
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    adapter = get_peft_model_state_dict(pipeline.transformer)
    WanImageToVideoPipeline.save_lora_weights(tmp_path, adapter)
    adapted = load_pipeline(folder, WanOptions(dtype="float64", lora=(str(tmp_path),)))
    mine = get_peft_model_state_dict(adapted.transformer, adapter_name=adapted.transformer.active_adapters()[0])
    assert {name: value.shape for name, value in mine.items()} == {name: v.shape for name, v in adapter.items()}
    latents, text = torch.randn(1, 2, CHANNELS, *GRID).double(), torch.randn(1, 7, TEXT).double()
    plain = load_pipeline(folder, EXACT).transformer
    time = torch.tensor([500.0]).double()
    both = plain, adapted.transformer
    one, other = (each(latents[:, 1:], time, context_for(each, latents[:, :1], 1, text)) for each in both)
    assert (one - other).abs().max() > 1e-6


def test_all_adapters_count_and_a_string_is_one(folder, tmp_path):
    folders = [str(save_adapter(tmp_path / name, seed)) for seed, name in enumerate("ab")]
    asked = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0)).double()

    def said(lora):
        return load_pipeline(folder, WanOptions(dtype="float64", lora=lora)).transformer.blocks[0].attn1.to_q(asked)

    plain, one, other, both = (said(lora) for lora in ((), folders[0], folders[1:], folders))
    assert min((one - plain).abs().max(), (other - plain).abs().max()) > 1e-3
    assert torch.allclose(both - plain, (one - plain) + (other - plain), atol=1e-9)


def test_an_adapter_of_another_model_is_named(folder, tmp_path):
    path = save_adapter(tmp_path, 0) / "pytorch_lora_weights.safetensors"
    weights = load_file(path)
    for other, said in (
        ({name.replace("transformer.", "unet."): value for name, value in weights.items()}, "none of its weights"),
        ({name: value.repeat(2, 2) for name, value in weights.items()}, "has shape .*trained for another model"),
    ):
        save_file(other, path)
        with pytest.raises(ValueError, match=f"adapter '{tmp_path}' cannot be loaded .*{said}"):
            load_pipeline(folder, WanOptions(dtype="float64", lora=str(tmp_path)))


def test_adapters_that_are_fused_leave_whole_weights_under_their_own_names(folder, tmp_path):
    folders = [str(save_adapter(tmp_path / name, seed, name)) for seed, name in enumerate(("to_q", "to_v"))]
    adapted = load_pipeline(folder, WanOptions(dtype="float64", lora=folders)).transformer
    plain = load_pipeline(folder, EXACT).transformer
    latents, text = torch.randn(1, 2, CHANNELS, *GRID).double(), torch.randn(1, 7, TEXT).double()
    time = torch.tensor([500.0]).double()

    def says(network):
        return network(latents[:, 1:], time, context_for(network, latents[:, :1], 1, text))

    before = says(adapted)
    fuse_adapters(adapted)
    assert (says(adapted) - before).abs().max() < 1e-9 < 1e-6 < (says(plain) - before).abs().max()
    assert adapted.state_dict().keys() == plain.state_dict().keys()
    fuse_adapters(plain)
    assert torch.equal(plain.proj_out.weight, adapted.proj_out.weight), "without adapters nothing happens"
