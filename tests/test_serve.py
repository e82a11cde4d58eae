"""The view in a browser: its controls call the session, and its pictures follow."""

from __future__ import annotations

import numpy as np
import pytest

from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.play.session import Session
from mosaic_gym.worlds.mosaic import MosaicWorld

from .envs.counting_world import CountingWorld
from .tiny_pictures import SIZE, tiny_picture_model

viser = pytest.importorskip("viser")


@pytest.fixture
def view():
    from mosaic_gym.play.serve import BrowserView

    server = viser.ViserServer("127.0.0.1", 0, verbose=False)
    yield BrowserView(Session(WorldEnv(MosaicWorld(tiny_picture_model()), action_space="continuous")), server)
    server.stop()


def test_steps_time_and_overlays_change_the_picture(view):
    first = view.image.image.copy()
    assert first.shape == (6 * SIZE[0], 6 * SIZE[1], 3)
    view._step((1.0, 0.0, 0.5))(None)
    after = view.image.image.copy()
    assert not np.array_equal(first, after) and "step 1" in view.message.content
    view.overlays.value = "sources"
    view.do(view._set_overlay)
    assert not np.array_equal(view.image.image, after) and "overlay: sources" in view.message.content
    view.do(lambda: view.session.move_in_time(-1))
    assert "step 0, 1 ahead" in view.message.content
    view.do(view.session.undo)
    assert "no edit to undo" in view.message.content
    view.do(view.session.fork)
    assert view.image.image.shape[1] == 12 * SIZE[1]


def test_selected_patches_are_moved_by_the_handles(view):
    view.do(view._move)
    assert "nothing is selected" in view.message.content
    view.do(view._select)
    assert "patches selected" in view.message.content
    count = len(view.session.memory)
    view.handles.position = view._centre + [1.0, 0.0, 0.0]
    view.do(view._move)
    memory = view.session.memory
    assert len(memory) > count and view.handles is None
    copy = memory.keyframes[-1]
    moved = copy.points_m[copy.alive].double().mean(0).numpy() - view._centre
    assert np.allclose(moved, [1.0, 0.0, 0.0], atol=1e-3)


def test_a_world_without_memory_is_shown_too():
    from mosaic_gym.play.serve import BrowserView

    server = viser.ViserServer("127.0.0.1", 0, verbose=False)
    plain = BrowserView(Session(WorldEnv(CountingWorld(), action_space="continuous")), server)
    plain.do(plain._select)
    assert "has no memory" in plain.message.content
    server.stop()
