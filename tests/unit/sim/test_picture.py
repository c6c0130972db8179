"""Pictures of rollouts: any number of policies and engines, all that a reader needs, clear refusals."""

import re
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from seer_sgl.errors import StartError
from seer_sgl.sim.picture import _draw_row, check_drawable, draw
from seer_sgl.sim.result import SimResult, Timeline


def made(policy: str, engines: int, makespan_s: float = 1234.0, points: int = 20) -> SimResult:
    """A rollout whose engines run out of work one after the other."""
    times_s = [makespan_s * point / max(1, points - 1) for point in range(points)]
    left = [1.0 - point / max(1, points - 1) for point in range(points)]
    timeline = Timeline(
        times_s,
        [[int(share * (50 + engine % 7)) for share in left] for engine in range(engines)],
        [[share * (0.5 + engine % 5 / 10) for share in left] for engine in range(engines)],
        [1.0 - share for share in left],
    )
    return SimResult(
        policy=policy,
        requests=100,
        output_tokens=1000,
        makespan_s=makespan_s,
        tail_s=makespan_s / 3,
        tokens_per_s=1.0,
        chunks=200,
        moved_chunks=10,
        moved_tokens=5000,
        preemptions=3,
        prefilled_tokens=400,
        idle_share=0.25,
        decision_us=0.0,
        timeline=timeline,
    )


def drawn(path: Path, *results: SimResult) -> str:
    draw(list(results), path, "a rollout")
    return path.read_text(encoding="utf-8")


def texts(svg: str) -> list[str]:
    """matplotlib writes each text's words as a comment beside its outlines."""
    return [text.strip() for text in re.findall(r"<!-- (.*?) -->", svg, re.DOTALL)]


def test_a_png_is_as_wide_as_a_page_and_grows_with_the_policies(tmp_path: Path) -> None:
    sizes = []
    for count in (1, 6):
        path = tmp_path / "new" / f"{count}.png"
        draw([made(f"policy{i}", 2) for i in range(count)], path, "a rollout")
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n")
        sizes.append(struct.unpack(">II", content[16:24]))
    assert sizes[0][0] == sizes[1][0] > 1000
    assert sizes[1][1] > 3 * sizes[0][1]


def test_each_row_names_its_policy_its_end_and_its_tail(tmp_path: Path) -> None:
    found = texts(drawn(tmp_path / "p.svg", made("fifo_group", 4, 3000.0), made("seer", 4, 1500.0)))
    for text in (
        "a rollout",
        "fifo_group",
        "end 3,000 s, tail 1,000 s",
        "seer",
        "end 1,500 s, tail 500 s",
    ):
        assert found.count(text) == 1, text
    for unit in ("time (s)", "KV in use (%)", "finished (%)"):
        assert unit in found


def test_the_tail_is_shaded_and_the_end_is_marked_in_every_column() -> None:
    axes = list(Figure().subplots(1, 3))
    _draw_row(axes, made("seer", 3, 3000.0))
    for axis in axes:
        (shade,) = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
        assert (shade.get_x(), shade.get_width()) == (2000.0, 1000.0)
        assert [3000.0, 3000.0] in [list(line.get_xdata()) for line in axis.lines]


@pytest.mark.parametrize("engines", [1, 5, 16, 17, 100])
def test_lines_or_a_band(engines: int) -> None:
    axes = list(Figure().subplots(1, 3))
    _draw_row(axes, made("seer", engines))
    lines = [line for line in axes[0].lines if len(line.get_xdata()) == 20]
    bands = axes[0].collections
    assert (len(lines), len(bands)) == {1: (1, 0), 5: (6, 0), 16: (17, 0)}.get(engines, (1, 2))


@pytest.mark.parametrize(
    ("engines", "explained"),
    [
        (1, set()),
        (2, {"one engine", "mean of the engines"}),
        (16, {"one engine", "mean of the engines"}),
        (17, {"median engine", "80 % of the engines", "all engines"}),
        (4096, {"median engine", "80 % of the engines", "all engines"}),
    ],
)
def test_the_legend_explains_what_is_drawn(engines: int, explained: set[str], tmp_path: Path) -> None:
    svg = drawn(tmp_path / "p.svg", made("seer", engines))
    about_engines = {text for text in texts(svg) if "engine" in text} - {"of an engine"}
    assert about_engines == explained
    assert "tail: the last 10 % of requests" in texts(svg)
    assert len(svg) < 400_000, "many engines are drawn one by one"


@pytest.mark.parametrize(("makespan_s", "points"), [(0.0, 1), (0.004, 2), (5e6, 3)])
def test_odd_times_are_drawn_without_a_warning(makespan_s: float, points: int, tmp_path: Path) -> None:
    draw([made("seer", 3, makespan_s, points)], tmp_path / "p.png", "a rollout")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_the_same_rollout_gives_the_same_file(tmp_path: Path) -> None:
    svg = drawn(tmp_path / "a.svg", made("seer", 3))
    assert svg == drawn(tmp_path / "b.svg", made("seer", 3))
    assert "<dc:date>" not in svg


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path: Path) -> None:
    code = f"""
import sys, matplotlib
from pathlib import Path
from seer_sgl.sim.picture import draw
from tests.unit.sim.test_picture import made
before = matplotlib.rcParams.copy()
draw([made("seer", 3)], Path({str(tmp_path / "p.png")!r}), "a rollout")
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.mark.parametrize("name", ["p.pdf", "p", "p.png.gz"])
def test_another_suffix_is_refused_with_those_there_are(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(StartError) as caught:
        draw([made("seer", 3)], path, "a rollout")
    assert str(caught.value) == f"{path}: a picture's name ends in .png or .svg, got {path.suffix!r}"
    assert not path.exists()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(StartError, match=re.escape("pip install 'seer-sgl[plot]'")):
        check_drawable(Path("p.png"))


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "p.png").mkdir()
    with pytest.raises(StartError, match=r"p\.png: Is a directory"):
        draw([made("seer", 3)], tmp_path / "p.png", "a rollout")


def test_a_rollout_without_a_timeline_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seer was simulated without a timeline"):
        draw([msgspec.structs.replace(made("seer", 3), timeline=None)], tmp_path / "p.png", "a rollout")
