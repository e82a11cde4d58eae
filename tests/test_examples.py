"""What examples and agents say of themselves is true: see `test_agents.py` for whether they run at all."""

import re
import runpy

import imageio.v3 as iio
import numpy as np
import pytest

from mosaic_gym import ACTIONS
from tests.programs import ROOT, run


@pytest.mark.slow
def test_the_walk_comes_home_and_only_memory_knows_it(tmp_path):
    said = run(tmp_path, "examples/02_walk_out_and_back.py", "sheet.png")
    told = re.findall(r"memory (on |off): home to ([\d.]+) m, ([\d.]+) dB .*elsewhere, ([\d.]+) at most", said)
    (_, on_m, on_db, on_way_db), (_, off_m, off_db, _) = told
    assert float(on_m) < 0.01 and float(off_m) < 0.01
    assert float(on_db) > 40.0 and float(off_db) < 25.0, "with memory the place is there again, and else it is not"
    assert float(on_way_db) < 25.0, "on the way it is out of sight"
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.slow
def test_training_takes_any_number_of_steps(tmp_path):
    assert "square metres of the simulator" in run(
        tmp_path, "examples/03_train_in_the_learned_world.py", "1", "watched.mp4"
    )
    assert (tmp_path / "watched.mp4").stat().st_size > 1000


def test_chance_walks(tmp_path):
    said = run(tmp_path, "agents/random_walk.py", "--real", "--steps", "4")
    assert re.match(r"random: \d+ square metres in 4 steps", said)


def test_the_explorer_turns_on_the_way_it_began_to():
    agent = runpy.run_path(str(ROOT / "agents" / "scripted.py"))["Explorer"](seed=0)
    left, ahead = np.full((8, 8), 0.5), np.full((8, 8), 9.0)
    left[:, :4] = 0.6
    names, seen = list(ACTIONS), (left, left[:, ::-1], left, ahead, left[:, ::-1], left)
    taken = [names[agent.choose({"depth": depth_m})] for depth_m in seen]
    assert taken[:3] == ["turn_left"] * 3 and taken[3].startswith("forward") and taken[4:] == ["turn_right"] * 2


@pytest.mark.slow
def test_edits_of_memory_are_drawn(tmp_path):
    said = run(tmp_path, "examples/06_edit_memory.py", "edits.png")
    rows = np.split(iio.imread(tmp_path / "edits.png"), 6)
    assert "(0 patches)" not in said and all(not np.array_equal(rows[0], row) for row in rows[1:])
