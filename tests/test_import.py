"""What the door brings in, and which floor may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mosaic_gym

ROOT = Path(mosaic_gym.__file__).parent
FLOORS = {
    "deprecation": 0,
    "validation": 0,
    "geometry": 0,
    "memory": 1,
    "model": 1,
    "data": 1,
    "worlds": 2,
    "imagination": 3,
    "planning": 4,
    "envs": 4,
    "training": 5,
    "evaluation": 5,
    "play": 6,
    "cli": 6,
}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
OUTSIDE = sorted(path for name in ("agents", "examples") for path in (ROOT.parent / name).rglob("*.py"))


def imports_of(source: str) -> set[str]:
    """The modules of this package that a source imports, at its top or inside a function.

    What stands under `if TYPE_CHECKING` is no import: it names types and never runs.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "mosaic_gym"}


def floor_of(module: str) -> int | None:
    """The floor of a dotted name; None for the door itself and for the names it exports."""
    parts = module.split(".")
    return FLOORS.get(parts[1]) if len(parts) > 1 else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_floor_imports_a_higher_one(path):
    name = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert name in FLOORS, f"{path.relative_to(ROOT)} stands on no floor: give it one in FLOORS"
    for module in imports_of(path.read_text()):
        floor = floor_of(module)
        if floor is not None:
            assert floor <= FLOORS[name], f"{name} (floor {FLOORS[name]}) imports {module} (floor {floor})"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_roof_comes_in_by_the_door(path):
    name = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if FLOORS[name] < FLOORS["training"]:
        assert "mosaic_gym" not in imports_of(path.read_text()), f"{path.name} imports the door, which imports it"


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path.name)
def test_agents_and_examples_use_the_door_only(path):
    exported = {"mosaic_gym"} | {f"mosaic_gym.{name}" for name in mosaic_gym.__all__}
    assert imports_of(path.read_text()) <= exported


def test_the_walk_finds_imports_wherever_they_hide():
    source = """
from typing import TYPE_CHECKING
import mosaic_gym.worlds.doom
if TYPE_CHECKING:
    from mosaic_gym.envs.tasks import Task
def late():
    from mosaic_gym.model import codec
"""
    found = imports_of(source)
    assert {"mosaic_gym.worlds.doom", "mosaic_gym.model.codec"} <= found
    assert not any("envs" in name for name in found)


def test_no_drawer_of_odds_and_ends():
    assert not {path.stem for path in MODULES} & {"utils", "util", "common", "helpers", "misc"}


def test_the_door_is_light_and_registers():
    program = (
        "import sys, mosaic_gym, gymnasium\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'vizdoom', 'pygame'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "gymnasium.spec('MosaicWorld-v0'), gymnasium.spec('MosaicWorldReal-v0')\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_the_door_promises_is_there():
    assert mosaic_gym.__all__ == sorted(set(mosaic_gym.__all__))
    for name in mosaic_gym.__all__:
        assert getattr(mosaic_gym, name) is not None


def test_an_unknown_world_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown world 'quake'; the known ones are doom, mosaic"):
        mosaic_gym.make_world("quake")
