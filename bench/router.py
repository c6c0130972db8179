"""What a router costs: ours and stock `sglang-router` side by side, before engines that cost nothing.

    python -m bench.router [--json FILE] [--quick] [--stock-python PATH]

The stock router is another distribution with other dependencies: install it into an environment of its
own (`python -m venv stock; stock/bin/pip install sglang-router==0.3.2`) and name that one's interpreter.
Without it, and where this interpreter has none either, its rows are left out.

Everything runs on this machine: load generator (`bench/load.py`), routers, our agents, two mock engines
in one process (`bench/mock_engine.py`). Added latency is a percentile through a router less the same
percentile straight to a mock engine under the same load. Of several rounds the median one counts, by
requests per second or p99; the ways take turns. CPU time is per request, of each process; `cpu_us` is
that of all processes of a router, for ours with the agents. Streams get a token every few seconds, and
each is checked to its last one.

In the closed loop a latency is mostly the time that a request waits for those before it, as some process
is always busy; at the constant rate it is what a request alone takes.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench import batches
from bench.load import Plan, Seen
from bench.report import ROOT, Report, Row, finish
from bench.routers import Fleet, default_stock_python, difference, fleet, stock_version

CONCURRENT = (1, 64, 1000)
RATE = 500.0
EVENT_S = 4.0
OURS, STOCK, DIRECT = "seer-sgl", "sglang-router", "direct"


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    seconds: float
    open_s: float
    streams: int
    streams_s: float
    lines: int


FULL = Size(rounds=3, seconds=6.0, open_s=20.0, streams=4096, streams_s=60.0, lines=50_000)
QUICK = Size(rounds=1, seconds=2.0, open_s=4.0, streams=256, streams_s=8.0, lines=5_000)


@dataclass
class Measured:
    """One run of the load generator through one way."""

    way: str
    seen: Seen
    cpu_s: dict[str, float]
    """CPU time of each process while it measured."""
    rss_mib: float = 0.0
    pss_mib: float = 0.0
    """Most memory of the router's processes while it measured."""


def measure(running: Fleet, way: str, plan: Plan) -> Measured:
    """Run the load generator; note what the processes on the way spend meanwhile."""
    plan.port = running.ports[way]
    argv = [sys.executable, "-m", "bench.load", msgspec.json.encode(plan).decode()]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        load.stdout.readline()  # it begins to measure
        before = running.cpu_s(way)
        memory = _Memory(running, way)
        said = load.stdout.readline()
        cpu_s = difference(running.cpu_s(way), before)
        rss_mib, pss_mib = memory.stop()
    if load.returncode:
        raise RuntimeError(f"the load generator failed on {way}")
    seen = msgspec.json.decode(said, type=Seen)
    return Measured(way, seen, {**cpu_s, "load": seen.cpu_s}, rss_mib, pss_mib)


class _Memory:
    """Looks at the memory of a way's router while something else runs."""

    def __init__(self, running: Fleet, way: str) -> None:
        self._parts = running.parts[way]
        self._most = [(0.0, 0.0)]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> tuple[float, float]:
        """The most that it saw, in MiB: resident, proportional."""
        self._ended.set()
        self._thread.join()
        return max(rss for rss, _ in self._most), max(pss for _, pss in self._most)

    def _watch(self) -> None:
        while not self._ended.wait(2.0):
            seen = [part.memory_mib() for part in self._parts]
            self._most.append((sum(rss for rss, _ in seen), sum(pss for _, pss in seen)))


def closed_rows(running: Fleet, size: Size) -> list[Row]:
    """Requests per second and latency with as many requests under way."""
    rows: list[Row] = []
    for concurrent in CONCURRENT:
        plan = Plan("closed", 0, concurrency=concurrent, seconds=size.seconds)
        runs = _rounds(running, plan, size.rounds)
        best = {
            way: _median(seen, lambda run: run.seen.requests / run.seen.seconds) for way, seen in runs
        }
        rows += [
            {
                "table": "closed loop",
                "concurrent": concurrent,
                "way": way,
                "requests_per_s": round(run.seen.requests / run.seen.seconds),
                **_latencies(run, best[DIRECT]),
                **_cpu_us(run),
            }
            for way, run in best.items()
        ]
    return rows


def open_rows(running: Fleet, size: Size) -> list[Row]:
    """Latency at a constant rate, from when each request was due."""
    plan = Plan("open", 0, rate=RATE, seconds=size.open_s)
    best = {
        way: _median(seen, lambda run: run.seen.p99_ms)
        for way, seen in _rounds(running, plan, size.rounds)
    }
    return [
        {
            "table": "open loop",
            "rate_per_s": RATE,
            "way": way,
            **_latencies(run, best[DIRECT]),
            "late_p99_ms": round(run.seen.late_p99_ms, 2),
            **_cpu_us(run),
        }
        for way, run in best.items()
    ]


