"""Recorded episodes: what is stored, that recording repeats and resumes, and that the explorer comes back."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from tensordict import NonTensorData, TensorDict

from mosaic_gym import DepthWalker, steer_towards_depth
from mosaic_gym.data.episodes import EpisodeStore, episode_folder, split_of
from mosaic_gym.worlds.captions import MAX_BYTES
from mosaic_gym.worlds.recording import RecordConfig, record
from tests.tiny import Trap

CONFIG = RecordConfig(episodes=10, steps_per_episode=30, height=48, width=64, workers=1)


def config(out, **changes):
    from dataclasses import replace

    return replace(CONFIG, out=out, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("episodes")
    record(config(root))
    return root


def test_what_is_stored(root):
    store = EpisodeStore(root, "train")
    episode = store.load(0)
    steps = len(episode)
    assert len(store) == 9 and len(EpisodeStore(root, "heldout")) == 1
    assert episode["frames"].shape == (steps, 4, 48, 64, 3) and episode["frames"].dtype == torch.uint8
    assert episode["depth_m"].shape == (steps, 4, 48, 64) and (episode["depth_m"] > 0).all()
    assert episode["world_from_camera"].shape == (steps, 4, 4, 4)
    assert episode["action"].shape == (steps, 3) and episode["action"].abs().max() <= 1
    assert episode["reward"].shape == episode["terminated"].shape == (steps,)
    assert store.image_from_camera.shape == (3, 3)
    assert len(store.captions(0)) == steps
    assert all(0 < len(text.encode()) <= MAX_BYTES for text in store.captions(0))


def test_writing_to_a_loaded_episode_does_not_change_the_file(root):
    store = EpisodeStore(root, "train")
    before = {path: path.read_bytes() for path in store.folders[0].iterdir()}
    mark, episode = store.fingerprint, store.load(0)
    untouched = store.load(0)["depth_m"].clone()
    episode["depth_m"].clamp_(max=0.5)
    episode["frames"][:] = 7
    episode["terminated"].fill_(True)
    assert episode["depth_m"].max() == 0.5
    assert torch.equal(store.load(0)["depth_m"], untouched)
    assert {path: path.read_bytes() for path in store.folders[0].iterdir()} == before
    assert EpisodeStore(root, "train").fingerprint == mark


def test_loading_maps_the_files_and_reads_nothing(root):
    store = EpisodeStore(root, "train")
    with open("/proc/self/maps") as maps:
        mapped = maps.read()
    episode = store.load(0)
    with open("/proc/self/maps") as maps:
        lines = [line for line in maps.read().splitlines() if str(store.folders[0] / "frames.memmap") in line]
    assert len(lines) == 1 and lines[0].split()[1] == "rw-p" and lines[0] not in mapped
    assert torch.equal(pickle.loads(pickle.dumps(episode))["frames"], episode["frames"])


def test_an_episode_is_written_as_tensordict_writes_it(root, tmp_path):
    folder = EpisodeStore(root, "train").folders[0]
    TensorDict.load_memmap(folder, mode="r").clone().memmap(str(tmp_path / "again"))
    written = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "episode.json"}
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == written


def test_held_out_is_a_matter_of_the_seed_alone():
    assert [split_of(seed) for seed in (8, 9, 10, 19)] == ["train", "heldout", "train", "heldout"]


def test_recording_goes_on_where_it_stopped_and_repeats_itself(root, tmp_path):
    record(config(tmp_path, episodes=2))
    kept = episode_folder(tmp_path, 0)
    stamp = (kept / "episode.json").stat().st_mtime_ns
    (episode_folder(tmp_path, 1) / "episode.json").unlink()
    episode_folder(tmp_path, 1).rename(episode_folder(tmp_path, 1).with_suffix(".partial"))
    record(config(tmp_path, episodes=2, workers=2))
    assert (kept / "episode.json").stat().st_mtime_ns == stamp
    for index in range(2):
        one, two = EpisodeStore(root, "train").load(index), EpisodeStore(tmp_path, "train").load(index)
        assert torch.equal(one["frames"], two["frames"]) and torch.equal(one["action"], two["action"])


def test_episodes_revisit_places(root):
    store = EpisodeStore(root, "train")
    revisits = 0
    for index in range(len(store)):
        cameras = store.load(index)["world_from_camera"][:, -1].numpy()
        apart = np.abs(cameras[:, None, :3] - cameras[None, :, :3]).max((-2, -1))
        far_in_time = np.abs(np.subtract.outer(np.arange(len(cameras)), np.arange(len(cameras)))) >= 4
        moved_between = np.abs(np.diff(cameras, axis=0)).max((-2, -1)).mean() > 0.01
        revisits += int(((apart < 0.02) & far_in_time).sum() > 0 and moved_between)
    assert revisits >= 4


def test_maps_are_not_mixed(root, tmp_path):
    before = sorted(root.rglob("*"))
    for changed in ({"scenario": "take_cover"}, {"height": 64}):
        with pytest.raises(ValueError, match=r"holds episodes of .*my_way_home.*, not of .*give another --out"):
            record(config(root, episodes=12, **changed))
    assert sorted(root.rglob("*")) == before
    shutil.copytree(root, tmp_path / "mixed")
    told = next(iter(sorted((tmp_path / "mixed" / "train").glob("*/episode.json"))[1:]))
    told.write_text(told.read_text().replace("my_way_home", "take_cover"))
    with pytest.raises(ValueError, match="of another scenario or camera than"):
        store = EpisodeStore(tmp_path / "mixed", "train")
        [store.metadata(index) for index in range(len(store))]


def test_lengths_are_not_mixed(root, tmp_path):
    before = sorted(root.rglob("*"))
    for steps in (20, 31):
        with pytest.raises(ValueError, match=f"has 30 steps, and --steps-per-episode asks for {steps}. Give"):
            record(config(root, episodes=12, steps_per_episode=steps))
    assert sorted(root.rglob("*")) == before
    record(config(tmp_path, episodes=1, steps_per_episode=3))
    (episode_folder(tmp_path, 0) / "terminated.memmap").write_bytes(bytes([0, 0, 1]))  # as if the game had ended it
    with pytest.raises(ValueError, match="has 3 steps, and --steps-per-episode asks for 2"):
        record(config(tmp_path, episodes=2, steps_per_episode=2))
    record(config(tmp_path, episodes=2, steps_per_episode=4, workers=2))
    assert sorted(map(len, map(EpisodeStore(tmp_path, "train").load, range(2)))) == [3, 4]


def test_a_recording_cannot_run_anything(root, tmp_path):
    shutil.copytree(root, tmp_path / "given")
    folder, strange = next(iter(sorted((tmp_path / "given" / "train").iterdir()))), tmp_path / "strange"
    holder = TensorDict({"n": NonTensorData(data={1, 2}, batch_size=[2])}, [2])
    holder.memmap(str(strange))
    shutil.copytree(strange / "n", folder / "n")
    pickled = list((folder / "n").glob("*.pickle"))
    assert pickled, "what is no tensor is pickled"
    with pickled[0].open("wb") as file:
        pickle.dump(Trap(tmp_path / "sprung"), file)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "n": json.loads((strange / "meta.json").read_text())["n"]}))
    with pytest.raises(ValueError, match="holds more than arrays"):
        EpisodeStore(tmp_path / "given", "train").load(0)
    assert not (tmp_path / "sprung").exists()


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="mosaic-gym record"):
        EpisodeStore(tmp_path, "train")
    with pytest.raises(ValueError, match="unknown split"):
        EpisodeStore(tmp_path, "test")
    with pytest.raises(ValueError, match="--episodes is a whole number from 1; got 0"):
        record(config(tmp_path, episodes=0))
    with pytest.raises(ValueError, match="unknown scenario 'nope'; known: my_way_home"):
        record(config(tmp_path, scenario="nope", workers=2))  # said once, not by each worker that dies of it


def test_a_walker_walks_as_it_always_did():
    # Scenes of the goal tasks, and with them what is measured, are walks by it: another walk is another benchmark.
    rows, columns = np.indices((45, 50))
    rng = np.random.default_rng(7)
    views = [1.0 + 3.0 * np.abs(np.sin(0.13 * columns + 0.7 * k)) + 0.01 * rows for k in range(5)]
    action_vectors = np.array([steer_towards_depth(view, rng) for view in views])
    np.testing.assert_allclose(action_vectors[:, 2], [-0.519692, 0.314686, -1.0, -0.422648, 0.446332], atol=1e-6)
    assert (action_vectors[:, 0] == 1.0).all() and not action_vectors[:, 1].any()


@pytest.mark.parametrize(("open_side", "turn"), [("left", -1.0), ("right", 1.0)])
def test_a_walker_before_a_wall_turns_to_where_there_is_more_room(open_side, turn):
    depth_m = np.full((32, 50), 0.9)
    depth_m[:, slice(0, 10) if open_side == "left" else slice(40, 50)] = 5.0
    np.testing.assert_array_equal(steer_towards_depth(depth_m, np.random.default_rng(0)), [0.0, 0.0, turn])


def test_a_depth_walker_keeps_its_turn_until_the_way_is_open():
    """In a corner the deeper side changes with every turn; the walker does not change its own."""
    left, right, free, narrow = (np.full((32, 50), depth_m) for depth_m in (0.9, 0.9, 5.0, 1.5))
    left[:, :10], right[:, 40:] = 5.0, 5.0
    walker = DepthWalker(np.random.default_rng(0))
    turns = [walker.act(view)[2] for view in (left, right, left, right, narrow)]
    assert turns == [-1.0] * 5, "a way of 1.5 m is not open yet"
    assert walker.act(free)[0] == 1.0 and walker.act(narrow)[0] == 1.0, "after that it walks on up to 1.2 m"
    assert [walker.act(right)[2], walker.act(left)[2]] == [1.0, 1.0], "the next turn has a side of its own"
    tight = DepthWalker(np.random.default_rng(0))
    assert any(tight.act(view)[0] == 1.0 for view in [left, *[narrow] * 60]), "where nothing is open, 1.5 m is enough"
    careful = DepthWalker(np.random.default_rng(0), pace=0.6, near_m=2.2)
    acts = np.stack([careful.act(narrow) for _ in range(100)])
    assert 0 < (acts[:, 0] == 0.6).sum() < 10 and (acts[:, 2] != 0).all(), "it turns in front of walls, not for ever"


def test_a_depth_walker_glances_at_the_same_steps_in_any_open_view():
    even, left = np.full((32, 50), 9.0), np.full((32, 50), 5.0)
    left[:, :10] = 8.0
    glances = []
    for view in (even, left):
        walker = DepthWalker(np.random.default_rng(3), glance=0.1)
        glances.append([walker.act(view)[0] == 0 for _ in range(60)])
    assert glances[0] == glances[1] and 9 <= sum(glances[0]) < 60
    near = np.full((32, 50), 0.9)
    walk = DepthWalker(np.random.default_rng(3))
    assert [walk.act(view)[0] for view in (even, near, even)] == [1.0, 0.0, 1.0]
