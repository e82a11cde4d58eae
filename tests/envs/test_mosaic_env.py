import json
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from mosaic_gym import ACTIONS, pose_at
from mosaic_gym.envs.mosaic_env import WorldEnv, make_learned_env, make_simulator_env
from mosaic_gym.envs.tasks import SimulatorTask
from mosaic_gym.memory.mosaic import MosaicMemory
from mosaic_gym.model import checkpoints

from .counting_world import CountingWorld, same

COUNTING = "CountingWorld-v0"
NAMES = list(ACTIONS)


def make_counting(last_step: int = 1000, **kwargs) -> WorldEnv:
    return WorldEnv(CountingWorld(last_step=last_step), **kwargs)


make_counting.metadata = WorldEnv.metadata


@pytest.fixture(autouse=True)
def counting_id(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    gym.register(COUNTING, entry_point=make_counting, max_episode_steps=5)
    yield
    del gym.registry[COUNTING]


IDS = pytest.mark.parametrize("id", [COUNTING, "MosaicWorld-v0", "MosaicWorldReal-v0"])
FACES = pytest.mark.parametrize(
    "faces", [{}, {"action_space": "continuous", "observation": "dict"}], ids=["default", "continuous-dict"]
)


@IDS
@FACES
def test_gymnasiums_checker_has_no_complaint(id, faces):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(id, **faces)
        check_env(env.unwrapped)
        env.close()


@IDS
def test_stable_baselines3s_checker_has_no_complaint(id):
    for space in ("discrete", "continuous"):
        env = gym.make(id, action_space=space)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env_for_sb3(env, warn=True)
        env.close()


def test_stable_baselines3_only_recommends_flattening_the_dict():
    with pytest.warns(UserWarning) as recorded:
        check_env_for_sb3(make_counting(observation="dict"), warn=True)
    assert {str(w.message).split()[2] for w in recorded} == {"depth", "pose"}
    assert all("unconventional shape" in str(w.message) for w in recorded)


@IDS
def test_same_seed_and_actions_give_the_same_frames(id):
    episodes = []
    for _ in range(2):
        env = gym.make(id, observation="dict")
        told = [env.reset(seed=7)]
        for name in ("forward", "turn_left", "forward_turn_right"):
            observation, reward, *_, info = env.step(NAMES.index(name))
            told.append((observation, {**info, "reward": reward}))
        env.close()
        episodes.append(told)
    for (first, first_info), (again, again_info) in zip(*episodes, strict=True):
        assert same(first_info, again_info)
        for key in first:
            np.testing.assert_array_equal(first[key], again[key])


@IDS
def test_the_same_env_repeats_itself_after_a_reset(id):
    env = gym.make(id)
    env.reset(seed=3)
    first = env.step(1)[0]
    env.step(2)
    env.reset(seed=3)
    np.testing.assert_array_equal(env.step(1)[0], first)
    env.close()


@IDS
def test_info_is_plain(id):
    env = gym.make(id)
    for info in (env.reset(seed=0)[1], env.step(0)[4]):
        for name, shape in (("pose", (4, 4)), ("intrinsics", (3, 3))):
            assert info[name].shape == shape and info[name].dtype == np.float64
        plain = {name: value for name, value in info.items() if name not in ("pose", "intrinsics")}
        assert json.loads(json.dumps(plain)) == {**plain, "labels": list(info["labels"])}
        assert 0.0 <= info["coverage"] <= 1.0
    env.close()


def test_the_observation_is_the_last_frame_of_its_own_step():
    env = make_counting()
    image, info = env.reset(seed=9)
    assert (image[..., 0] == 3).all() and (image[..., 1] == 9).all() and info["step_index"] == 0
    for step in range(1, 4):
        image, *_, info = env.step(0)
        assert (image[..., 0] == 4 * step + 3).all()
        assert info["step_index"] == step and info["memory_keyframes"] == step
        assert info["world_reward"] == pytest.approx(step / 10)
        assert env.view.frames[:, 0, 0, 0].tolist() == [4 * step + i for i in range(4)]


def test_dict_observation_holds_depth_pose_and_goal():
    env = make_counting(observation="dict")
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation["goal"], observation["image"])
    goal = np.full((40, 64, 3), 77, np.uint8)
    env.reset(seed=0, options={"goal": goal})
    observation, *_, info = env.step(NAMES.index("forward"))
    np.testing.assert_array_equal(observation["goal"], goal)
    assert (observation["depth"] == 1.0).all() and observation["depth"].shape == (40, 64)
    np.testing.assert_allclose(observation["pose"], info["pose"], rtol=1e-6)
    assert observation["pose"][2, 3] > 0.5


