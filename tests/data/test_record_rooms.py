"""Recordings of generated maps: what is stored, replayed, resumed and refused."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from mosaic_gym.cli import main
from mosaic_gym.data.episodes import EpisodeStore, episode_folder, read_episode
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.maps.rooms import MapOptions, map_seed
from mosaic_gym.worlds.protocol import Start
from mosaic_gym.worlds.recording import RecordConfig, _Progress, _summary, record

CONFIG = RecordConfig(scenario="rooms", maps=5, steps_per_episode=16, workers=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("rooms")
    record(replace(CONFIG, out=root))
    record(replace(CONFIG, out=root, split="heldout", maps=2))
    record(replace(CONFIG, out=root, split="heldout-themes", maps=1))
    return root


def test_every_split_has_a_folder_of_its_own_by_map_seed(root):
    for split, count in (("train", 5), ("heldout", 2), ("heldout-themes", 1)):
        store = EpisodeStore(root, split)
        assert [folder.name for folder in store.folders] == [f"{map_seed(i, split):06d}" for i in range(count)]
        assert {store.metadata(i)["split"] for i in range(count)} == {split}


def test_what_is_stored_of_a_step(root):
    store = EpisodeStore(root, "train")
    for index in range(len(store)):
        metadata, episode = store.metadata(index), store.load(index)
        assert len(episode) == 16 == len(metadata["themes"]) == len(metadata["rooms"]) == len(metadata["events"])
        assert episode["frames"].shape == (16, 4, 64, 64, 3) and episode["depth_m"].shape == (16, 4, 64, 64)
        assert torch.isfinite(episode["depth_m"].float()).all() and not episode["terminated"].any()
        for text, theme, events in zip(metadata["captions"], metadata["themes"], metadata["events"], strict=True):
            assert theme in text and all(event in text for event in events)
        assert all(room is None or room >= 0 for room in metadata["rooms"])
        taken = sum("a bonus is taken" in events for events in metadata["events"])
        assert taken == (episode["reward"] > 0).sum()


def test_a_recorded_episode_replayed_gives_its_frames_again(root):
    for split in ("train", "heldout"):
        for folder in EpisodeStore(root, split).folders[:2]:
            metadata, episode = read_episode(folder)
            maps = MapOptions(**metadata["maps"])
            world = DoomWorld("rooms", 64, 64, timeout_tics=0, split=metadata["split"], maps=maps)
            state, view = world.start(Start(seed=metadata["seed"], map_seed=metadata["map_seed"]))
            for step in range(len(episode)):
                if step:
                    (state,), (view,) = world.step([state], episode["action"][step][None].double().numpy())
                assert np.array_equal(view.frames, episode["frames"][step].numpy()), (folder, step)
                assert np.array_equal(view.all_depth_m.astype(np.float16), episode["depth_m"][step].numpy())
                assert view.reward == episode["reward"][step]
            world.close()


def test_speed_is_compared_with_that_of_the_simulator_alone():
    """A worker that was too short to measure the simulator counts for the speed, not for the comparison."""
    measured = _Progress(0, frames=1280, seconds=2.0, bytes=25_600_000, simulator_frames=512, simulator_seconds=0.4)
    short = _Progress(1, frames=320, seconds=1.0, bytes=6_400_000, simulator_frames=0, simulator_seconds=0.0)
    size = "20.0 MB per 1,000 frames"
    share = "0.50 of the simulator's alone with the same buffers (1280 frames/s)"
    assert _summary([measured]) == f"{size}; 640 frames/s, {share}"
    assert _summary([measured, short]) == f"{size}; 960 frames/s, {share}"
    assert _summary([short]) == f"{size}; 320 frames/s"


def test_recording_resumes_and_does_not_depend_on_the_workers(root, tmp_path, capsys):
    record(replace(CONFIG, out=tmp_path, maps=2))
    stamp = (episode_folder(tmp_path, 0, "train") / "episode.json").stat().st_mtime_ns
    shutil.rmtree(episode_folder(tmp_path, 1, "train"))
    (episode_folder(tmp_path, 1, "train").with_suffix(".partial")).mkdir()
    record(replace(CONFIG, out=tmp_path, maps=5, workers=2))
    assert (episode_folder(tmp_path, 0, "train") / "episode.json").stat().st_mtime_ns == stamp
    one, two = EpisodeStore(root, "train"), EpisodeStore(tmp_path, "train")
    assert one.fingerprint == two.fingerprint
    for index in range(5):
        for key in ("frames", "depth_m", "action", "reward", "labels"):
            assert torch.equal(one.load(index)[key], two.load(index)[key])
    capsys.readouterr()
    record(replace(CONFIG, out=tmp_path, maps=5))
    assert capsys.readouterr().out == "", "nothing was missing"


def test_size_and_speed_are_printed(tmp_path, capsys):
    record(replace(CONFIG, out=tmp_path, steps_per_episode=10))
    words = capsys.readouterr().out.split()
    assert words[1:5] == ["MB", "per", "1,000", "frames;"] and "simulator's" in words
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    per_frame = size / (5 * 10 * 4)
    assert float(words[0]) == pytest.approx(per_frame / 1000, rel=0.05)
    assert 2000 * 80 * 4 * per_frame < 14e9, "2,000 maps of 80 steps"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--scenario rooms --maps 0", "--maps is a whole number from 1, or None; got 0"),
        ("--scenario rooms --split test", "invalid choice|one of train, heldout, heldout-themes"),
        ("--scenario rooms:3", "--scenario rooms:3 is one map"),
        ("--scenario rooms --pickups 99", "--pickups is a whole number from 0 to 40"),
        ("--scenario my_way_home --maps 3", "--maps is for --scenario rooms"),
        ("--split heldout", "--split is for --scenario rooms"),
    ],
)
def test_refused_options_are_named(options, message, tmp_path, capsys):

    try:
        code = main(["record", "--out", str(tmp_path), *options.split()])
    except SystemExit as error:
        code = error.code
    assert code and re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_an_unknown_split_lists_the_known_ones():
    with pytest.raises(ValueError, match="--split is one of train, heldout, heldout-themes, or None; got .test."):
        RecordConfig(scenario="rooms", split="test")


def test_recordings_are_not_mixed(root, tmp_path):
    before = sorted(root.rglob("*"))
    for changed in ({"monsters": 5}, {"scenario": "my_way_home", "maps": None}, {"height": 48}):
        with pytest.raises(ValueError, match=r"holds episodes of .*rooms.*, not of .*give another --out"):
            record(replace(CONFIG, out=root, **changed))
    assert sorted(root.rglob("*")) == before
    shutil.copytree(root, tmp_path / "mixed")
    file = sorted((tmp_path / "mixed" / "train").glob("*/episode.json"))[1]
    metadata = json.loads(file.read_text())
    for change in ({"maps": {**metadata["maps"], "doors": False}}, {"split": "heldout"}):
        file.write_text(json.dumps({**metadata, **change}))
        with pytest.raises(ValueError, match="another split or other options of generated maps"):
            EpisodeStore(tmp_path / "mixed", "train").metadata(1)


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    program = """
import resource, sys
from pathlib import Path
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.recording import RecordConfig, record_episode
config = RecordConfig(out=Path(sys.argv[1]), scenario="rooms", maps=2, steps_per_episode=16, workers=1)
world = DoomWorld("rooms", 64, 64, timeout_tics=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))  # writing more fails as on a full disk
try:
    record_episode(world, config, 0)
except OSError as error:
    print("OSError", error)
world.close()
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "OSError" in done.stdout, done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
