"""Recipes end to end at tiny size: resuming equals not having stopped, and budgets end where they say."""

import itertools
import json
import shutil
import sys
import time
from dataclasses import fields, replace
from importlib import import_module
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from mosaic_gym.cli import COMMANDS, main
from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.evaluation.suites.paths import collect
from mosaic_gym.memory.retrieval import Retrieved
from mosaic_gym.model.atlas import Atlas
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.codec import LinearCodec
from mosaic_gym.model.wan.options import WanOptions
from mosaic_gym.training import atlas, codec, depth, distill, finetune, reward_heads, world
from mosaic_gym.training.batches import BUFFER, Batch, BatchDataset, batches, draw_batch
from mosaic_gym.training.budget import budget_of, recipe_of
from mosaic_gym.training.checkpoint import OPTIONS, check_resumable, checkpoint_in
from mosaic_gym.training.run import Run
from mosaic_gym.training.samples import lift_episodes
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.recording import RecordConfig, record
from tests.tiny import tiny_atlas
from tests.training.tiny_run import tiny_world_config


class _CutOff(Exception):
    pass


@pytest.mark.parametrize("met", [{}, pytest.param({"reuse": 2, "rollout": 0.0}, marks=pytest.mark.slow)])
def test_resuming_equals_not_having_stopped(data, parts, tmp_path, monkeypatch, met):
    world.train(replace(tiny_world_config(data, parts, tmp_path / "whole", 4), **met))
    update = Run.update

    def cut_off(run, *arguments):
        update(run, *arguments)
        if run.step_index == 2:
            run.checkpoint()
            raise _CutOff

    monkeypatch.setattr(Run, "update", cut_off)
    with pytest.raises(_CutOff):
        world.train(replace(tiny_world_config(data, parts, tmp_path / "pieces", 4), **met))
    monkeypatch.undo()
    world.train(replace(tiny_world_config(data, parts, tmp_path / "pieces", 4), **met))
    for name in ("model", "average", "optimizer"):
        one, two = (load_file(tmp_path / run / "checkpoint" / f"{name}.safetensors") for run in ("whole", "pieces"))
        assert one.keys() == two.keys()
        for key in one:
            assert torch.equal(one[key], two[key]), f"{name}: {key}"


def test_the_finished_world_loads_and_its_transformer_has_learnt_something(data, parts, tmp_path):
    shipped = world.train(tiny_world_config(data, parts, tmp_path / "run", 2))
    model = WorldModel.from_pretrained(tmp_path / "run" / "weights")
    assert len(list((tmp_path / "run" / "log").iterdir())) == 1, "the last validation is logged with the others"
    kept = load_file(tmp_path / "run" / "checkpoint" / "average.safetensors")["transformer.proj_out.weight"]
    rounded = shipped.transformer.proj_out.weight
    assert torch.equal(rounded, kept.half().float()) and not torch.equal(rounded, kept), "a checkpoint is not rounded"
    assert model.transformer.proj_out.weight.abs().max() > 0
    assert (model.settings.height, model.settings.width) == (48, 64)
    assert model.start_images.shape[1:] == (48, 64, 3) and len(model.start_prompts) == len(model.start_images)


@pytest.mark.slow
def test_the_world_trains_on_a_mixture_of_warps(data, parts, tmp_path):
    plain = tiny_world_config(data, parts, tmp_path / "both", 2)
    mixed = replace(plain, out=tmp_path / "mixed", augmentation=replace(plain.augmentation, single_warp=1.0))
    both, either = world.train(plain), world.train(mixed)
    weights = either.transformer.proj_out.weight
    assert weights.isfinite().all() and weights.abs().max() > 0
    assert not torch.equal(weights, both.transformer.proj_out.weight)