def test_discrete_and_continuous_actions_move_alike():
    discrete, continuous = make_counting(), make_counting(action_space="continuous")
    discrete.reset(seed=0), continuous.reset(seed=0)
    for index, action_vector in enumerate(ACTIONS.values()):
        pose = discrete.step(index)[4]["pose"]
        np.testing.assert_array_equal(pose, continuous.step(np.array(action_vector, np.float32))[4]["pose"])


def test_seeds_follow_gymnasium():
    env = make_counting()
    env.reset(seed=5)
    assert env.state.start.seed == 5
    drawn = []
    for _ in range(2):
        env.reset(seed=5)
        drawn.append([env.reset()[1] and env.state.start.seed for _ in range(3)])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 3


def test_reset_options_reach_the_world():
    env = make_counting(prompt="a red hall")
    env.reset(seed=0)
    assert env.state.start.prompt == "a red hall" and env.state.start.world_from_camera is None
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    pose = pose_at(3.0, 0.0, -2.0, 0.5).world_from_camera
    seen, info = env.reset(options={"image": image, "pose": pose.tolist(), "prompt": "a cave", "memory": ("kept",)})
    np.testing.assert_array_equal(seen, image)
    np.testing.assert_allclose(info["pose"], pose)
    assert env.state.start.prompt == "a cave" and env.state.start.memory == ("kept",)


def test_a_saved_memory_is_loaded_by_its_path(tmp_path):
    MosaicMemory(capacity=7).save(tmp_path / "memory.safetensors")
    env = make_counting()
    env.reset(options={"memory": str(tmp_path / "memory.safetensors")})
    assert env.state.start.memory == MosaicMemory(capacity=7)


SCALED = np.diag([2.0, 2.0, 2.0, 1.0])
UPSIDE_DOWN = np.diag([1.0, -1.0, -1.0, 1.0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"immage": None}, "goal, image, memory, pose, prompt, snapshot"),
        ({"image": np.zeros((40, 64, 3), np.float32)}, r"uint8 array of shape \(40, 64, 3\); got float32"),
        ({"image": np.zeros((64, 40, 3), np.uint8)}, r"got uint8 \(64, 40, 3\)"),
        ({"image": [[0]]}, "got list"),
        ({"goal": np.zeros((40, 64), np.uint8)}, r"options\['goal'\]"),
        ({"pose": np.eye(3)}, r"\[4, 4\]"),
        ({"pose": np.full((4, 4), np.nan)}, "finite"),
        ({"pose": "home"}, "no array of numbers"),
        ({"pose": SCALED}, "a rotation"),
        ({"pose": UPSIDE_DOWN}, "upside down"),
        ({"pose": pose_at(0.0, 0.0, 10_001.0, 0.0).world_from_camera}, "at most 10000 m from the origin .*10001.0"),
        ({"pose": pose_at(-1e9, 0.0, 0.0, 0.0).world_from_camera}, "at most 10000 m from the origin"),
        ({"prompt": 3}, "is text"),
        ({"memory": "nowhere.safetensors"}, "is not a file"),
        ({"memory": __file__}, "damaged"),
    ],
)
def test_a_wrong_reset_option_changes_nothing(options, named):
    env = make_counting(observation="dict")
    env.reset(seed=1)
    env.step(1)
    state, generator = env.state, env.np_random.bit_generator.state
    with pytest.raises(ValueError, match=named):
        env.reset(seed=2, options=options)
    assert env.state is state and env.np_random.bit_generator.state == generator
    assert env.step(0)[4]["step_index"] == 2


def test_a_pose_at_the_worlds_limit_is_seen_in_the_space():
    env = make_counting(observation="dict")
    observation, _ = env.reset(options={"pose": pose_at(-10_000.0, 0.0, 10_000.0, 0.0).world_from_camera})
    assert observation in env.observation_space and observation["pose"][2, 3] == 10_000.0


def test_an_option_the_environment_cannot_honour_is_refused():
    env = make_counting(options=("pose",))
    with pytest.raises(ValueError, match=r"does not support the option 'image'; it takes pose"):
        env.reset(options={"image": np.zeros((40, 64, 3), np.uint8)})
    with pytest.raises(ValueError, match="does not support the option 'goal'"):
        make_counting().reset(options={"goal": np.zeros((40, 64, 3), np.uint8)})


