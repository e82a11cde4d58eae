"""`mosaic-gym maps`: pictures of maps and themes, and what it refuses."""

import numpy as np
import pytest
from PIL import Image

from mosaic_gym.cli import main
from mosaic_gym.evaluation.maps import theme_frames
from mosaic_gym.evaluation.reports.map import COLORS, MARKS, map_picture
from mosaic_gym.worlds.maps.layout import layout_of
from mosaic_gym.worlds.maps.rooms import draw_plan
from mosaic_gym.worlds.maps.themes import THEMES
from mosaic_gym.worlds.recording import RecordConfig, record


def colors_of(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(color) for color in np.unique(picture.reshape(-1, 3), axis=0).tolist()}


def test_every_room_and_kind_of_thing_is_drawn():
    for split in ("train", "heldout-themes"):
        layout = layout_of(draw_plan(9, split))
        found = colors_of(map_picture(layout))
        assert {COLORS[room.theme] for room in layout.rooms} <= found
        assert {MARKS[thing.kind] for thing in layout.things} <= found


def test_a_path_changes_the_picture_along_it_only():
    layout = layout_of(draw_plan(3))
    start = layout.things[0].place_m
    changed = (map_picture(layout) != map_picture(layout, np.array([start, start + 2.0]))).any(-1)
    assert 10 < changed.sum() < 400


def test_every_theme_has_a_color_and_a_frame_unlike_the_others():
    assert set(COLORS) == set(THEMES)
    frames = theme_frames()
    means = {theme: frame.reshape(4, 16, 64, 3).mean((1, 2)) for theme, frame in frames.items()}
    for theme, mean in means.items():
        nearest = min(np.abs(mean - other).mean() for name, other in means.items() if name != theme)
        assert nearest > 6, (theme, nearest)


def test_the_command_draws_a_map_and_the_path_of_an_episode(tmp_path, capsys):
    file = tmp_path / "new" / "map.png"
    assert main(["maps", "--seed", "3", "--no-doors", "--out", str(file)]) == 0
    assert np.asarray(Image.open(file)).shape[2] == 3 and str(file) in capsys.readouterr().out
    record(RecordConfig(out=tmp_path / "data", scenario="rooms", maps=1, steps_per_episode=6, workers=1))
    assert main(["maps", "--episode", str(tmp_path / "data/train/000000"), "--out", str(file)]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "--seed is a whole number from 0; got -1"),
        (["--split", "test"], "--split is one of train, heldout, heldout-themes; got 'test'"),
        (["--monsters", "99"], "--monsters is a whole number from 0 to 12; got 99"),
        (["--episode", "nowhere"], "nowhere"),
    ],
)
def test_what_it_refuses_is_one_line(options, message, tmp_path, capsys):
    assert main(["maps", "--out", str(tmp_path / "map.png"), *options]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())
