"""The smaller commands on a tiny checkpoint: what they measure, and what they refuse."""

import json
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mosaic_gym.evaluation import demo
from mosaic_gym.evaluation.metrics.intervals import bootstrap_interval
from mosaic_gym.evaluation.speed import stages, wan
from mosaic_gym.evaluation.speed import steps as speed
from mosaic_gym.evaluation.suites import atlas, collision, depth, paths, revisit
from mosaic_gym.evaluation.suites.paths import ahead_path, collect
from mosaic_gym.evaluation.suites.revisit_figures import GOALS
from mosaic_gym.evaluation.suites.transfer import config as transfer
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.depth import HuggingFaceDepth
from mosaic_gym.worlds.protocol import Start
from tests.tiny import save_depth, tiny_model
from tests.tiny_wan import save_pipeline


class TenthTooFar(torch.nn.Module):
    """An estimator that is given the engine's depth and adds a tenth to it."""

    def __init__(self, true_m: list[np.ndarray]):
        super().__init__()
        self.true_m = torch.tensor(np.stack(true_m))

    def estimate(self, frames: torch.Tensor, image_from_camera: torch.Tensor) -> torch.Tensor:
        return self.true_m * 1.1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_model(size=(64, 64)).save_pretrained(folder)
    return str(folder)


def test_depth_error_of_a_known_estimator():
    model = tiny_model(size=(48, 64))
    path = collect(ahead_path, 1, model.settings)[0]
    model.depth = TenthTooFar([view.depth_m for view in path.views])
    assert depth.relative_errors(model, [path]) == [pytest.approx(0.1, rel=1e-4)]


def test_depth_command(checkpoint, capsys):
    figure = depth.evaluate(depth.Config(checkpoint, paths=2))
    assert 0 < figure["low"] <= figure["value"] <= figure["high"]
    assert "depth_median_relative_error" in capsys.readouterr().out


@pytest.mark.slow
def test_atlas_command(checkpoint, capsys):
    figures = atlas.evaluate(atlas.Config("doom-tiny", paths=2))
    said = capsys.readouterr().out
    assert all(name in said for name in figures)
    assert figures["picture from the true place, dB"]["value"] > 25
    assert figures["walks recognised, share"]["value"] == 1.0
    unlearnt = atlas.evaluate(atlas.Config(checkpoint, paths=2))
    assert unlearnt["picture from the true place, dB"]["value"] < 20
    with pytest.raises(ValueError, match="at least 2 paths"):
        atlas.evaluate(atlas.Config(paths=1))


def test_a_checkpoint_without_an_atlas_is_refused_before_any_walk(tmp_path):
    replace(tiny_model(size=(64, 64)), atlas=None).save_pretrained(tmp_path / "mapless")
    with pytest.raises(ValueError, match=r"mapless has no atlas; train one \(mosaic-gym train atlas\)"):
        atlas.evaluate(atlas.Config(str(tmp_path / "mapless"), paths=2))


@pytest.mark.slow
def test_collision_command(capsys):
    figures = collision.evaluate(collision.Config(paths=2))
    said = capsys.readouterr().out
    assert len(figures) == 6 and all(kind in said for kind in figures)
    known, alone = (figures[f"backward, never seen, {name}"] for name in ("memory and map", "memory alone"))
    assert known["steps"] == alone["steps"] > 0 and known["stopped"] < alone["stopped"]
    with pytest.raises(ValueError, match="--paths is a whole number from 2; got 1"):
        collision.Config(paths=1)


def test_speed_is_measured_with_a_memory_that_fills(checkpoint):
    rate = speed.steps_per_second(checkpoint, steps=10, warm_up=5)
    assert 0 < rate["low"] <= rate["value"] <= rate["high"]


def test_speed_is_measured_past_the_ends_of_episodes(tmp_path):
    model = tiny_model(size=(64, 64))
    model.reward_heads.tell.bias.data[-1] = 12.0  # every step ends its episode
    model.save_pretrained(tmp_path / "short")
    assert speed.steps_per_second(str(tmp_path / "short"), steps=2, warm_up=1)["value"] > 0
    assert speed.vector_speed(str(tmp_path / "short"), members=2, steps=1)["ratio"] > 0