def stream_rows(running: Fleet, size: Size) -> list[Row]:
    """Many streams that are open at once, each checked to its last token."""
    plan = Plan("streams", 0, concurrency=size.streams, seconds=size.streams_s, event_s=EVENT_S)
    rows: list[Row] = []
    for way in running.ports:
        run = measure(running, way, plan)
        seen = run.seen
        rows.append(
            {
                "table": "open streams",
                "way": way,
                "streams": seen.streams,
                "most_open": seen.most_open,
                "open_s": size.streams_s,
                "streams_lost": seen.streams_lost,
                "events": seen.events,
                "tokens_lost": seen.tokens_lost,
                "tokens_merged": seen.tokens_merged,
                "events_duplicated": seen.events_duplicated,
                "events_disordered": seen.events_disordered + seen.events_wrong,
                "lag_p50_ms": round(seen.p50_ms, 2),
                "lag_p99_ms": round(seen.p99_ms, 2),
                "cpu_us_per_event": _per(run.cpu_s, seen.events, *_router_names(run)),
                "rss_mib": round(run.rss_mib),
                "pss_mib": round(run.pss_mib),
            }
        )
    return rows


def memory_rows(running: Fleet, when: str) -> list[Row]:
    """Memory of each router process now."""
    rows: list[Row] = []
    for way, parts in running.parts.items():
        for part in parts:
            rss_mib, pss_mib = part.memory_mib()
            memory: Row = {"rss_mib": round(rss_mib), "pss_mib": round(pss_mib)}
            rows.append({"table": "memory", "when": when, "way": way, "process": part.name, **memory})
    return rows


def _rounds(running: Fleet, plan: Plan, rounds: int) -> list[tuple[str, list[Measured]]]:
    runs: dict[str, list[Measured]] = {way: [] for way in running.ports}
    for _ in range(rounds):
        for way, seen in runs.items():
            seen.append(measure(running, way, plan))
    return list(runs.items())


def _median(runs: list[Measured], key: Callable[[Measured], float]) -> Measured:
    return sorted(runs, key=key)[len(runs) // 2]


def _latencies(run: Measured, direct: Measured) -> Row:
    row: Row = {
        "failed": run.seen.failed,
        "p50_ms": round(run.seen.p50_ms, 2),
        "p99_ms": round(run.seen.p99_ms, 2),
    }
    if run is not direct:
        row["added_p50_ms"] = round(run.seen.p50_ms - direct.seen.p50_ms, 2)
        row["added_p99_ms"] = round(run.seen.p99_ms - direct.seen.p99_ms, 2)
    return row


def _cpu_us(run: Measured) -> Row:
    """CPU time per request of the router's processes together, and of each other one."""
    count = run.seen.requests
    row: Row = {}
    if names := _router_names(run):
        row["cpu_us"] = _per(run.cpu_s, count, *names)
    if "agents" in run.cpu_s:
        row["agents_us"] = _per(run.cpu_s, count, "agents")
    row["mock_us"] = _per(run.cpu_s, count, "mock engines")
    row["load_us"] = _per(run.cpu_s, count, "load")
    return row


def _router_names(run: Measured) -> list[str]:
    return [name for name in run.cpu_s if name not in ("mock engines", "load")]


def _per(cpu_s: dict[str, float], count: int, *names: str) -> int:
    return round(sum(cpu_s[name] for name in names) * 1e6 / max(1, count))


def figures_of(rows: list[Row], has_stock: bool) -> dict[str, float]:
    """What the texts quote."""

    def value(key: str, **where: object) -> float:
        found = [row for row in rows if all(row.get(name) == wanted for name, wanted in where.items())]
        return float(str(found[0][key]))

    rps = value("requests_per_s", table="closed loop", way=OURS, concurrent=64)
    figures = {
        "rps_generate": rps,
        "rps_generate_1000": value("requests_per_s", table="closed loop", way=OURS, concurrent=1000),
        "cpu_us_generate": value("cpu_us", table="closed loop", way=OURS, concurrent=64),
        "p50_added_ms_at_1": value("added_p50_ms", table="closed loop", way=OURS, concurrent=1),
        "p50_added_ms_at_500": value("added_p50_ms", table="open loop", way=OURS),
        "p99_added_ms_at_500": value("added_p99_ms", table="open loop", way=OURS),
        "streams_lost": value("streams_lost", table="open streams", way=OURS),
        "streams_pss_mib": value("pss_mib", table="open streams", way=OURS),
        "batch_lines_per_s": value("lines_per_s", table="batch"),
    }
    if has_stock:
        stock = value("requests_per_s", table="closed loop", way=STOCK, concurrent=64)
        figures["rps_stock"] = stock
        figures["rps_x_stock"] = round(rps / stock, 3)
        figures["p99_added_ms_at_500_stock"] = value("added_p99_ms", table="open loop", way=STOCK)
        figures["streams_lost_stock"] = value("streams_lost", table="open streams", way=STOCK)
    return figures


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description="What a router costs.")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--quick", action="store_true", help="a few seconds of each part")
    parser.add_argument(
        "--stock-python",
        default=default_stock_python(),
        help="interpreter that has sglang-router installed",
    )
    args = parser.parse_args()
    size = QUICK if args.quick else FULL
    version = stock_version(args.stock_python) if args.stock_python else ""
    with tempfile.TemporaryDirectory() as folder:
        with fleet(args.stock_python, EVENT_S, Path(folder)) as running:
            rows = memory_rows(running, "at the start")
            rows += closed_rows(running, size) + open_rows(running, size)
            rows += memory_rows(running, "after the requests")
            rows += stream_rows(running, size)
        rows += batches.rows(size.lines, Path(folder))
    report = Report("bench.router", rows, figures_of(rows, bool(version)))
    report.machine.update({"stock_router": version} if version else {})
    finish(report, args.json)


if __name__ == "__main__":
    main()
