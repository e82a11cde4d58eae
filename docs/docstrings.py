"""A griffe extension: reads the project's docstrings as Google style has them, for the API pages.

The project's docstrings describe arguments that belong together in one entry (`height, width: pixels`), and write
several errors into one paragraph. Google style has one name an entry. Everything else, such as an argument that is
described and does not exist, stays a warning, which fails the build.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ERROR = r"[A-Z]\w*(?:Error|Needed|Exit|Interrupt)"
ERRORS = re.compile(rf"{ERROR}(?:, {ERROR})*: ")
NEXT_ERROR = re.compile(rf"(?<=[.;]) (?={ERRORS.pattern})")
TOGETHER = re.compile(r"    (\w+(?:, \w+)+)((?: \(.*?\))?: .*)")


class OneNameAnEntry(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = one_name_an_entry(obj.docstring.value)


def one_name_an_entry(docstring: str) -> str:
    """The docstring with entries of several arguments, or several errors, split into entries of their own."""
    lines, section = [], ""
    entry: list[str] = []  # of several arguments, while its lines are read

    def flush() -> None:
        if entry:
            names, rest = TOGETHER.fullmatch(entry[0]).groups()
            for name in names.split(", "):
                lines.extend([f"    {name}{rest}", *entry[1:]])
            entry.clear()

    for line in docstring.splitlines():
        indent = len(line) - len(line.lstrip())
        if entry and (indent <= 4 or not line.strip()):
            flush()
        if line.strip() and indent == 0:
            section = line.removesuffix(":") if line in ("Args:", "Attributes:", "Raises:") else ""
        if section in ("Args", "Attributes") and indent == 4 and TOGETHER.fullmatch(line):
            entry.append(line)
        elif entry:
            entry.append(line)
        elif section == "Raises" and indent >= 4:
            first, *others = NEXT_ERROR.split(line.strip())
            lines.append(("    " if ERRORS.match(first) else "        ") + first)
            lines.extend("    " + other for other in others)
        else:
            lines.append(line)
    flush()
    return "\n".join(lines)
