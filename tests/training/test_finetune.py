"""Fine-tuning a tiny Wan pipeline of the real classes: the loss falls, a resume repeats, and the result loads."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline
from safetensors.torch import load_file, save_file

from mosaic_gym import Start
from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.control import ACTIONS
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.wan.options import WanOptions
from mosaic_gym.training import clips, distill, finetune, keyframe_cache, pretrained
from mosaic_gym.training.run import Run
from mosaic_gym.training.samples import LiftedEpisode
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.tiny import record_few, save_depth
from tests.tiny_wan import SIZE, save_adapter, save_pipeline, without


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Recorded episodes, a pipeline, a depth model."""
    root = tmp_path_factory.mktemp("given")
    return record_few(root / "data"), save_pipeline(root / "wan"), save_depth(root / "depth")


def config(given: tuple[Path, Path, Path], out: Path, **changes) -> finetune.Config:
    data, pipeline, depth = given
    told = {"steps": 3, "batch": 2, "rank": 4, "clip": 2, "episodes": 3, "precision": "no", "learning_rate": 3e-3}
    # Frozen weights in half precision, as by default, where products are.
    dtype = "bfloat16" if changes.get("precision") == "bf16" else "float32"
    told["loading"] = WanOptions(dtype=dtype, depth=str(depth), guidance=1.0)
    return finetune.Config(
        from_=str(pipeline), data=data, out=out, height=SIZE[0], width=SIZE[1], **{**told, **changes}
    )


