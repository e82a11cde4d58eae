"""What `import mosaic_gym` brings in, which floor may import which, and that no modules import each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mosaic_gym

ROOT = Path(mosaic_gym.__file__).parent
FLOORS = {
    "deprecation": 0,
    "processes": 0,
    "validation": 0,
    "geometry": 1,
    "memory": 2,
    "model": 3,
    "data": 3,
    "worlds": 4,
    "imagination": 5,
    "planning": 6,
    "envs": 6,
    "training": 7,
    "evaluation": 7,
    "play": 8,
    "cli": 8,
}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
OUTSIDE = sorted(path for name in ("agents", "examples") for path in (ROOT.parent / name).rglob("*.py"))


def imports_of(source: str) -> set[str]:
    """The modules of this package that a source imports: at its top, inside a function, or for type checkers only."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "mosaic_gym"}


def name_of(path: Path) -> str:
    """The dotted name of a module by its file."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles_among(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or around: strongly connected components (Tarjan, 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for target in graph[node]:
            if target not in order:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], order[target])
        if lowest[node] == order[node]:
            component = [stack.pop()]
            while component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1 or node in graph[node]:
                circles.append(sorted(component))

    for node in graph:
        if node not in order:
            visit(node)
    return circles


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


def test_no_modules_import_each_other():
    files = {name_of(path): path for path in [*MODULES, ROOT / "__init__.py"]}
    graph = {
        name: {target for target in imports_of(path.read_text()) if target in files} for name, path in files.items()
    }
    assert not circles_among(graph)


def test_circles_are_found_directly_and_around():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"f"}, "f": {"e"}, "g": {"a"}}
    assert sorted(circles_among(graph)) == [["a", "b", "c"], ["e", "f"]]


def test_imports_are_found_wherever_they_stand():
    source = """
from typing import TYPE_CHECKING
import mosaic_gym.worlds.doom
if TYPE_CHECKING:
    from mosaic_gym.envs.tasks import Task
def late():
    from mosaic_gym.model import codec
"""
    found = imports_of(source)
    assert {"mosaic_gym.worlds.doom", "mosaic_gym.model.codec", "mosaic_gym.envs.tasks"} <= found


def test_files_stay_readable():
    """About 400 lines at most, about 150 in the middle; the atlas's files leave with it."""
    lengths = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > 430} == {}
    assert sorted(lengths.values())[len(lengths) // 2] <= 170


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


def test_what_users_name_comes_by_the_door():
    """What they subclass, compose or call, by its own module's object."""
    from mosaic_gym.data.episodes import write_episode
    from mosaic_gym.envs import episode, snapshot, tasks
    from mosaic_gym.worlds.doom import DoomWorld
    from mosaic_gym.worlds.maps.rooms import MapOptions
    from mosaic_gym.worlds.mosaic import MosaicWorld

    names = [write_episode, snapshot.Snapshot, episode.Rules, DoomWorld, MapOptions, MosaicWorld, tasks.ExploreTask]
    names += [tasks.GoalTask, tasks.ReturnTask, tasks.SimulatorTask]
    assert all(getattr(mosaic_gym, named.__name__) is named for named in names)
