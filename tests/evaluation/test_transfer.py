"""From dream to engine, the whole way at tiny size."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stable_baselines3.common.vec_env import VecTransposeImage

from mosaic_gym import Start
from mosaic_gym.envs.sb3 import make_sb3
from mosaic_gym.envs.tasks import EngineTask, Judgement
from mosaic_gym.evaluation.transfer import (
    Config,
    RecordedGoalTask,
    evaluate,
    load_policy,
    make_policy,
    train,
    walk_in_dream,
)
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.recording import RecordConfig, record
from tests.tiny import SIZE, tiny_model


def line(count: int = 8, size: tuple[int, int] = SIZE) -> tuple:
    """A recording of a straight walk, a metre a step."""
    cameras = np.tile(np.eye(4), (count, 1, 1))
    cameras[:, 2, 3] = np.arange(count)
    frames = np.zeros((count, *size, 3), np.uint8)
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
    assert set(found["arms"]) == {"random", "ahead", "dream", "engine"}
    assert set(found["ranking"]["returns_dream_engine"]) == {"0", "1", "random", "engine", "ahead"}
    assert json.loads((tmp_path / "out" / "transfer.json").read_text())["arms"] == found["arms"]
    assert (tmp_path / "out" / "transfer.png").stat().st_size > 5000
    capsys.readouterr()
    again = evaluate(replace(config, steps=64))
    assert again["arms"] == found["arms"] and "in the engine:" not in capsys.readouterr().err, "nothing is done twice"
    tiny_model(size=(height, width), seed=1).save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match="another checkpoint"):
        evaluate(config)


class EverySecondEndsAtOnce(EngineTask):
    """Every second episode ends at once, successful; the others run out of time."""

    def begin(self, scene):
        return {"soon": bool(scene.state.seed % 2)}

    def judge(self, progress, view):
        return Judgement(progress, 1.0, progress["soon"])


def test_slow_members_count_as_much_as_quick_ones(tmp_path):
    tiny_model().save_pretrained(tmp_path / "tiny")
    envs = make_sb3(4, checkpoint=str(tmp_path / "tiny"), task=EverySecondEndsAtOnce(), max_episode_steps=4)
    told = walk_in_dream(envs, lambda seen: np.zeros(len(seen), int), 5)
    envs.close()
    assert len(told) == 8, "two of each member"
    assert {(one["return"], one["success"]) for one in told} == {(1.0, 1.0), (4.0, 0.0)}
    # The seeds of the first episodes are 7, 8, 9, 10: the quick ones do not crowd out the rest.
    assert [one["success"] for one in told[::2]] == [1.0, 0.0, 1.0, 0.0]


def test_training_cut_off_goes_on_from_the_last_policy_kept(tmp_path):
    size = (48, 64)
    tiny_model(size=size).save_pretrained(tmp_path / "tiny")
    faces = {"task": RecordedGoalTask([line(size=size)]), "observation": "dict", "max_episode_steps": 4}
    envs = VecTransposeImage(make_sb3(2, checkpoint=str(tmp_path / "tiny"), **faces))
    config = Config(rollout=2)
    train(make_policy(envs, config), 8, tmp_path, 3)
    whole = load_file(tmp_path / "2.safetensors")
    (tmp_path / "2.safetensors").unlink()
    model = make_policy(envs, replace(config, seed=5))
    assert load_policy(model, tmp_path / "1.safetensors") == 4
    middle = {name: value.clone() for name, value in model.policy.state_dict().items()}
    steps = {int(state["step"]) for state in model.policy.optimizer.state_dict()["state"].values()}
    assert steps == {4}, "the optimiser's count of updates: four epochs of one rollout"
    train(model, 8, tmp_path, 3)
    assert model.num_timesteps == 8
    again = load_file(tmp_path / "2.safetensors")
    assert again.keys() == whole.keys()
    assert any(not torch.equal(again[name], value) for name, value in middle.items())
    envs.close()
