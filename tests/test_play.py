"""The window: every key, time, forks, edits of memory, overlays, recordings, and what bad input gets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pygame
import pytest
import torch

from mosaic_gym.data.episodes import EpisodeStore
from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.memory import editing, files
from mosaic_gym.play.app import App, PlayOptions
from mosaic_gym.play.bindings import HELD, PRESSED, Bindings, default_bindings, load_bindings
from mosaic_gym.play.command import simulator_beside
from mosaic_gym.play.explain import overlay_pictures
from mosaic_gym.play.inputs import Inputs, load_image
from mosaic_gym.play.overlays import curves, depth_picture, memory_from_above
from mosaic_gym.play.policies import load_policy
from mosaic_gym.play.screen import GAP_PX, STRIP_PX
from mosaic_gym.play.session import Session
from mosaic_gym.play.timeline import Moment, Timeline
from mosaic_gym.worlds.mosaic import MosaicWorld

from .envs.counting_world import CountingWorld
from .tiny import tiny_model
from .tiny_pictures import SIZE, tiny_picture_model

AHEAD = np.array([1.0, 0.0, 0.2], np.float32)


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame.display.init()
    pygame.event.clear()
    yield
    pygame.event.clear()


def counting_session(last_step: int = 1000, **options) -> Session:
    def simulator() -> WorldEnv:
        return WorldEnv(CountingWorld(last_step=last_step), action_space="continuous")

    return Session(WorldEnv(CountingWorld(), action_space="continuous"), simulator, **options)


@pytest.fixture(scope="module")
def model():
    return tiny_picture_model()


@pytest.fixture
def session(model):
    return Session(WorldEnv(MosaicWorld(model), action_space="continuous"))


def app_of(session: Session, tmp_path: Path, **options) -> App:
    return App(session, PlayOptions(out=tmp_path, **options), default_bindings())


def press(*keys: int, kind: int = pygame.KEYDOWN, mod: int = 0, text: str = "") -> None:
    for key in keys:
        pygame.event.post(pygame.event.Event(kind, key=key, mod=mod, unicode=text))


def settle(app: App, seconds: float = 20.0) -> None:
    """Runs the loop until the worker is idle and nothing waits."""
    deadline = time.monotonic() + seconds
    while True:
        app.handle(app.inputs.read())
        app.advance()
        app.screen.draw(app.content())
        if app._job is None and not app._commands and not app._actions and (app.paused or app.done):
            return
        assert time.monotonic() < deadline
        time.sleep(0.002)


def do(app: App, command: str, mod: int = 0) -> str:
    """Presses a command's first key, and returns the message."""
    app.paused = command != "pause"
    app.say("")
    press(pygame.key.key_code(default_bindings().keys[command][0]), mod=mod)
    settle(app)
    return app._message


# Keys


def test_keys_become_actions_while_they_are_held():
    inputs = Inputs(default_bindings())
    inputs.read()
    assert inputs.action().tolist() == [0, 0, 0]
    press(pygame.K_w, pygame.K_a, pygame.K_RIGHT)
    inputs.read()
    assert inputs.action().tolist() == inputs.action().tolist() == [1, -1, 1]
    assert set(inputs.held) == {"forward", "strafe_left", "turn_right"}
    press(pygame.K_a, kind=pygame.KEYUP)
    press(pygame.K_s)
    inputs.read()
    assert inputs.action().tolist() == [0, 0, 1]


def test_a_tap_between_two_steps_counts_for_one():
    inputs = Inputs(default_bindings())
    press(pygame.K_LEFT)
    press(pygame.K_LEFT, kind=pygame.KEYUP)
    inputs.read()
    assert inputs.action().tolist() == [0, 0, -1]
    assert inputs.action().tolist() == [0, 0, 0]


def test_the_mouse_turns_the_body_when_it_is_asked_to():
    inputs = Inputs(default_bindings())
    move = pygame.event.Event(pygame.MOUSEMOTION, pos=(5, 5), rel=(30, 0), buttons=(0, 0, 0))
    pygame.event.post(move)
    inputs.read()
    assert inputs.action()[2] == 0
    inputs.mouse_look = True
    pygame.event.post(move)
    inputs.read()
    assert inputs.action()[2] == pytest.approx(0.5)


