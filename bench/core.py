"""What one scheduling decision of the router's core costs in CPU time, by policy, engines and backlog.

    python -m bench.core [--json FILE] [--quick]

Engines have 64 request slots each; groups of 8, chunks of 512 tokens. The backlog is kept constant: for
every 8 requests delivered a new group arrives. 1,000 requests on 16 engines are all in flight: there
are 1,024 slots. `kv` is "ample" where slots are the limit, and "tight" where KV is: then requests do not
fit, and the core holds an engine for the first that waits. What reserves nothing has its whole backlog
in flight, and KV makes no difference.

An event that dispatches nothing adds its time to the next one that does.
"""

import argparse
import statistics
import time
from pathlib import Path
from random import Random

from bench.report import Report, Row, finish
from seer_sgl.router.core import POLICIES, Policy, RouterCore
from seer_sgl.router.core.actions import Action, Deliver, Dispatch
from seer_sgl.router.core.events import ChunkFinished, EngineJoined, Event, Submitted
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.types import EngineId, EngineSpec, GroupId, RequestId

SIZES = ((16, 1_000), (16, 10_000), (16, 100_000), (4_096, 1_000_000))
"""Engines, and requests that are not finished."""
QUICK_SIZES = ((16, 1_000), (16, 10_000), (1_024, 100_000))
SLOTS = 64
GROUP_SIZE = 8
CHUNK_TOKENS = 512
MAX_NEW_TOKENS = 8_192
MEAN_NEW_TOKENS = 1_536
KV_TOKENS = {"ample": 2_000_000, "tight": 65_536}
"""An engine's KV. 65,536 tokens hold about 30 chunks of these requests."""
EVENTS = 6_000
WARM_UP = 50_000
"""At most so many events before those that are measured."""
CHUNK_S = 10.0
"""How long an engine takes for a chunk, whatever its length: 50 tokens a second."""
SEED = 7


class Load:
    """A core with a constant backlog, and engines that answer one chunk at a time."""

    def __init__(self, policy: Policy, engines: int, kv_tokens: int) -> None:
        self.core = RouterCore(policy, CoreSettings(chunk_tokens=CHUNK_TOKENS))
        self.random = Random(SEED)
        self.now_s = 0.0
        self.groups = 0
        self.owed = 0
        """Requests delivered and not yet replaced."""
        self.left_tokens: dict[RequestId, int] = {}
        """What each live request still has to say."""
        self.running: list[Dispatch] = []
        for number in range(engines):
            spec = EngineSpec(EngineId(f"e{number}"), kv_tokens, 64, SLOTS, context_tokens=32_768)
            self.core.handle(EngineJoined(spec), 0.0)

    def arrive(self, groups: int) -> list[Event]:
        """That many new groups."""
        events: list[Event] = []
        for _ in range(groups):
            self.groups += 1
            prompt_tokens = self.random.randrange(64, 1_024)
            for index in range(GROUP_SIZE):
                request_id = RequestId(f"{self.groups}.{index}")
                length = int(self.random.expovariate(1 / MEAN_NEW_TOKENS)) + 1
                self.left_tokens[request_id] = min(length, MAX_NEW_TOKENS)
                group_id = GroupId(str(self.groups))
                events.append(Submitted(request_id, group_id, prompt_tokens, MAX_NEW_TOKENS))
        return events

    def next_events(self) -> list[Event]:
        """Some engine answers a chunk; a group arrives where the last one's worth is done."""
        index = self.random.randrange(len(self.running))
        self.running[index], self.running[-1] = self.running[-1], self.running[index]
        chunk = self.running.pop()
        tokens = min(chunk.max_new_tokens, self.left_tokens[chunk.request_id])
        self.left_tokens[chunk.request_id] -= tokens
        ended = not self.left_tokens[chunk.request_id]
        events: list[Event] = [ChunkFinished(chunk.chunk_id, tokens, ended)]
        if self.owed >= GROUP_SIZE:
            self.owed -= GROUP_SIZE
            events += self.arrive(1)
        return events

    def step(self, events: list[Event]) -> tuple[int, int]:
        """Handle events; nanoseconds of CPU time that it took, and how many dispatches came of it."""
        self.now_s += CHUNK_S / max(1, len(self.running))
        began_ns = time.thread_time_ns()
        actions = self.core.handle_all(events, self.now_s)
        took_ns = time.thread_time_ns() - began_ns
        return took_ns, self._note(actions)

    def _note(self, actions: list[Action]) -> int:
        dispatched = [action for action in actions if isinstance(action, Dispatch)]
        self.running += dispatched
        for action in actions:
            if isinstance(action, Deliver):
                del self.left_tokens[action.request_id]
                self.owed += 1
        return len(dispatched)