def test_workers_draw_the_batches_that_the_run_itself_would(data, parts, tmp_path):
    config = replace(tiny_world_config(data, parts, tmp_path / "run", 2), workers=2)
    model = world.train(config)
    assert model.transformer.proj_out.weight.abs().max() > 0
    dreaming = MosaicWorld(model)
    episodes = lift_episodes(EpisodeStore(data, "train"), model.codec, model.depth, model.atlas, hinted=True)
    run = SimpleNamespace(step_index=0, seeds=lambda first: iter(range(first, 8)))
    alone = list(islice(batches(dreaming, episodes, replace(config, workers=0), run), 8))
    ahead = list(islice(batches(dreaming, episodes, config, run), 8))
    dreamt = [BatchDataset(dreaming, episodes, config)[seed] is None for seed in range(8)]
    assert any(dreamt) and not all(dreamt), "some begin with a dream, which workers leave to the run"
    pairs = [pair for episode in episodes for pair in pairwise(one.world_from_camera for one in episode.keyframes)]
    for batch in alone:  # what the history shows is the recorded step before the target, dreamt or not
        for target, before in zip(batch.cameras, batch.history_cameras[:, 0], strict=True):
            assert any(torch.equal(target, there) and torch.allclose(before, here, atol=1e-5) for here, there in pairs)
    for one, other in zip(alone, ahead, strict=True):
        assert one.prompts == other.prompts and torch.equal(one.latents, other.latents)
        assert torch.equal(one.cameras, other.cameras) and torch.equal(one.history_cameras, other.history_cameras)
        # Another number of threads rounds differently.
        torch.testing.assert_close(one.history, other.history, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            one.retrieved.conditioning_latent, other.retrieved.conditioning_latent, atol=1e-3, rtol=1e-3
        )
        assert torch.equal(one.retrieved.patch_exists, other.retrieved.patch_exists)


