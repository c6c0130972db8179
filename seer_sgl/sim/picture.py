"""Rollouts as a picture: policies one above the other over the same time, as PNG or SVG.

Columns: running requests of an engine, KV in use, finished requests. Up to 16 engines have a line each;
more are shown as their median and the range that they span. matplotlib is imported only while drawing,
and used without its global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seer_sgl.errors import StartError
from seer_sgl.sim.result import SimResult

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
MOST_LINES = 16
"""Engines that get a line each; with more of them, lines hide each other."""

_RUNNING, _KV, _FINISHED = "#0072B2", "#D55E00", "#009E73"
"""Blue, vermillion and green that colour-blind readers tell apart (Okabe and Ito)."""
_SHADE, _DARK = "#E6E6E6", "#333333"
_RANGE_INK, _MOST_INK, _LINE_INK = 0.2, 0.5, 0.5
"""How much of its color a tint has, the rest white. Opaque, so that it does not mix with the tail's."""
_END_DASHES = (0, (3, 2))
_NUMBER = "{x:,.10g}"
_WIDTH_IN, _ROW_IN, _MARGIN_IN = 7.2, 1.15, 1.0
"""Inches; the width is that of a page of text."""
_DOTS_PER_INCH = 200
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _DARK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "svg.hashsalt": "seer-sgl",
}


def check_drawable(path: Path) -> None:
    """Before a long run: would `draw` know this kind of file, and is matplotlib there?

    Raises:
        StartError: with the remedy.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise StartError(
            f"{path}: a picture's name ends in {' or '.join(SUFFIXES)}, got {path.suffix!r}"
        )
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        raise StartError("a picture needs matplotlib: pip install 'seer-sgl[plot]'") from None


def draw(results: list[SimResult], path: Path, title: str) -> None:
    """Write a picture of these rollouts; each needs its timeline.

    Raises:
        StartError: matplotlib is missing, or the file cannot be written.
    """
    check_drawable(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        height_in = _ROW_IN * len(results) + _MARGIN_IN
        figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DOTS_PER_INCH, layout="constrained")
        _fill(figure, results, title)
        suffix = path.suffix.lower().removeprefix(".")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format=suffix, metadata={"Date": None} if suffix == "svg" else {})
        except OSError as error:
            raise StartError(f"{path}: {error.strerror}") from None


def _fill(figure: Figure, results: list[SimResult], title: str) -> None:
    from matplotlib.legend_handler import HandlerTuple

    figure.suptitle(title, fontsize=9)
    rows = figure.subplots(len(results), 3, sharex=True, sharey="col", squeeze=False)
    for axes, result in zip(rows, results, strict=True):
        _draw_row(list(axes), result)
    end_s = max(result.makespan_s for result in results)
    rows[0][0].set_xlim(0, 1.02 * end_s or 1.0)
    rows[0][0].set_ylim(bottom=0)
    for axis in rows[-1]:
        axis.set_xlabel("time (s)")
    figure.align_ylabels()
    entries = _legend(results)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=len(entries) if len(entries) <= 5 else 4,
        columnspacing=1.5,
        frameon=False,
        fontsize=7,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.2)},
    )


def _draw_row(axes: list[Axes], result: SimResult) -> None:
    timeline = result.timeline
    if timeline is None:
        raise ValueError(f"{result.policy} was simulated without a timeline")
    running, kv, finished = axes
    for axis in axes:
        axis.axvspan(result.makespan_s - result.tail_s, result.makespan_s, color=_SHADE, lw=0, zorder=0)
        axis.axvline(result.makespan_s, color=_DARK, lw=0.8, ls=_END_DASHES, zorder=3)
        axis.xaxis.set_major_formatter(_NUMBER)
    _draw_engines(running, timeline.times_s, timeline.running, _RUNNING)
    _draw_engines(kv, timeline.times_s, _percent(timeline.kv_share), _KV)
    (finished_percent,) = _percent([timeline.finished_share])
    finished.plot(timeline.times_s, finished_percent, color=_FINISHED, lw=1.3)
    running.yaxis.set_major_formatter(_NUMBER)
    running.set_ylabel("running requests\nof an engine")
    kv.set_ylabel("KV in use (%)")
    finished.set_ylabel("finished (%)")
    for axis in (kv, finished):
        axis.set_ylim(0, 103)
        axis.set_yticks([0, 50, 100])
    running.set_title(result.policy, loc="left", fontweight="bold")
    finished.set_title(f"end {_seconds(result.makespan_s)}, tail {_seconds(result.tail_s)}", loc="right")


def _draw_engines(
    axis: Axes, times_s: list[float], series: Sequence[Sequence[float]], color: str
) -> None:
    import numpy as np

    values = np.asarray(series, dtype=float)
    if len(values) == 1:
        axis.plot(times_s, values[0], color=color, lw=1.0)
    elif len(values) <= MOST_LINES:
        for line in values:
            axis.plot(times_s, line, color=_tint(color, _LINE_INK), lw=0.5)
        axis.plot(times_s, values.mean(axis=0), color=color, lw=1.3)
    else:
        lowest, low, middle, high, highest = np.quantile(values, [0.0, 0.1, 0.5, 0.9, 1.0], axis=0)
        axis.fill_between(times_s, lowest, highest, color=_tint(color, _RANGE_INK), lw=0)
        axis.fill_between(times_s, low, high, color=_tint(color, _MOST_INK), lw=0)
        axis.plot(times_s, middle, color=color, lw=1.3)


def _legend(results: list[SimResult]) -> dict[str, Any]:
    """By label, once for all rows; what both columns of engines have is shown in their two colors."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def lines(ink: float, width: float) -> tuple[Artist, ...]:
        return tuple(Line2D([], [], color=_tint(color, ink), lw=width) for color in (_RUNNING, _KV))

    def patches(ink: float) -> tuple[Artist, ...]:
        return tuple(Patch(color=_tint(color, ink), lw=0) for color in (_RUNNING, _KV))

    engines = {len(result.timeline.running) for result in results if result.timeline}
    entries: dict[str, Any] = {}
    if any(1 < count <= MOST_LINES for count in engines):
        entries |= {"one engine": lines(_LINE_INK, 0.5), "mean of the engines": lines(1.0, 1.3)}
    if any(count > MOST_LINES for count in engines):
        entries |= {
            "median engine": lines(1.0, 1.3),
            "80 % of the engines": patches(_MOST_INK),
            "all engines": patches(_RANGE_INK),
        }
    entries["tail: the last 10 % of requests"] = Patch(color=_SHADE, lw=0)
    entries["end"] = Line2D([], [], color=_DARK, lw=0.8, ls=_END_DASHES)
    return entries


def _tint(color: str, ink: float) -> tuple[float, float, float]:
    """The color mixed with white; 1 is the color itself."""
    from matplotlib.colors import to_rgb

    red, green, blue = (1.0 - ink * (1.0 - part) for part in to_rgb(color))
    return red, green, blue


def _percent(shares: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[100.0 * share for share in line] for line in shares]


def _seconds(time_s: float) -> str:
    return f"{time_s:,.0f} s" if time_s >= 100 else f"{time_s:.3g} s"
