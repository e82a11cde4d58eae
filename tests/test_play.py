import os
import subprocess
import sys
from dataclasses import replace

import imageio.v3 as iio
import numpy as np
import pygame
import pytest

from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.play import GAP_PX, Keyboard, PlayConfig, Stage, _simulator_beside, walk
from mosaic_gym.worlds.mosaic import MosaicWorld

from .envs.counting_world import CountingWorld
from .tiny import tiny_model


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame.display.init()
    pygame.event.clear()
    yield
    pygame.event.clear()


def make_stage(compare: bool = False, last_step: int = 1000) -> Stage:
    engine = WorldEnv(CountingWorld(last_step=last_step), action_space="continuous") if compare else None
    return Stage(WorldEnv(CountingWorld(), action_space="continuous"), engine)


def press(*keys: int, kind: int = pygame.KEYDOWN) -> None:
    for key in keys:
        pygame.event.post(pygame.event.Event(kind, key=key))


def test_keys_become_actions_while_they_are_held():
    keyboard = Keyboard()
    assert keyboard.read().tolist() == [0, 0, 0]
    press(pygame.K_w, pygame.K_a, pygame.K_RIGHT)
    assert keyboard.read().tolist() == [1, -1, 1]
    assert keyboard.read().tolist() == [1, -1, 1]
    press(pygame.K_a, kind=pygame.KEYUP)
    press(pygame.K_s)
    assert keyboard.read().tolist() == [0, 0, 1]


def test_a_tap_between_two_steps_counts_for_one():
    keyboard = Keyboard()
    press(pygame.K_LEFT)
    press(pygame.K_LEFT, kind=pygame.KEYUP)
    assert keyboard.read().tolist() == [0, 0, -1]
    assert keyboard.read().tolist() == [0, 0, 0]


def test_r_restarts_once_and_escape_quits():
    keyboard = Keyboard()
    press(pygame.K_r)
    keyboard.read()
    assert keyboard.restart and not keyboard.quit
    keyboard.read()
    assert not keyboard.restart
    press(pygame.K_ESCAPE)
    keyboard.read()
    assert keyboard.quit


def test_a_walk_moves_the_body_and_stops_in_time():
    stage = make_stage()
    press(pygame.K_UP)
    assert walk(stage, PlayConfig(max_steps=3)) == 3
    assert stage.learned.state.step_index == 3
    assert stage.learned.state.pose.world_from_camera[2, 3] > 0.5


@pytest.mark.parametrize("event", [pygame.event.Event(pygame.QUIT), pygame.event.Event(pygame.KEYDOWN, key=27)])
def test_closing_the_window_ends_the_walk(event):
    stage = make_stage()
    pygame.event.post(event)
    assert walk(stage, PlayConfig(max_steps=50)) == 0


def test_a_restart_begins_the_next_seed():
    stage = make_stage()
    press(pygame.K_r)
    walk(stage, PlayConfig(max_steps=2, seed=4))
    assert stage.learned.state.start.seed == 5 and stage.learned.state.step_index == 1


def test_the_end_of_one_world_restarts_both():
    stage = make_stage(compare=True, last_step=2)
    walk(stage, PlayConfig(max_steps=3))
    assert stage.learned.state.step_index == stage.simulator.state.step_index == 1


def test_the_dream_begins_with_what_the_engine_shows():
    stage = make_stage(compare=True)
    stage.reset(seed=6)
    start = stage.learned.state.start
    np.testing.assert_array_equal(start.image, stage.simulator.view.frames[-1])
    np.testing.assert_allclose(start.world_from_camera, stage.simulator.state.pose.world_from_camera)


def test_the_engine_is_the_one_that_the_checkpoint_was_trained_on(monkeypatch):
    model = tiny_model()
    control = {**model.settings.control, "turn_rad": 0.1}
    settings = replace(model.settings, scenario="take_cover", control=control)
    dream, made = WorldEnv(MosaicWorld(replace(model, settings=settings))), []

    def opened(*given, **_):
        made.append(given)
        return CountingWorld()

    monkeypatch.setattr("mosaic_gym.evaluation.suites.paths.DoomWorld", opened)
    for asked in (None, "my_way_home"):
        _simulator_beside(dream, asked)
    assert [scenario for scenario, *_ in made] == ["take_cover", "my_way_home"]
    assert all(given[3].turn_rad == 0.1 for given in made)


def test_the_window_shows_both_worlds_and_a_line(tmp_path):
    stage = make_stage(compare=True)
    walk(stage, PlayConfig(max_steps=2, screenshot=tmp_path / "window.png"))
    shown = iio.imread(tmp_path / "window.png")
    scale = 512 // 40
    picture = shown[: 40 * scale : scale, ::scale]
    assert picture.shape == (40, 64 + GAP_PX + 64, 3)
    assert (picture[:, :64, 0] == 11).all() and (picture[:, 64 + GAP_PX :, 0] == 11).all()
    assert (picture[:, 64 : 64 + GAP_PX] == 0).all()
    strip = shown[40 * scale :]
    assert strip.max() > 150, "the line of text is missing"
    assert stage.line().startswith("step 2   retrieved 75%   keyframes 2   ")


def test_a_closed_stage_has_closed_its_worlds():
    stage = make_stage(compare=True)
    stage.close()
    assert stage.learned.world.closed == stage.simulator.world.closed == 1


def test_without_a_display_play_ends_at_once_with_one_line(tmp_path):
    program = (
        "import sys, mosaic_gym.cli\n"
        "code = mosaic_gym.cli.main(['play', '--checkpoint', 'no/such/folder'])\n"
        "assert 'mosaic_gym.worlds.mosaic' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("mosaic-gym: error: no display") and done.stderr.count("\n") == 1