def test_samples_are_met_again_among_others_and_the_same_after_a_resume(monkeypatch):
    def told_by_number(world, episodes, config, seed) -> Batch:
        told = torch.arange(config.batch) + config.batch * seed
        values = [told.clone() for _ in range(4 + len(fields(Retrieved)))]
        return Batch(*values[:4], [str(int(each)) for each in told], Retrieved(*values[4:]))

    def met(first: int, last: int) -> list[Batch]:
        run = SimpleNamespace(step_index=first, seeds=itertools.count)
        drawn, told = batches(None, [], config, run), []
        for run.step_index in range(first, last):
            run.seed = run.step_index
            told.append(next(drawn))
        return told

    monkeypatch.setattr("mosaic_gym.training.batches.draw_batch", told_by_number)
    config = replace(world.Config(), batch=8, reuse=3, rollout=0.0)
    whole, resumed = met(0, 300), met(100, 300)
    for one, other in zip(whole[100:], resumed, strict=True):
        assert one.prompts == other.prompts and all(map(torch.equal, one.tensors, other.tensors))
    for batch in whole:
        numbers = batch.latents.tolist()
        assert all(tensor.tolist() == numbers for tensor in batch.tensors), "what belongs together stays together"
        assert batch.prompts == [str(number) for number in numbers] and len(set(numbers)) == len(numbers)
        assert len({number // config.batch for number in numbers}) > 2, "they come from several drawn batches"
    seen = [number for batch in whole for number in batch.latents.tolist()]
    through = [seen.count(number) for number in range(BUFFER * config.batch, 84 * config.batch)]
    assert np.mean(through) == pytest.approx(config.reuse, rel=0.1)


@pytest.mark.parametrize(("wrong", "told"), [({"reuse": 0}, "--reuse"), ({"reuse": 2, "rollout": 0.1}, "--rollout 0")])
def test_what_cannot_be_met_again_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        replace(world.Config(), **wrong)


def test_what_is_drawn_is_placed_exactly_however_coarsely_a_run_multiplies(monkeypatch):
    def stop(*_):
        seen.append(torch.get_float32_matmul_precision())
        raise _CutOff

    seen = []
    monkeypatch.setattr("mosaic_gym.training.batches._rollout_steps", stop)
    torch.set_float32_matmul_precision("high")  # as a run on an accelerator does
    try:
        with pytest.raises(_CutOff):
            draw_batch(None, [], None, 0)
        assert seen == ["highest"] and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_run_does_not_go_on_with_other_parts(data, parts, tmp_path):
    world.train(tiny_world_config(data, parts, tmp_path / "run", 1))
    codec.train(codec.Config(data=data, out=tmp_path / "codec", channels=24, steps=41))
    other = replace(tiny_world_config(data, parts, tmp_path / "run", 2), codec=tmp_path / "codec")
    with pytest.raises(ValueError, match="trained against other weights .codec, depth estimator, heads"):
        world.train(other)


def test_recordings_too_short_to_draw_from_are_named(data, parts, tmp_path):
    record(RecordConfig(out=tmp_path / "short", episodes=10, steps_per_episode=4, height=48, width=64, workers=1))
    with pytest.raises(ValueError, match="too short: one of at least 5 steps is needed"):
        world.train(tiny_world_config(tmp_path / "short", parts, tmp_path / "run", 1))


def test_held_out_recordings_too_short_to_validate_on_are_named(tmp_path):
    told = [world.LiftedEpisode([None] * steps, [""] * steps) for steps in (30, 3, 4)]
    with pytest.raises(ValueError, match="every held-out one of 4"):
        world.check_lengths(world.Config(data=tmp_path), told[:1], told[1:])
    world.check_lengths(world.Config(data=tmp_path), told[:1], told[2:])


@pytest.mark.slow
def test_a_world_goes_on_from_a_finished_one(data, parts, tmp_path):
    first = world.train(tiny_world_config(data, parts, tmp_path / "first", 2))
    begun = replace(tiny_world_config(data, parts, tmp_path / "second", 2), begin=tmp_path / "first" / "weights")
    unmoved = world.train(replace(begun, out=tmp_path / "unmoved", learning_rate=0.0))
    assert unmoved.fingerprint == first.fingerprint
    with pytest.raises(ValueError, match=r"started from .*first.*not from no weights; .* --out"):
        world.train(replace(begun, out=tmp_path / "unmoved", begin=None))
    moved = world.train(begun)
    assert not torch.equal(moved.transformer.proj_out.weight, first.transformer.proj_out.weight)
    assert torch.equal(moved.codec.components, first.codec.components)


def test_an_atlas_goes_on_from_a_finished_one_of_the_same_map(data, parts, tmp_path):
    begun = parts / "atlas" / "weights"
    config = atlas.Config(data=data, begin=begun, out=tmp_path / "still", minutes=None, steps=1, batch=4)
    before = Atlas.from_pretrained(begun, low_cpu_mem_usage=False)
    unchanged, moved = (
        atlas.train(replace(config, learning_rate=0.0)),
        atlas.train(replace(config, out=tmp_path / "moved")),
    )
    assert torch.equal(unchanged.fine_plane, before.fine_plane) and not torch.equal(moved.fine_plane, before.fine_plane)
    tiny_atlas((32, 48)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="draws frames of .32, 48."):
        atlas.train(replace(config, begin=tmp_path / "other"))


def test_an_atlas_of_another_size_or_map_is_refused(data, parts):
    store = EpisodeStore(data, "heldout")
    fitted = LinearCodec.from_pretrained(parts / "codec"), depth.ConvDepth(widths=(8, 8, 16))
    with pytest.raises(ValueError, match="draws frames of .32, 48., recorded are .48, 64."):
        lift_episodes(store, *fitted, tiny_atlas((32, 48)))
    with pytest.raises(ValueError, match="leaves the atlas's map"):
        lift_episodes(store, *fitted, Atlas(48, 64, corner_m=(-90.0, 0.0), side_m=8.0))
    (found,), (hinted,) = (lift_episodes(store, *fitted, tiny_atlas((48, 64)), hinted=hint) for hint in (False, True))
    assert len(found.keyframes) == len(found.captions) == len(hinted.keyframes) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("a_precision_of_its_own")
def test_the_world_trains_in_bf16(data, parts, tmp_path):
    model = world.train(replace(tiny_world_config(data, parts, tmp_path / "run", 2), precision="bf16"))
    weight = model.transformer.proj_out.weight
    assert weight.dtype == torch.float32 and weight.isfinite().all() and weight.abs().max() > 0


def test_depth_training_lowers_its_loss(data, tmp_path):
    torch.manual_seed(0)
    losses = []
    store = depth.EpisodeStore(data, "train")
    recorded = [store.load(0)[key].flatten(0, 1) for key in ("frames", "depth_m")]
    k = torch.as_tensor(store.image_from_camera, dtype=torch.float32).expand(4, 3, 3)
    run = Run(tmp_path, depth.ConvDepth(widths=(8, 8, 16)), 5e-3, None, 300, Accelerator())
    for _ in range(40):
        frames, depth_m = depth.draw(*recorded, 4, run.generator())
        loss = depth.depth_loss(run.model(frames, k), depth_m)
        losses.append(loss.item())
        run.update(loss)
    run.close()
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


@pytest.mark.parametrize("recipe", [reward_heads, depth, atlas, world, finetune, distill])
def test_either_budget_is_enough_and_both_are_one_too_many(recipe, tmp_path):
    usual = recipe.Config("nowhere") if recipe in (finetune, distill) else recipe.Config()
    assert budget_of(replace(usual, minutes=0.5), minutes=9.0) == (0.5, None)
    assert budget_of(replace(usual, steps=7), minutes=9.0) == (None, 7)
    assert budget_of(usual, minutes=9.0) == (9.0, None) and budget_of(usual, steps=4000) == (None, 4000)
    with pytest.raises(ValueError, match="--minutes or --steps"):  # before anything is read
        recipe.train(replace(usual, minutes=1.0, steps=7))


def test_parts_that_are_not_trained_yet_are_named(data, parts, tmp_path):
    config = tiny_world_config(data, parts, tmp_path / "run", 1)
    for part in ("codec", "atlas"):
        with pytest.raises(FileNotFoundError, match=f"run `mosaic-gym train {part}` first"):
            world.train(replace(config, **{part: tmp_path / "nowhere"}))


@pytest.mark.parametrize("recipe", [reward_heads, depth, atlas, world, finetune, distill])
@pytest.mark.parametrize("budget", [{"steps": 0}, {"steps": -5}, {"minutes": 0.0}, {"minutes": -1.0}])
def test_a_budget_of_nothing_is_refused(recipe, budget):
    usual = recipe.Config("nowhere") if recipe in (finetune, distill) else recipe.Config()
    with pytest.raises(
        ValueError, match=r"--steps is a whole number from 1|--minutes is a finite number above 0|--steps is at least 1"
    ):
        recipe.train(replace(usual, **budget))


def test_a_finished_run_does_not_stand_in_for_one_of_another_recipe(data, tmp_path, capsys):
    config = depth.Config(data=data, out=tmp_path / "run", steps=2, batch=4, widths=(8, 8, 8, 8))
    depth.train(config)
    capsys.readouterr()
    depth.train(config)
    assert "is finished: nothing is trained" in "".join(capsys.readouterr())
    with pytest.raises(ValueError, match="with batch=4, not 8, with learning_rate=0.002, not 0.1; ask for the same"):
        depth.train(replace(config, batch=8, learning_rate=0.1))
    other = tmp_path / "other"
    shutil.copytree(data, other)
    shutil.rmtree(next(iter(sorted((other / "train").iterdir()))))
    with pytest.raises(ValueError, match="holds a run of another recording"):
        depth.train(replace(config, data=other))
    depth.train(replace(config, steps=3))  # a larger budget is no other recipe


def test_a_codec_that_frames_cannot_be_cut_into_is_refused(data, tmp_path):
    for wrong, said in (({"stride": 7}, "divides the recording's 48x64 pixels"), ({"channels": 900}, "is 1 to 768")):
        with pytest.raises(ValueError, match=said):
            codec.train(codec.Config(data=data, out=tmp_path, **wrong))


def test_a_run_of_another_size_is_not_gone_on_with(tmp_path):
    run = Run(tmp_path, nn.Linear(2, 1), 1e-3, None, 10, Accelerator())
    run.close()
    with pytest.raises(ValueError, match="other names or sizes; choose another folder"):
        Run(tmp_path, nn.Linear(3, 1), 1e-3, None, 10, Accelerator())


def test_a_world_says_what_it_was_trained_on(data, parts, tmp_path):
    config = tiny_world_config(data, parts, tmp_path / "run", 1)
    settings = world.build(config, EpisodeStore(data, "train")).settings
    assert settings.scenario == "my_way_home"
    elsewhere = replace(settings, scenario="take_cover")
    assert collect(lambda engine, seed: engine.scenario, 1, elsewhere) == ["take_cover"]


def test_a_budget_is_minutes_or_steps(tmp_path):
    for minutes, steps in ((1.0, 10), (None, None)):
        with pytest.raises(ValueError, match="exactly one budget"):
            Run(tmp_path, nn.Linear(1, 1), 1e-3, minutes, steps, Accelerator())


def test_minutes_are_counted_from_where_a_recipe_says(tmp_path):
    run = Run(tmp_path, nn.Linear(1, 1), 1e-3, 0.1 / 60, None, Accelerator())
    time.sleep(0.15)
    assert run.finished
    run.start_clock()
    assert not run.finished


def test_a_kept_run_is_held_against_what_is_known_of_the_next(tmp_path):
    check_resumable(tmp_path / "nowhere", {"begin": None, "parts": "a", "recipe": {}})
    given = {"begin": Path("there"), "parts": "a", "recipe": {"rank": "4", "shift": "5.0"}}
    run = Run(tmp_path, nn.Linear(1, 1), 1e-3, None, 10, Accelerator(), **given)
    run.close()
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.new")  # as cut off before it took the old one's place
    assert checkpoint_in(tmp_path) == tmp_path / "checkpoint.new"
    told = {"begin": "there", "recipe": {"rank": "4", "shift": "None"}}
    with pytest.raises(ValueError, match="with shift=5.0, not None; ask for the same"):
        check_resumable(tmp_path, told)
    check_resumable(tmp_path, told, unknown=("shift",))
    for other, said in (
        ({"recipe": {"rank": "8", "shift": "None"}}, "with rank=4, not 8; ask"),
        ({"begin": None}, "started from there, not from no weights"),
        ({"parts": "b"}, "trained against other weights"),
    ):
        with pytest.raises(ValueError, match=said):
            check_resumable(tmp_path, told | other, unknown=("shift",))
    assert Run(tmp_path, nn.Linear(1, 1), 1e-3, None, 10, Accelerator(), **given).step_index == 0
    assert checkpoint_in(tmp_path) == tmp_path / "checkpoint"
    assert json.loads((tmp_path / "checkpoint" / "run.json").read_text())["parts"] == "a"


def test_a_run_of_before_the_options_and_networks_were_renamed_resumes(data, parts, tmp_path, monkeypatch):
    config = tiny_world_config(data, parts, tmp_path / "run", 2)
    world.train(replace(config, out=tmp_path / "whole"))
    update = Run.update

    def cut_off(run, *arguments):
        update(run, *arguments)
        run.checkpoint()
        raise _CutOff

    monkeypatch.setattr(Run, "update", cut_off)
    with pytest.raises(_CutOff):
        world.train(config)
    monkeypatch.undo()
    written = tmp_path / "run" / "checkpoint"
    metadata = json.loads((written / "run.json").read_text())
    old_names = {new: old for old, new in OPTIONS.items()}
    assert old_names.keys() <= metadata["recipe"].keys(), "every renamed option is one of the recipe's"
    metadata["recipe"] = {old_names.get(name, name): value for name, value in metadata["recipe"].items()}
    assert metadata["recipe"]["dream"] == "0.5" and metadata["recipe"]["mix.forget"] == "0.15"
    (written / "run.json").write_text(json.dumps(metadata))
    for name in ("model", "average"):
        tensors = load_file(written / f"{name}.safetensors")
        old = {key.replace("refiner.", "detail.", 1): value.clone() for key, value in tensors.items()}
        assert old.keys() != tensors.keys()
        save_file(old, written / f"{name}.safetensors")
    with pytest.raises(ValueError, match="with augmentation.no_place=0.5, not 0.25; ask for the same"):
        world.train(replace(config, augmentation=replace(config.augmentation, no_place=0.25)))
    world.train(config)
    for name in ("model", "average", "optimizer"):
        one, two = (load_file(tmp_path / run / "checkpoint" / f"{name}.safetensors") for run in ("whole", "run"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_recipes_train_the_same_whatever_the_default_dtype(data, parts, tmp_path):
    def train_all(folder: Path) -> None:
        codec.train(codec.Config(data=data, out=folder / "codec", channels=24, steps=40))
        depth.train(depth.Config(data=data, out=folder / "depth", steps=1, batch=2, widths=(8, 8)))
        reward_heads.train(reward_heads.Config(data=data, out=folder / "heads", steps=1, batch=8, widths=(8, 8)))
        world.train(tiny_world_config(data, parts, folder / "world", 1))

    train_all(tmp_path / "float32")
    torch.set_default_dtype(torch.float64)
    try:
        train_all(tmp_path / "float64")
        assert torch.get_default_dtype() == torch.float64, "the process's own setting is restored"
    finally:
        torch.set_default_dtype(torch.float32)
    files = sorted(path.relative_to(tmp_path / "float32") for path in (tmp_path / "float32").rglob("*.safetensors"))
    assert len(files) > 10
    for file in files:
        assert (tmp_path / "float32" / file).read_bytes() == (tmp_path / "float64" / file).read_bytes(), file


def test_compiling_is_no_other_recipe():
    told = [
        recipe_of(finetune.Config("x", loading=WanOptions(**changes)))
        for changes in ({}, {"compile": True}, {"dtype": "float32"})
    ]
    assert told[0] == told[1] != told[2]


WAN = (finetune.__name__, distill.__name__)
LOGGED = [name for name in COMMANDS if name.startswith("train ") and name != "train codec"]


@pytest.mark.parametrize("name", LOGGED)
def test_a_log_that_cannot_be_written_is_told_before_anything_is_read(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as Python itself marks a module that cannot be found
    monkeypatch.setattr(import_module(COMMANDS[name].module), "train", lambda config: pytest.fail("begun"))
    asked = [*name.removesuffix(" --from").split(), *(["--from", "x"] if COMMANDS[name].module in WAN else [])]
    assert main(asked) == 1
    expected = f"mosaic-gym: error: `{name}` needs tensorboard: pip install 'mosaic-gym[train]'\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("recipe", [finetune, distill])
def test_what_makes_room_where_samples_are_run_one_at_a_time(recipe, monkeypatch, capsys):
    name = "train world" if recipe is finetune else "train student"
    short = torch.OutOfMemoryError("Tried to allocate 3 GiB")
    named = MemoryError("no room for what memory recalls. What makes some: fewer members at once")
    named.__cause__ = short
    for error in (short, named):
        monkeypatch.setattr(recipe, "train", lambda config, error=error: (_ for _ in ()).throw(error))
        assert main([*name.split(), "--from", "x"]) == 1
        said = capsys.readouterr().err
        assert "shorter --clip, or a smaller --height and --width" in said and "Tried to allocate 3 GiB" in said
        assert "smaller batch" not in said and "members" not in said
        assert ("without --full" in said) == (recipe is finetune)
