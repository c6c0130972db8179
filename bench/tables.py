"""Rewrites docs/benchmarks.md from the reports in bench/results.

python -m bench.tables
"""

import ast
import json
from pathlib import Path
from typing import Any

from bench.report import ROOT, Row, Value, cell, named_tables

RESULTS = ROOT / "bench/results"
PAGE = ROOT / "docs/benchmarks.md"
HEAD = """# Benchmarks

Written by `python -m bench.tables` from the files in `bench/results`. Each was measured in one run, so
compare figures within a table rather than between tables.
"""


def page(reports: list[dict[str, Any]]) -> str:
    """The whole page, one section per report."""
    return "\n".join([HEAD, *map(section, reports)])


def section(report: dict[str, Any]) -> str:
    """Title, what it is, rows, figures, and how to run it again."""
    parts = [
        f"## {report['bench']}",
        report.get("title") or first_sentence(report["bench"]),
        *(part for name, rows in named_tables(report["rows"]).items() for part in captioned(name, rows)),
        "Figures: " + ", ".join(f"`{name}` {cell(value)}" for name, value in report["figures"].items()),
        how(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def first_sentence(bench: str) -> str:
    """Of the module's docstring, read without importing the module."""
    path = ROOT / f"{bench.replace('.', '/')}.py"
    if not path.exists():
        return ""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".") + "."


def captioned(name: str, rows: list[Row]) -> list[str]:
    """A table under its name, if it has one."""
    caption = [f"**{name[0].upper()}{name[1:]}**"] if name else []
    return [*caption, markdown_table(rows)]


def markdown_table(rows: list[Row]) -> str:
    """Rows as a table; columns of numbers to the right."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numbers = {name for name in columns if all(_is_number(row.get(name)) for row in rows)}
    lines = [
        columns,
        ["---:" if name in numbers else "---" for name in columns],
        *([cell(row.get(name)).replace("|", "\\|") for name in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def how(report: dict[str, Any]) -> str:
    """The command line, the machine and what was installed."""
    machine = dict(report["machine"])
    cpu, cores = machine.pop("cpu"), machine.pop("cores")
    memory, system = machine.pop("memory_gib"), machine.pop("platform")
    python = f"Python {machine.pop('python')}"
    rest = "".join(f", {name} {cell(value)}" for name, value in machine.items())
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    commit = f", commit {report['commit'][:12]}" if report["commit"] else ""
    changed = " with changes" if report["commit"].endswith("+") else ""
    return (
        f"`{report['command']}` on {cores} cores of {cpu}, {memory} GiB, {system}, {python}{rest}; "
        f"{versions}{commit}{changed}."
    )


def _is_number(value: Value) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def load(folder: Path) -> list[dict[str, Any]]:
    """The reports of a folder, by file name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(load(RESULTS)), encoding="utf-8")


if __name__ == "__main__":
    main()