def kept(out: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint" / f"{name}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_the_loss_falls(given, tmp_path, monkeypatch, full):
    told = []
    update = Run.update

    def listen(run, loss, scalars):
        assert scalars["loss"] > loss, "the step's, of which this is the last sample's part"
        told.append(float(scalars["loss"]))
        update(run, loss, scalars)

    monkeypatch.setattr(Run, "update", listen)
    finetune.train(config(given, tmp_path, steps=30, batch=4, full=full, learning_rate=1e-2))
    assert sum(told[-8:]) < 0.97 * sum(told[:8])


def test_adapters_and_cameras_are_trained_and_nothing_else_and_the_result_is_a_world(given, tmp_path):
    finetune.train(config(given, tmp_path))
    names = kept(tmp_path).keys()
    assert names and all("to_out_cameras" in name or "lora" in name for name in names)
    weights = tmp_path / "weights"
    cameras = load_file(weights / "cameras.safetensors")
    assert all(value.abs().max() > 0 for name, value in cameras.items() if name.endswith("weight"))
    loading = {
        "dtype": "float32", "depth": str(given[2]), "guidance": 1.0, "cameras": str(weights / "cameras.safetensors"),
        "lora": [str(weights)],
    }  # fmt: skip
    tuned = MosaicWorld(WorldModel.from_pretrained(given[1], SIZE, loading), denoising_steps=1)
    name = "blocks.0.attn1.to_out_cameras.weight"
    assert torch.equal(tuned.model.transformer.state_dict()[name], cameras[name])
    state, _ = tuned.start(Start(0))
    tuned.step([state], torch.tensor([ACTIONS["forward"]]).numpy())
    with pytest.raises(ValueError, match="camera projections"):
        WorldModel.from_pretrained(given[1], SIZE, {**loading, "cameras": str(tmp_path / "none")})


def adapted(given: tuple[Path, Path, Path], adapter: Path) -> dict[str, str | float | list[str]]:
    """How the pipeline is loaded with an adapter."""
    return {"dtype": "float32", "depth": str(given[2]), "guidance": 1.0, "lora": [str(adapter)]}


def projected(model: WorldModel, asked: torch.Tensor) -> torch.Tensor:
    """What the layer says that `save_adapter` adapts."""
    with torch.no_grad():
        return model.transformer.blocks[0].attn1.to_q(asked)


def said_to_step(capsys) -> dict[str, Any]:
    """The arguments of the `gym.make` that a recipe's last line tells."""
    said = capsys.readouterr().out.strip().splitlines()[-1]
    call = ast.parse("gym.make" + said.partition("gym.make")[2], mode="eval").body
    assert [each.value for each in call.args] == ["MosaicWorld-v0"]
    return {each.arg: ast.literal_eval(each.value) for each in call.keywords}


def as_said(asked: dict[str, Any]) -> WorldModel:
    return WorldModel.from_pretrained(asked["checkpoint"], tuple(asked["resolution"]), asked["loading"])


def test_an_adapter_is_learnt_on_top_of_one_that_is_loaded(given, tmp_path, capsys):
    loading = {**adapted(given, save_adapter(tmp_path / "first", seed=1)), "causal": True}
    asked = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    both = {**loading, "lora": []}, loading
    plain, first = (projected(WorldModel.from_pretrained(given[1], SIZE, each), asked) for each in both)
    assert (first - plain).abs().max() > 1e-3
    told = config(given, tmp_path / "run", loading=WanOptions(**loading))
    model = WorldModel.from_pretrained(given[1], SIZE, loading)
    finetune.prepare(told, model)
    assert torch.equal(projected(model, asked), first), "a new adapter begins as none, and the loaded one counts"
    trained = {name for name, each in model.transformer.named_parameters() if each.requires_grad}
    assert trained and not any("loaded" in name for name in trained)
    tuned = finetune.train(told)
    weights = tmp_path / "run" / "weights"
    asked_for = said_to_step(capsys)
    assert asked_for["loading"].items() >= {**loading, "lora": [*loading["lora"], str(weights)]}.items()
    again = as_said(asked_for)
    seen, meant = (torch.tensor(each.settings.image_from_camera) for each in (again, tuned))
    torch.testing.assert_close(seen, meant, atol=1e-3, rtol=0)  # the recordings' camera
    assert torch.allclose(projected(again, asked), projected(tuned, asked), atol=1e-6)
    assert (projected(again, asked) - first).abs().max() > 0, "the new adapter counts too"


def test_all_weights_are_trained_with_a_loaded_adapter_among_them(given, tmp_path, capsys):
    loading = adapted(given, save_adapter(tmp_path / "first", seed=1))
    asked = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    first = projected(WorldModel.from_pretrained(given[1], SIZE, loading), asked)
    out = tmp_path / "run"
    tuned = finetune.train(config(given, out, full=True, steps=1, learning_rate=1e-4, loading=WanOptions(**loading)))
    asked_for = said_to_step(capsys)
    assert asked_for["loading"]["transformer"] == str(out / "weights" / "transformer")
    assert asked_for["loading"].keys().isdisjoint({"lora", "cameras"}), "they are part of it"
    world = MosaicWorld(as_said(asked_for), denoising_steps=1)
    assert torch.equal(projected(world.model, asked), projected(tuned, asked))
    assert torch.allclose(projected(world.model, asked), first, atol=1e-4), "one small step from where it began"
    state, _ = world.start(Start(0))
    world.step([state], torch.tensor([ACTIONS["forward"]]).numpy())


class _CutOff(Exception):
    pass


class _Loaded(Exception):
    pass


def test_resuming_equals_not_having_stopped(given, tmp_path, monkeypatch):
    finetune.train(config(given, tmp_path / "whole"))
    update = Run.update

    def cut_off(run, *arguments):
        update(run, *arguments)
        if run.step_index == 2:
            run.checkpoint()
            raise _CutOff

    monkeypatch.setattr(Run, "update", cut_off)
    with pytest.raises(_CutOff):
        finetune.train(config(given, tmp_path / "pieces"))
    monkeypatch.undo()
    finetune.train(config(given, tmp_path / "pieces"))
    for name in ("model", "optimizer"):
        one, two = kept(tmp_path / "whole", name), kept(tmp_path / "pieces", name)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_memory_is_told_by_both_warps_or_one(given):
    data, pipeline, depth = given
    loading = {"dtype": "float32", "depth": str(depth), "guidance": 1.0}
    world = MosaicWorld(WorldModel.from_pretrained(pipeline, SIZE, loading))
    store = EpisodeStore(data, "train")
    episodes = {0: LiftedEpisode(list(keyframe_cache.lift_episode(world, store, 0).keyframes), store.captions(0))}
    seen = set()
    for seed in range(60):
        _, retrieved, latents, cameras = clips.draw_sample(world, store, episodes, config(given, Path("x")), seed, 2)
        assert latents.shape[:2] == (1, 2) and cameras.shape == (1, 2, 4, 4, 4)
        seen.add((bool(retrieved.patch_exists.any()), bool(retrieved.coverage_mask[:, :-1].any())))
    assert seen >= {(True, True), (True, False), (False, True), (False, False)}


def test_what_cannot_be_trained_is_named(given, tmp_path):
    with pytest.raises(ValueError, match="longer than a clip of 9 steps"):
        finetune.train(config(given, tmp_path, clip=9))
    mix = replace(pretrained.AUGMENTATION, degraded=0.3, no_place=0.5)
    with pytest.raises(ValueError, match="no augmentation.degraded, augmentation.no_place: leave that at 0"):
        finetune.train(config(given, tmp_path, augmentation=mix))


@pytest.mark.parametrize("recipe", [finetune, distill])
def test_what_no_recipe_trains_is_refused_when_the_config_is_made(recipe, given, tmp_path):
    usual = recipe.Config(str(given[1]), data=given[0], out=tmp_path, steps=2, loading=WanOptions(dtype="float32"))
    usual = replace(usual, **({"full": True} if recipe is finetune else {}), precision="no")
    own = {"rank": 0, "batch": 0} if recipe is finetune else {"every": 0, "denoising_steps": 0}
    for name, value in {"clip": 0, "episodes": -1, "height": 0, "width": 1.5, "steps": 0, **own}.items():
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is a whole number from 1.*; got {value}"):
            replace(usual, **{name: value})
    for name, value in (("shift", 0.0), ("learning_rate", float("nan")), ("checkpoint_minutes", 0.0), ("minutes", -1)):
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is a finite number above 0.*; got {value}"):
            replace(usual, **{name: value})
    for wrong, said in (
        ({"inverse_depth": True}, "scale of its own.*--loading.depth"),
        ({"offload": "model"}, "--loading.offload .* leave it out"),
        ({"quantisation": "4bit"}, "--loading.quantisation .* leave it out, or train adapters"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(usual, loading=replace(usual.loading, **wrong))
    for wrong, said in (
        ({"precision": "fp16"}, "--precision is one of bf16, no; got 'fp16'"),
        ({"empty_prompt": 1.5}, "--empty-prompt is a finite number from 0 to 1; got 1.5"),
        ({"from_": 3}, "--from is the path of a folder or file, or an id; got 3"),
        ({"minutes": 1.0}, "exactly one budget: --minutes or --steps"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(usual, **wrong)


@pytest.mark.parametrize("recipe", [finetune, distill])
def test_what_shows_without_weights_is_told_before_any_are_loaded(recipe, given, tmp_path, monkeypatch):
    usual = recipe.Config(str(given[1]), data=given[0], steps=2, clip=2, loading=WanOptions(dtype="float32"))
    usual = replace(usual, out=tmp_path / "run", precision="no")
    monkeypatch.setattr(recipe.Run, "__init__", lambda *_, **__: pytest.fail("a run is opened"))
    monkeypatch.setattr(finetune.WorldModel, "from_pretrained", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(keyframe_cache, "lift_episode", lambda *_: pytest.fail("encoded"))
    (tmp_path / "none").mkdir()
    for other in ("doom-tiny", str(tmp_path / "none")):
        with pytest.raises(ValueError, match=f"--from takes a Wan pipeline .*{other}' is none.*`train world --begin`"):
            recipe.train(replace(usual, from_=other))
    with pytest.raises(FileNotFoundError, match="no train episodes under"):
        recipe.train(replace(usual, data=tmp_path / "none"))
    with pytest.raises(ValueError, match="longer than a clip of 9 steps"):
        recipe.train(replace(usual, clip=9))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--out is the path of a folder; got .*file"):
        replace(usual, out=tmp_path / "file")
    with pytest.raises(ValueError, match="no run can be stored in .*inside.*--out"):
        recipe.train(replace(usual, out=tmp_path / "file" / "inside"))
    for stage in ("",) if recipe is finetune else distill.STAGES:
        kept = {**finetune.recipe_of(usual, EpisodeStore(given[0], "train")), "shift": "3.0", "clip": "4"}
        place = tmp_path / "run" / stage / "checkpoint"
        place.mkdir(parents=True)
        (place / "run.json").write_text(json.dumps({"begin": None, "parts": "unknown yet", "recipe": kept}))
        with pytest.raises(ValueError, match="holds a run with clip=4, not 2; ask for the same"):
            recipe.train(usual)
        with pytest.raises(ValueError, match="clip=4, not 2, with shift=3.0, not 5.0"):
            recipe.train(replace(usual, shift=5.0))
        with pytest.raises(ValueError, match=r"run with clip=4, not 2, with loading.guidance=None, not 2.0; ask"):
            recipe.train(replace(usual, loading=replace(usual.loading, guidance=2.0)))
        shutil.rmtree(tmp_path / "run")


def test_what_a_run_cannot_go_on_from_is_told_before_anything_is_encoded(given, tmp_path, monkeypatch):
    finetune.train(config(given, tmp_path / "run", steps=1))
    path = tmp_path / "run" / "checkpoint" / "run.json"
    told = json.loads(path.read_text())
    assert told["recipe"]["shift"] == "5.0", "the pipeline's own"
    monkeypatch.setattr(keyframe_cache, "lift_episode", lambda *_: pytest.fail("encoded"))
    shutil.rmtree(tmp_path / "run" / "weights")
    asked = config(given, tmp_path / "run", steps=1)
    compiled = replace(asked, loading=replace(asked.loading, compile=True))
    finetune.train(compiled)  # finished, and free to be compiled
    assert (tmp_path / "run" / "weights" / "cameras.safetensors").is_file()
    path.write_text(json.dumps({**told, "parts": "another's"}))
    with pytest.raises(ValueError, match="trained against other weights"):
        finetune.train(replace(asked, steps=2))


def test_what_is_encoded_before_training_takes_none_of_its_minutes(given, tmp_path, monkeypatch):
    begun, remember, update = [], finetune.lift_long_episodes, Run.update

    def slow(*arguments):
        remembered = remember(*arguments)
        begun.append(time.monotonic())
        return remembered

    def listen(run, *arguments):
        assert run.started >= begun[0]
        update(run, *arguments)

    monkeypatch.setattr(finetune, "lift_long_episodes", slow)
    monkeypatch.setattr(Run, "update", listen)
    finetune.train(config(given, tmp_path, steps=None, minutes=0.01, episodes=1))
    assert len(begun) == 1


def test_clips_are_of_every_length_from_the_one_that_a_step_makes(given, tmp_path, monkeypatch):
    lengths, draw = [], finetune.draw_sample

    def listen(*arguments, **told):
        sample = draw(*arguments, **told)
        state, retrieved, latents, cameras = sample
        assert latents.shape[1] == cameras.shape[1] == len(retrieved.warped_latent) and len(state.history) == 1
        lengths.append(latents.shape[1])
        return sample

    monkeypatch.setattr(finetune, "draw_sample", listen)
    finetune.train(config(given, tmp_path, steps=3, batch=8, clip=3))
    assert set(lengths) == {1, 2, 3}


def test_noise_leans_as_the_pipeline_says_or_as_it_is_told(given, tmp_path, monkeypatch):
    data, _, depth = given
    other = save_pipeline(tmp_path / "wan")
    scheduler = UniPCMultistepScheduler.from_pretrained(other / "scheduler", flow_shift=3.0)
    scheduler.save_pretrained(other / "scheduler")
    shifts, draw = [], finetune.draw_noise_level
    monkeypatch.setattr(finetune, "draw_noise_level", lambda *call: (shifts.append(call[1]), draw(*call))[1])
    asked = config((data, other, depth), tmp_path / "own", steps=1, batch=1, episodes=1)
    finetune.train(asked)
    finetune.train(replace(asked, shift=7.0, out=tmp_path / "told"))
    assert shifts == [3.0, 7.0]


def test_what_is_encoded_is_kept_for_when_the_run_goes_on(given, tmp_path, monkeypatch):
    asked = config(given, tmp_path / "whole")
    finetune.train(asked)
    files = sorted((tmp_path / "whole" / keyframe_cache.FOLDER).iterdir())
    assert len(files) == 3 and all(path.suffix == ".safetensors" for path in files)
    shutil.copytree(tmp_path / "whole" / keyframe_cache.FOLDER, tmp_path / "pieces" / keyframe_cache.FOLDER)
    monkeypatch.setattr(keyframe_cache, "lift_episode", lambda *_: pytest.fail("encoded again"))
    finetune.train(config(given, tmp_path / "pieces", checkpoint_minutes=0.5))
    for name in ("model", "optimizer"):
        one, two = kept(tmp_path / "whole", name), kept(tmp_path / "pieces", name)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


SQUARE = ((9.0, 0.0, 8.0), (0.0, 9.0, 8.0), (0.0, 0.0, 1.0))


def full_disk(memory: MosaicMemory, path: Path) -> None:
    path.write_bytes(b"some")
    raise OSError("No space left on device")


def test_what_was_encoded_otherwise_or_is_damaged_is_not_taken_for_this(given, tmp_path, monkeypatch):
    asked = config(given, tmp_path, episodes=2)
    world, store = pretrained.open_pretrained(asked, "cpu")
    alone = Accelerator()

    def files() -> set[Path]:
        return set((tmp_path / keyframe_cache.FOLDER).iterdir())

    first = clips.lift_long_episodes(world, store, asked, alone)
    true = files()
    again = clips.lift_long_episodes(world, store, asked, alone)
    assert list(first) == list(again) == [0, 1] and files() == true and len(true) == 2
    for index in first:
        assert first[index].captions == again[index].captions == store.captions(index)
        assert [each.step for each in again[index].keyframes] == list(range(6))
        for one, two in zip(first[index].keyframes, again[index].keyframes, strict=True):
            assert one.step == two.step and all(torch.equal(value, two.tensors[n]) for n, value in one.tensors.items())
    load, model = store.load, world.model

    def recorded_otherwise(name: str, change) -> None:
        def loaded(index):
            episode = load(index).clone()
            episode[name] = change(episode[name])
            return episode

        store.load = loaded

    for what, change, more in (
        ("captions", lambda: store.metadata(0).update(captions=["another"] * 6), 1),
        ("depth that is read otherwise", lambda: setattr(model.depth, "inverse", True), 2),
        ("a scale", lambda: setattr(model.depth, "median_depth_m", 7.0), 2),
        ("a depth model", lambda: next(model.depth.model.parameters()).data.add_(0.1), 2),
        ("its configuration", lambda: setattr(model.depth.model.config, "max_depth", 7), 2),
        ("its processor", lambda: setattr(model.depth.processor, "image_mean", [0.1, 0.2, 0.3]), 2),
        ("an autoencoder", lambda: next(model.codec.parameters()).data.add_(0.1), 2),
        ("what it is scaled by", lambda: model.codec.vae.register_to_config(latents_mean=[0.5] * 6), 2),
        ("a camera", lambda: setattr(model, "settings", replace(model.settings, image_from_camera=SQUARE)), 2),
        ("frames", lambda: recorded_otherwise("frames", lambda frames: 255 - frames), 2),
        ("poses", lambda: recorded_otherwise("world_from_camera", lambda poses: 2.0 * poses), 2),
    ):
        change()
        before = files()
        clips.lift_long_episodes(world, store, asked, alone)
        assert len(files()) == len(before) + more, f"another of {what}"
    (tmp_path / keyframe_cache.FOLDER / f"cut-off.1{keyframe_cache.PARTIAL}").touch()
    before = files()
    monkeypatch.setattr(MosaicMemory, "save", full_disk)
    store.metadata(0).update(captions=["more"] * 6)
    with pytest.raises(OSError, match="No space left"):
        clips.lift_long_episodes(world, store, asked, alone)
    assert {path.suffix for path in files()} == {".safetensors"} and len(files()) == len(before) - 1, "nothing partial"
    monkeypatch.undo()
    for path in files():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="delete it, and the episode is encoded again"):
        clips.lift_long_episodes(world, store, asked, alone)


def test_steps_are_encoded_together_as_they_would_be_alone(given, monkeypatch):
    data, pipeline, depth = given
    loading = {"dtype": "float32", "depth": str(depth), "guidance": 1.0}
    world = MosaicWorld(WorldModel.from_pretrained(pipeline, SIZE, loading))
    store, encode, calls, found = EpisodeStore(data, "train"), world.model.codec.vae.encode, [], []

    def listen(clip):
        assert torch.get_float32_matmul_precision() == "highest", "however coarsely the run multiplies"
        calls.append(len(clip))
        return encode(clip)

    monkeypatch.setattr(world.model.codec.vae, "encode", listen)
    torch.set_float32_matmul_precision("high")  # as a run on an accelerator does, which is opened before
    try:
        for together in (1, 4, 100):
            monkeypatch.setattr(keyframe_cache, "CHUNK_PX", together * SIZE[0] * SIZE[1])
            found.append(keyframe_cache.lift_episode(world, store, 0))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert calls == [*[1] * 6, *(1, 3), 2, *(1, 5)]
    alone, *others = (each.keyframes for each in found)
    for keyframes in others:
        assert [each.step for each in keyframes] == [each.step for each in alone] == list(range(6))
        for one, each in zip(alone, keyframes, strict=True):
            for name in ("latent", "depth_m", "points_m", "world_from_camera", "generation"):
                torch.testing.assert_close(getattr(each, name), getattr(one, name), atol=1e-4, rtol=1e-4)


def test_a_student_that_is_trained_on_is_written_with_all_that_its_folder_says(given, tmp_path):
    data, pipeline, depth = given
    distill.train(
        distill.Config(
            str(pipeline), data=data, out=tmp_path / "student", height=SIZE[0], width=SIZE[1], steps=1, clip=2,
            episodes=1, precision="no", causal_share=1.0, loading=WanOptions(dtype="float32", depth=str(depth)),
        )
    )  # fmt: skip
    student = tmp_path / "student" / "weights" / "transformer"
    loading = WanOptions(dtype="float32", depth=str(depth), guidance=1.0, transformer=str(student))
    finetune.train(config(given, tmp_path / "on", full=True, steps=1, episodes=1, loading=loading))
    one, other = (
        json.loads((folder / "config.json").read_text())
        for folder in (student, tmp_path / "on" / "weights" / "transformer")
    )
    assert one["guidance"] == 1.0 and one["causal"]
    assert {name: value for name, value in other.items() if name[0] != "_"} == {
        name: value for name, value in one.items() if name[0] != "_"
    }


def test_quantised_weights_are_asked_of_a_bitsandbytes_that_accelerate_leaves_unhooked():
    told = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (asked,) = told["project"]["optional-dependencies"]["quantisation"]
    name, version = asked.split(">=")
    assert name == "bitsandbytes" and tuple(map(int, version.split("."))) >= (0, 48)


def test_adapters_are_trained_on_quantised_weights(given, tmp_path, monkeypatch):
    def loaded(*_):
        raise _Loaded

    monkeypatch.setattr(finetune.WorldModel, "from_pretrained", loaded)
    with pytest.raises(_Loaded):  # which needs a GPU
        finetune.train(config(given, tmp_path, loading=WanOptions(dtype="float32", quantisation="4bit")))


def test_adapters_in_float32_are_not_put_on_frozen_weights_of_another_precision(given, tmp_path):
    halved = WanOptions(depth=str(given[2]))
    finetune.train(config(given, tmp_path / "full", steps=1, full=True, loading=halved))  # nothing is frozen
    with pytest.raises(ValueError, match="--loading.dtype float32.*--precision bf16"):
        config(given, tmp_path / "adapters", loading=halved)


@pytest.mark.usefixtures("a_precision_of_its_own")
def test_small_steps_on_bf16_weights_are_not_rounded_away(given, tmp_path, monkeypatch):
    cached, prepare = set(), finetune.prepare

    def listening(asked, model):
        prepare(asked, model)
        model.transformer.blocks[0].register_forward_pre_hook(lambda *_: cached.add(torch.is_autocast_cache_enabled()))

    monkeypatch.setattr(finetune, "prepare", listening)
    asked = config(given, tmp_path, full=True, steps=2, precision="bf16", learning_rate=1e-4)
    before = WanImageToVideoPipeline.from_pretrained(asked.from_, torch_dtype=torch.bfloat16).transformer.state_dict()
    finetune.train(asked)
    assert cached == {False}, "a weight is used once, and a rounded copy of it is not kept"
    after = kept(tmp_path)
    name = "blocks.0.attn1.to_q.weight"
    # Two steps of 1e-4 times the warm-up's share: less than bf16 tells apart.
    moved = (after[name] - before[name].float()).abs()
    assert after[name].dtype == torch.float32 and (moved > 0).float().mean() > 0.9 and moved.max() < 1e-4


def test_adapters_without_peft_are_refused_before_anything_is_opened(given, tmp_path, monkeypatch):
    without(monkeypatch, "peft")
    monkeypatch.setattr(finetune, "open_pretrained", lambda *_: pytest.fail("opened"))
    with pytest.raises(ModuleNotFoundError, match=r"training adapters needs peft: pip install 'mosaic-gym\[wan\]'"):
        finetune.train(config(given, tmp_path))


def test_processes_that_do_not_know_of_one_another_are_refused(given, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "open_pretrained", lambda *_: pytest.fail("loaded"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    alone = SimpleNamespace(num_processes=1, distributed_type=DistributedType.NO)
    with pytest.raises(ValueError, match="2 processes were started.*accelerate finds 1.*ACCELERATE_USE_CPU=true"):
        finetune.check_processes(alone, None, averaged=False, shared=True)


def test_a_run_that_goes_on_says_from_where(given, tmp_path, capsys):
    finetune.train(config(given, tmp_path, steps=2))
    assert "goes on" not in capsys.readouterr().err
    finetune.train(config(given, tmp_path, steps=3))
    assert "holds a run of 2 steps: it goes on from there" in "".join(capsys.readouterr())


def test_processes_that_cannot_train_together_are_refused(tmp_path):
    many = SimpleNamespace(num_processes=2, distributed_type=DistributedType.MULTI_GPU)
    with pytest.raises(ValueError, match="trains in one process"):
        Run(tmp_path, torch.nn.Linear(1, 1), 1e-3, None, 5, many)
    with pytest.raises(ValueError, match="give --steps, not --minutes"):
        Run(tmp_path, torch.nn.Linear(1, 1), 1e-3, 5.0, None, many, shared=True)
    alone = SimpleNamespace(num_processes=1, distributed_type=DistributedType.FSDP, is_fsdp2=False)
    with pytest.raises(ValueError, match="fsdp.yaml"):
        Run(tmp_path, torch.nn.Linear(1, 1), 1e-3, None, 5, alone, averaged=False, shared=True)
    for kind in ({"shared": True}, {"averaged": False}):
        with pytest.raises(ValueError, match="does not shard its weights"):
            Run(tmp_path, torch.nn.Linear(1, 1), 1e-3, None, 5, alone, **kind)


def test_a_run_of_other_shapes_or_of_another_pipeline_is_not_gone_on_with(given, tmp_path):
    data, pipeline, depth = given
    copied = data, shutil.copytree(pipeline, tmp_path / "wan"), depth
    finetune.train(config(copied, tmp_path / "run", steps=1, rank=1))
    with pytest.raises(ValueError, match="holds a run with rank=1, not 4; ask for the same"):
        finetune.train(config(copied, tmp_path / "run", steps=2, rank=4))
    path = copied[1] / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file({**weights, "proj_out.bias": weights["proj_out.bias"] + 1.0}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="trained against other weights .* or a pretrained pipeline.; go on with"):
        finetune.train(config(copied, tmp_path / "run", steps=2, rank=1))


def test_a_causal_model_is_not_shared_out(given, tmp_path, monkeypatch):
    shares = SimpleNamespace(num_processes=1, distributed_type=DistributedType.FSDP, is_fsdp2=True, device="cpu")
    monkeypatch.setattr(finetune, "Accelerator", lambda **_: shares)
    asked = config(given, tmp_path)
    with pytest.raises(ValueError, match="multi_gpu.yaml"):
        finetune.train(replace(asked, loading=replace(asked.loading, causal=True)))


TOGETHER = """
import os, sys
from pathlib import Path
import torch
from accelerate import DistributedType
from accelerate.state import PartialState
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from mosaic_gym.training import finetune, keyframe_cache
from mosaic_gym.training.run import Run
from tests.training.test_finetune import config
torch.set_num_threads(1)
state = PartialState(cpu=True)
if os.environ.get("ACCELERATE_USE_FSDP"):  # accelerate shares weights out among accelerators only, torch among CPUs too
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
given, out, full = [Path(name) for name in sys.argv[1:4]], Path(sys.argv[4]), sys.argv[5] == "full"
written, checkpoint = [], Run.checkpoint
Run.checkpoint = lambda run: (written.append(run.step_index), checkpoint(run))
ordered, shared_out = [], finetune.lift_long_episodes
finetune.lift_long_episodes = lambda *told: (ordered.append(shared_out(*told)), ordered[-1])[1]
encoded, remember = [], keyframe_cache.lift_episode
keyframe_cache.lift_episode = lambda world, store, index: (encoded.append(index), remember(world, store, index))[1]
alone, no_sync = [], DistributedDataParallel.no_sync
DistributedDataParallel.no_sync = lambda model: (alone.append(model), no_sync(model))[1]
asked = {"full": full, "precision": sys.argv[6], "batch": int(sys.argv[7]), "checkpoint_minutes": 1e-9}
model = finetune.train(config(given, out, steps=11, **asked))
parameters = dict(model.transformer.named_parameters())
whole = {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in parameters.items()}
trained = {name: whole[name].detach() for name, each in parameters.items() if each.requires_grad}
parts = [each.to_local() if isinstance(each, DTensor) else each for each in parameters.values()]
told = {"trained": trained, "held": sum(each.numel() for each in parts), "checkpoints": written, "alone": len(alone)}
told |= {"encoded": encoded, "ordered": list(ordered[0])}
torch.save(told, out / f"{state.process_index}.pt")
"""


def environment(name: str) -> dict[str, str]:
    """What `accelerate launch` tells its processes, by one of the package's configurations."""
    path = Path(finetune.__file__).parent / name
    asked = ["--config_file", str(path), "--num_processes", "2", "--num_machines", "1", "nothing.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(asked))
    return {**prepare_multi_gpu_env(arguments), "ACCELERATE_USE_CPU": "true"}


def together(given: tuple[Path, Path, Path], out: Path, launched: str, *asked: str) -> tuple[dict, list[int]]:
    """What two processes agree that they have trained, and how many numbers each of them held."""
    (out / "together.py").write_text(TOGETHER)
    told = {**os.environ, **environment(launched), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(each) for each in (out / "together.py", *given, out, *asked)]
    done = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # Told in a file by each: what two processes print falls into one line at times.
    said = [torch.load(out / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(each["checkpoints"] == [10, 11] for each in said), "both, on the way and at the end"
    assert [each["encoded"] for each in said] == [[0, 2], [1]], "each its share"
    assert [each["ordered"] for each in said] == [[0, 1, 2]] * 2, "and drawn from in one order"
    alone = 10 * (int(asked[-1]) // 2 - 1) if launched == "multi_gpu.yaml" else 0
    assert [each["alone"] for each in said] == [alone] * 2, "copies add gradients up with a step's last sample"
    one, other = (each["trained"] for each in said)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return one, [each["held"] for each in said]


def begun(given: tuple[Path, Path, Path], out: Path, weights: str, **changes) -> dict[str, torch.Tensor]:
    """A run's first step, of one process, which others may go on from."""
    finetune.train(config(given, out, steps=1, **changes))
    (out / "weights" / weights).unlink()
    shutil.rmtree(out / keyframe_cache.FOLDER)
    return kept(out)


def assert_whole(out: Path, found: dict[str, torch.Tensor], weights: str, before: dict[str, torch.Tensor]) -> None:
    after, written = kept(out), load_file(out / "weights" / weights)
    assert found.keys() == after.keys() == before.keys()
    assert all(torch.equal(found[name], after[name]) for name in after)
    assert written and all(torch.equal(after[name], written[name]) for name in written)
    assert reached(out) == 11


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([(one[name] - other[name]).flatten() for name in one]).norm())


def reached(out: Path) -> int:
    return json.loads((out / "checkpoint" / "run.json").read_text())["step"]


@pytest.mark.slow
@pytest.mark.usefixtures("a_precision_of_its_own")
def test_processes_train_one_model_as_copies_or_sharing_it_out(given, tmp_path):
    copies, shares, weights = tmp_path / "copies", tmp_path / "shares", "cameras.safetensors"
    before = begun(given, copies, weights, precision="bf16", batch=4)
    shutil.copytree(copies, shares)
    one, held = together(given, copies, "multi_gpu.yaml", "adapters", "bf16", "4")
    assert_whole(copies, one, weights, before)
    other, shared = together(given, shares, "fsdp.yaml", "adapters", "bf16", "4")
    assert_whole(shares, other, weights, before)
    # A sum is rounded in another order; Adam's step is of one size, however small the gradient that it follows.
    assert distance(other, one) < 0.02 * distance(one, before)
    assert max(shared) < 0.6 * min(held) and abs(sum(shared) - held[0]) < 0.05 * held[0]


@pytest.mark.slow
def test_all_weights_shared_out_are_kept_whole_and_one_process_goes_on_with_them(given, tmp_path):
    weights = "transformer/diffusion_pytorch_model.safetensors"
    before = begun(given, tmp_path, weights, full=True)
    found, _ = together(given, tmp_path, "fsdp.yaml", "full", "no", "2")
    assert_whole(tmp_path, found, weights, before)
    far = distance(found, before)
    finetune.train(config(given, tmp_path, steps=12, full=True))
    assert reached(tmp_path) == 12 and float(kept(tmp_path, "optimizer")["0.step"]) == 12
    assert 0 < distance(kept(tmp_path), found) < 0.5 * far