def test_keys_are_rebound_by_a_file(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text('[keys]\nforward = ["i"]\nscreenshot = []\n')
    bindings = load_bindings(file)
    assert bindings.command(pygame.K_i) == "forward" and bindings.command(pygame.K_w) is None
    assert bindings.command(pygame.K_a) == "strafe_left"
    assert any(line.startswith("i ") for line in bindings.help())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("forward = [", "no TOML"),
        ('[mouse]\nturn = ["a"]', "one table"),
        ('[keys]\nforward = "w"', "lists of key names"),
        ('[keys]\nfly = ["w"]', "no command 'fly'"),
        ('[keys]\nforward = ["no such key"]', "no key 'no such key'"),
        ('[keys]\nforward = ["p"]', "'p' is given to"),
    ],
)
def test_a_wrong_key_file_is_named(tmp_path, text, message):
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_bindings(file)


def test_every_command_has_a_key_and_a_handler(session, tmp_path):
    app = app_of(session, tmp_path)
    assert set(app._handlers) == set(PRESSED)
    assert set(default_bindings().keys) == {*HELD, *PRESSED}
    assert len(default_bindings().help()) == len(HELD) + len(PRESSED)
    with pytest.raises(ValueError, match="is given to"):
        Bindings({"forward": ("w",), "back": ("w",)})


@pytest.mark.parametrize("command", PRESSED)
def test_every_key_is_pressed_and_play_goes_on(session, tmp_path, command):
    app = app_of(session, tmp_path)
    session.step(AHEAD)
    do(app, command)
    if command == "quit":
        assert app.done
        return
    if app._line is not None:
        press(pygame.K_ESCAPE)
        settle(app)
    if command == "gallery":
        do(app, "quit")
    app.done = False
    steps = session.current.present.episode.steps
    do(app, "single_step")
    assert session.current.present.episode.steps == steps + 1, app._message


# The loop


def test_a_walk_moves_the_body_and_stops_in_time(tmp_path):
    session = counting_session()
    press(pygame.K_UP)
    assert app_of(session, tmp_path, max_steps=3).run() == 3
    state = session.env.world and session.current.present.episode.state
    assert state.step_index == 3 and state.pose.world_from_camera[2, 3] > 0.5


@pytest.mark.parametrize("event", [pygame.event.Event(pygame.QUIT), pygame.event.Event(pygame.KEYDOWN, key=27)])
def test_closing_the_window_ends_the_walk(event, tmp_path):
    pygame.event.post(event)
    assert app_of(counting_session(), tmp_path, max_steps=50).run() <= 1


def test_a_key_is_on_screen_while_a_step_is_computed(tmp_path):
    session, started = counting_session(), []
    step = session.step

    def slow(action):
        started.append(time.monotonic())
        time.sleep(0.4)
        return step(action)

    session.step = slow
    app = app_of(session, tmp_path)
    while not started:
        app.handle(app.inputs.read())
        app.advance()
    pressed_s = time.monotonic()
    press(pygame.K_w)
    app.handle(app.inputs.read())
    app.advance()
    app.screen.draw(app.content())
    assert time.monotonic() - pressed_s < 0.05 and app.content().keys == ["forward"]
    assert app._job is not None and not app._job.done()
    app._worker.shutdown(wait=True)


def test_the_four_frames_of_a_step_are_shown_in_order_and_evenly(tmp_path):
    app = app_of(counting_session(), tmp_path)
    views = app.session.step(AHEAD)
    app._finish(views, AHEAD, 0.4, [])
    due = np.array([at for at, _ in app._queue])
    assert np.allclose(np.diff(due), 0.1)
    assert [int(pictures[0][0, 0, 0]) for _, pictures in app._queue] == [4, 5, 6, 7]