def measure(policy: Policy, engines: int, backlog: int, kv: str, events: int) -> Row:
    """One row: microseconds per dispatch once probes and the rest are mixed as they will stay."""
    load = Load(policy, engines, KV_TOKENS[kv])
    load.step(load.arrive(backlog // GROUP_SIZE))
    for _ in range(min(1_000 + backlog // 2, WARM_UP)):
        load.step(load.next_events())
    costs_us: list[float] = []
    spent_ns = dispatches = 0
    for _ in range(events):
        took_ns, dispatched = load.step(load.next_events())
        spent_ns += took_ns
        if dispatched:
            costs_us += [spent_ns / dispatched / 1_000] * dispatched
            dispatches, spent_ns = dispatches + dispatched, 0
    return {
        "policy": policy.name,
        "engines": engines,
        "unfinished": backlog,
        "kv": kv,
        "in_flight": len(load.core.chunks),
        "dispatches": dispatches,
        "median_us": round(statistics.median(costs_us), 2),
        "p99_us": round(statistics.quantiles(costs_us, n=100)[98], 2),
    }


def figures_of(rows: list[Row]) -> dict[str, float]:
    """Medians by policy, engines and backlog; of the policy `seer` also short names and the growth."""
    figures: dict[str, float] = {}
    for row in rows:
        tight = "_tight" if row["kv"] == "tight" else ""
        size = f"{row['engines']}x{int(str(row['unfinished'])) // 1_000}k"
        figures[f"{row['policy']}{tight}_dispatch_us_{size}"] = float(str(row["median_us"]))
    for (engines, backlog), name in (
        ((16, 1_000), "dispatch_us_1k"),
        ((16, 10_000), "dispatch_us_10k"),
        ((16, 100_000), "dispatch_us_100k"),
        ((4_096, 1_000_000), "dispatch_us_4096_engines"),
    ):
        long_name = f"seer_dispatch_us_{engines}x{backlog // 1_000}k"
        if long_name in figures:
            figures[name] = figures[long_name]
    if "dispatch_us_100k" in figures:
        figures["growth_x"] = round(figures["dispatch_us_100k"] / figures["dispatch_us_1k"], 2)
    if "dispatch_us_4096_engines" in figures:
        grown = figures["dispatch_us_4096_engines"] / figures["dispatch_us_100k"]
        figures["engines_growth_x"] = round(grown, 2)
    return figures


def main() -> None:
    """Measure every policy at every backlog."""
    parser = argparse.ArgumentParser(description="Cost of a scheduling decision.")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--quick", action="store_true", help="fewer engines, requests and events")
    args = parser.parse_args()
    sizes = QUICK_SIZES if args.quick else SIZES
    events = EVENTS // 2 if args.quick else EVENTS
    rows = [
        measure(policy, engines, backlog, kv, events)
        for policy in POLICIES.values()
        for kv in (KV_TOKENS if policy.reserves else ["ample"])
        for engines, backlog in sizes
    ]
    finish(Report("bench.core", rows, figures_of(rows)), args.json)


if __name__ == "__main__":
    main()
