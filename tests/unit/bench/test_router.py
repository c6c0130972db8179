"""Figures of the router benchmark, from runs that are made up."""

import sys
from pathlib import Path

import pytest

from bench.load import Plan, Seen
from bench.report import Row
from bench.router import DIRECT, OURS, QUICK, STOCK, Measured, closed_rows, figures_of, open_rows
from bench.routers import Fleet, difference, running, wait_for

CPU_S = {
    DIRECT: {"mock engines": 0.1, "load": 0.2},
    OURS: {"router": 0.3, "agents": 0.1, "mock engines": 0.1, "load": 0.2},
    STOCK: {"stock router": 0.2, "mock engines": 0.1, "load": 0.2},
}
REQUESTS = {DIRECT: 40_000, OURS: 3_000, STOCK: 12_000}
P99_MS = {DIRECT: 1.0, OURS: 4.5, STOCK: 1.5}


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    def measure(_running: Fleet, way: str, plan: Plan) -> Measured:
        seen = Seen(requests=REQUESTS[way], seconds=2.0, p50_ms=P99_MS[way] / 2, p99_ms=P99_MS[way])
        assert plan.kind in ("closed", "open")
        return Measured(way, seen, CPU_S[way])

    monkeypatch.setattr("bench.router.measure", measure)
    fleet = Fleet(ports={DIRECT: 1, OURS: 2, STOCK: 3})
    return [
        *closed_rows(fleet, QUICK),
        *open_rows(fleet, QUICK),
        {"table": "open streams", "way": OURS, "streams_lost": 2, "pss_mib": 100},
        {"table": "open streams", "way": STOCK, "streams_lost": 0, "pss_mib": 90},
        {"table": "batch", "lines_per_s": 5000},
    ]


def test_added_latency_is_what_the_direct_way_has_not(rows: list[Row]) -> None:
    at_64 = {row["way"]: row for row in rows if row.get("concurrent") == 64}
    assert at_64[OURS]["requests_per_s"] == 1500
    assert at_64[OURS]["added_p99_ms"] == 3.5
    assert at_64[STOCK]["added_p50_ms"] == 0.25
    assert "added_p99_ms" not in at_64[DIRECT]


def test_cpu_time_is_that_of_a_request(rows: list[Row]) -> None:
    at_64 = {row["way"]: row for row in rows if row.get("concurrent") == 64}
    assert (at_64[OURS]["cpu_us"], at_64[OURS]["agents_us"]) == (133, 33)
    assert at_64[STOCK]["cpu_us"] == 17
    assert "cpu_us" not in at_64[DIRECT]


def test_figures_are_ours_beside_the_stock_router(rows: list[Row]) -> None:
    figures = figures_of(rows, has_stock=True)
    assert figures["rps_generate"] == 1500
    assert figures["rps_x_stock"] == 0.25
    assert figures["p99_added_ms_at_500"] == 3.5
    assert figures["streams_lost"] == 2
    assert figures["batch_lines_per_s"] == 5000
    assert "rps_x_stock" not in figures_of([row for row in rows if row.get("way") != STOCK], False)


def test_a_process_that_ends_early_is_told_with_its_words(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    with (
        running("thing", argv, tmp_path) as process,
        pytest.raises(RuntimeError, match=r"(?s)status 3.*no such model"),
    ):
        wait_for(process, "http://127.0.0.1:1/health", lambda _: True)


def test_cpu_time_counts_from_where_it_was() -> None:
    assert difference({"a": 3.5, "b": 1.0}, {"a": 1.5, "b": 1.0}) == {"a": 2.0, "b": 0.0}
