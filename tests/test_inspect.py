"""`mosaic-gym inspect` and the overlays of recorded videos."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np
import pytest

from mosaic_gym.cli import main
from mosaic_gym.envs.mosaic_env import WorldEnv
from mosaic_gym.play.inspect_file import InspectConfig, draw_contents, inspect_file, read_contents
from mosaic_gym.play.overlay_wrapper import OverlayRendering
from mosaic_gym.worlds.mosaic import MosaicWorld

from .envs.counting_world import CountingWorld
from .tiny_pictures import SIZE, tiny_picture_model
from .training.test_generator import write_walk


@pytest.fixture(scope="module")
def env():
    env = WorldEnv(MosaicWorld(tiny_picture_model()), render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(3):
        env.step(1)
    return env


def test_a_saved_moment_is_drawn_and_logged(env, tmp_path, capsys):
    rerun = pytest.importorskip("rerun")
    env.save(tmp_path / "moment.safetensors")
    inspect_file(InspectConfig(tmp_path / "moment.safetensors", tmp_path / "out.png", tmp_path / "out.rrd"))
    assert "step 3" in capsys.readouterr().out
    assert iio.imread(tmp_path / "out.png").shape[1] > 384
    contents = read_contents(tmp_path / "moment.safetensors")
    assert len(contents.entries) == len(env.memory) and contents.image_from_camera is not None
    first = env.memory.keyframes[0]
    shown = contents.entries[0].image.astype(float) / 127.5 - 1
    assert np.abs(shown - first.image.float().permute(1, 2, 0).numpy()).max() < 0.01
    assert (tmp_path / "out.rrd").stat().st_size > 10_000 and rerun.__version__


def test_a_saved_memory_is_drawn(env, tmp_path):
    env.memory.save(tmp_path / "room.safetensors")
    contents = read_contents(tmp_path / "room.safetensors")
    assert contents.image_from_camera is None and draw_contents(contents).dtype == np.uint8
    type(env.memory)().save(tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_contents(read_contents(tmp_path / "empty.safetensors"))


def test_a_recorded_episode_is_drawn(tmp_path):
    write_walk(tmp_path, 3)
    contents = read_contents(tmp_path / "train" / "000003")
    assert [entry.step for entry in contents.entries] == list(range(6)) and contents.memory is None
    assert contents.entries[0].image.shape == (*SIZE, 3) and "seed 3, 6 steps" in contents.title
    draw_contents(contents)


def test_what_is_no_such_file_is_named(tmp_path, capsys):
    (tmp_path / "text.safetensors").write_text("no tensors")
    for file, message in (("nothing.safetensors", "no moment or memory file"), ("text.safetensors", "damaged"),
                          (".", "no recorded episode")):  # fmt: skip
        assert main(["inspect", "--file", str(tmp_path / file)]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("overlay", ["sources", "memory", "depth"])
def test_an_overlay_is_rendered_beside_the_frame(overlay):
    env = OverlayRendering(WorldEnv(MosaicWorld(tiny_picture_model()), render_mode="rgb_array"), overlay)
    env.reset(seed=0)
    assert env.render().shape == (SIZE[0], 2 * SIZE[1], 3)
    env.step(1)
    frame, other = np.split(env.render(), 2, axis=1)
    np.testing.assert_array_equal(frame, env.unwrapped.view.frames[-1])
    assert not np.array_equal(frame, other)


def test_wrong_overlays_are_named():
    with pytest.raises(ValueError, match="the overlay is one of"):
        OverlayRendering(WorldEnv(CountingWorld(), render_mode="rgb_array"), "heat")
    with pytest.raises(ValueError, match="needs render_mode"):
        OverlayRendering(WorldEnv(CountingWorld()))
