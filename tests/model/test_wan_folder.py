"""Folders that are no whole Wan pipeline: what is wrong is named, before any weights are read."""

import json
import shutil

import pytest

from mosaic_gym.model.wan.folder import lacks_index
from mosaic_gym.model.wan.pipeline import WanOptions, load_pipeline, plan_pipeline

EXACT = WanOptions(dtype="float64")
UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def told(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def place(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    monkeypatch.setattr(
        "mosaic_gym.model.wan.pipeline._load_component", lambda *_, **__: pytest.fail("weights were read")
    )


def test_components_without_an_index_are_told_from_other_folders(place, tmp_path):
    assert not lacks_index(place) and not lacks_index(tmp_path) and not lacks_index("nobody/nothing")
    (place / "model_index.json").unlink()
    assert lacks_index(place)
    with pytest.raises(ValueError, match="copy holds components of a pipeline and no model_index.json.*download the"):
        load_pipeline(place, EXACT)
    for name in ("vae", "tokenizer"):  # the others are names of a world's parts, too
        shutil.rmtree(place / name)
    assert not lacks_index(place)


@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"])
@pytest.mark.parametrize("said", [None, [None, None], [], "AutoencoderKLWan"])
def test_an_index_that_names_no_class_for_a_component_is_told(place, name, said):
    told(place / "model_index.json", **{name: said})
    with pytest.raises(ValueError, match=f"model_index.json of .*copy names no {name}; a world needs all.*download"):
        load_pipeline(place, EXACT)


def test_an_index_may_say_null_of_the_transformer_that_there_is_not(place):
    told(place / "model_index.json", transformer_2=None)
    plan_pipeline(place, EXACT)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"added_tokens": [], "model": {"type": "None such"}}'),
        ("tokenizer_config.json", "{}"),  # without a padding token, which every prompt needs
        ("special_tokens_map.json", '{"pad_'),
    ],
)
def test_a_damaged_tokenizer_is_named(place, file, text):
    (place / "tokenizer" / file).write_text(text)
    with pytest.raises(ValueError, match="component 'tokenizer' of .*copy cannot be loaded.*download this component"):
        load_pipeline(place, EXACT)


def test_words_in_a_damaged_spiece_model_are_named(place):
    (place / "tokenizer" / "tokenizer.json").unlink()
    (place / "tokenizer" / "spiece.model").write_bytes(b"\x0a\x01")
    told(place / "model_index.json", tokenizer=["transformers", "T5TokenizerFast"])
    with pytest.raises(ValueError, match="component 'tokenizer' of .*copy cannot be loaded.*download this component"):
        load_pipeline(place, EXACT)


@pytest.mark.parametrize("name", ["tokenizer", "scheduler"])
@pytest.mark.parametrize("kind", ["NoneSuch", "AutoencoderKLWan", "AutoModel"])
def test_a_class_that_is_none_for_the_component_is_named(place, name, kind):
    told(place / "model_index.json", **{name: ["transformers", kind]})
    with pytest.raises(ValueError, match=f"component '{name}' .*{kind}.*has no {name} of that name.*take another"):
        load_pipeline(place, EXACT)


def test_a_damaged_text_encoder_config_is_named(place):
    told(place / "text_encoder" / "config.json", d_model="wide")
    with pytest.raises(ValueError, match="component 'text_encoder' of .*copy cannot be loaded.*d_model"):
        load_pipeline(place, EXACT)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("UniPCMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {**UNIPC, "use_flow_sigmas": False}),
        ("UniPCMultistepScheduler", {**UNIPC, "prediction_type": "epsilon"}),
        ("DDIMScheduler", {}),
        ("DDIMScheduler", UNIPC),
        ("EulerDiscreteScheduler", {}),
    ],
)
def test_a_scheduler_that_matches_no_flow_is_named(place, kind, config):
    told(place / "model_index.json", scheduler=["diffusers", kind])
    (place / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"'scheduler' of .*copy, a {kind} .*not sample by flow matching.*or take a"):
        load_pipeline(place, EXACT)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("UniPCMultistepScheduler", UNIPC),
        ("DPMSolverMultistepScheduler", UNIPC),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ],
)
def test_schedulers_that_match_flows_are_taken(place, kind, config):
    told(place / "model_index.json", scheduler=["diffusers", kind])
    (place / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert type(plan_pipeline(place, EXACT).scheduler).__name__ == kind
