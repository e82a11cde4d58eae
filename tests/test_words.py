"""The field's words: no retired word stands in the package, the agents, the examples, the README or the docs.

The left column of the table is home-made language that a newcomer could not read. A line of code that has to name an
old spelling ends with `# old spelling` (a deprecation shim) or `# name in files` (a key in files already written).
Docstrings and comments cannot be exempted.
"""

import ast
import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACES = ("mosaic_gym", "agents", "examples", "README.md", "docs", "mkdocs.yml", "Makefile", "pyproject.toml")
SUFFIXES = {".py", ".md", ".sh", ".yaml", ".yml", ".toml", ".json", ".svg", ".css", ""}
WORDS = {
    r"told": "metadata, options, inputs, metrics",
    r"by[ _-]heart": "drawn from the atlas",
    r"whereabouts": "location on the map",
    r"stills": "keyframe images, warped frames",
    r"dream\w*": "generated, imagined; the learned world",
    r"glimpse\w*": "LatentObservation",
    r"thrusts?": "action vector, velocity command",
    r"doubt\w*": "uncertainty",
    r"judg\w*": "evaluate, TaskStep",
    r"room[_-]for": "out_of_memory_guard",
    r"reliance": "memory weight",
    r"supposed\w*": "assumed",
    r"recogni[sz]\w*": "locate",
    r"recall\w*": "retrieve",
    r"remember\w*": "store, keep in memory",
    r"engines?": "simulator, ground truth",
    r"arms?": "variant, baseline",
    r"pays|paid": "gives a reward",
    r"least[_-]coverage": "min_coverage",
    r"anew": "again",
    r"begun": "started",
    r"nobody|somebody": "no user, someone named",
    r"outcome[ _-]?heads?": "reward and termination heads",
    r"detail[ _-]?net(work)?": "refiner",
    r"setting (a )?scenes?|set[_-]scenes?": "sampling start and goal",
}
"""Retired words as patterns, with what to write instead."""
IDENTIFIERS = {"told", "asked", "given", "shown", "kept", "said", "going", "each", "begun", "anew"}
"""Participles that must not name a thing, alone or as a part of a compound name."""
EXEMPT_COMMENT = re.compile(r"#\s*(old spelling|name in files)\s*$")
MODULE_OF_THE_ATLAS = re.compile(r"\bwhereabouts(\.\w+)?|from mosaic_gym\.memory\.whereabouts import .*")
PATTERN = re.compile("|".join(rf"(?<![A-Za-z])(?:{word})(?![a-z])" for word in WORDS), re.IGNORECASE)
JOINT = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where one word of a CamelCase name ends and the next begins."""
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def tracked() -> list[Path]:
    """All files of the places, except the atlas's own, which leave with it."""
    names = subprocess.check_output(["git", "ls-files", *PLACES], cwd=ROOT, text=True).splitlines()
    paths = [ROOT / name for name in names]
    return [path for path in paths if path.exists() and not is_of_the_atlas(path)]


def is_of_the_atlas(path: Path) -> bool:
    return "atlas" in path.stem or path.parent.name == "atlas" or path.stem == "whereabouts"


def is_text(path: Path) -> bool:
    """Whether to read the file. Configurations beside shipped weights cannot carry a comment: names in them stay."""
    is_written_already = path.suffix == ".json" and "weights" in path.parts
    return path.suffix in SUFFIXES and not is_written_already


def exempt_lines(text: str, suffix: str) -> set[int]:
    """Numbers of the lines of code that end with an exempting comment. Docstrings, comments and prose are not."""
    if suffix != ".py":
        lines, is_code = list(enumerate(text.splitlines(), start=1)), suffix != ".md"
        code = set()
        for number, line in lines:
            is_code ^= line.lstrip().startswith("```") and suffix == ".md"
            code |= {number} if is_code and not line.lstrip().startswith("#") else set()
        return {number for number, line in lines if number in code and EXEMPT_COMMENT.search(line)}
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    code = {token.start[0] for token in tokens if token.type not in LAYOUT and not is_docstring(token)}
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    return {token.start[0] for token in comments if token.start[0] in code and EXEMPT_COMMENT.search(token.string)}


def is_docstring(token: tokenize.TokenInfo) -> bool:
    return token.type == tokenize.STRING and token.string.lstrip("rR").startswith('"""')


