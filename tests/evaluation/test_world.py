"""`evaluate world`: its roll-outs, what it refuses, and figures that tell known worlds from the truth."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mosaic_gym
from mosaic_gym.data.episodes import write_episode
from mosaic_gym.evaluation.metrics.neighbors import pooled_pixels
from mosaic_gym.evaluation.net import FEATURES, KINDS, EvaluationNet, load_evaluation_net
from mosaic_gym.evaluation.suites.world import benchmark, calibration, changes, known_worlds, rollouts, scenes, stages
from mosaic_gym.evaluation.suites.world.config import Config
from mosaic_gym.evaluation.suites.world.faithfulness import TrueWalks, return_psnr
from mosaic_gym.evaluation.suites.world.figures import measure
from mosaic_gym.evaluation.suites.world.reference import recorded_pixels
from mosaic_gym.evaluation.suites.world.rollouts import Rollout, roll_out, simulator_rollouts
from mosaic_gym.evaluation.suites.world.subjects import LearnedWorld
from mosaic_gym.evaluation.true_frames import TRAIN_THEMES, draw_frames
from mosaic_gym.geometry.control import Control
from mosaic_gym.worlds.protocol import View
from tests.test_import import MODULES, imports_of
from tests.tiny import tiny_model

SIZE = (64, 64)


@pytest.fixture(scope="module")
def simulators():
    pair = [scenes.open_simulator("heldout", maps, SIZE, Control()) for maps in (scenes.STILL, None)]
    yield pair
    for world in pair:
        world.close()


@pytest.fixture(scope="module")
def scene(simulators) -> scenes.Scene:
    found = (scenes.walk_scene(*simulators, "heldout", index) for index in range(10))
    return next(scene for scene in found if scene is not None)


def test_a_scene_leaves_its_start_and_comes_back(scene):
    assert len(scene.history_frames) == scenes.HISTORY and len(scene.path_frames) == 2 * scene.out
    shares = scene.seen_at_start.mean((1, 2))
    assert (shares[: scene.out] <= scenes.AWAY_SHARE).sum() >= scenes.AWAY_STEPS and shares[-1] > 0.99
    out, back = (scene.path_cameras[part, -1] for part in (slice(0, scene.out - 1), slice(scene.out, -1)))
    assert np.abs(out - back[::-1]).max() < scenes.POSE_ERROR_M
    assert scene.seen.mean() >= scene.seen_at_start.mean()
    assert scene.walk_themes.sum() == pytest.approx(1, abs=1e-5) and len(scene.walk_frames) == scenes.WALK_STEPS + 1


def test_a_scene_is_its_index(scene, simulators):
    again = scenes.walk_scene(*simulators, "heldout", scene.index)
    assert (again.path_frames == scene.path_frames).all() and (again.walk_frames == scene.walk_frames).all()


def test_arrays_are_read_as_they_were_written(scene, tmp_path):
    scenes.save_arrays(tmp_path / "scene.npz", scene)
    again = scenes.load_arrays(scenes.Scene, tmp_path / "scene.npz")
    assert again.prompt == scene.prompt and again.index == scene.index and again.out == scene.out
    assert (again.walk_frames == scene.walk_frames).all()
    np.testing.assert_allclose(again.path_depth, scene.path_depth, rtol=1e-3)
    (tmp_path / "scene.npz").write_bytes(b"half")
    with pytest.raises(ValueError, match="scene.npz is damaged; delete it"):
        scenes.load_arrays(scenes.Scene, tmp_path / "scene.npz")


def test_the_truth_returns_exactly_and_a_blur_does_not(scene):
    (truth,) = simulator_rollouts([scene])
    assert return_psnr(scene, truth.seen) > 70
    assert return_psnr(scene, known_worlds.changed(truth, known_worlds.blurred).seen) < 35
    assert return_psnr(scene, known_worlds.changed(truth, known_worlds.noisy).seen) < 30


def test_a_learned_world_is_driven_along_the_true_cameras(scene, monkeypatch):
    monkeypatch.setattr(rollouts, "WALK_STEPS", 5)
    monkeypatch.setattr(rollouts, "PROMPTED_STEPS", 3)
    short = replace(scene, path_frames=scene.path_frames[:4], path_cameras=scene.path_cameras[:4])
    (found,) = roll_out(LearnedWorld(tiny_model(size=SIZE)), [short])
    assert found.seen.shape == found.off.shape == found.invented.shape == (4, *SIZE, 3) and len(found.again) == 2
    assert found.walk_cameras.shape == (6, 4, 4) and len(found.prompted) == 4
    assert np.isfinite(found.walk_depth).all() and scene.walk_themes[found.prompted_theme] <= 0.03
    blind = replace(short, history_depth=short.history_depth * 0 + 9, walk_depth=short.walk_depth * 0 + 9)
    (again,) = roll_out(LearnedWorld(tiny_model(size=SIZE)), [blind])
    assert (again.walk == found.walk).all() and (again.seen == found.seen).all(), "true depth is not read"


def test_a_canned_world_shows_what_it_is_given(scene):
    world = known_worlds.CannedWorld("frozen", known_worlds.frozen, scene.k, Control())
    (found,) = roll_out(world, [scene])
    assert (found.invented == scene.start_frame).all() and (found.walk == scene.walk_frames[0]).all()
    assert found.off is None and found.prompted is None
    frames = np.arange(3, dtype=np.uint8)[:, None, None, None, None] + np.zeros((3, 5, *SIZE, 3), np.uint8)
    played = known_worlds.Playback(frames, np.ones((3, 5, *SIZE), np.float32))
    state = known_worlds.Canned(None, 7, scene.start_frame, scene.history_depth[0], 4)
    assert (played(state)[0] == 1).all()
    mean, depth_m = known_worlds.Regression(frames, np.ones((3, 5, *SIZE), np.float32))(state)
    assert (mean == 1).all() and (depth_m == 1).all()


@pytest.mark.parametrize("kind", [changes.PICKUP, changes.DOOR])
def test_things_change_and_are_looked_at_again(simulators, kind):
    found = [changes.find_change(simulators[1], "heldout", index, kind) for index in range(3)]
    change = next(change for change in found if change is not None)
    assert change.kind == kind and 1.0 < change.distance_m < 5.0
    truth = changes.true_change_rollout(change)
    net = EvaluationNet(TRAIN_THEMES)
    figure = changes.change_figure([change], [truth], net)
    assert figure["value"] is None and "needs 50" in figure["reason"]
    if kind == changes.DOOR:
        assert changes._stays(change, truth, net)
        shut = np.full_like(truth.end_depth, change.distance_m)
        assert not changes._stays(change, replace(truth, end_depth=shut), net)
    else:
        row = change.start_pixel[1]
        assert 40 < row < 60 and change.end_pixel[1] > 40, "on the floor"


def test_a_thing_is_named_at_its_place_alone():
    torch.manual_seed(0)
    net, frame = EvaluationNet(TRAIN_THEMES), np.zeros((*SIZE, 3), np.uint8)
    frame[40:48, 20:28] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    empty = net.read(np.zeros((1, *SIZE, 3), np.uint8))[2][0]
    np.testing.assert_allclose(net.kinds_at(frame, np.array([54.0, 12.0]), 2.0), empty, atol=0.05)
    near = net.kinds_at(frame, np.array([24.0, 44.0]), 6.0)
    np.testing.assert_allclose(
        net.kinds_at(frame, np.array([32.0, 32.0]), 99.0), net.read(frame[None])[2][0], rtol=1e-5
    )
    assert np.abs(near - empty).max() > 0.01


@pytest.mark.slow
def test_changes_are_made_once_and_rolled_out(tmp_path):
    tiny_model(size=SIZE).save_pretrained(tmp_path / "tiny")
    simulation = stages.simulation_of(str(tmp_path / "tiny"), "heldout")
    found = stages.make_changes(simulation, tmp_path, changes.PICKUP, 2, 1)
    assert [change.index for change in stages.make_changes(simulation, tmp_path, changes.PICKUP, 2, 1)] == [
        change.index for change in found
    ]
    subject = stages.Subject("tiny", "learned", str(tmp_path / "tiny"), None, tmp_path, simulation.control)
    ends = stages.make_change_rollouts(subject, found, 1)
    assert len(ends) == len(found) and ends[0].end.shape == (*SIZE, 3)


def test_roll_outs_of_another_world_are_refused(tmp_path):
    stages.check_folder(tmp_path / "row", {"world": "one"})
    stages.check_folder(tmp_path / "row", {"world": "one"})
    with pytest.raises(ValueError, match="roll-outs of another world or split; give another --out, or delete it"):
        stages.check_folder(tmp_path / "row", {"world": "two"})


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--split is one of train, heldout, heldout-themes; got 'moon'"):
        Config(split="moon")
    with pytest.raises(ValueError, match="--paths is a whole number from 20; got 3"):
        Config(paths=3)
    with pytest.raises(ValueError, match="train one: mosaic-gym train evaluator"):
        load_evaluation_net(tmp_path)


def test_the_evaluation_net_reads_frames():
    torch.manual_seed(0)
    features, themes, kinds = EvaluationNet(TRAIN_THEMES).read(np.zeros((3, *SIZE, 3), np.uint8))
    assert features.shape == (3, FEATURES) and kinds.shape == (3, len(KINDS))
    np.testing.assert_allclose(themes.sum(1), 1, rtol=1e-5)


def test_no_training_of_a_world_uses_the_evaluation_net():
    """A world that was trained with the net would be measured by what it was trained to please."""
    root = Path(mosaic_gym.__file__).parent
    users = [path.relative_to(root) for path in MODULES if "mosaic_gym.evaluation.net" in imports_of(path.read_text())]
    assert {str(path) for path in users if path.parts[0] != "evaluation"} == {"training/evaluator.py"}
    recipes = [path for path in (root / "training").glob("*.py") if path.name != "evaluator.py"]
    assert not [path.name for path in recipes if "weights/evaluator" in path.read_text()]
    assert not [path.name for path in recipes if "mosaic_gym.training.evaluator" in imports_of(path.read_text())]


def test_a_figure_catches_what_lies_beyond_the_ceiling():
    ceiling = {"value": 1.0, "low": 0.9, "high": 1.1, "reason": None}

    def at(value, width=0.05):
        return {"value": value, "low": value - width, "high": value + width, "reason": None}

    assert not calibration.is_caught("sharpness_4", at(0.8), ceiling)
    assert calibration.is_caught("sharpness_4", at(0.6), ceiling)
    assert calibration.is_caught("sharpness_4", at(1.5), ceiling)
    assert not calibration.is_caught("mirror_psnr", at(1.5), ceiling) and calibration.is_caught(
        "mirror_psnr", at(0.5), ceiling
    )
    undefined = {"value": None, "low": None, "high": None, "reason": "undefined: no revisit"}
    assert calibration.is_caught("nmr_seen", undefined, ceiling)
    assert not calibration.is_caught("nmr_seen", {**undefined, "reason": "not applicable: no memory"}, ceiling)
    assert not calibration.is_caught("nmr_seen", at(0.0), undefined)
    lines = calibration.verdicts({"truth": [], "blur": ["sharpness_4"], "wall": ["nmr_seen", "mirror_psnr"]}, {"truth"})
    assert lines[0] == "truth: passes all" and lines[1].startswith("FAILED: blur is caught by sharpness_4; it must be")
    assert lines[2] == "wall: caught by 2 (nmr_seen, mirror_psnr)" and "nmr_seen catches wall" in lines


@pytest.mark.slow
def test_known_worlds_are_caught_and_the_ceiling_passes(tmp_path, capsys):
    """The command for the simulator, and the calibration at its smallest: worlds that need no checkpoint."""
    config = Config("simulator", paths=20, train_maps=20, out=tmp_path, json=tmp_path / "world.json")
    results = benchmark.evaluate(config)
    printed = capsys.readouterr().out
    assert "evaluation net" in printed and all(name in printed for name in results["figures"])
    assert json.loads(config.json.read_text())["paths"] == 20
    assert 0.6 < results["figures"]["sharpness_16"]["value"] < 1.6 and results["figures"]["mirror_psnr"]["value"] > 40
    assert len(list((tmp_path / "pictures").glob("*.png"))) >= 3

    simulation, net = stages.Simulation("heldout", SIZE, Control()), load_evaluation_net()[0]
    bench = benchmark.Bench(config, simulation, benchmark._reference(config, simulation, net), "net")
    others, again = (TrueWalks(stages.make_scenes(simulation, tmp_path, k * stages.OTHER_MAPS, 20, 2)) for k in (1, 2))
    truth = simulator_rollouts(others.scenes)
    worlds = {
        "simulator": results["figures"],
        "simulator again": measure(again, simulator_rollouts(again.scenes), bench.reference),
    }
    for name, change in (("blur", known_worlds.blurred), ("noise", known_worlds.noisy)):
        changed = [known_worlds.changed(row, change) for row in truth]
        worlds[name] = bench.row(name, others, changed, name, same_depth=worlds["simulator"])
        assert worlds[name] == bench.row(name, others, [], name), "read from the file"
    for kind in stages.CANNED:
        rollouts = stages.make_rollouts(bench.subject(kind, kind, ""), bench.own.scenes, 1)
        worlds[kind] = measure(bench.own, rollouts, bench.reference)
    caught = calibration.catches(worlds, worlds["simulator"])
    lines = calibration.verdicts(caught, {"simulator", "simulator again"})
    assert not [line for line in lines if line.startswith("FAILED")], "\n".join(lines)
    for world in ("blur", "noise", "one frame", "wall", "regression"):
        assert "frechet_ratio" in caught[world]
    for world in ("blur", "one frame", "wall", "playback", "regression"):
        assert "nmr_seen_of_truth" in caught[world] and "nmr_invented_of_truth" in caught[world]


def test_true_frames_name_what_they_show(simulators):
    found = draw_frames(simulators[1], 0, "heldout", 12)
    assert found.frames.shape == (12, *SIZE, 3) and found.kinds.shape == (12, len(KINDS))
    np.testing.assert_allclose(found.themes.sum(1), 1, rtol=1e-5)


def test_fields_of_roll_outs_that_are_missing_stay_missing(scene, tmp_path):
    (truth,) = simulator_rollouts([scene])
    scenes.save_arrays(tmp_path / "row.npz", truth)
    again = scenes.load_arrays(Rollout, tmp_path / "row.npz")
    assert again.off is None and again.prompted_theme is None and again.index == scene.index


def test_frames_of_a_recording_are_training_frames(tmp_path, scene):
    with pytest.raises(FileNotFoundError, match="no train episodes"):
        recorded_pixels(tmp_path, SIZE)
    rows = zip(scene.walk_frames[:3], scene.walk_depth, scene.walk_cameras, strict=False)
    views = [
        View(np.repeat(frame[None], 4, 0), depth_m, camera[None].repeat(4, 0), scene.k, all_depth_m=depth_m[None])
        for frame, depth_m, camera in rows
    ]
    write_episode(tmp_path, 0, "rooms", views, np.zeros((3, 3)), ["", "", ""])
    np.testing.assert_array_equal(recorded_pixels(tmp_path, SIZE), pooled_pixels(scene.walk_frames[:3]))
    with pytest.raises(ValueError, match="the world's are of \\(32, 32\\): give the world's recording"):
        recorded_pixels(tmp_path, (32, 32))
