"""What every benchmark hands in: rows, figures, and where and with what they were measured.

A benchmark ends with `finish(Report("bench.core", rows, figures), json_path)`. Rows are flat, figures
are numbers that a text may quote. No host name and no path of the machine gets into the file.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

Value = str | int | float | bool | None
Row = dict[str, Value]

ROOT = Path(__file__).resolve().parents[1]
REPORTED = [
    "seer-sgl",
    "sglang",
    "torch",
    "mooncake-transfer-engine",
    "mooncake-transfer-engine-non-cuda",
    "mooncake-transfer-engine-cuda13",
    "msgspec",
    "numba",
    "numpy",
    "pyzmq",
]
"""Distributions whose version is noted where they are installed."""


@dataclass(frozen=True)
class Report:
    """What one benchmark measured."""

    bench: str
    """The module that ran, as `bench.core`."""
    rows: list[Row]
    figures: dict[str, float]
    title: str = ""
    """Said in `docs/benchmarks.md`; the first sentence of the module's docstring where empty."""
    machine: Row = field(default_factory=dict)
    """What else the machine has, as a GPU."""


def finish(report: Report, json_path: Path | None) -> None:
    """Print the rows and figures; write the report where a file is named."""
    for name, rows in named_tables(report.rows).items():
        shown = table(rows, name)
        width = max(Console().width, Console(width=10_000).measure(shown).maximum)
        Console(width=width).print(shown)
    console = Console()
    for name, value in report.figures.items():
        console.print(f"{name} = {cell(value)}", highlight=False)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(as_json(report), indent=1) + "\n", encoding="utf-8")


def as_json(report: Report) -> dict[str, object]:
    """The report with machine, versions, commit and command line."""
    return {
        "bench": report.bench,
        **({"title": report.title} if report.title else {}),
        "rows": report.rows,
        "figures": report.figures,
        "machine": machine() | report.machine,
        "versions": versions(),
        "commit": commit(),
        "command": command(report.bench, sys.argv[1:]),
    }


def named_tables(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that name the same `table` are one; so are all that name none, under an empty name."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        shown = {name: value for name, value in row.items() if name != "table"}
        found.setdefault(str(row.get("table") or ""), []).append(shown)
    return found


def table(rows: Sequence[Row], title: str = "") -> Table:
    """Rows as a plain table; a column that a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = Table(box=SIMPLE, show_edge=False, title=title or None, title_justify="left")
    for name in columns:
        numbers = all(isinstance(row.get(name), int | float | None) for row in rows)
        shown.add_column(name, justify="right" if numbers else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(cell(row.get(name)) for name in columns))
    return shown


def cell(value: Value) -> str:
    """One value as text: thousands apart, floats with three digits that matter."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def machine() -> Row:
    """The hardware and system, without a name that tells which one."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of the distributions that are installed."""
    found = {}
    for name in REPORTED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, with `+` where the source differs from it; empty outside a checkout."""
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", "*.py", "pyproject.toml")
    return f"{head}+" if head and changed else head


def command(bench: str, args: Sequence[str]) -> str:
    """The line that runs it again, without the output file; of paths only their last part."""
    kept: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--json":
            next(words, None)
        elif not word.startswith("--json="):
            kept.append(Path(word).name if word.startswith(("/", "~", "..")) else word)
    return " ".join(["python", "-m", bench, *kept])


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _git(*args: str) -> str:
    try:
        ran = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return ran.stdout.strip()
