"""The benchmark's parts against obvious answers, its paths, and the mechanism it is there to show."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mosaic_gym.evaluation.metrics.image import (
    SSIM_SIGMA,
    SSIM_WINDOW,
    decibels,
    realigned_error,
    squared_error,
    ssim_map,
)
from mosaic_gym.evaluation.metrics.intervals import bootstrap_interval, wilson_interval
from mosaic_gym.evaluation.metrics.visibility import Covisibility
from mosaic_gym.evaluation.reports.video import ANIMATION_LABEL_PX, save_animation, save_video
from mosaic_gym.evaluation.suites.paths import (
    AWAY_SHARE,
    AWAY_STEPS,
    OPEN_M,
    WALKED_M,
    ahead_path,
    collect,
    held_out_seeds,
    outward_frame,
    return_path,
)
from mosaic_gym.evaluation.suites.pictures import save_return_sheet
from mosaic_gym.evaluation.suites.revisit import Config, evaluate
from mosaic_gym.evaluation.suites.revisit_figures import GOALS, UNGRADED, current_names
from mosaic_gym.evaluation.suites.rollout import VARIANTS, Variants, measure_ahead, measure_return
from mosaic_gym.geometry.camera import place_of
from mosaic_gym.geometry.control import FRAMES_PER_STEP
from mosaic_gym.model.checkpoints import WorldModel
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def shipped() -> WorldModel:
    return WorldModel.from_pretrained("doom-tiny").to("cpu")


@pytest.fixture(scope="module")
def path(shipped):
    return collect(return_path, 1, shipped.settings)[0]


def test_psnr_of_a_known_error():
    black, grey = np.zeros((2, 4, 5, 3), np.uint8), np.full((2, 4, 5, 3), 16, np.uint8)
    assert squared_error(black, grey).shape == (2, 4, 5)
    assert decibels(squared_error(black, grey).mean()) == pytest.approx(20 * np.log10(255 / 16))


def test_realigning_undoes_a_shift_but_makes_nothing_up():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 256, (1, 24, 32, 3)).astype(np.uint8)
    shifted = np.roll(true, 1, axis=2)
    assert realigned_error(shifted, true)[:, 3:-3, 3:-3].max() < 1e-6
    flat, other = np.full_like(true, 128), rng.integers(0, 256, true.shape).astype(np.uint8)
    np.testing.assert_allclose(realigned_error(flat, true), squared_error(flat, true))
    assert realigned_error(other, true).mean() > 0.5 * squared_error(other, true).mean()


def test_ssim_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (1, 12, 15, 3), dtype=np.uint8)
    other = np.clip(one.astype(int) + rng.integers(-40, 40, one.shape), 0, 255).astype(np.uint8)
    fast = ssim_map(one, other)[0]
    half = SSIM_WINDOW // 2
    line = np.exp(-((np.arange(SSIM_WINDOW) - half) ** 2) / (2 * SSIM_SIGMA**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    for row, column in ((5, 6), (6, 9)):
        slow = []
        for colour in range(3):
            cut = (slice(row - half, row + half + 1), slice(column - half, column + half + 1), colour)
            x, y = one[0][cut] / 255.0, other[0][cut] / 255.0
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * x**2).sum() - mx**2, (window * y**2).sum() - my**2
            cov = (window * x * y).sum() - mx * my
            slow.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
        assert fast[row, column] == pytest.approx(np.mean(slow), abs=1e-9)
    assert ssim_map(one, one).min() == pytest.approx(1.0)


def test_intervals_hold_the_mean_and_narrow_with_more_paths():
    rng = np.random.default_rng(0)
    few, many = bootstrap_interval(rng.normal(5, 1, 10)), bootstrap_interval(rng.normal(5, 1, 1000))
    assert few["low"] < few["value"] < few["high"]
    assert many["high"] - many["low"] < few["high"] - few["low"]


def test_the_interval_of_a_share_stays_open_where_none_succeeded():
    none, some = wilson_interval([0.0] * 30), wilson_interval([1.0] * 18 + [0.0] * 12)
    assert none["value"] == none["low"] == 0.0 and none["high"] == pytest.approx(0.1135, abs=1e-3)
    # Wilson's interval of 18 in 30, from his formula by hand.
    assert [round(some[key], 3) for key in ("value", "low", "high")] == [0.6, 0.423, 0.754]


def test_a_return_path_leaves_what_it_saw_and_comes_back_over_the_same_poses(path):
    seen = Covisibility(list(path.views[: path.history]))
    shares = [seen.mask(view, instants=(3,)).mean() for view in path.views]
    away = [share <= AWAY_SHARE for share in shares[path.history : path.back]]
    longest = max(len(run) for run in "".join("x" if one else " " for one in away).split())
    assert longest >= AWAY_STEPS
    assert min(shares[: path.history]) > 0.95 and shares[-1] > 0.5
    assert len(path.views) == path.history + 2 * path.out
    assert min(np.median(view.depth_m) for view in path.views[: path.history]) >= OPEN_M
    eyes = [view.world_from_camera[-1, :3, 3] for view in (path.views[0], path.views[path.back - 1])]
    assert np.linalg.norm(eyes[1] - eyes[0]) >= WALKED_M
    for frame in range(path.out * FRAMES_PER_STEP):
        step, instant = outward_frame(path, frame)
        back, back_instant = divmod(frame, FRAMES_PER_STEP)
        there, here = path.views[step], path.views[path.back + back]
        assert np.abs(there.world_from_camera[instant] - here.world_from_camera[back_instant]).max() < 0.01
    assert next(held_out_seeds()) % 10 == 9


@pytest.mark.slow
def test_memory_on_beats_memory_off_by_a_margin(shipped, path):
    variants = Variants(shipped)
    state = variants.after_history(path)
    shown = {variant: variants.rollout(variant, [state], [path])[0] for variant in ("memory", "off")}
    measured = {variant: measure_return(path, frames) for variant, frames in shown.items()}
    assert measured["memory"]["truth"] > measured["off"]["truth"] + 3.0
    assert measured["memory"]["ssim"] > measured["off"]["ssim"] + 0.1


def test_the_true_frames_are_a_perfect_return(path):
    perfect = np.stack([view.frames for view in path.views[path.history :]])
    measured = measure_return(path, perfect)
    assert measured.keys() == {"truth", "ssim", "self"} and measured["truth"] > 70 and measured["ssim"] > 0.999
    assert measured["self"] > 30


def test_arms_differ_in_what_they_may_know():
    model = tiny_model(size=(48, 64))
    torch.nn.init.normal_(model.atlas.draw[-1].weight, std=0.5)  # the contrast of a map
    variants, differ = Variants(model), []
    for path in collect(ahead_path, 4, model.settings):
        state = variants.after_history(path)
        places = [torch.tensor([*place_of(each.world_from_keyframe), 1.0]) for each in state.memory.keyframes]
        known = [replace(each, place=at) for each, at in zip(state.memory.keyframes, places, strict=True)]
        state = replace(state, memory=replace(state.memory, keyframes=tuple(known)))
        shown = {variant: variants.rollout(variant, [state], [path])[0] for variant in VARIANTS}
        assert all(frames.shape == (1, 4, 48, 64, 3) for frames in shown.values())
        differ.append(len({frames.tobytes() for frames in shown.values()}))
    # Where the last frame shows all that is in view, having more memory shows nothing else.
    assert max(differ) == 6 and min(differ) >= 5
    covered = variants.world.coverage_mask(state, path.poses(path.history))
    assert 0 < measure_ahead(path, shown["memory"], covered)["psnr"] < 60


@pytest.mark.slow
def test_the_command_writes_every_named_figure(tmp_path):
    tiny_model(size=(64, 64)).save_pretrained(tmp_path / "tiny")
    evaluate(Config(str(tmp_path / "tiny"), paths=2, json=tmp_path / "f.json", out=tmp_path / "sheets"))
    told = json.loads((tmp_path / "f.json").read_text())
    assert all({"value", "low", "high", "goal"} == set(told[name]) for name in GOALS)
    assert set(told["variants"]) == {"memory", "off", "last", "unplaced", "prior", "warp"}
    for name, gain in (("memory", "psnr_return_truth"), ("warp", "gain_return_truth_over_warp")):
        assert told["variants"][name]["return_truth"]["value"] == pytest.approx(
            told["psnr_return_truth"]["value"] - (told[gain]["value"] if name == "warp" else 0.0)
        )
    assert len(told["seeds_ahead"]) == len(told["seeds_return"]) == told["paths"] == 2
    assert told["denoising_steps"] == 1 and told["threads"] >= 1
    assert list((tmp_path / "sheets").glob("*.png"))
    with pytest.raises(ValueError, match="--paths is a whole number from 2; got 1"):
        Config(paths=1)


def test_pictures_show_every_arm_and_the_video_plays(path, tmp_path):
    import imageio.v2 as imageio

    true = np.stack([view.frames for view in path.views])
    frames = {"memory": true[path.history :], "off": true[path.history :]}
    with Image.open(save_return_sheet(tmp_path / "sheet.png", path, frames, columns=4)) as picture:
        assert picture.mode == "RGB" and picture.width == 4 * (2 * 64 + 2) - 2
    captions = ["a step"] * len(path.views)
    video = save_video(tmp_path / "v.mp4", [("one", true), ("two", true)], captions, scale=2)
    assert len(imageio.mimread(video, memtest=False)) == 4 * len(path.views)


def test_the_animation_shows_every_frame_and_repeats(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 4, 16, 24, 3)).astype(np.uint8)
    file = save_animation(tmp_path / "a.webp", [("one", frames), ("two", frames)], ["first", "second"], scale=3)
    with Image.open(file) as animation:
        assert animation.n_frames == 8 and animation.info["loop"] == 0
        assert animation.size == (2 * 3 * 24 + 2, 3 * 16 + 2 * ANIMATION_LABEL_PX)


def test_a_card_with_old_names_of_figures_is_read():
    card = {"psnr_ahead": 1, "psnr_return_engine": 2, "gain_ahead_over_expected": 3, "steps_per_second": 4}
    assert list(current_names(card)) == [
        "psnr_ahead", "psnr_return_truth", "gain_ahead_over_prior", "steps_per_second",
    ]  # fmt: skip
    assert current_names(dict.fromkeys(GOALS | UNGRADED)).keys() == (GOALS | UNGRADED).keys()
