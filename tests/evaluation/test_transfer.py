"""From dream to engine, the whole way at tiny size."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stable_baselines3.common.vec_env import VecTransposeImage

from mosaic_gym import Planner, Start
from mosaic_gym.envs.sb3 import make_sb3
from mosaic_gym.envs.tasks import GoalTask, Reach, SimulatorTask, TaskStep
from mosaic_gym.evaluation.metrics.agreement import rank_agreement
from mosaic_gym.evaluation.suites.transfer import config as transfer_config
from mosaic_gym.evaluation.suites.transfer import environments, episodes, planner, ranking
from mosaic_gym.evaluation.suites.transfer.benchmark import Config, evaluate
from mosaic_gym.evaluation.suites.transfer.environments import RelativePose
from mosaic_gym.evaluation.suites.transfer.episodes import play, play_missing, summarize
from mosaic_gym.evaluation.suites.transfer.policies import constant_policy, idling_policy, scripted_policy
from mosaic_gym.evaluation.suites.transfer.ppo import load_policy, make_ppo, train
from mosaic_gym.evaluation.suites.transfer.tasks import RecordedGoalTask, Recording, fixed_goal_task
from mosaic_gym.geometry.control import ACTIONS
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.worlds.doom import DoomWorld
from mosaic_gym.worlds.mosaic import MosaicWorld
from mosaic_gym.worlds.recording import RecordConfig, record
from tests.tiny import SIZE, tiny_model


def line(count: int = 12, size: tuple[int, int] = SIZE, turned: int = 0) -> Recording:
    """A recording of a straight walk, a metre a step, but for the step `turned`, which goes sideways."""
    cameras = np.tile(np.eye(4), (count, 1, 1))
    cameras[:, 2, 3] = np.arange(count)
    frames = np.zeros((count, *size, 3), np.uint8)
    frames[..., 0] = np.arange(count)[:, None, None]
    actions = np.tile([1.0, 0.0, 0.3], (count, 1))
    actions[turned] = (0.0, 1.0, 0.0)
    return Recording(frames, cameras, actions, MosaicMemory())


def test_goals_are_where_a_recorded_walk_went_on_to():
    task = RecordedGoalTask([line(turned=4)], far_m=2.0, steps=(1, 3))
    world = MosaicWorld(tiny_model())
    scenes = task.sample_start_and_goal(world, [Start(seed=seed) for seed in range(24)])
    met = set()
    for scene in scenes:
        here, there = int(scene.view.frames[-1, 0, 0, 0]), int(scene.goal[0, 0, 0])
        met.add((here, there))
        assert scene.goal_m == (0.0, float(there))
        assert task.initial_task_state(scene)["left_m"] == pytest.approx(there - here)
        assert len(scene.state.memory.keyframes) >= 1
    ways = {(0, 2), (0, 3), (1, 3), *((i, i + n) for i in range(4, 10) for n in (2, 3) if i + n < 12)}
    assert met <= ways, "two metres or more, one to three steps, never through the sidestep"
    assert {(here, goal) for _, here, goals in task.walks for goal in goals} == ways


def test_the_same_seed_is_the_same_episode_in_the_engine():
    engine = DoomWorld("my_way_home", 48, 64)
    state, view = engine.start(Start(seed=3))
    views = [view]
    for _ in range(9):
        (state,), (view,) = engine.step([state], np.array([[1.0, 0.0, 0.2]]))
        views.append(view)
    cameras = np.stack([view.world_from_camera[-1] for view in views])
    frames = np.stack([view.frames[-1] for view in views])
    recording = Recording(frames, cameras, np.tile([1.0, 0.0, 0.2], (10, 1)))
    task = RecordedGoalTask([recording], far_m=0.5, steps=(1, 3))
    (scene,) = task.sample_start_and_goal(engine, [Start(seed=1)])
    (dreamt,) = RecordedGoalTask([line(10, (48, 64))], far_m=0.5, steps=(1, 3)).sample_start_and_goal(
        MosaicWorld(tiny_model(size=(48, 64))), [Start(seed=1)]
    )
    engine.close()
    here, there = int(dreamt.view.frames[-1, 0, 0, 0]), int(dreamt.goal[0, 0, 0])
    np.testing.assert_allclose(scene.view.world_from_camera[-1], cameras[here], atol=0.01)
    assert scene.goal_m == (cameras[there, 0, 3], cameras[there, 2, 3]) and (scene.goal == frames[there]).all()
    assert np.abs(scene.view.frames[-1].astype(float) - frames[here]).mean() < 3.0


def test_scenes_are_dreamt_once_from_every_recording_and_drawn_by_seed(tmp_path, monkeypatch):
    world = MosaicWorld(tiny_model())
    recordings = [line(count=3), line(count=5)]
    task = fixed_goal_task(world, recordings, 8, tmp_path / "goals.safetensors")
    assert len(task.samples) == 8
    for number, scene in enumerate(task.samples):
        recording = recordings[number % 2]
        assert int(scene.view.frames[-1, 0, 0, 0]) < len(recording.frames)
        assert task.initial_task_state(scene)["left_m"] > task.task.reach_m, "no episode is over before it begins"
    cut_off = tmp_path / "cut_off.safetensors"
    fixed_goal_task(world, recordings, 5, cut_off)
    again = fixed_goal_task(world, recordings, 8, cut_off).samples
    assert all((one.goal == other.goal).all() for one, other in zip(task.samples, again, strict=True))
    for seeds in ([8, 0], [9], [0, 2]):
        with pytest.raises(ValueError, match=r"goals of the first 8 seeds: give starts with consecutive seeds.*got \["):
            task.task.sample_start_and_goal(world, [Start(seed=seed) for seed in seeds])
    with monkeypatch.context() as patched:
        patched.setattr(GoalTask, "_walk_once", lambda *_: pytest.fail("these walks are kept"))
        kept = fixed_goal_task(world, recordings, 8, tmp_path / "goals.safetensors").samples
    for one, other in zip(task.samples, kept, strict=True):
        assert (one.goal == other.goal).all() and one.goal_m == other.goal_m
        assert (one.view.frames == other.view.frames).all()
    starts = [Start(seed=seed) for seed in range(40)]
    drawn = task.sample_start_and_goal(world, starts)
    assert all(one is other for one, other in zip(drawn, task.sample_start_and_goal(world, starts), strict=True))
    assert len({id(scene) for scene in drawn}) > 5
    states, views = world.step([scene.state for scene in drawn[:2]], np.array([[1.0, 0.0, 0.0]] * 2))
    assert len(states) == len(views) == 2, "scenes can be walked on from"


def test_runs_count_alike_and_an_arm_without_training_has_one():
    told = [[{"success": float(n % 2), "return": n / 4} for n in range(40)], [{"success": 1.0, "return": 9.0}] * 40]
    variant = summarize(told)
    assert variant["success_of_runs"] == [0.5, 1.0] and variant["success"]["value"] == 0.75
    assert variant["success"]["low"] <= 0.5 and variant["success"]["high"] == 1.0, (
        "runs that differ so leave all between open"
    )
    alone = summarize([[{"success": 0.0, "return": 1.0}] * 200])
    assert alone["success"]["high"] == pytest.approx(0.0188, abs=1e-3), "none in 200 is not never"
    config = Config(runs=3)
    assert transfer_config.run_names("learned", config) == ["learned_0", "learned_1", "learned_2"]
    assert transfer_config.run_names("random", config) == ["random"]


def test_recordings_without_a_walk_are_refused():
    with pytest.raises(ValueError, match="record longer episodes"):
        RecordedGoalTask([line(5)])


def give_earlier_names(folder):
    """Renames results as versions with other words wrote them."""
    for path in list(folder.iterdir()):
        name = path.name
        for word, earlier in (("learned", "dream"), ("simulator", "engine"), ("idle", "dozing")):
            name = name.replace(word, earlier)
        path.rename(folder / name)
    assert {"dream_0", "dream_1", "engine", "rank_dream_dozing_50%.json"} <= {path.name for path in folder.iterdir()}
    recipe = json.loads((folder / "checkpoint.json").read_text())
    recipe |= {"engine_steps": recipe.pop("simulator_steps"), "scenes": recipe.pop("goals")}
    (folder / "checkpoint.json").write_text(json.dumps(recipe))


@pytest.mark.slow
def test_the_whole_way_and_on_again(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(environments, "EPISODE_STEPS", 3)
    monkeypatch.setattr(planner, "PLAN_STEPS", 2)
    monkeypatch.setattr(environments, "MEMBERS", 2)
    monkeypatch.setattr(Reach.__init__, "__defaults__", (0.4, 0.8, (2, 4)))  # walks to a goal, and home
    monkeypatch.setattr(ranking, "CONSTANT", {"turning": "turn_right"})
    monkeypatch.setattr(ranking, "IDLE_SHARES", (0.5,))
    height, width = 48, 64
    data = tmp_path / "data"
    record(RecordConfig(out=data, episodes=10, steps_per_episode=40, height=height, width=width, workers=1))
    model = tiny_model(size=(height, width))
    torch.nn.init.constant_(model.depth.head[1].bias, 1.5)  # random depths would hem a body in
    model.save_pretrained(tmp_path / "tiny")
    config = Config(
        checkpoint=str(tmp_path / "tiny"), data=data, out=tmp_path / "out", steps=24, simulator_steps=24, episodes=2,
        rank_episodes=2, plan_episodes=2, policies=3, places=4, goals=2, rollout=4,
    )  # fmt: skip
    found = evaluate(config)
    assert set(found["variants"]) == {"random", "ahead", "scripted", "learned", "simulator"}
    assert set(found["ranking"]["returns_learned_simulator"]) == {
        "turning", "idle_50%", "random", "ahead", "scripted", "learned_0", "learned_1", "simulator",
    }  # fmt: skip
    assert {name: len(told["success_of_runs"]) for name, told in found["variants"].items() if name != "random"} == {
        "ahead": 1, "scripted": 1, "learned": 2, "simulator": 1,
    }  # fmt: skip
    assert set(found["planner"]) == {"on", "place", "off"}
    for name in ("learned_0", "learned_1", "simulator"):
        assert len(list((tmp_path / "out" / name).glob("[0-2].safetensors"))) == 3, "each can be gone on from"
    written = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert written["variants"] == found["variants"] and written["planner"] == found["planner"]
    said = capsys.readouterr().out
    assert all(f"planner, memory {memory:<5} comes home" in said for memory in found["planner"])
    assert (tmp_path / "out" / "transfer.png").stat().st_size > 5000
    played = []
    play = Planner.play
    monkeypatch.setattr(Planner, "play", lambda planner, env, seed: played.append(seed) or play(planner, env, seed))
    again = evaluate(config)
    assert again["variants"] == found["variants"] and again["planner"] == found["planner"]
    assert "in the simulator:" not in capsys.readouterr().err and not played, "nothing is done twice"
    shutil.copytree(tmp_path / "out", tmp_path / "earlier")
    give_earlier_names(tmp_path / "earlier")
    earlier = evaluate(dataclasses.replace(config, out=tmp_path / "earlier"))
    assert earlier["variants"] == found["variants"] and earlier["ranking"] == found["ranking"]
    assert "in the simulator:" not in capsys.readouterr().err and not played, "results of earlier versions are used"
    plans = tmp_path / "out" / "plan_off.json"
    planned = json.loads(plans.read_text())
    assert len(planned) == 2 and planned[0].keys() == {"return", "success"}
    plans.write_text(json.dumps(planned[:1]))  # as if cut off after the first episode
    before = json.loads((tmp_path / "out" / "rank_learned_learned_0.json").read_text())
    more = evaluate(dataclasses.replace(config, rank_episodes=3))
    assert played == [transfer_config.FIRST_TEST_SEED + 10]
    assert json.loads(plans.read_text()) == planned, "the same episode comes out alike"
    after = json.loads((tmp_path / "out" / "rank_learned_learned_0.json").read_text())
    assert len(before) == 2 and len(after) == 3 and after[:2] == before
    assert more["ranking"]["returns_learned_simulator"]["learned_0"][0] == np.mean([one["return"] for one in after])
    alone = evaluate(dataclasses.replace(config, rank_episodes=0, plan_episodes=0))
    assert "planner" not in alone and len(played) == 1
    with pytest.raises(ValueError, match="--plan-episodes is at least 2 for an interval, or 0"):
        evaluate(dataclasses.replace(config, plan_episodes=1))
    with pytest.raises(ValueError, match="--rank-episodes is at least 2 for an interval, or 0"):
        evaluate(dataclasses.replace(config, rank_episodes=1))
    with pytest.raises(ValueError, match=r"results of seed=0, steps=24; .*--out"):
        evaluate(dataclasses.replace(config, seed=1, steps=25))
    dataclasses.replace(model, atlas=None).save_pretrained(tmp_path / "mapless")
    with pytest.raises(ValueError, match=r"mapless has no atlas.*train atlas"):
        evaluate(dataclasses.replace(config, checkpoint=str(tmp_path / "mapless")))
    told = next((data / "train").glob("*/episode.json"))
    told.write_text(json.dumps({**json.loads(told.read_text()), "seed": 5000}))  # recorded anew, at the same path
    with pytest.raises(ValueError, match=r"results of recording=\w+; .*--out"):
        evaluate(config)
    tiny_model(size=(height, width), seed=1).save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match="another checkpoint"):
        evaluate(config)


def test_the_engine_plays_what_the_checkpoint_was_trained_on(tmp_path, monkeypatch):
    model = tiny_model(size=(48, 64))
    model = dataclasses.replace(model, settings=dataclasses.replace(model.settings, scenario="take_cover"))
    played = []
    monkeypatch.setattr(Planner, "play", lambda _, env, seed: played.append(env.unwrapped.world) or (0.0, False))
    planner.plan(Config(out=tmp_path, plan_episodes=2), model)
    engine = environments.open_simulator(model.settings)
    played += [env.world for env in engine.get_attr("unwrapped")]
    engine.close()
    assert {(world.scenario, world.height, world.width) for world in played} == {("take_cover", 48, 64)}
    assert len(played) == 7


def test_agreement_is_of_the_order_of_means_and_as_sure_as_episodes_are():
    rng = np.random.default_rng(0)
    skill = np.arange(8.0)[:, None]
    sure = rank_agreement(skill + np.zeros((8, 20)), 2 * skill + np.zeros((8, 20)), seed=0, draws=50)
    assert sure == dict.fromkeys(("spearman", "low", "high", "halves", "simulator_halves"), 1.0)
    turned = rank_agreement(skill + np.zeros((8, 20)), -skill + np.zeros((8, 20)), seed=0, draws=50)
    assert turned["spearman"] == turned["halves"] == -1.0 and turned["simulator_halves"] == 1.0
    # The same skills behind much noise: the interval holds what is found, and is wide.
    found = rank_agreement(*(skill + rng.normal(0, 12, (8, 20)) for _ in range(2)), seed=0, draws=200)
    assert found["low"] < found["spearman"] < found["high"] and found["high"] - found["low"] > 0.3
    # Nor does the engine agree with itself then. Its halves never share an episode: what one adds to all is no skill.
    assert found["simulator_halves"] < 0.8
    nothing = rank_agreement(np.zeros((8, 20)), skill + np.zeros((8, 20)), seed=0, draws=50)
    assert set(nothing.values()) == {None, 1.0} and nothing["simulator_halves"] == 1.0
    scenes = rng.normal(0, 12, (8, 20))
    assert rank_agreement(scenes, scenes, seed=0, draws=200)["simulator_halves"] < 0.5


class EverySecondEndsAtOnce(SimulatorTask):
    """Every second episode ends at once, every fourth of them successful; the others run out of time."""

    def initial_task_state(self, scene):
        return {"soon": bool(scene.state.seed % 2), "there": scene.state.seed % 4 == 1}

    def evaluate(self, task_state, view):
        return TaskStep(task_state, 1.0, task_state["soon"], task_state["there"])


def open_tiny(folder, task, members, steps, size=SIZE):
    tiny_model(size=size).save_pretrained(folder / "tiny")
    faces = {"task": task, "observation": "dict", "max_episode_steps": steps}
    return RelativePose(VecTransposeImage(make_sb3(members, checkpoint=str(folder / "tiny"), **faces)))


def test_every_seed_is_walked_once_and_slow_ones_count_as_much_as_quick_ones(tmp_path):
    envs = open_tiny(tmp_path, EverySecondEndsAtOnce(), 4, 4)
    told = play(envs, lambda seen: np.zeros(len(seen["image"]), int), range(7, 13), "test")
    envs.close()
    slow = {"return": 4.0, "success": 0.0}
    quick, there = {"return": 1.0, "success": 0.0}, {"return": 1.0, "success": 1.0}
    assert told == [quick, slow, there, slow, quick, slow], "seeds 7 to 12, the odd ones quick, 9 there"


def test_episodes_that_are_added_draw_actions_of_their_own(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(episodes, "play", lambda env, choose, seeds, label: [{"seed": seed} for seed in seeds])
    for count in (2, 5):
        told = play_missing(tmp_path / "told.json", lambda: None, begun.append, range(20, 20 + count), 3, "test")
    assert begun == [3, 5] and [one["seed"] for one in told] == [20, 21, 22, 23, 24]


def test_the_way_from_the_start_forgets_where_that_was_and_begins_anew_with_every_episode(tmp_path):
    envs = open_tiny(tmp_path, SimulatorTask(), 2, 3)
    envs.seed(0)
    seen = envs.reset()
    np.testing.assert_allclose(seen["pose"], np.tile([0, 0, 0, 1, 0], (2, 1)), atol=1e-6)
    names = list(ACTIONS)
    first, _, _, _ = envs.step(np.array([names.index("forward"), names.index("turn_right")]))
    right, ahead, sine, cosine, moved_m = first["pose"].T
    assert ahead[0] > 0 and moved_m[0] == pytest.approx(5 * np.hypot(right[0], ahead[0]), abs=1e-5)
    assert moved_m[1] == pytest.approx(0, abs=1e-6) and sine[1] > 0
    np.testing.assert_allclose(sine**2 + cosine**2, 1, atol=1e-5)
    forward = np.full(2, names.index("forward"))
    envs.step(forward)
    begun, _, dones, infos = envs.step(forward)
    assert dones.all()
    np.testing.assert_allclose(begun["pose"], np.tile([0, 0, 0, 1, 0], (2, 1)), atol=1e-6)
    last = infos[0]["terminal_observation"]["pose"]
    assert last.shape == (5,) and last[1] > ahead[0] and last[4] > 0
    envs.close()


def test_the_scripted_walker_goes_where_it_is_deep():
    names, depth_m = list(ACTIONS), np.full((3, 64, 64), 2.0)
    depth_m[0, :, 30:34] = 9.0  # before it
    depth_m[1] = 0.5  # a wall, but for some room to the right
    depth_m[1, :, 60:] = 9.0
    depth_m[2, :, :3] = 9.0  # to the left
    chosen = [scripted_policy(seed)({"depth": depth_m}) for seed in range(20)]
    assert names[np.bincount([each[0] for each in chosen]).argmax()] == "forward"
    assert {names[each[1]] for each in chosen} == {"turn_right"}
    assert names[np.bincount([each[2] for each in chosen]).argmax()] == "forward_turn_left"


def test_training_cut_off_goes_on_from_the_last_policy_kept(tmp_path):
    size = (48, 64)
    envs = open_tiny(tmp_path, RecordedGoalTask([line(size=size)]), 2, 4, size)
    train(make_ppo(envs, 2, 0), 16, tmp_path, 3)
    whole = load_file(tmp_path / "2.safetensors")
    (tmp_path / "2.safetensors").unlink()
    model = make_ppo(envs, 2, 5)
    assert load_policy(model, tmp_path / "1.safetensors") == 4, "a quarter of the way: closer early on"
    middle = {name: value.clone() for name, value in model.policy.state_dict().items()}
    steps = {int(state["step"]) for state in model.policy.optimizer.state_dict()["state"].values()}
    assert steps == {10}, "the optimiser's count of updates: ten epochs of one rollout"
    train(model, 16, tmp_path, 3)
    assert model.num_timesteps == 16
    again = load_file(tmp_path / "2.safetensors")
    assert again.keys() == whole.keys()
    assert any(not torch.equal(again[name], value) for name, value in middle.items())
    envs.close()


def test_a_dozing_script_stands_still_for_its_share_of_steps():
    seen = {"image": np.zeros((400, 3, 8, 8)), "depth": np.full((400, 8, 8), 5.0)}
    assert (constant_policy("backward", 0)(seen) == list(ACTIONS).index("backward")).all()
    assert (idling_policy(0.0, 0)(seen) == scripted_policy(0)(seen)).all()
    assert 0.4 < (idling_policy(0.5, 0)(seen) == list(ACTIONS).index("noop")).mean() < 0.6
