"""The recipes of a world of color and depth: samples, exact resume, and what bad input gets."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mosaic_gym.data.episodes import EpisodeStore, write_episode
from mosaic_gym.model.parts import load_part, save_part
from mosaic_gym.model.rgbd_codec import RGBDCodec
from mosaic_gym.model.text import PADDING, ByteTextEncoder
from mosaic_gym.training import generator, rgbd_codec
from mosaic_gym.training.encoded import encode_recording
from mosaic_gym.training.generator_samples import (
    Augmentation,
    draw_batch,
    draw_gaps,
    draw_past,
    make_batch,
    memory_validity,
    retrieve_samples,
)
from mosaic_gym.training.pictures import read_pictures
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.protocol import Start
from tests.tiny_pictures import SIZE, K, tiny_codec, tiny_transformer

STEPS = 6


@dataclass(frozen=True)
class _View:
    frames: np.ndarray
    all_depth_m: np.ndarray
    world_from_camera: np.ndarray
    image_from_camera: np.ndarray
    labels: tuple[str, ...] = ()
    reward: float = 0.0
    terminated: bool = False


def write_walk(root: Path, seed: int) -> None:
    """An episode of a camera that slides along a wall with smooth colors, exact in color and depth."""
    rng = np.random.default_rng(seed)
    coarse = torch.tensor(rng.random((1, 3, 5, 24)), dtype=torch.float32)
    wall = torch.nn.functional.interpolate(coarse, size=(SIZE[0], 192), mode="bicubic", align_corners=False)
    pixels = (wall[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    depth_m, pixel_m = 2.0, 2.0 / K[0][0]
    views = []
    for step in range(STEPS):
        at = [4 * step + frame + 1 for frame in range(4)] if step else [4] * 4
        cameras = np.tile(np.eye(4), (4, 1, 1))
        cameras[:, 0, 3] = np.array(at) * pixel_m
        frames = np.stack([pixels[:, x : x + SIZE[1]] for x in at])
        views.append(_View(frames, np.full((4, *SIZE), depth_m), cameras, np.array(K)))
    write_episode(root, seed, "walls", views, np.zeros((STEPS, 3)), [f"a wall {i}" for i in range(STEPS)])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for seed in (0, 1, 2, 9):
        write_walk(root, seed)
    return root


@pytest.fixture(scope="module")
def encoded(data, tmp_path_factory):
    return encode_recording(
        EpisodeStore(data, "train"), tiny_codec(), ByteTextEncoder(16, 96, 2), tmp_path_factory.mktemp("encoded"), 2
    )


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PLAIN = Augmentation(
    no_memory=0.0, last_only=0.0, max_keyframes=3, gap=0.0, degraded=0.0, recent_noise=0.0, no_prompt=0.0
)


def test_a_recording_is_encoded_once_for_each_codec(data, tmp_path):
    store, text, codec = EpisodeStore(data, "train"), ByteTextEncoder(16, 96, 2), tiny_codec()
    first = encode_recording(store, codec, text, tmp_path, 2)
    (path,) = tmp_path.glob("latents-*.npy")
    written = path.stat().st_mtime_ns
    again = encode_recording(store, codec, text, tmp_path, 2)
    assert path.stat().st_mtime_ns == written and torch.equal(first.latents, again.latents)
    torch.nn.init.constant_(codec.encoder[-1].bias, 0.1)
    assert not torch.equal(encode_recording(store, codec, text, tmp_path, 2).latents, first.latents)
    assert len(list(tmp_path.glob("latents-*.npy"))) == 2
    assert first.step_of.tolist() == [*range(STEPS)] * 3


@torch.no_grad()
def test_memory_of_the_past_shows_the_view_where_it_covers_it(encoded):
    codec = tiny_codec()
    index, past = torch.tensor([3, 8]), torch.tensor([[1, 2, 3], [1, 2, 2]])
    alive = torch.tensor([[True, True, True], [True, True, False]])
    view = retrieve_samples(encoded, index, past, alive)
    batch = make_batch(encoded, codec, index, view, torch.tensor([1, 1]), 2, PLAIN, rng())
    true = encoded.recorded.pictures(index)
    assert float(batch.covered.float().mean()) > 0.8 and not bool(batch.covered.all())
    error = ((batch.warped - true).abs().mean(1) * batch.covered).sum() / batch.covered.sum()
    assert float(error) < 0.02
    assert torch.equal(batch.target[:, :-1], encoded.latents[index].float())
    covered_cells = batch.memory.coverage[:, :4].mean(1) > 0.9
    assert bool((batch.target[:, -1][covered_cells] == 1).all()), "memory is valid where nothing has changed"
    assert torch.equal(batch.recent[0, 1], encoded.latents[2].float())
    assert torch.equal(batch.recent[1, 0], encoded.latents[6].float())
    assert torch.equal(batch.recent_cameras[0, 1], encoded.recorded.cameras[2])


def test_the_past_ends_at_the_start_of_the_episode():
    steps = torch.arange(1, 60).repeat(20)
    past, alive = draw_past(steps, replace(PLAIN, max_keyframes=12), rng())
    assert bool((past[alive] <= steps[:, None].expand_as(past)[alive]).all()) and bool((past[alive] >= 1).all())
    assert bool(alive.any(1).all()), "without dropout every sample has a memory"
    for row, exists in zip(past.tolist(), alive.tolist(), strict=True):
        chosen = [back for back, real in zip(row, exists, strict=True) if real]
        assert len(set(chosen)) == len(chosen), "no step is there twice"
    latest = (past.where(alive, 99) == 1).any(1).float().mean()
    assert 0.75 < float(latest) < 0.95
    past, alive = draw_past(steps, replace(PLAIN, last_only=1.0), rng())
    assert alive.sum(1).tolist() == [1] * len(steps) and bool((past[:, 0] == 1).all())
    assert not bool(draw_past(steps, replace(PLAIN, no_memory=1.0), rng())[1].any())


@torch.no_grad()
def test_of_several_candidates_those_with_more_to_invent_are_taken(encoded):
    options = replace(PLAIN, no_memory=0.2, last_only=0.5)
    shares = []
    for candidates in (1, 4):
        batch = draw_batch(encoded, tiny_codec(), 64, 2, options, rng(), candidates)
        assert len(batch.index) == len(batch.memory.patches) == len(batch.warped) == 64
        shares.append(1 - float(batch.covered.float().mean()))
    assert shares[1] > shares[0] + 0.05


@torch.no_grad()
def test_a_gap_moves_memory_and_recent_frames_back(encoded):
    gap = draw_gaps(torch.arange(1, 60).repeat(40), replace(PLAIN, gap=0.5, max_gap=4), rng())
    assert sorted(gap.unique().tolist()) == [1, 2, 3, 4] and 0.4 < float((gap == 1).float().mean()) < 0.6
    assert draw_gaps(torch.ones(50, dtype=torch.long), replace(PLAIN, gap=1.0), rng()).tolist() == [1] * 50
    batch = draw_batch(encoded, tiny_codec(), 64, 2, replace(PLAIN, gap=1.0, max_gap=3), rng())
    latest = (batch.index[:, None] - torch.arange(1, 4)).clamp_min(0)
    for row, recent in enumerate(batch.recent[:, -1]):
        sources = [step for step in latest[row].tolist() if torch.equal(encoded.latents[step].float(), recent)]
        assert sources, "the last recent frame is one to three steps back"
        step = encoded.step_of[batch.index[row]]
        assert sources[0] != int(batch.index[row]) - 1 or int(step) == 1, "and one step only where there is no other"


def test_what_has_changed_is_not_valid():
    picture = torch.zeros(1, 4, 16, 16)
    true, covered = picture.clone(), torch.ones(1, 16, 16, dtype=torch.bool)
    true[:, :3, :8, :8] = 0.5
    true[:, 3, :8, 8:] = 1.0
    covered[:, 8:, :8] = False
    valid = memory_validity(picture, true, covered, 4)
    assert valid[0, 0, ::2, ::2].tolist() == [[-1.0, -1.0], [-1.0, 1.0]]


def test_the_same_seed_draws_the_same_samples_and_prompts_are_dropped(encoded):
    codec, options = tiny_codec(), replace(PLAIN, no_prompt=0.5, degraded=0.5, recent_noise=0.2)
    one, same, other = (draw_batch(encoded, codec, 16, 2, options, rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.index, same.index) and torch.equal(one.recent, same.recent)
    assert torch.equal(one.memory.warped_latent, same.memory.warped_latent)
    assert not torch.equal(one.index, other.index)
    assert bool((encoded.step_of[one.index] > 0).all()), "a start has no past"
    dropped = (one.prompts == PADDING).all(1).float().mean()
    assert 0.2 < float(dropped) < 0.8


def train_codec(data: Path, out: Path, steps: int = 3) -> RGBDCodec:
    return rgbd_codec.train(rgbd_codec.Config(data=data, out=out, steps=steps, batch=4, channels=6, widths=(8, 16)))


@pytest.fixture(scope="module")
def parts(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    train_codec(data, folder / "codec")
    from mosaic_gym.model.depth import ConvDepth

    save_part(ConvDepth(widths=(8, 8, 16)), folder / "depth")
    return folder


def config(data: Path, parts: Path, out: Path, steps: int, **options) -> generator.Config:
    return generator.Config(
        data=data, codec=parts / "codec" / "weights", depth=parts / "depth", out=out, steps=steps, batch=4,
        widths=(16, 64), fine_blocks=1, blocks=1, **options,
    )  # fmt: skip


def weights(out: Path, name: str = "average") -> dict[str, torch.Tensor]:
    from mosaic_gym.training.checkpoint import read_tensors

    return read_tensors(out / "checkpoint", name)


def test_the_codec_recipe_resumes_exactly_and_reports_what_it_keeps(data, tmp_path):
    whole = train_codec(data, tmp_path / "whole", 4)
    # The rate follows the whole budget, so the first half of a longer run is interrupted, not finished.
    interrupted = rgbd_codec.Config(data=data, out=tmp_path / "halves", steps=4, batch=4, channels=6, widths=(8, 16))
    stop_after(2, rgbd_codec.train, interrupted)
    resumed = rgbd_codec.train(interrupted)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    metrics = json.loads((tmp_path / "whole" / "weights" / "metrics.json").read_text())
    assert set(metrics) == {"start", "trained", "step"} and set(metrics["trained"]) == {
        "psnr",
        "gradient_energy",
        "depth_error",
    }
    load_part(RGBDCodec, tmp_path / "whole", "weights")
    assert metrics["step"]["between_psnr"] > metrics["step"]["packed_psnr"], "the walks are geometry and nothing else"


def test_a_resumed_generator_equals_one_that_was_never_stopped_and_reports_change_nothing(
    data, parts, tmp_path, monkeypatch
):
    monkeypatch.setattr(generator, "REGENERATE_FROM", 1)
    generator.train(config(data, parts, tmp_path / "whole", 4))
    often = config(data, parts, tmp_path / "halves", 4, report_minutes=1e-9)
    stop_after(2, generator.train, often)
    generator.train(often)
    for name in ("model", "average", "optimizer"):
        one, other = weights(tmp_path / "whole", name), weights(tmp_path / "halves", name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    lines = (tmp_path / "halves" / "figures.jsonl").read_text().splitlines()
    assert len(lines) >= 3 and set(json.loads(lines[0])) == {"step", "loss", "sharpness", "validity", "walk_sharpness"}
    assert list((tmp_path / "halves").glob("sheet-*.png"))
    world = MosaicWorld.from_pretrained(tmp_path / "halves" / "world")
    state, _ = world.start(Start(seed=0))
    _, (view,) = world.step([state], np.zeros((1, 3)))
    assert view.frames.shape == (4, *SIZE, 3)


def test_an_early_average_becomes_the_guide_that_samples_are_guided_away_from(data, parts, tmp_path):
    generator.train(config(data, parts, tmp_path, 4, guide_step=2))
    world = MosaicWorld.from_pretrained(tmp_path / "world")
    model = world.model
    assert model.settings.guidance == generator.GUIDANCE
    own, guide = model.transformer.state_dict(), model.guide.state_dict()
    assert own.keys() == guide.keys() and any(not torch.equal(own[name], guide[name]) for name in own)
    state, _ = world.start(Start(seed=0))
    action = np.array([[1.0, 0.0, 1.0]])
    unguided = MosaicWorld(replace(model, settings=replace(model.settings, guidance=1.0)))
    itself = MosaicWorld(replace(model, guide=model.transformer))
    latents = [each.step_latents([state], action)[1][0].latent for each in (world, unguided, itself)]
    assert not torch.equal(latents[0], latents[1]) and not torch.equal(latents[0], latents[2])
    assert len({each.model.fingerprint for each in (world, unguided, itself)}) == 3


def test_memory_is_generated_again_where_it_covers_the_first_samples(encoded):
    from mosaic_gym.training.flow import Generator, regenerate_memory

    torch.manual_seed(0)
    model = Generator(tiny_transformer(), ByteTextEncoder(16, 96, 2))
    batch = draw_batch(encoded, tiny_codec(), 6, 2, PLAIN, rng())
    again = regenerate_memory(model, batch, 4, encoded.recorded.image_from_camera, SIZE, rng())
    changed = (again.memory.warped_latent != batch.memory.warped_latent).any(1)
    covered = torch.nn.functional.avg_pool2d(batch.covered[:, None].float(), 4)[:, 0] > 0.5
    assert torch.equal(changed[:4], covered[:4]) and not changed[4:].any() and covered.any()
    assert again.target is batch.target, "what is to be generated stays crisp"


def test_a_regressing_baseline_gives_one_answer_whatever_the_seed(data, parts, tmp_path):
    generator.train(config(data, parts, tmp_path, 2, objective="regression"))
    world = MosaicWorld.from_pretrained(tmp_path / "world")
    assert world.denoising_steps == 1
    state, _ = world.start(Start(seed=0))
    action = np.array([[1.0, 0.0, 1.0]])
    frames = [world.step([replace(state, seed=seed)], action)[1][0].frames for seed in (0, 1)]
    assert np.array_equal(*frames)


def stop_after(steps: int, train, options) -> None:
    """Runs a recipe until Ctrl-C arrives after so many optimizer steps."""
    from mosaic_gym.training.run import Run

    update = Run.update

    def counted(self, *arguments, **named):
        update(self, *arguments, **named)
        if self.step_index == steps:
            raise KeyboardInterrupt

    Run.update = counted
    try:
        with pytest.raises(KeyboardInterrupt):
            train(options)
    finally:
        Run.update = update


def test_missing_parts_and_data_are_named(data, parts, tmp_path):
    with pytest.raises(FileNotFoundError, match="train rgbd-codec"):
        generator.train(replace(config(data, parts, tmp_path / "out", 1), codec=tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="no train episodes"):
        generator.train(config(tmp_path, parts, tmp_path / "out", 1))
    with pytest.raises(ValueError, match="--widths"):
        generator.Config(widths=(8, 16, 24))
    with pytest.raises(ValueError, match="together at most 1"):
        Augmentation(no_memory=0.6, last_only=0.6)


def test_another_codec_does_not_continue_a_run(data, parts, tmp_path):
    generator.train(config(data, parts, tmp_path / "out", 1))
    train_codec(data, tmp_path / "other", 1)
    (tmp_path / "depth").symlink_to(parts / "depth")
    (tmp_path / "codec").symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match="trained against other weights"):
        generator.train(config(data, tmp_path, tmp_path / "out", 2))


def test_a_recording_without_depth_is_refused(data, tmp_path):
    write_walk(tmp_path, 0)
    (folder,) = (tmp_path / "train").iterdir()
    meta = json.loads((folder / "meta.json").read_text())
    del meta["depth_m"]
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="has no depth"):
        read_pictures(EpisodeStore(tmp_path, "train"))


def test_held_out_episodes_are_refused_in_training(data, parts, tmp_path):
    write_walk(tmp_path, 0)
    write_walk(tmp_path, 9)
    (tmp_path / "heldout" / "000009").rename(tmp_path / "train" / "000009")
    with pytest.raises(ValueError, match="000009 is an episode of the split heldout"):
        train_codec(tmp_path, tmp_path / "codec")
    with pytest.raises(ValueError, match="000009 is an episode of the split heldout"):
        generator.train(config(tmp_path, parts, tmp_path / "out", 1))


def test_a_loss_that_is_not_finite_ends_the_run_and_spoils_no_checkpoint(data, parts, tmp_path, monkeypatch):
    options = config(data, parts, tmp_path, 40)
    stop_after(5, generator.train, options)
    before = weights(tmp_path)
    monkeypatch.setattr(generator, "flow_loss", lambda velocity, *rest: velocity.sum() * float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan at step 10.*holds step 5.*lower --learning-rate"):
        generator.train(options)
    after = weights(tmp_path)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