@pytest.mark.parametrize("action", [-1, len(ACTIONS), 1.0, None, "forward", True, np.array([1]), np.float64(1)])
def test_a_wrong_discrete_action_moves_nothing(action):
    env = make_counting()
    env.reset(seed=0)
    state = env.state
    with pytest.raises(ValueError, match="an integer from 0 to 8 .noop, forward"):
        env.step(action)
    assert env.state is state


@pytest.mark.parametrize("action", [2, np.int64(2), np.array(2)])
def test_any_kind_of_integer_is_a_discrete_action(action):
    env = make_counting()
    env.reset(seed=0)
    assert env.step(action)[4]["step_index"] == 1


@pytest.mark.parametrize("action", [[np.nan, 0, 0], [0, np.inf, 0], [0, 0, 1.5], [0, 0], 3, "ahead", {}])
def test_a_wrong_continuous_action_moves_nothing(action):
    env = make_counting(action_space="continuous")
    env.reset(seed=0)
    state = env.state
    with pytest.raises(ValueError, match="an? (continuous )?action"):
        env.step(action)
    assert env.state is state


@IDS
def test_nothing_works_before_the_first_reset(id):
    env = gym.make(id, render_mode="rgb_array").unwrapped
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(0)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.render()
    env.close()


def test_success_is_the_tasks_own_and_not_the_worlds_end():
    env = make_counting(task="goal", observation="dict")
    _, info = env.reset(seed=0)
    assert info["is_success"] is False
    env.world.last_step = 2
    env.step(0)
    *_, terminated, _, info = env.step(0)
    assert terminated and info["is_success"] is False, "the world ended it, far from the goal"
    env.world.last_step = 1000
    env.reset(seed=0)
    env.episode = replace(env.episode, task_state={"goal_m": [0.5, 2.0], "left_m": 1.5})
    told = [env.step(NAMES.index("forward")) for _ in range(2)]
    assert [each[2] for each in told] == [each[4]["is_success"] for each in told] == [False, True]


def test_coverage_cannot_be_asked_of_a_world_without_memory():
    with pytest.raises(ValueError, match="min_coverage needs memory=True"):
        make_learned_env(memory=False, min_coverage=0.2)


def test_the_engines_own_clock_ends_nothing():
    env = make_simulator_env(task="simulator")
    game = env.world._game
    env.reset(seed=0)
    assert game.get_episode_timeout() == 0
    env.close()


def test_a_step_after_the_end_asks_for_a_reset_and_loses_nothing():
    env = make_counting(last_step=2)
    env.reset(seed=0)
    assert env.step(0)[2:4] == (False, False)
    assert env.step(0)[2:4] == (True, False)
    state = env.state
    with pytest.raises(ResetNeeded, match="episode has ended"):
        env.step(0)
    assert env.state is state
    env.reset(seed=0)
    assert env.step(0)[4]["step_index"] == 1


def test_time_runs_out():
    env = gym.make(COUNTING)
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(5)] == [(False, False)] * 4 + [(False, True)]


@pytest.mark.parametrize("id", ["MosaicWorld-v0", "MosaicWorldReal-v0"])
def test_registered_ids_lead_here_with_256_steps(id):
    assert gym.spec(id).max_episode_steps == 256
    with pytest.raises(ValueError, match="unknown action_space"):
        gym.make(f"mosaic_gym:{id}", action_space="keys")


def test_the_engine_task_passes_on_the_worlds_reward():
    env = make_counting(task=SimulatorTask())
    env.reset(seed=0)
    assert [env.step(0)[1] for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_rgb_array_is_a_copy_of_the_last_frame():
    env = make_counting(render_mode="rgb_array")
    image, _ = env.reset(seed=0)
    picture = env.render()
    np.testing.assert_array_equal(picture, image)
    picture[:] = 0
    assert (env.render()[..., 0] == 3).all()
    frames = gym.make(COUNTING, render_mode="rgb_array_list")
    frames.reset(seed=0), frames.step(0)
    assert [frame[0, 0, 0] for frame in frames.render()] == [3, 7]


def test_the_window_opens_at_the_first_picture_and_closes_twice():
    env = make_counting(render_mode="human")
    assert env._window is None
    env.reset(seed=0)
    env.step(0)
    assert env.render() is None
    shown = env._window.pixels()
    assert shown.shape == (40 * 12, 64 * 12, 3) and (shown[..., 0] == 7).all()
    assert (shown[0, :, 2] == np.arange(64).repeat(12)).all()
    env.close()
    env.close()
    assert env._window is None and env.world.closed == 2


@pytest.mark.parametrize("make", [make_learned_env, make_simulator_env])
@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"action_space": "keys"}, "unknown action_space 'keys'; the known ones are continuous, discrete"),
        ({"observation": "rgb"}, "the known ones are dict, image"),
        ({"render_mode": "ansi"}, "the known ones are human, rgb_array"),
        ({"task": "win"}, "unknown task.*explore"),
        ({"resolution": [64]}, "height, width"),
        ({"resolution": -3}, "got -3"),
        ({"resolution": 64.0}, "whole pixels, or None; got 64.0"),
    ],
)
def test_wrong_arguments_name_the_known_ones(make, kwargs, named):
    with pytest.raises(ValueError, match=named):
        make(**kwargs)


