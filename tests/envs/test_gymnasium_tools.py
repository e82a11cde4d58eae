"""Tools of Gymnasium around our environments: play, make_vec, vector infos, video, and windows without a display."""

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import registry
from gymnasium.error import Error
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordVideo, TimeLimit

from mosaic_gym import ACTIONS
from mosaic_gym.envs import learned_world
from mosaic_gym.envs.episode import Rules
from mosaic_gym.envs.members import Members
from mosaic_gym.envs.mosaic_env import WorldEnv, make_learned_env, make_simulator_env
from mosaic_gym.envs.sb3 import make_sb3
from mosaic_gym.envs.vector_env import WorldVectorEnv, make_learned_vector_env
from mosaic_gym.envs.window import check_display
from mosaic_gym.worlds.mosaic import MosaicWorld
from tests.tiny import tiny_model

from .counting_world import CountingWorld, UnequalWorld

SHAPES = {"pose": (4, 4), "intrinsics": (3, 3), "coverage": (), "memory_keyframes": (), "step_index": ()}
SHAPES |= {"world_reward": (), "is_success": ()}
REAL = "MosaicWorldReal-v0"


@pytest.fixture
def dummy_display(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


@pytest.fixture
def tiny_learned(monkeypatch):
    """The registered learned world with the weights of the tiny model."""
    monkeypatch.setattr(learned_world, "make_world", lambda name, **kwargs: MosaicWorld(tiny_model()))


def play_keys(env, presses, **kwargs):
    """Plays headless with posted key presses, one list of keys a step; returns the actions of the steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of matplotlib without a display
        from gymnasium.utils.play import play
    import pygame

    actions, pending = [], list(presses)

    def callback(before, after, action, *rest):
        actions.append(action)
        for key in {pygame.K_w, pygame.K_d, pygame.K_LEFT, pygame.K_UP, ord("x")}:
            pygame.event.post(pygame.event.Event(pygame.KEYUP, key=key))
        keys = pending.pop(0) if pending else [pygame.K_ESCAPE]
        for key in keys:
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))

    play(env, callback=callback, zoom=2, **kwargs)
    return actions


@pytest.mark.parametrize("make", ["learned", "simulator"])
def test_play_with_and_without_a_key_map(make, dummy_display, tiny_learned):
    import pygame

    id = "MosaicWorld-v0" if make == "learned" else REAL
    names = list(ACTIONS)
    presses = [[pygame.K_w], [pygame.K_w, pygame.K_LEFT], [pygame.K_UP], [pygame.K_d], []]
    expected = ["noop", "forward", "forward_turn_left", "forward", "right", "noop"]
    env = gym.make(id, render_mode="rgb_array")
    assert [names[action] for action in play_keys(env, presses)] == expected
    assert play_keys(env, [[ord("x")]], keys_to_action={"x": 2}) == [0, 2]
    env.close()
    env = gym.make(id, render_mode="rgb_array", action_space="continuous")
    actions = play_keys(env, presses)  # 0, play's default for no key, stands for no movement
    assert [tuple(np.broadcast_to(action, 3)) for action in actions] == [ACTIONS[name] for name in expected]
    noop = np.zeros(3, np.float32)
    assert len(play_keys(env, [[pygame.K_w]], noop=noop, keys_to_action={"w": noop + 1})) == 2
    env.close()


@pytest.mark.parametrize("action_space", ["discrete", "continuous"])
def test_the_key_map_holds_members_of_the_space(action_space):
    env = WorldEnv(CountingWorld(), action_space=action_space)
    actions = env.get_keys_to_action()
    assert () not in actions and all(action in env.action_space for action in actions.values())
    assert all(list(keys) == sorted(keys) for keys in actions)
    assert len(actions) == (5 * 3 * 3 - 1 if action_space == "continuous" else 2 + 2 + 2 + 2 + 4)


def test_render_fps_is_a_whole_number_beside_the_exact_rate(tmp_path):
    for metadata in (WorldEnv.metadata, make_learned_env.metadata, make_simulator_env.metadata):
        assert metadata["render_fps"] == 9 and type(metadata["render_fps"]) is int
        assert metadata["exact_render_fps"] == 35 / 4
    assert WorldVectorEnv(Members(CountingWorld(), 1)).metadata["render_fps"] == 9
    env = RecordVideo(WorldEnv(CountingWorld(), render_mode="rgb_array"), str(tmp_path), episode_trigger=lambda i: True)
    assert env.frames_per_sec == 9
    env.reset(seed=0), env.step(0), env.close()


def check_infos(infos, count, present=None):
    """Every key of fixed shape is a numeric array, and its mask has the members that have it."""
    for name, shape in SHAPES.items():
        assert infos[name].shape == (count, *shape) and infos[name].dtype != object, name
        assert infos[f"_{name}"].dtype == bool and infos[f"_{name}"].tolist() == (present or [True] * count), name
    assert infos["pose"].dtype == infos["intrinsics"].dtype == infos["coverage"].dtype == np.float64
    assert infos["world_reward"].dtype == np.float64 and infos["is_success"].dtype == bool
    assert infos["step_index"].dtype == infos["memory_keyframes"].dtype == np.int64
    assert infos["labels"].dtype == object


@pytest.mark.parametrize("kind", ["ours", "gymnasium"])
def test_infos_of_fixed_shape_are_arrays(kind):
    arguments = {"rules": Rules(max_steps=2), "task": "goal", "observation": "dict"}

    def make(mode):
        if kind == "ours":
            return WorldVectorEnv(Members(CountingWorld(), 3, **arguments), mode)
        return SyncVectorEnv([lambda: WorldEnv(CountingWorld(), **arguments)] * 3, autoreset_mode=mode)

    env = make(AutoresetMode.DISABLED)
    _, infos = env.reset(seed=0)
    check_infos(infos, 3)
    np.testing.assert_array_equal(infos["pose"][1], env.reset(seed=0)[1]["pose"][0])
    for _ in range(2):
        check_infos(env.step([0] * 3)[4], 3)
    _, infos = env.reset(options={"reset_mask": np.array([False, True, False])})
    check_infos(infos, 3, [False, True, False])
    env = make(AutoresetMode.SAME_STEP)
    env.reset(seed=0), env.step([0] * 3)
    infos = env.step([0] * 3)[4]
    check_infos(infos["final_info"], 3)
    assert infos["final_info"]["step_index"].tolist() == [2, 2, 2]


def test_final_infos_of_some_members_are_masked():
    env = WorldVectorEnv(Members(UnequalWorld(), 2, task="simulator"), AutoresetMode.SAME_STEP)
    env.reset(seed=[0, 3])  # of one step, and of four
    infos = env.step([0, 0])[4]
    assert infos["_final_info"].tolist() == infos["final_info"]["_pose"].tolist() == [True, False]
    assert infos["final_info"]["pose"].shape == (2, 4, 4) and not infos["final_info"]["pose"][1].any()


class Doubled(gym.RewardWrapper):
    """Doubles rewards."""

    def reward(self, reward):
        return 2 * reward


@pytest.mark.parametrize("id", ["MosaicWorld-v0", REAL])
def test_one_spelling_of_make_vec_serves_both_worlds(id, tiny_learned):
    env = gym.make_vec(id, num_envs=2, autoreset_mode="SameStep", max_episode_steps=2, observation="dict")
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and env.num_envs == 2
    env.reset(seed=0)
    env.step([0, 0])
    observation, _, _, truncated, infos = env.step([0, 0])
    assert truncated.all() and infos["final_info"]["step_index"].tolist() == [2, 2]
    assert infos["step_index"].tolist() == [0, 0] and env.observation_space.contains(observation)
    env.close()
    with pytest.raises(Error, match="wrappers"):
        gym.make_vec(id, num_envs=2, wrappers=[Doubled])
    vector_kwargs = {"autoreset_mode": "SameStep"}
    env = gym.make_vec(id, num_envs=2, vectorization_mode="sync", vector_kwargs=vector_kwargs, wrappers=[Doubled])
    assert isinstance(env, SyncVectorEnv) and env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert all(isinstance(member, Doubled) for member in env.envs)
    env.reset(seed=0), env.step([1, 1])
    env.close()


def test_simulators_step_in_processes_of_their_own():
    kwargs = {"vectorization_mode": "async", "vector_kwargs": {"autoreset_mode": "SameStep"}, "wrappers": [Doubled]}
    env = gym.make_vec(REAL, num_envs=2, **kwargs)
    assert isinstance(env, AsyncVectorEnv) and env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.reset(seed=0)[1]["pose"].shape == (2, 4, 4)
    env.close()


def test_the_simulators_time_limit_is_gymnasiums():
    env = gym.make_vec(REAL, num_envs=1)
    assert isinstance(env.envs[0], TimeLimit) and env.envs[0]._max_episode_steps == registry[REAL].max_episode_steps
    env.close()
    env = gym.make_vec(REAL, num_envs=1, max_episode_steps=-1)
    assert isinstance(env.envs[0], WorldEnv)
    env.close()
    with pytest.raises(ValueError, match="num_envs is a whole number from 1; got 0"):
        gym.make_vec(REAL, num_envs=0)


@pytest.mark.parametrize("make", [make_learned_env, make_simulator_env])
def test_a_window_without_a_display_is_refused_before_a_world_is_loaded(make, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    for module in ("learned_world", "mosaic_env"):
        monkeypatch.setattr(f"mosaic_gym.envs.{module}.make_world", lambda *args, **kwargs: pytest.fail("was loaded"))
    with pytest.raises(
        RuntimeError, match="no display.*rgb_array.*RecordVideo.*xvfb-run.*SDL_VIDEODRIVER=dummy"
    ) as raised:
        make(render_mode="human")
    assert "\n" not in str(raised.value)
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    with pytest.raises(RuntimeError, match="no display"):
        check_display()
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    check_display()
    monkeypatch.delenv("SDL_VIDEODRIVER")
    monkeypatch.setattr(sys, "platform", "darwin")
    check_display()


def test_without_a_display_one_line_is_all_that_is_printed():
    program = (
        "import gymnasium as gym, mosaic_gym, sys\n"
        "try: gym.make('MosaicWorld-v0', render_mode='human')\n"
        "except RuntimeError as error: print(error)\n"
        "print(sorted({'torch', 'vizdoom'} & set(sys.modules)))\n"
    )
    env = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env)
    line, modules = done.stdout.splitlines()
    assert line.startswith("no display") and modules == "[]" and not done.stderr


def test_old_spellings_of_arguments_warn(tiny_learned):
    old = {"least_coverage": 0.25, "patience": 3}
    makers = (
        lambda: gym.make("MosaicWorld-v0", **old).unwrapped.rules,
        lambda: gym.make_vec("MosaicWorld-v0", num_envs=2, **old).members.rules,
        lambda: make_sb3(2, **old).members.rules,
        lambda: make_learned_env(**old).rules,
        lambda: make_learned_vector_env(2, **old).members.rules,
        lambda: Rules(**old),
    )
    for make in makers:
        with pytest.warns(DeprecationWarning) as recorded:
            rules = make()
        assert (rules.min_coverage, rules.min_coverage_patience) == (0.25, 3)
        messages = [str(warning.message) for warning in recorded]
        assert any("least_coverage is deprecated: use min_coverage" in message for message in messages)
    with pytest.raises(TypeError, match="patience is the old name of min_coverage_patience"):
        Rules(patience=3, min_coverage_patience=3)
    with pytest.warns(DeprecationWarning, match="task='engine' is deprecated: use task='simulator'"):
        assert type(WorldEnv(CountingWorld(), task="engine").task).__name__ == "SimulatorTask"