def test_the_window_shows_both_worlds_and_a_line(tmp_path):
    app = app_of(counting_session(compare=True), tmp_path, max_steps=2, screenshot=tmp_path / "window.png")
    app.run()
    window = iio.imread(tmp_path / "window.png")
    scale = min(512 // 40, 1280 // (64 + GAP_PX + 64))
    picture = window[: 40 * scale : scale, ::scale]
    assert picture.shape == (40, 64 + GAP_PX + 64, 3)
    assert (picture[30:, :64, 0] == 11).all() and (picture[:, 64 + GAP_PX :, 0] == 11).all()
    assert window[-STRIP_PX:].max() > 150, "the line of text is missing"


def test_the_window_is_resized_and_pixels_stay_sharp(tmp_path):
    app = app_of(counting_session(), tmp_path)
    app.screen.window.size = (300, 200)
    app.screen.draw(app.content())
    assert app.screen.scale == (200 - STRIP_PX) // 40
    app.screen.window.size = (30, 20)
    app.screen.draw(app.content())
    assert app.screen.scale == 1
    app.screen.close()
    app.screen.close()


# Time


def test_a_restart_begins_the_next_seed_and_so_does_an_end():
    session = counting_session()
    session.restart(4)
    assert session.restart() == "episode 5"
    ending = Session(WorldEnv(CountingWorld(last_step=2), action_space="continuous"))
    for _ in range(3):
        ending.step(AHEAD)
    assert ending.seed == 1 and ending.current.present.episode.steps == 0


def test_rewound_steps_repeat_bit_for_bit(session):
    views = [session.step(AHEAD)[0] for _ in range(4)]
    start_s = time.perf_counter()
    assert session.move_in_time(-100).startswith("step 0, 4 ahead")
    assert time.perf_counter() - start_s < 0.1
    assert session.move_in_time(-1) == "this is the start"
    assert session.move_in_time(2) == "step 2, 2 ahead"
    np.testing.assert_array_equal(session.views[0].frames, views[1].frames)
    session.move_in_time(-2)
    for view in views:
        np.testing.assert_array_equal(session.step(AHEAD)[0].frames, view.frames)
    assert session.move_in_time(1) == "nothing was rewound", "another future has replaced it"


def test_a_timeline_is_bounded_and_forks_share_their_past():
    timeline = Timeline(Moment("start", np.zeros(3)), capacity=3)
    for index in range(5):
        timeline.append(Moment(index, np.zeros(3)))
    assert len(timeline) == 3 and [m.episode for m in timeline.past] == [2, 3, 4]
    timeline.move(-1)
    other = timeline.fork()
    other.append(Moment("other", np.zeros(3)))
    assert [m.episode for m in other.past] == [2, 3, "other"] and timeline.ahead == 1
    assert timeline.before.episode == 2 and Timeline(Moment(0, np.zeros(3))).before is None


def test_two_futures_are_steered_one_by_one_and_together(session):
    session.step(AHEAD)
    assert "two futures" in session.fork() and session.steering == "second"
    session.step(AHEAD)
    steps = [future.present.episode.steps for future in session.futures]
    assert steps == [1, 2] and len(session.views) == 2
    assert session.next_steering() == "you steer both futures"
    session.step(AHEAD)
    assert [future.present.episode.steps for future in session.futures] == [2, 3]
    assert session.fork() == "one future again" and len(session.futures) == 1
    with pytest.raises(ValueError, match="one future"):
        session.next_steering()


def test_mouse_policy_and_frames_are_those_of_the_future_that_is_steered(session, tmp_path):
    app, seen = app_of(session, tmp_path), []
    session.step(AHEAD)
    session.fork()
    session.policy, session.policy_steers = lambda view: seen.append(view) or AHEAD, True
    for _ in range(2):
        app._finish(session.step(AHEAD), AHEAD, 0.1, [])
    np.testing.assert_array_equal(seen[1].frames, session.futures[1].before.episode.view.frames)
    assert session.view_index == 1 and session.view is session.futures[1].present.episode.view
    for _, pictures in app._queue:
        np.testing.assert_array_equal(pictures[0], session.views[0].frames[-1], "the other future stands still")
    app.paused = True
    app._show_present()
    settle(app)
    left, height, width = app.screen._areas[1]
    place = left + width * app.screen.scale // 2, height * app.screen.scale // 2
    assert app.screen.place_in_picture(place, 1) == (height / 2, width / 2)
    assert app.screen.place_in_picture(place, 0) is None


def test_two_prompts_give_two_futures_from_one_state_and_seed(session, tmp_path):
    app = app_of(session, tmp_path)
    do(app, "fork_prompt")
    for letter in "X":
        press(ord("x"), text=letter)
    press(pygame.K_RETURN)
    settle(app)
    assert len(session.futures) == 2 and session.steering == "both"
    views = session.step(AHEAD)
    assert not np.array_equal(views[0].frames, views[1].frames)
    prompts = [future.present.episode.state.prompt for future in session.futures]
    assert prompts[1] == prompts[0] + "X"


def test_a_scene_is_saved_and_loaded(session, tmp_path):
    app = app_of(session, tmp_path)
    assert "no snapshot file" in do(app, "load")
    session.step(AHEAD)
    assert do(app, "save").startswith("saved")
    after = session.step(AHEAD)[0]
    do(app, "more_guidance")
    assert do(app, "load").startswith("loaded") and do(app, "save").startswith("saved")
    assert do(app, "load").startswith("loaded"), "of the same world, whatever its guidance is"
    do(app, "less_guidance")
    np.testing.assert_array_equal(session.step(AHEAD)[0].frames, after.frames)


# Switches


def test_the_simulator_beside_starts_the_learned_world_and_both_restart_together():
    session = counting_session(last_step=2, compare=True, seed=6)
    start = session.current.present.episode.state.start
    np.testing.assert_array_equal(start.image, session.simulator.view.frames[-1])
    np.testing.assert_allclose(start.world_from_camera, session.simulator.state.pose.world_from_camera)
    for _ in range(3):
        session.step(AHEAD)
    assert session.seed == 7 and session.simulator.state.step_index == 0


def test_the_simulator_goes_to_the_same_pose_where_there_is_one():
    session = counting_session(compare=True)
    session.step(AHEAD)
    pose = session.views[0].world_from_camera[-1]
    assert session.switch_simulator() == "the simulator, at the same pose"
    np.testing.assert_allclose(session.views[0].world_from_camera[-1], pose)
    with pytest.raises(RuntimeError, match="cannot go back in time"):
        session.move_in_time(-1)
    session.step(AHEAD)
    assert "goes on from the simulator's image" in session.switch_simulator()
    np.testing.assert_array_equal(session.current.present.episode.state.start.image, session.simulator.view.frames[-1])


def test_an_invented_place_is_in_no_simulator():
    session = counting_session()
    with pytest.raises(ValueError, match="it was invented"):
        session.switch_simulator()
    assert session.switch_simulator() == "the simulator, at its own start"
    session.step(AHEAD)
    with pytest.raises(ValueError, match="no simulator"):
        Session(WorldEnv(CountingWorld(), action_space="continuous")).switch_simulator()


def test_memory_is_switched_off_and_on_as_it_was(session):
    session.step(AHEAD)
    memory = session.memory
    assert session.switch_memory() == "memory off"
    view = session.step(AHEAD)[0]
    assert view.coverage == 0 and view.keyframes == 0
    assert session.switch_memory() == "memory on" and session.memory.keyframes == memory.keyframes
    assert session.step(AHEAD)[0].coverage > 0
    with pytest.raises(RuntimeError, match="has no memory"):
        counting_session().switch_memory()


def test_guidance_changes_what_follows(session):
    session.step(AHEAD)
    plain = session.step(AHEAD)[0].frames
    session.move_in_time(-1)
    assert session.change_guidance(2.0) == "guidance 3"
    assert not np.array_equal(session.step(AHEAD)[0].frames, plain)
    session.move_in_time(-1)
    assert session.change_guidance(-9.0) == "guidance 1"
    np.testing.assert_array_equal(session.step(AHEAD)[0].frames, plain)
    with pytest.raises(RuntimeError, match="takes no guidance"):
        counting_session().change_guidance(1.0)


def test_prompts_are_typed_offered_and_refused(session, tmp_path):
    app = app_of(session, tmp_path)
    do(app, "prompt")
    app._line.text = ""
    for letter in "a cavf":
        press(ord(letter), text=letter)
    press(pygame.K_BACKSPACE)
    press(ord("e"), text="e")
    assert app.content().message.startswith("prompt: ")
    press(pygame.K_RETURN)
    settle(app)
    assert session.prompt == "a cave" and app._message == "prompt 'a cave'"
    do(app, "prompt")
    press(pygame.K_DOWN)
    press(pygame.K_RETURN)
    settle(app)
    assert session.prompt == "a hall", "the first of the checkpoint's prompts"
    do(app, "prompt")
    app._line.text = "x" * 500
    press(pygame.K_RETURN)
    settle(app)
    assert "at most 96 bytes" in app._message and session.prompt == "a hall"


def test_a_policy_steers_and_others_are_refused(tmp_path):
    session = counting_session(make_policy=lambda: lambda view: np.array([0.0, 1.0, 0.0]))
    session.switch_policy()
    session.step(np.zeros(3))
    assert session.views[0].world_from_camera[-1][0, 3] > 0.5
    assert session.last_action.tolist() == [0, 1, 0]
    assert session.switch_policy() == "you steer"
    with pytest.raises(ValueError, match="give one with --policy"):
        counting_session().switch_policy()
    action = load_policy("walk", (40, 64))(session.views[0])
    assert action.shape == (3,)
    with pytest.raises(FileNotFoundError, match="there is no policy"):
        load_policy("nothing.zip", (40, 64))
    missing = app_of(counting_session(make_policy=lambda: load_policy("nothing.zip", (40, 64))), tmp_path)
    assert "there is no policy" in do(missing, "policy") and not missing.session.policy_steers
    (tmp_path / "wrong.zip").write_bytes(b"no agent")
    with pytest.raises(ValueError, match="is no agent"):
        load_policy(str(tmp_path / "wrong.zip"), (40, 64))


def test_an_agent_of_stable_baselines_acts_if_its_spaces_fit(tmp_path):
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    env = WorldEnv(CountingWorld())
    agent = stable_baselines3.PPO("CnnPolicy", env, n_steps=8, policy_kwargs={"features_extractor_kwargs": {}})
    agent.save(tmp_path / "agent.zip")
    act = load_policy(str(tmp_path / "agent.zip"), (40, 64))
    env.reset(seed=0)
    assert act(env.view).shape == (3,)
    with pytest.raises(ValueError, match="observes"):
        load_policy(str(tmp_path / "agent.zip"), (64, 64))


# Memory


def test_a_rectangle_is_dragged_and_what_it_selects_is_edited(session, tmp_path):
    app = app_of(session, tmp_path)
    app.paused = True
    app.screen.draw(app.content())
    scale, left = app.screen.scale, app.screen._areas[0][0]

    def mouse(kind: int, row: float, column: float, button: int = 1) -> None:
        position = (int(left + column * scale), int(row * scale))
        extra = {"rel": (1, 1), "buttons": (1, 0, 0)} if kind == pygame.MOUSEMOTION else {"button": button}
        pygame.event.post(pygame.event.Event(kind, pos=position, **extra))

    def drag(start: tuple[float, float], end: tuple[float, float], button: int = 1) -> None:
        mouse(pygame.MOUSEBUTTONDOWN, *start, button)
        mouse(pygame.MOUSEMOTION, *end)
        mouse(pygame.MOUSEBUTTONUP, *end, button)
        settle(app)

    everything = len(session.memory.keyframes)
    drag((0, 0), (SIZE[0] - 1, SIZE[1] - 1))
    assert app._message.endswith("patches selected"), app._message
    drag((10, 10), (10, 16), button=3)
    assert "moved by" in app._message and len(session.memory.keyframes) > everything
    assert "nothing is selected" in do(app, "remove")
    assert do(app, "undo") == "undone" and len(session.memory.keyframes) == everything
    assert do(app, "redo") == "done again"
    do(app, "undo")
    assert "no edit to undo" in do(app, "undo")
    for command, done in (("duplicate", "duplicated"), ("enlarge", "enlarged"), ("turn", "turned"), ("remove", "gone")):
        drag((0, 0), (SIZE[0] - 1, SIZE[1] - 1))
        message = do(app, command)
        assert done in message or (command == "remove" and "removed" in message)
    drag((0, 0), (0, 0))


def test_a_rectangle_without_patches_selects_nothing(session):
    session._set_memory(replace(session.memory, keyframes=()))
    with pytest.raises(ValueError, match="no patches there"):
        session.select((0, 0, 8, 8))


# Overlays


def test_overlays_say_where_pixels_come_from(session, tmp_path):
    app = app_of(session, tmp_path)
    session.step(AHEAD)
    frames = {}
    for name in ("sources", "memory", "depth", "none"):
        assert do(app, "overlay") == f"overlay: {name}"
        frames[name] = app._pictures[0].copy()
    np.testing.assert_array_equal(frames["none"], session.views[0].frames[-1])
    assert all(not np.array_equal(frames["none"], frames[name]) for name in ("sources", "memory", "depth"))
    blind = counting_session()
    other = app_of(blind, tmp_path)
    blind.step(AHEAD)
    assert "memory" in do(other, "overlay") and other.overlay == "none", "a world that has none says so"


def test_sources_of_a_world_with_latent_memory():
    from mosaic_gym.worlds.inspection import step_sources

    world = MosaicWorld(tiny_model(size=(64, 64)))
    env = WorldEnv(world, action_space="continuous")
    env.reset(seed=0)
    before = env.state
    env.step(np.zeros(3))
    sources = step_sources(world, before, env.view)
    assert sources.covered.mean() > 0.9 and sources.warped.shape == (64, 64, 3)
    assert not (sources.from_memory & ~sources.covered).any()


def test_pictures_of_depth_memory_and_curves():
    near, far = (depth_picture(np.full((2, 2), depth_m))[0, 0].sum() for depth_m in (0.3, 20.0))
    assert near > far
    empty = memory_from_above(None, np.zeros((1, 2)), 0.0, 100)
    assert empty.shape == (100, 100, 3) and empty.max() == 255, "the body is drawn"
    path = memory_from_above(None, np.array([[0.0, 0.0], [3.0, 4.0]]), 0.0, 100)
    assert (path != empty).any()
    drawn = curves({"coverage": [0.1, 0.5, 0.3], "reward": []}, 120)
    assert drawn.shape == (88, 120, 3) and drawn[:44].max() > 200


def test_the_panel_has_a_map_and_curves(session, tmp_path):
    app = app_of(session, tmp_path)
    session.step(AHEAD)
    do(app, "map")
    do(app, "curves")
    assert [picture.shape[1] for picture in app.content().panel] == [240, 240]


# Files


def test_a_recording_is_a_video_and_an_episode(session, tmp_path):
    app = app_of(session, tmp_path)
    assert "recording" in do(app, "record")
    for _ in range(3):
        do(app, "single_step")
    assert "recorded 3 steps" in do(app, "record")
    assert len(iio.imread(tmp_path / "0000.mp4", plugin="FFMPEG")) == 12
    store = EpisodeStore(tmp_path / "episodes", "train")
    assert store.all("frames").shape == (3, 4, *SIZE, 3)
    do(app, "record")
    assert do(app, "record") == "nothing was recorded" and not (tmp_path / "0001.mp4").exists()


def test_a_recording_that_is_cut_off_is_playable(session, tmp_path):
    from mosaic_gym.play.recorder import Recorder

    recorder = Recorder(tmp_path, "rooms")
    for _ in range(12):
        recorder.add(session.step(AHEAD)[0], AHEAD, "")
    time.sleep(1.0)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(recorder.video.read_bytes())  # as after a crash, without the end
    recorder.close()
    assert len(iio.imread(cut, plugin="FFMPEG")) >= 16


def test_a_full_disk_ends_the_recording_and_play_goes_on(session, tmp_path):
    app = app_of(session, tmp_path)
    do(app, "record")

    def full(*_):
        raise OSError("No space left on device")

    app._recorder.add = full
    do(app, "single_step")
    assert app._recorder is None
    do(app, "single_step")
    assert session.current.present.episode.steps == 2


def test_screenshots_are_numbered(session, tmp_path):
    app = app_of(session, tmp_path)
    do(app, "screenshot")
    do(app, "screenshot")
    assert sorted(path.name for path in tmp_path.glob("screen-*.png")) == ["screen-0000.png", "screen-0001.png"]


def test_a_start_image_is_chosen_and_a_picture_is_dropped(session, tmp_path):
    app = app_of(session, tmp_path)
    assert do(app, "gallery") == "click on a start image" and len(app.content().gallery) == 3
    left, top, width, height = app.screen._tiles[2]
    pygame.event.post(pygame.event.Event(pygame.MOUSEBUTTONDOWN, pos=(left + width // 2, top + height // 2), button=1))
    settle(app)
    assert session.prompt == "a wall close ahead" and not app._gallery
    np.testing.assert_array_equal(session.views[0].frames[-1], session.env.world.model.start_images[2].numpy())
    iio.imwrite(tmp_path / "mine.png", np.full((20, 30, 3), 200, np.uint8))
    pygame.event.post(pygame.event.Event(pygame.DROPFILE, file=str(tmp_path / "mine.png")))
    settle(app)
    assert "resized from 30 x 20 to 48 x 32 pixels" in app._message
    assert (session.views[0].frames[-1] == 200).all()
    (tmp_path / "mine.txt").write_text("no picture")
    pygame.event.post(pygame.event.Event(pygame.DROPFILE, file=str(tmp_path / "mine.txt")))
    settle(app)
    assert "is no picture" in app._message and (session.views[0].frames[-1] == 200).all()
    assert load_image(tmp_path / "mine.png", (20, 30))[1] == ""


# The command


def test_the_simulator_is_the_one_that_the_checkpoint_was_trained_on(monkeypatch):
    model = tiny_model()
    control = {**model.settings.control, "turn_rad": 0.1}
    settings = replace(model.settings, scenario="take_cover", control=control)
    learned, made = WorldEnv(MosaicWorld(replace(model, settings=settings))), []

    def opened(*options, **_):
        made.append(options)
        return CountingWorld()

    monkeypatch.setattr("mosaic_gym.evaluation.suites.paths.DoomWorld", opened)
    for scenario in (None, "my_way_home"):
        simulator_beside(learned, scenario)
    assert [scenario for scenario, *_ in made] == ["take_cover", "my_way_home"]
    assert all(options[3].turn_rad == 0.1 for options in made)


def test_a_closed_session_has_closed_its_worlds():
    session = counting_session(compare=True)
    session.close()
    assert session.env.world.closed == session.simulator.world.closed == 1


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


def test_threads_of_the_window_give_the_frames_of_an_environment(model, tmp_path):
    app = app_of(Session(WorldEnv(MosaicWorld(model), action_space="continuous")), tmp_path, max_steps=2)
    app.run()
    env = WorldEnv(MosaicWorld(model), action_space="continuous")
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.zeros(3))
    shown = app.session.views[0].frames
    np.testing.assert_array_equal(shown, env.view.frames)
    assert isinstance(env.memory.keyframes[0].latent, torch.Tensor)


# Where time, edits and switches meet


def select_all(session: Session) -> None:
    session.selection = editing.select_all(session.memory)


def test_an_edit_belongs_to_its_moment(session):
    for _ in range(3):
        session.step(AHEAD)
    select_all(session)
    session.edit("remove")
    assert not len(editing.select_all(session.memory))
    session.move_in_time(-1)
    with pytest.raises(ValueError, match="no edit to undo"):
        session.undo()
    session.move_in_time(1)
    session.fork()
    session.undo()
    assert len(editing.select_all(session.memory))
    session.next_steering(), session.next_steering()
    assert not len(editing.select_all(session.memory)), "the other future keeps its edit"


def test_undo_keeps_only_what_was_made_since_the_edit_whatever_the_step_numbers(session):
    memory = session.memory
    for _ in range(3):
        session.step(AHEAD)
    later = editing.EditHistory()
    removed = editing.remove(session.memory, editing.select_all(session.memory))
    later.record(session.memory, removed)  # at a moment whose keyframes have steps 0 to 3
    assert len(later.undo(removed)) == len(session.memory)
    assert len(later.redo(session.memory)) == len(removed)
    assert len(memory) < len(session.memory)


def test_memory_off_belongs_to_its_moment(session, tmp_path, model):
    session.step(AHEAD)
    session.switch_memory()
    session.step(AHEAD)
    assert session.memory_is_off and session.memory.capacity == 0
    for command in (session.undo, session.redo, lambda: session.save(tmp_path / "scene.safetensors")):
        with pytest.raises(ValueError, match="memory is off"):
            command()
    session.move_in_time(-2)
    assert not session.memory_is_off and session.memory.capacity > 0
    session.move_in_time(2)
    assert session.memory_is_off and session.switch_memory() == "memory on" and len(session.memory)
    without = Session(WorldEnv(MosaicWorld(model, capacity=0), action_space="continuous"))
    with pytest.raises(ValueError, match="without memory"):
        without.switch_memory()


def test_the_simulator_beside_goes_back_in_time_too_and_is_hidden_at_other_places():
    session = counting_session(compare=True)
    start = session.simulator.view.world_from_camera[-1]
    for _ in range(3):
        session.step(AHEAD)
    session.move_in_time(-3)
    np.testing.assert_allclose(session.simulator.view.world_from_camera[-1], start)
    session.restart(0, image=session.views[0].frames[-1])
    assert len(session.views) == 1, "the image's places are not the simulator's"


def test_an_overlay_of_memory_is_none_in_the_simulator_and_play_goes_on(tmp_path):
    session = counting_session(compare=True)
    app = app_of(session, tmp_path)
    app.overlay = "sources"
    assert "simulator" in do(app, "simulator")
    do(app, "single_step")
    assert app.steps == 1 and overlay_pictures(session, "sources") == []
    assert do(app, "overlay") == "overlay: none" and do(app, "overlay") == "overlay: depth"


def test_characters_after_the_prompts_key_are_text_though_a_step_is_computed(session, tmp_path):
    app = app_of(session, tmp_path)
    app.paused = True
    before = session.prompt
    press(pygame.K_RETURN)
    press(pygame.K_r, text="r")
    press(pygame.K_TAB, text="\t")
    press(pygame.K_e, text="e")
    settle(app)
    assert app._line.text == before + "re" and session.seed == 0
    press(pygame.K_KP_ENTER, text="\r")
    settle(app)
    assert session.prompt == before + "re" and not app.inputs.typing


def test_the_mouse_may_move_before_the_first_picture_and_a_click_does_not_pause(session, tmp_path):
    app = app_of(session, tmp_path)
    pygame.event.post(pygame.event.Event(pygame.MOUSEMOTION, pos=(5, 5), rel=(1, 1), buttons=(0, 0, 0)))
    app.handle(app.inputs.read())
    app.screen.draw(app.content())
    for kind in (pygame.MOUSEBUTTONDOWN, pygame.MOUSEBUTTONUP):
        pygame.event.post(pygame.event.Event(kind, pos=(5, 5), button=1))
        app.handle(app.inputs.read())
    assert not app.paused


def test_long_lines_are_wrapped_and_the_end_of_a_prompt_is_in_the_window(session, tmp_path):
    app = app_of(session, tmp_path)
    screen = app.screen
    width = screen.window.size[0] - 16
    lines = screen._wrap("a red cave " * 30 + "x" * 200, screen._small, width)
    assert len(lines) > 3 and all(screen._small.size(line)[0] <= width for line in lines)
    assert "".join(lines).replace(" ", "") == ("aredcave" * 30) + "x" * 200


def test_a_recording_goes_on_in_another_file_after_a_jump(session, tmp_path):
    app = app_of(session, tmp_path)
    do(app, "record")
    for _ in range(2):
        do(app, "single_step")
    do(app, "rewind")
    do(app, "single_step")
    do(app, "record")
    episodes = EpisodeStore(tmp_path / "episodes", "train")
    assert [len(episodes.load(index)["frames"]) for index in range(len(episodes))] == [2, 1]
    (tmp_path / "0001.mp4").unlink()
    do(app, "record")
    assert app._recorder.number == 2, "the episode of 0001 is still there"
    do(app, "record")


def test_a_scene_that_cannot_be_written_is_a_message(session, tmp_path, monkeypatch):
    def full(*args, **options):
        raise files.SafetensorError("No space left on device")

    app = app_of(session, tmp_path)
    monkeypatch.setattr(files, "save_file", full)
    assert "No space left" in do(app, "save")


def test_a_far_too_large_picture_is_refused(tmp_path, monkeypatch):
    from PIL import Image

    iio.imwrite(tmp_path / "large.png", np.zeros((20, 20, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="far too large"):
        load_image(tmp_path / "large.png", (8, 8))


def test_a_gamepad_steers_by_its_standard_axes():
    class Pad:
        values = {
            pygame.CONTROLLER_AXIS_LEFTY: -32767, pygame.CONTROLLER_AXIS_LEFTX: 100,
            pygame.CONTROLLER_AXIS_RIGHTX: 16384, pygame.CONTROLLER_AXIS_TRIGGERLEFT: 32767,
        }  # fmt: skip

        def get_axis(self, axis):
            return self.values[axis]

    inputs = Inputs(default_bindings())
    inputs.read()
    inputs._pads = {0: Pad()}
    np.testing.assert_allclose(inputs.action(), [1.0, 0.0, 0.5], atol=0.01)
    pygame.event.post(pygame.event.Event(pygame.CONTROLLERDEVICEREMOVED, instance_id=0))
    inputs.read()
    assert not inputs._pads
