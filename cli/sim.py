"""`seer-sgl sim`: policies side by side on a workload, in simulated time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from seer_sgl.sim.result import SimResult
    from seer_sgl.sim.workload import Workload

DEFAULT_POLICIES = ("fifo_group", "least_loaded", "divided", "seer", "oracle")
TIMELINE_POINTS = 400
"""Samples of a picture's time axis at least; its width has no more pixels to show."""

_COLUMNS = (
    "\npolicy",
    "\nseconds",
    "tail\nseconds",
    "\ntokens/s",
    "\nspeed",
    "\nchunks",
    "moved\nchunks",
    "moved\nMtokens",
    "preemp-\ntions",
    "\nidle",
)
_TABLE_WIDTH = 120
"""Most columns of text that it takes. A narrow terminal wraps it; the figures are never cut."""


def sim(
    workload: Annotated[
        str, typer.Argument(help="A built-in workload's name, or a TOML file.")
    ] = "qwen2-vl-72b",
    policy: Annotated[
        list[str] | None,
        typer.Option(help=f"May be given again. Default: {', '.join(DEFAULT_POLICIES)}."),
    ] = None,
    estimate: Annotated[
        str | None, typer.Option(help="Length estimate of the policies that use one.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same lengths.")] = 0,
    group_size: Annotated[int | None, typer.Option(help="Samples of each prompt.")] = None,
    groups: Annotated[int | None, typer.Option(help="Prompts to sample.")] = None,
    engines: Annotated[int | None, typer.Option(help="Engines.")] = None,
    chunk_tokens: Annotated[int | None, typer.Option(help="Longest chunk, in tokens.")] = None,
    correlation: Annotated[
        float | None, typer.Option(help="How alike a group's lengths are, 0 to 1.")
    ] = None,
    speculation: Annotated[bool, typer.Option(help="Siblings draft for each other.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the rollouts, as .png or .svg.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the results here, too.")] = None,
) -> None:
    """Compare policies on a workload in simulated time: no GPU, no server.

    Options like --group-size replace the workload's own values.
    """
    from .run import errors_reported

    changes = {
        "group_size": group_size,
        "groups": groups,
        "engines": engines,
        "chunk_tokens": chunk_tokens,
        "lengths.correlation": correlation,
    }
    with errors_reported():
        changed = _workload(workload, changes, speculation)
        names = _policies(policy, estimate)
        _check_outputs(picture, json)
        points = TIMELINE_POINTS if picture else 0
        results = _simulate(changed, names, estimate, seed, speculation, points)
        _show(changed, results, seed)
        if json:
            _write_json(json, changed, results, seed=seed, estimate=estimate, speculation=speculation)
        if picture:
            _draw(picture, changed, results)


def _workload(name: str, changes: dict[str, Any], speculation: bool) -> Workload:
    from seer_sgl.errors import StartError
    from seer_sgl.sim.files import load_workload, with_changes

    given = {key: value for key, value in changes.items() if value is not None}
    workload = with_changes(load_workload(name), given)
    if speculation and workload.speculation is None:
        raise StartError(f"{workload.name}: --speculation needs the table [speculation] in the workload")
    return workload


def _policies(names: list[str] | None, estimate: str | None) -> list[str]:
    """What to simulate, once each; every name is checked before the first one runs."""
    from seer_sgl.errors import StartError
    from seer_sgl.router.core.estimates import estimate_named
    from seer_sgl.sim.run import SIM_POLICIES

    for name in names or ():
        if name not in SIM_POLICIES:
            raise StartError(f"no policy is called {name!r}; there are: {', '.join(SIM_POLICIES)}")
    if estimate is not None:
        estimate_named(estimate)
    return list(dict.fromkeys(names or DEFAULT_POLICIES))


def _check_outputs(picture: Path | None, json: Path | None) -> None:
    """Before a long run: could its files be written?"""
    from seer_sgl.errors import StartError

    if picture:
        from seer_sgl.sim.picture import check_drawable

        check_drawable(picture)
    for path in filter(None, (picture, json)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(f"{path.parent}: {error.strerror}") from None
        if path.is_dir():
            raise StartError(f"{path} is a folder; name a file")


def _simulate(
    workload: Workload,
    names: list[str],
    estimate: str | None,
    seed: int,
    speculation: bool,
    points: int,
) -> list[SimResult]:
    from seer_sgl.sim.run import simulate

    from .run import say

    results = []
    for number, name in enumerate(names, 1):
        began_s = time.monotonic()
        result = simulate(
            workload,
            name,
            seed=seed,
            estimate=estimate,
            speculation=speculation,
            timeline_points=points,
        )
        say(f"{number}/{len(names)} {name}: simulated in {time.monotonic() - began_s:.1f} s")
        results.append(result)
    return results


def _title(workload: Workload) -> str:
    requests = workload.groups * workload.group_size
    engines = f"{workload.engines:,} engine{'s' if workload.engines > 1 else ''}"
    return f"{workload.name}: {requests:,} requests, {engines}"


def _show(workload: Workload, results: list[SimResult], seed: int) -> None:
    """Print a row per policy."""
    from rich.console import Console
    from rich.table import Table

    first = results[0]
    table = Table(
        title=f"{_title(workload)}, seed {seed}",
        caption=f"speed: times that of {first.policy}; idle: share of the engines' time",
        title_justify="left",
        caption_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title_style="bold",
        caption_style="dim",
    )
    for heading in _COLUMNS:
        table.add_column(heading, justify="left" if heading == "\npolicy" else "right", no_wrap=True)
    for result in results:
        table.add_row(*_row(result, first))
    Console(width=max(Console().width, _TABLE_WIDTH)).print(table)


def _row(result: SimResult, first: SimResult) -> tuple[str, ...]:
    return (
        result.policy,
        _seconds(result.makespan_s),
        _seconds(result.tail_s),
        f"{result.tokens_per_s:,.0f}",
        f"{first.makespan_s / result.makespan_s:.2f}",
        f"{result.chunks:,}",
        f"{result.moved_chunks:,}",
        f"{result.moved_tokens / 1e6:,.1f}",
        f"{result.preemptions:,}",
        f"{result.idle_share:.1%}",
    )


def _seconds(time_s: float) -> str:
    return f"{time_s:,.0f}" if time_s >= 100 else f"{time_s:.3g}"


def _write_json(path: Path, workload: Workload, results: list[SimResult], **options: object) -> None:
    """What was simulated and what came out, without the timelines."""
    import msgspec

    from seer_sgl.errors import StartError

    outcomes = [msgspec.structs.replace(result, timeline=None) for result in results]
    report = {"workload": workload, **options, "results": outcomes}
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None


def _draw(path: Path, workload: Workload, results: list[SimResult]) -> None:
    from seer_sgl.sim.picture import draw

    draw(results, path, _title(workload))
