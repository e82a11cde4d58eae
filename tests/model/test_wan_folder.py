"""Folders that are no whole Wan pipeline: what is wrong is named, before any weights are read."""

import io
import json
import shutil

import pytest
import sentencepiece

from mosaic_gym.model.wan.folder import lacks_index
from mosaic_gym.model.wan.loading import load_pipeline
from mosaic_gym.model.wan.options import WanOptions
from mosaic_gym.model.wan.plan import plan_pipeline
from tests.tiny_wan import without

EXACT = WanOptions(dtype="float64")
UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def place(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    monkeypatch.setattr(
        "mosaic_gym.model.wan.loading.load_component", lambda *_, **__: pytest.fail("weights were read")
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
    rewrite(place / "model_index.json", **{name: said})
    with pytest.raises(ValueError, match=f"model_index.json of .*copy names no {name}; a world needs all.*download"):
        load_pipeline(place, EXACT)


def test_an_index_may_say_null_of_the_transformer_that_there_is_not(place):
    rewrite(place / "model_index.json", transformer_2=None)
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
    rewrite(place / "model_index.json", tokenizer=["transformers", "T5TokenizerFast"])
    with pytest.raises(ValueError, match="component 'tokenizer' of .*copy cannot be loaded.*download this component"):
        load_pipeline(place, EXACT)


@pytest.mark.parametrize("name", ["tokenizer", "scheduler"])
@pytest.mark.parametrize("kind", ["NoneSuch", "AutoencoderKLWan", "AutoModel"])
def test_a_class_that_is_none_for_the_component_is_named(place, name, kind):
    rewrite(place / "model_index.json", **{name: ["transformers", kind]})
    with pytest.raises(ValueError, match=f"component '{name}' .*{kind}.*has no {name} of that name.*take another"):
        load_pipeline(place, EXACT)


def test_a_damaged_text_encoder_config_is_named(place):
    rewrite(place / "text_encoder" / "config.json", d_model="wide")
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
    rewrite(place / "model_index.json", scheduler=["diffusers", kind])
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
    rewrite(place / "model_index.json", scheduler=["diffusers", kind])
    (place / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert type(plan_pipeline(place, EXACT).scheduler).__name__ == kind


def save_words(folder):
    """A tokenizer that is a SentencePiece model alone, as some Wan repositories have it."""
    words = ["a room with red walls", "the camera walks through a door", "two rooms and a hall"] * 50
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=model, vocab_size=30, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    for path in folder.iterdir():
        path.unlink()
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", **tokens}))


@pytest.mark.parametrize(("missing", "package"), [("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")])
def test_a_sentencepiece_model_needs_two_packages_which_are_named(place, missing, package, monkeypatch):
    save_words(place / "tokenizer")
    rewrite(place / "model_index.json", tokenizer=["transformers", "T5TokenizerFast"])
    tokenizer = plan_pipeline(place, EXACT).tokenizer
    assert tokenizer.decode(tokenizer("a red door").input_ids, skip_special_tokens=True) == "a red door"

    def not_found(*_, **__):
        raise ValueError("`tiktoken` is required to read a `tiktoken` file")  # as transformers puts it

    monkeypatch.setattr(type(tokenizer), "from_pretrained", not_found)
    with pytest.raises(ValueError, match="component 'tokenizer' .*tiktoken"):
        plan_pipeline(place, EXACT)  # nothing is missing, so the file is at fault
    without(monkeypatch, missing)
    with pytest.raises(ModuleNotFoundError, match=rf"spiece.model, needs {package}: pip install 'mosaic-gym\[wan\]'"):
        plan_pipeline(place, EXACT)


@pytest.mark.parametrize("missing", ["sentencepiece", "google.protobuf"])
def test_a_tokenizer_json_needs_neither(place, missing, monkeypatch):
    without(monkeypatch, missing)
    plan_pipeline(place, EXACT)
    (place / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="component 'tokenizer' of .*copy cannot be loaded.*download this component"):
        plan_pipeline(place, EXACT)
