"""The field's words: no retired word stands in the package, the agents, the examples, the README or the docs.

The left column of the table is home-made language that a newcomer could not read. A line that has to name an old
spelling ends with `# old spelling` (a deprecation shim) or `# name in files` (a key in files already written).
"""

import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACES = ("mosaic_gym", "agents", "examples", "README.md", "docs")
SUFFIXES = {".py", ".md", ".sh", ".yaml", ".yml", ".toml", ".json", ".svg"}
WORDS = {
    r"told": "metadata, options, inputs, metrics",
    r"by heart": "drawn from the atlas",
    r"whereabouts": "location on the map",
    r"stills": "keyframe images, warped frames",
    r"dream\w*": "generated, imagined; the learned world",
    r"glimpse\w*": "LatentObservation",
    r"thrusts?": "action vector, velocity command",
    r"doubt\w*": "uncertainty",
    r"judg\w*": "evaluate, TaskStep",
    r"room_for": "out_of_memory_guard",
    r"reliance": "memory weight",
    r"supposed\w*": "assumed",
    r"recogni[sz]\w*": "locate",
    r"recall\w*": "retrieve",
    r"remember\w*": "store, keep in memory",
    r"engines?": "simulator, ground truth",
    r"arms?": "variant, baseline",
    r"pays|paid": "gives a reward",
    r"least_coverage": "min_coverage",
    r"anew": "again",
    r"begun": "started",
    r"nobody|somebody": "no user, someone named",
    r"outcome_heads?|OutcomeHeads?": "reward and termination heads",
    r"detail network|DetailNet": "refiner",
    r"setting (a )?scenes?|set_scenes?": "sampling start and goal",
}
"""Retired words as patterns, with what to write instead."""
IDENTIFIERS = {"told", "asked", "given", "shown", "kept", "said", "going", "each", "begun", "anew"}
"""Participles that must not name a thing, alone or as a part of a compound name."""
EXEMPT_LINE = re.compile(r"#\s*(old spelling|name in files)\s*$")
MODULE_OF_THE_ATLAS = re.compile(r"\bwhereabouts(\.\w+)?|from mosaic_gym\.memory\.whereabouts import .*")


def tracked() -> list[Path]:
    names = subprocess.check_output(["git", "ls-files", *PLACES], cwd=ROOT, text=True).split()
    paths = [ROOT / name for name in names]
    return [
        path
        for path in paths
        if path.suffix in SUFFIXES and path.exists() and not (is_of_the_atlas(path) or is_written_already(path))
    ]


def is_written_already(path: Path) -> bool:
    """Configurations beside shipped weights: files cannot carry a comment, and names in them stay."""
    return path.suffix == ".json" and "weights" in path.parts


def is_of_the_atlas(path: Path) -> bool:
    """The atlas's own files, which leave with it."""
    return "atlas" in path.stem or path.parent.name == "atlas" or path.stem == "whereabouts"


def lines_of(path: Path) -> list[tuple[int, str]]:
    lines = enumerate(path.read_text().splitlines(), start=1)
    return [(number, line) for number, line in lines if not EXEMPT_LINE.search(line)]


FILES = tracked()
PATTERN = re.compile("|".join(rf"(?<![A-Za-z])(?:{word})(?![a-z])" for word in WORDS), re.IGNORECASE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_retired_word(path):
    found = []
    for number, line in lines_of(path):
        # A name of an atlas's module may be used where the atlas is called.
        for match in PATTERN.finditer(MODULE_OF_THE_ATLAS.sub("", line)):
            found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()!r} in {line.strip()[:100]!r}")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.suffix == ".py"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_participle_names_a_thing(path):
    exempt = {number for number, line in enumerate(path.read_text().splitlines(), 1) if EXEMPT_LINE.search(line)}
    found = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type != tokenize.NAME or token.start[0] in exempt:
            continue
        words = set(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", token.string))
        if {word.lower() for word in words} & IDENTIFIERS:
            found.append(f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string}")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "line", ["what it was told", "a Glimpse", "DREAM_STEPS = 3", "the engine's map", "thrust_of(x)"]
)
def test_the_list_finds_what_it_names(line):
    assert PATTERN.search(line)


@pytest.mark.parametrize("line", ["the army's charm", "stillness", "engineer", "an armchair", "a harmless gain"])
def test_the_list_leaves_other_words_alone(line):
    assert not PATTERN.search(line)
