"""README and site keep their word: commands, options, programs, files, links and tables are as they say."""

import ast
import dataclasses
import inspect
import re
import shlex
from pathlib import Path

import pytest

import mosaic_gym
from mosaic_gym.cli import parse, split
from mosaic_gym.envs.mosaic_env import make_learned_env, make_simulator_env
from mosaic_gym.model.wan.options import WanOptions

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CARD = ROOT / "mosaic_gym" / "weights" / "doom-tiny" / "README.md"
DOCS = ROOT / "docs"
PAGES = (README, CARD, *sorted(DOCS.rglob("*.md")))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
WORDS = (700, 1400)
"""Fewest and most words of the README, code left out."""


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(program: str, pages: tuple[Path, ...] = PAGES) -> list[list[str]]:
    """What follows a program's name wherever the pages call it, in a shell block or within a line; each once."""
    shells = [block.replace("\\\n", " ") for page in pages for block in blocks(page, "sh")]
    lines = [line for block in shells for line in block.splitlines()]
    for page in pages:
        lines += re.findall(rf"`({program}\s[^`]+)`", page.read_text())
    words = [shlex.split(line, comments=True) for line in lines]
    found = [line[1:] for line in words if line and line[0] == program]
    return [words for index, words in enumerate(found) if words not in found[:index]]


def programs() -> list:
    """Every Python block that is to run, named by page and position. (Blocks marked `py` need a GPU or weights.)"""
    return [
        pytest.param(source, id=f"{name_of(page)}-{index}")
        for page in PAGES
        for index, source in enumerate(blocks(page, "python"))
    ]


def links() -> list:
    """Every link of a page to a file, as (page, path)."""
    found = [
        (page, path)
        for page in PAGES
        for path in sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text())))
    ]
    return [pytest.param(page, path, id=f"{name_of(page)}-{path}") for page, path in found]


def test_the_readme_shows_what_it_must():
    assert {"demo", "test"} <= {" ".join(words) for words in commands("make", (README,))}
    assert {words[0] for words in commands("mosaic-gym", (README,))} == {"play", "record", "train"}
    assert any("gym.make" in block for block in blocks(README, "python"))


def test_the_readme_is_as_long_as_a_readme():
    prose = re.sub(r"^```.*?^```$", "", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert WORDS[0] <= len(prose.split()) <= WORDS[1]


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_every_make_target_exists(words):
    targets = [word for word in words if "=" not in word]
    assert targets and set(targets) <= TARGETS


@pytest.mark.parametrize(
    "words", [words for words in commands("mosaic-gym") if words[0].islower()], ids=" ".join
)  # not `mosaic-gym COMMAND --help`
def test_every_command_takes_the_options_shown(words):
    placeholders = {"...": "FOLDER"}
    name, options = split([placeholders.get(word, word) for word in words])
    function, _ = parse(name, options)
    assert callable(function)


def defaults(page: Path, head: str) -> dict[str, object]:
    """The names and defaults in the first column of the table under a head."""
    table = page.read_text().split(f"| {head} | |\n")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[1:]]
    found = [pair for cell in cells for pair in re.findall(r"`(\w+)=([^`]+)`", cell)]
    return {name: ast.literal_eval(default) for name, default in found}


@pytest.mark.parametrize(
    ("head", "make"),
    [("argument of `gym.make`", make_learned_env), ("argument of `gym.make` for the simulator", make_simulator_env)],
)
def test_the_tables_of_arguments_are_what_the_environments_take(head, make):
    parameters = inspect.signature(make).parameters.values()
    assert defaults(DOCS / "environment.md", head) == {
        parameter.name: parameter.default for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD
    }


def test_the_table_of_loading_is_what_a_pipeline_takes():
    fields = dataclasses.fields(WanOptions)
    assert defaults(DOCS / "wan.md", "key of `loading={...}`") == {field.name: field.default for field in fields}


@pytest.mark.parametrize("source", programs())
def test_every_program_runs(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("page", "path"), links())
def test_every_file_that_a_page_points_to_exists(page, path):
    assert (page.parent / path).exists()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_in_the_repository_that_a_page_names_exists(page):
    paths = re.findall(r"`((?:agents|docs|examples|mosaic_gym|tests)/[^`\s]*)`", page.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_name_that_a_page_gives_is_exported_by_the_package(page):
    names = re.findall(r"`mosaic_gym\.([\w.]+)", page.read_text())
    assert [name for name in names if name not in mosaic_gym.__all__] == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    listed = set(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE))
    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_the_figures_are_what_the_script_draws(tmp_path, monkeypatch):
    script = {"__name__": "draw_figures", "__file__": str(DOCS / "draw_figures.py")}
    exec(compile((DOCS / "draw_figures.py").read_text(), "draw_figures.py", "exec"), script)
    script["IMAGES"] = tmp_path
    script["draw_step"]()
    script["draw_coordinates"]()
    for name in ("step.svg", "coordinates.svg"):
        assert (tmp_path / name).read_text() == (DOCS / "images" / name).read_text()


def test_the_moving_picture_is_small():
    assert (DOCS / "demo.webp").stat().st_size < 3_000_000


def test_the_ci_runs_the_commands_of_the_readme_and_builds_the_site():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make test", "make docs"} <= set(lines)
    makefile = (ROOT / "Makefile").read_text()
    assert "mkdocs build --strict" in makefile
