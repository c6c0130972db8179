"""What one scheduling decision of the router's core costs in CPU time, by policy and backlog.

    python -m bench.core [--json FILE] [--quick]

16 engines with 64 request slots each, groups of 8, chunks of 512 tokens. The backlog is kept constant:
for every 8 requests delivered a new group arrives. At 1,000 all of it is in flight: there are 1,024
slots. `kv` is "ample" where slots are the limit, and "tight" where KV is: then requests do not fit, and
the core holds an engine for the first that waits. `fifo_group` reserves nothing, so its whole backlog is
in flight and KV makes no difference.

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

BACKLOGS = (1_000, 10_000, 100_000)
ENGINES = 16
SLOTS = 64
GROUP_SIZE = 8
CHUNK_TOKENS = 512
MAX_NEW_TOKENS = 8_192
MEAN_NEW_TOKENS = 1_536
KV_TOKENS = {"ample": 2_000_000, "tight": 65_536}
"""An engine's KV. 65,536 tokens hold about 30 chunks of these requests."""
EVENTS = 6_000
SECONDS_PER_EVENT = 0.001
SEED = 7


class Load:
    """A core with a constant backlog, and engines that answer one chunk at a time."""

    def __init__(self, policy: Policy, kv_tokens: int) -> None:
        self.core = RouterCore(policy, CoreSettings(chunk_tokens=CHUNK_TOKENS))
        self.random = Random(SEED)
        self.now_s = 0.0
        self.groups = 0
        self.owed = 0
        """Requests delivered and not yet replaced."""
        self.left_tokens: dict[RequestId, int] = {}
        """What each live request still has to say."""
        self.running: list[Dispatch] = []
        for number in range(ENGINES):
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
        self.now_s += SECONDS_PER_EVENT
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


def measure(policy: Policy, backlog: int, kv: str, events: int) -> Row:
    """One row: microseconds per dispatch once probes and the rest are mixed as they will stay."""
    load = Load(policy, KV_TOKENS[kv])
    load.step(load.arrive(backlog // GROUP_SIZE))
    for _ in range(1_000 + backlog // 2):
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
        "unfinished": backlog,
        "kv": kv,
        "in_flight": len(load.core.chunks),
        "dispatches": dispatches,
        "median_us": round(statistics.median(costs_us), 2),
        "p99_us": round(statistics.quantiles(costs_us, n=100)[98], 2),
    }


def figures_of(rows: list[Row]) -> dict[str, float]:
    """Medians by policy and backlog; of the policy `seer` also short names and the growth."""
    figures: dict[str, float] = {}
    for row in rows:
        tight = "_tight" if row["kv"] == "tight" else ""
        thousands = int(str(row["unfinished"])) // 1_000
        name = f"{row['policy']}{tight}_dispatch_us_{thousands}k"
        figures[name] = float(str(row["median_us"]))
    for thousands in (1, 10, 100):
        if (median := figures.get(f"seer_dispatch_us_{thousands}k")) is not None:
            figures[f"dispatch_us_{thousands}k"] = median
    if "dispatch_us_100k" in figures:
        figures["growth_x"] = round(figures["dispatch_us_100k"] / figures["dispatch_us_1k"], 2)
    return figures


def main() -> None:
    """Measure every policy at every backlog."""
    parser = argparse.ArgumentParser(description="Cost of a scheduling decision.")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--quick", action="store_true", help="no backlog of 100,000, fewer events")
    args = parser.parse_args()
    backlogs = BACKLOGS[:-1] if args.quick else BACKLOGS
    events = EVENTS // 2 if args.quick else EVENTS
    rows = [
        measure(policy, backlog, kv, events)
        for policy in POLICIES.values()
        for kv in (KV_TOKENS if policy.reserves else ["ample"])
        for backlog in backlogs
    ]
    finish(Report("bench.core", rows, figures_of(rows)), args.json)


if __name__ == "__main__":
    main()
