"""From dream to engine, the whole way at tiny size."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mosaic_gym import Start
from mosaic_gym.evaluation.transfer import Config, RecordedGoalTask, evaluate
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.recording import RecordConfig, record
from tests.tiny import SIZE, tiny_model


def line(count: int = 8) -> tuple:
    """A recording of a straight walk, a metre a step."""
    cameras = np.tile(np.eye(4), (count, 1, 1))
    cameras[:, 2, 3] = np.arange(count)
    frames = np.zeros((count, *SIZE, 3), np.uint8)
    frames[..., 0] = np.arange(count)[:, None, None]
    return MosaicMemory(), frames, cameras


def test_goals_are_later_places_of_the_same_recording():
    task = RecordedGoalTask([line()], near_m=2.0, far_m=3.0)
    world = MosaicWorld(tiny_model())
    scenes = task.set_scenes(world, [Start(seed=seed) for seed in range(12)])
    for scene in scenes:
        here, there = int(scene.view.frames[-1, 0, 0, 0]), int(scene.goal[0, 0, 0])
        assert 2 <= there - here <= 3 and scene.goal_m == (0.0, float(there))
        assert task.begin(scene)["left_m"] == pytest.approx(there - here)
    assert len({int(scene.goal[0, 0, 0]) for scene in scenes}) > 2


def test_recordings_of_one_place_are_refused():
    with pytest.raises(ValueError, match="record longer episodes"):
        RecordedGoalTask([line(2)])


def test_the_whole_way_and_on_again(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    height, width = 48, 64
    data = tmp_path / "data"
    record(RecordConfig(out=data, episodes=3, steps_per_episode=16, height=height, width=width, workers=1))
    tiny_model(size=(height, width)).save_pretrained(tmp_path / "tiny")
    config = Config(
        checkpoint=str(tmp_path / "tiny"), data=data, out=tmp_path / "out", steps=64, engine_steps=8, episodes=2,
        rank_episodes=1, policies=2, places=3, rollout=2,
    )  # fmt: skip
    found = evaluate(config)
    assert set(found["arms"]) == {"random", "dream", "engine"} and len(found["ranking"]["returns_dream_engine"]) == 2
    assert json.loads((tmp_path / "out" / "transfer.json").read_text())["arms"] == found["arms"]
    assert (tmp_path / "out" / "transfer.png").stat().st_size > 5000
    capsys.readouterr()
    again = evaluate(replace(config, steps=64))
    assert again["arms"] == found["arms"] and "in the engine:" not in capsys.readouterr().err, "nothing is done twice"
