"""The detail network trained alone: nothing else changes, its loss falls, a resume repeats, and the result loads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.training import detail
from mosaic_gym.training.run import Run
from mosaic_gym.training.samples import Remembered, remember_all
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.tiny import record_few, tiny_model


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[Path, Path]:
    """Recorded episodes, and a world of their size."""
    root = tmp_path_factory.mktemp("given")
    tiny_model(size=(48, 64)).save_pretrained(root / "world")
    return record_few(root / "data"), root / "world"


def config(given: tuple[Path, Path], out: Path, **changes) -> detail.Config:
    data, world = given
    told = {"minutes": None, "steps": 4, "samples": 12, "batch": 4, "learning_rate": 1e-2}
    return detail.Config(data=data, world=world, out=out, **{**told, **changes})


def weights(folder: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(folder / part / "diffusion_pytorch_model.safetensors")


def test_its_loss_falls_and_nothing_else_changes(given, tmp_path, monkeypatch):
    told = []
    update = Run.update

    def listen(run, loss, scalars):
        told.append(loss.item())
        update(run, loss, scalars)

    monkeypatch.setattr(Run, "update", listen)
    detail.train(config(given, tmp_path, steps=60))
    assert sum(told[-15:]) < sum(told[:15]) - 1.5  # a tenth of its logarithm each
    for part in ("transformer", "codec", "text_encoder", "depth", "outcome"):
        before, after = weights(given[1], part), weights(tmp_path / "weights", part)
        assert all(torch.equal(before[name], after[name]) for name in before)
    before, after = weights(given[1], "detail"), weights(tmp_path / "weights", "detail")
    assert not torch.equal(before["head.weight"], after["head.weight"])
    MosaicWorld(WorldModel.from_pretrained(tmp_path / "weights"))


class _CutOff(Exception):
    pass


def test_resuming_equals_not_having_stopped(given, tmp_path, monkeypatch):
    detail.train(config(given, tmp_path / "whole"))
    update = Run.update

    def cut_off(run, *arguments):
        update(run, *arguments)
        if run.step_index == 2:
            run.checkpoint()
            raise _CutOff

    monkeypatch.setattr(Run, "update", cut_off)
    with pytest.raises(_CutOff):
        detail.train(config(given, tmp_path / "pieces"))
    monkeypatch.undo()
    detail.train(config(given, tmp_path / "pieces"))
    for name in ("model", "average", "optimizer"):
        one, two = (load_file(tmp_path / run / "checkpoint" / f"{name}.safetensors") for run in ("whole", "pieces"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_samples_are_what_play_gives(given, tmp_path):
    """As many as asked for, none without doubt, as the network takes them, and the same again."""
    asked = config(given, tmp_path)
    world = MosaicWorld(WorldModel.from_pretrained(asked.world), denoising_steps=1)
    episodes = remember_all(EpisodeStore(asked.data, "train"), world.model.codec, world.model.depth)
    samples = detail.draw_samples(world, episodes, asked)
    assert {name: len(values) for name, values in samples.items()} == dict.fromkeys(samples, 12)
    assert (samples["doubt"].float().flatten(1).mean(1) > detail.LEAST_DOUBT).all()
    batch = detail.draw(samples, 4, torch.Generator().manual_seed(0), torch.device("cpu"))
    true = batch.pop("true")
    assert world.model.detail(**batch).shape == true.shape == (4, 4, 3, 48, 64)
    again = detail.draw_samples(world, episodes, asked)
    assert all(torch.equal(samples[name], again[name]) for name in samples)


def test_recordings_of_a_body_at_rest_are_refused(given, tmp_path):
    asked = config(given, tmp_path, whole=1.0, dream=0.0, samples=1)
    world = MosaicWorld(WorldModel.from_pretrained(asked.world), denoising_steps=1)
    codec, cameras = world.model.codec, torch.eye(4).expand(4, 4, 4)
    (latent,) = codec.encode(torch.zeros(1, 4, 3, 48, 64))
    wall = world.lift(latent, torch.full((48, 64), 2.0), cameras, torch.zeros(6, 8), 0)
    still = Remembered([wall] * 4, [""] * 4)
    with pytest.raises(ValueError, match="nothing moves"):
        detail.draw_samples(world, [still], asked)
