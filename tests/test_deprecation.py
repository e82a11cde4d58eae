"""Old spellings: every warning names the user's line, so that Python shows it by default."""

import subprocess
import sys
from dataclasses import replace

import pytest

from mosaic_gym import Control, Search
from mosaic_gym.envs.episode import Rules

SCRIPT = """
import gymnasium as gym
import mosaic_gym
from mosaic_gym.envs.episode import Rules
from mosaic_gym.model import checkpoints
from tests.tiny import tiny_model

checkpoints.WorldModel.from_pretrained = lambda *_, **__: tiny_model()

gym.make("MosaicWorld-v0", task="engine", min_coverage=0.5)  # line
gym.make("MosaicWorld-v0", patience=8)  # line
gym.make_vec("MosaicWorld-v0", num_envs=2, least_coverage=0.5)  # line
gym.make_vec("MosaicWorldReal-v0", num_envs=1, task="engine").close()  # line
mosaic_gym.make_sb3(2, patience=8)  # line
mosaic_gym.make_sb3(2, task="engine")  # line
mosaic_gym.FixedScenes  # line
from mosaic_gym import thrust_towards_depth  # line
from mosaic_gym.model.wan import fuse_adapters  # line
mosaic_gym.Search(recognise_db=7.0).recognise_db  # line
Rules(patience=3)  # line
"""


def test_warnings_name_the_line_of_a_script_under_the_default_filters(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, check=False, env={**_environment(), "PYTHONPATH": "."}
    )
    assert done.returncode == 0, done.stderr
    lines = [number for number, line in enumerate(SCRIPT.splitlines(), start=1) if line.endswith("# line")]
    shown = [line for line in done.stderr.splitlines() if "is deprecated: use" in line]
    places = [line.split(": DeprecationWarning: ")[0] for line in shown]
    assert sorted(set(places), key=places.index) == [f"{path}:{number}" for number in lines], done.stderr


def _environment() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}


def test_a_dataclass_is_replaced_and_read_by_old_names():
    control = Control(radius_m=0.25)
    with pytest.warns(DeprecationWarning, match="thrust_forward_m is deprecated: use forward_acceleration_m"):
        faster = replace(control, thrust_forward_m=1)
    assert (faster.forward_acceleration_m, faster.radius_m) == (1.0, 0.25)
    with pytest.warns(DeprecationWarning, match="Control.thrust_strafe_m is deprecated: use strafe_acceleration_m"):
        assert faster.thrust_strafe_m == control.strafe_acceleration_m
    with pytest.warns(DeprecationWarning):
        assert replace(Search(), recognise_db=7.0).recognise_db == 7.0
    with pytest.warns(DeprecationWarning):
        assert replace(Rules(), least_coverage=0.5, patience=3) == Rules(min_coverage=0.5, min_coverage_patience=3)
    with pytest.raises(TypeError, match="thrust_forward_m is the old name of forward_acceleration_m"):
        replace(control, thrust_forward_m=1, forward_acceleration_m=2)


def test_current_names_do_not_warn(recwarn):
    replace(Control(), forward_acceleration_m=1.0)
    replace(Rules(min_coverage=0.5), min_coverage_patience=2)
    assert not [warning for warning in recwarn if warning.category is DeprecationWarning]


def test_what_is_missing_from_a_package_is_missing():
    with pytest.raises(ImportError, match="cannot import name 'fuse'"):
        from mosaic_gym.model.wan import fuse  # noqa: F401