def test_wrong_arguments_of_the_dream_name_the_fix_before_weights_are_read(monkeypatch):
    def read(kind, folder, name):
        raise AssertionError(f"the weights of {name} were read")

    monkeypatch.setattr(checkpoints, "load_part", read)
    for kind in (torch.cuda, torch.mps):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    for denoising_steps in (0, 101, 2.0, "4", True):
        with pytest.raises(ValueError, match="from 1 to 100"):
            make_learned_env(denoising_steps=denoising_steps)
    with pytest.raises(ValueError, match=r"trained at resolution \[64, 64\]; got \[96, 96\]"):
        make_learned_env(resolution=96)
    with pytest.raises(ValueError, match="doom-tiny"):
        make_learned_env(checkpoint="doom-huge")
    for wrong, named in (
        ({"memory": "no"}, "memory is True or False; got 'no'"),
        ({"collision": 1}, "collision is True or False; got 1"),
        ({"checkpoint": None}, "checkpoint is a name, a folder or a hub id; got None"),
        ({"prompt": 3}, "prompt is text, or None; got 3"),
        ({"min_coverage": "0.2"}, "min_coverage is a finite number above 0 and up to 1, or None; got '0.2'"),
        ({"min_coverage_patience": "3"}, "min_coverage_patience is a whole number from 1; got '3'"),
        ({"min_coverage_patience": 2.5}, "min_coverage_patience is a whole number from 1; got 2.5"),
        ({"temperature": "hot"}, "temperature is a finite number from 0; got 'hot'"),
        ({"temperature": None}, "temperature is a finite number from 0; got None"),
        ({"temperature": -1}, "temperature is a finite number from 0; got -1"),
        ({"temperature": np.nan}, "temperature is a finite number from 0; got nan"),
        ({"device": "banana"}, "device is a name such as 'cpu'.*; got 'banana'"),
        ({"device": None}, "device is a name such as 'cpu'.*; got None"),
        ({"device": "cuda"}, "has no CUDA device; use device='cpu'"),
        ({"device": "mps"}, "has no MPS device; use device='cpu'"),
        ({"loading": 3}, "loading is a dict of options for a Wan pipeline, or None; got 3"),
    ):
        with pytest.raises(ValueError, match=named):
            make_learned_env(**wrong)


def test_a_dream_without_memory_takes_none():
    with pytest.raises(ValueError, match="does not support the option 'memory'"):
        make_learned_env(memory=False).reset(options={"memory": "somewhere"})


def test_a_prompt_that_is_too_long_is_refused_when_the_dream_is_made():
    with pytest.raises(ValueError, match="at most 96 bytes; this one has 97"):
        make_learned_env(prompt="x" * 97)
    with pytest.raises(ValueError, match="at most 96 bytes; this one has 97"):
        gym.make_vec("MosaicWorld-v0", num_envs=2, prompt="x" * 97)
    make_learned_env(prompt="x" * 96).close()


def test_an_unknown_scenario_names_the_known_ones():
    with pytest.raises(ValueError, match="my_way_home"):
        make_simulator_env(scenario="my_way_out")
    for scenario in (3, None):
        with pytest.raises(ValueError, match=f"scenario is a name, one of my_way_home.*; got {scenario}"):
            make_simulator_env(scenario=scenario)


def test_images_and_poses_may_be_tensors():
    image = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)
    env = WorldEnv(CountingWorld(), options=("image", "pose"))
    pose = pose_at(0.0, 0.0, 2.0, 0.0).world_from_camera
    options = {"image": torch.tensor(image), "pose": torch.tensor(pose, dtype=torch.bfloat16, requires_grad=True)}
    observation, info = env.reset(options=options)
    assert np.array_equal(observation, image) and np.array_equal(info["pose"], pose)
    with pytest.raises(ValueError, match="uint8 array of shape .* got Tensor"):
        env.reset(options={"image": torch.zeros(40, 64, 3)})