def test_a_timing_that_fails_takes_no_finished_suite_with_it(checkpoint, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("no clock")

    monkeypatch.setattr(speed, "steps_per_second", failing)
    monkeypatch.setattr(paths, "collect", lambda *_, **__: pytest.fail("a suite has begun"))
    with pytest.raises(RuntimeError, match="no clock"):
        revisit.evaluate(revisit.Config(checkpoint, paths=2))
    with pytest.raises(RuntimeError, match="no clock"):
        demo.demo(demo.Config(tmp_path / "out", checkpoint, paths=2))


@pytest.mark.slow
def test_the_demo_leaves_a_video_a_sheet_and_both_tables(checkpoint, tmp_path, capsys):
    card = {name: {**bootstrap_interval([1.0, 2.0]), "goal": goal} for name, (goal, _) in GOALS.items()}
    (tmp_path / "card").symlink_to(checkpoint)
    (tmp_path / "card" / "figures.json").write_text(json.dumps(card))
    demo.demo(demo.Config(tmp_path / "out", str(tmp_path / "card"), paths=2, workers=1))
    said = capsys.readouterr().out
    assert "on 2 held-out paths" in said and said.count("card: 1.500") == len(GOALS)
    assert (tmp_path / "out" / "out_and_back.mp4").stat().st_size > 10_000
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    with Image.open(tmp_path / "out" / "demo.webp") as animation:
        assert animation.n_frames > 100 and animation.width >= 3 * 4 * 64


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (speed.Config, {"steps": 0}),
        (speed.Config, {"warm_up": -1}),
        (speed.Config, {"members": 1.5}),
        (depth.Config, {"paths": 0}),
        (revisit.Config, {"denoising_steps": 0}),
        (revisit.Config, {"workers": 0}),
        (demo.Config, {"path": -1}),
        (demo.Config, {"paths": 1}),
        (transfer.Config, {"simulator_steps": -1}),
        (transfer.Config, {"runs": True}),
    ],
)
def test_options_that_measure_nothing_are_refused_when_the_config_is_made(kind, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is a whole number from .*; got {value}"):
        kind(**wrong)


TINY_WAN = wan.Config(
    shape="tiny", sizes=((64, 96),), denoising_steps=2, steps=2, warm_up=1, device="cpu", dtype="float32",
    compile=False,
)  # fmt: skip


def test_a_wan_step_is_timed_stage_by_stage(tmp_path, capsys):
    config = replace(TINY_WAN, json=tmp_path / "wan.json", profile=tmp_path / "tables")
    told = wan.evaluate(config)
    assert json.loads((tmp_path / "wan.json").read_text()) == json.loads(json.dumps(told))
    for spent in (told[0]["ms"], told[0]["ms_full"]):
        assert set(spent) == {"retrieve", "lift", "read", "denoise", "decode", "depth", "bookkeeping"}
        assert min(spent.values()) > 0
    assert told[0]["step_ms"] == pytest.approx(4e3 / told[0]["frames_per_second"])
    assert 0 < told[0]["outside_share"] < 1
    assert told[0]["keyframes_full"] == 512 > told[0]["keyframes"]
    assert told[0]["operations"].keys() == told[0]["ms"].keys() and min(told[0]["operations"].values()) > 10
    said = capsys.readouterr().out
    assert said.startswith("cpu, torch") and "frames a second" in said and "stage retrieve" in said
    assert (tmp_path / "tables" / "tiny_64x96.txt").read_text() in said
    for wrong, named in (
        ({"shape": "6B"}, "shape is one of 5B, tiny; got '6B'"),
        ({"dtype": "foo"}, "dtype is one of float32, .*; got 'foo'"),
        ({"sizes": ((64, 96), (60, 96))}, "multiples of 32 pixels; got 60x96"),
        ({"sizes": ((64, 80),)}, "multiples of 32 pixels; got 64x80"),
        ({"sizes": ((64,),)}, "multiples of 32 pixels; got 64"),
        ({"sizes": ((64, 0),)}, "--sizes is a list, .*, each item a whole number from 32; got"),
        ({"denoising_steps": 0}, "--denoising-steps is a whole number from 1; got 0"),
        ({"steps": 0}, "--steps is a whole number from 1; got 0"),
        ({"warm_up": -1}, "--warm-up is a whole number from 0; got -1"),
    ):
        with pytest.raises(ValueError, match=named):
            replace(TINY_WAN, **wrong)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--device cpu --shape tiny"):
            wan.evaluate(wan.Config())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_timed_in_the_precisions_that_play_has_them_in(dtype, tmp_path):
    save_pipeline(tmp_path / "wan")
    loading = {"dtype": dtype, "depth": str(save_depth(tmp_path / "depth")), "causal": True}
    played = WorldModel.from_pretrained(tmp_path / "wan", (64, 96), loading)
    timed = wan.build(replace(TINY_WAN, dtype=dtype), (64, 96)).model
    for ours, theirs in ((timed.transformer, played.transformer), (timed.codec, played.codec)):
        one, other = ({name: each.dtype for name, each in module.state_dict().items()} for module in (ours, theirs))
        assert one == other
        buffers = ({name: each.dtype for name, each in module.named_buffers()} for module in (ours, theirs))
        assert next(buffers) == next(buffers)
    kinds = {each.dtype for each in timed.transformer.parameters()}
    assert kinds == {torch.float32, getattr(torch, dtype)}


def test_stages_are_timed_without_those_within_them():
    world = wan.build(replace(TINY_WAN, dtype="bfloat16"), (64, 96))
    assert world.model.codec.vae.dtype == torch.bfloat16, "as a student is loaded"
    assert isinstance(world.model.depth, HuggingFaceDepth) and world.model.depth.model.dtype == torch.float32, "as play"
    state, _ = world.start(Start(0))
    entered = []

    @contextmanager
    def enter(stage):
        entered.append(stage)
        yield

    with stages.staged(world, enter):
        (state,), _ = world.step([state], np.zeros((1, 3)))
    assert entered == ["retrieve", "denoise", "read", "decode", "decode", "depth", "lift"]
    world.step([state], np.zeros((1, 3)))
    assert len(entered) == 7
    watch = stages.Stopwatch(torch.device("cpu"))
    with watch("denoise"), watch("read"):
        time.sleep(0.05)
    spent = watch.stop()
    assert spent["read"] >= 0.05 > spent["denoise"]


def test_operations_are_counted_by_stage_and_views_are_none():
    operations = stages.Operations()
    numbers = torch.arange(6.0)
    with operations:
        numbers.view(2, 3)[1].add(1.0)
        with operations("retrieve"):
            (numbers.view(2, 3) @ numbers.view(3, 2)).add_(torch.empty(2, 2).zero_())
            with operations("depth"):
                numbers.sin()
            numbers.cos()
    numbers.exp()
    counted = {stage: count for stage, count in operations.counts.items() if count}
    assert counted == {"retrieve": 4, "depth": 1, stages.REST: 1}


def test_a_size_that_fails_leaves_the_others_figures(tmp_path, capsys, monkeypatch):
    build = wan.build

    def too_little(config, size):
        if size == (704, 1280):
            raise torch.OutOfMemoryError("out of memory")
        return build(config, size)

    monkeypatch.setattr(wan, "build", too_little)
    told = wan.evaluate(replace(TINY_WAN, sizes=((704, 1280), (64, 96)), json=tmp_path / "wan.json"))
    assert told[0] == {"size": [704, 1280], "error": "out of memory"} and told[1]["frames_per_second"] > 0
    assert told[1]["vae_dtype"] == "float32"
    assert len(json.loads((tmp_path / "wan.json").read_text())) == 2
    said = capsys.readouterr().out
    assert "failed: out of memory" in said and "autoencoder is in float32" in said
