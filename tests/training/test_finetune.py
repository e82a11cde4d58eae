"""Fine-tuning a tiny Wan pipeline of the real classes: the loss falls, a resume repeats, and the result loads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mosaic_gym import Start
from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.geometry.control import ACTIONS
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.wan import WanOptions
from mosaic_gym.training import finetune
from mosaic_gym.training.run import Run
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.tiny import record_few, save_depth
from tests.tiny_wan import SIZE, save_pipeline


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Recorded episodes, a pipeline, a depth model."""
    root = tmp_path_factory.mktemp("given")
    return record_few(root / "data"), save_pipeline(root / "wan"), save_depth(root / "depth")


def config(given: tuple[Path, Path, Path], out: Path, **changes) -> finetune.Config:
    data, pipeline, depth = given
    told = {"steps": 3, "batch": 2, "rank": 4, "clip": 2, "episodes": 3, "precision": "no", "learning_rate": 3e-3}
    loading = WanOptions(dtype="float32", depth=str(depth), guidance=1.0)
    return finetune.Config(
        from_=str(pipeline), data=data, out=out, height=SIZE[0], width=SIZE[1], loading=loading, **{**told, **changes}
    )


def kept(out: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint" / f"{name}.safetensors")


@pytest.mark.parametrize("full", [False, True])
def test_the_loss_falls(given, tmp_path, monkeypatch, full):
    told = []
    update = Run.update

    def listen(run, loss, scalars):
        told.append(scalars["mse"])
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


class _CutOff(Exception):
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
    episodes = {0: finetune.remember(world, store, 0)}
    seen = set()
    for seed in range(60):
        _, recalled, latents, cameras = finetune.draw_sample(world, store, episodes, config(given, Path("x")), seed)
        assert latents.shape[:2] == (1, 2) and cameras.shape == (1, 2, 4, 4, 4)
        seen.add((bool(recalled.patch_exists.any()), bool(recalled.covered[:, :-1].any())))
    assert seen >= {(True, True), (True, False), (False, True), (False, False)}


def test_what_cannot_be_trained_is_named(given, tmp_path):
    with pytest.raises(ValueError, match="longer than a clip of 9 steps"):
        finetune.train(config(given, tmp_path, clip=9))