def retired_words(line: str) -> list[str]:
    """Retired words in a line, also as parts of snake_case and CamelCase names."""
    # A name of an atlas's module may be used where the atlas is called.
    line = MODULE_OF_THE_ATLAS.sub("", line)
    spellings = (line, JOINT.sub(" ", line))
    return sorted({match.group() for spelling in spellings for match in PATTERN.finditer(spelling)})


def participles(name: str) -> set[str]:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return {word.lower() for word in words} & IDENTIFIERS


def names_in(text: str) -> list[tuple[int, str]]:
    """Line and text of every identifier, those in f-strings included, and of every string used as a key."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    names = {(token.start[0], token.string) for token in tokens if token.type == tokenize.NAME}
    for node in ast.walk(ast.parse(text)):
        names.update(keys_in(node))
        if isinstance(node, ast.JoinedStr):
            names.update(name for child in ast.walk(node) for name in identifiers_in(child, node.lineno))
    return sorted(names)


def identifiers_in(node: ast.AST, line: int) -> list[tuple[int, str]]:
    """The identifier of a node of an expression. Before Python 3.12 an f-string is a single token."""
    fields = (getattr(node, field, None) for field in ("id", "attr", "arg"))
    return [(line, field) for field in fields if isinstance(field, str)]


def keys_in(node: ast.AST) -> list[tuple[int, str]]:
    """Strings that a node uses as keys: `row["x"]`, `{"x": 1}`, `row.get("x")`, `getattr(row, "x")`."""
    keys = []
    if isinstance(node, ast.Subscript):
        keys = [node.slice]
    elif isinstance(node, ast.Dict):
        keys = node.keys
    elif isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in {"get", "pop", "setdefault"}:
            keys = node.args[:1]
        elif isinstance(function, ast.Name) and function.id in {"getattr", "hasattr", "setattr"}:
            keys = node.args[1:2]
    return [
        (key.lineno, key.value)
        for key in keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and " " not in key.value
    ]


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


PATHS = tracked()
FILES = [path for path in PATHS if is_text(path)]


@pytest.mark.parametrize("path", FILES, ids=label)
def test_no_retired_word(path):
    text = path.read_text()
    exempt = exempt_lines(text, path.suffix)
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if number not in exempt:
            found += [f"{label(path)}:{number}: {word!r} in {line.strip()[:100]!r}" for word in retired_words(line)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".py"], ids=label)
def test_no_participle_names_a_thing(path):
    text = path.read_text()
    exempt = exempt_lines(text, ".py")
    found = [(number, name) for number, name in names_in(text) if number not in exempt and participles(name)]
    assert not found, "\n" + "\n".join(f"{label(path)}:{number}: {name}" for number, name in found)


def test_no_file_or_folder_is_named_by_a_retired_word():
    names = {part for path in PATHS for part in path.relative_to(ROOT).parts}
    assert not {name for name in names if retired_words(name) or participles(name)}


@pytest.mark.parametrize(
    "line",
    [
        "what it was told",
        "a Glimpse",
        "DREAM_STEPS = 3",
        "the engine's map",
        "thrust_of(x)",
        "class WorldDream:",
        "StillsEncoder()",
        "OutcomeHeads",
        "an outcome_head",
        "a DetailNet",
        "a detail network",
        "RGBDream",
    ],
)
def test_the_list_finds_what_it_names(line):
    assert retired_words(line)


@pytest.mark.parametrize("line", ["the army's charm", "stillness", "engineer", "an armchair", "a harmless gain"])
def test_the_list_leaves_other_words_alone(line):
    assert not retired_words(line)


@pytest.mark.parametrize(
    "code",
    [
        "given_frames = 1",
        "print(f'{shown:.2f} m')",
        "print(f'{row.kept}')",
        "print(f'{call(said=1)}')",
        "row['kept']",
        "{'frames_kept': 1}",
        "row.get('asked')",
        "getattr(row, 'going')",
    ],
)
def test_a_participle_is_found_wherever_it_names_a_thing(code):
    assert any(participles(name) for _, name in names_in(code))


def test_a_participle_in_a_sentence_is_allowed():
    assert not any(participles(name) for _, name in names_in("print('the frames kept', 'kept')"))


def test_only_lines_of_code_can_be_exempted():
    text = '"""The engine.  # old spelling\n"""\n# the engine  # old spelling\nengine = 1  # old spelling\n'
    assert exempt_lines(text, ".py") == {4}


def test_only_code_blocks_of_a_page_can_be_exempted():
    assert exempt_lines("the engine # old spelling\n```\nengine # old spelling\n```\n", ".md") == {3}
