"""Drafters on real groups: CPU time to append and draft, memory, and how many drafted tokens are right.

    python -m bench.drafter [--json FILE] [--traces FOLDER] [--ranks FILE] [--arctic FOLDER] [--quick]

FOLDER holds gzipped JSONL files of groups (`bench.groups`); without one the small model is sampled.
Ours stands beside Arctic's C++ suffix trees (`--arctic` names the folder of their module), SGLang's
NGRAM corpus and prompt lookup; what is not installed is left out, and said so.

Costs are CPU time of one pinned core, in microseconds per token or request; `bench.draft_costs` has the
load. Arctic stands there twice: as it is used, with what a request itself says in its tree, and with the
finished samples only, where most of a context's suffixes are found nowhere and drafts are cheaper.
Accept lengths follow the rule of `bench.replay`: the target is a group's sample number k, its references
are the k before it; `fixed targets` are samples 16 to 18, with the first k as references, and not
replayed on SGLang's corpus, which takes minutes. SGLang's chain is its tree of breadth 1.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.draft_costs import Costs, Load, Subject, make_load, medians
from bench.groups import Traces, find_ranks, load_folder, sample_small_model
from bench.ours import Ours, OursCost
from bench.peer_costs import ArcticCost, peer_subjects
from bench.peers import Arctic, PromptLookup, SglangCorpus, find_arctic, find_sglang
from bench.replay import Drafter, Shape, Task, replay
from bench.report import Report, Row, Value, finish

REFERENCES = (0, 1, 3, 7, 15)
SHAPES = (Shape(8, True), Shape(8, False), Shape(16, False), Shape(32, False))
FIXED_TARGETS = (16, 17, 18)
REPEATS = 5
REPLAYED_TOKENS = 60_000
"""Of targets, about; of long samples fewer groups are replayed."""
LABELS = {"append_sample": "append samples", "append_3": "append 3 tokens"}
FINISHED_ONLY = "arctic, finished only"
LOAD_GROUPS = 4
FINISHED, LIVE, STEPS = 15, 16, 12
COLD_STEPS = 20
COLD_GROUPS = 140


TITLE = (
    "Drafters on real groups. Costs are microseconds of CPU time of one pinned core, per token to append"
    " and per request to draft: the same drafts again and again (`alone`, `64 a call`), or the groups in"
    " turn, each call the first in its group for a while (`cold`). Accept lengths are tokens per step, "
    "by the number of finished samples of the group that the drafter has seen; `own`: and what the "
    "target itself has said."
)


@dataclass(frozen=True)
class Peers:
    """What was found of them."""

    arctic: Any
    sglang: Any

    def drafters(self) -> dict[str, Drafter]:
        """Ours first."""
        found: dict[str, Drafter] = {"ours": Ours()}
        if self.arctic is not None:
            found["arctic"] = Arctic(self.arctic)
        if self.sglang is not None:
            found["sglang"] = SglangCorpus(self.sglang)
        return found | {"prompt lookup": PromptLookup()}

    def warm_subjects(self, load: Load) -> Iterator[Subject]:
        """All whose cost is measured."""
        yield OursCost()
        yield from peer_subjects(self.arctic, self.sglang, load)

    def cold_subjects(self, load: Load) -> Iterator[Subject]:
        """SGLang's corpus would take gigabytes."""
        yield OursCost()
        if self.arctic is not None:
            yield ArcticCost(self.arctic)


def cost_rows(name: str, groups: Sequence[Sequence[Any]], peers: Peers, quick: bool) -> list[Row]:
    """One row per drafter and thing that it does."""
    sized = [group for group in groups if len(group) >= FINISHED + LIVE]
    parts = [
        sized[i : i + LOAD_GROUPS] for i in range(0, LOAD_GROUPS * (1 if quick else 2), LOAD_GROUPS)
    ]
    loads = [load for part in parts if (load := make_load(part, FINISHED, LIVE, STEPS)).said]
    if not loads:
        needed = f"{FINISHED + LIVE} samples, {LIVE} of them longer than {6 * STEPS} tokens"
        print(f"{name}: no group has {needed}; costs are left out", file=sys.stderr)
        return []
    repeats = 1 if quick else REPEATS
    warm = medians(peers.warm_subjects, loads, repeats, warm=True)
    halves = [group[i : i + FINISHED + 1] for group in groups for i in (0, FINISHED + 1)]
    many = [half for half in halves if len(half) > FINISHED][: 40 if quick else COLD_GROUPS]
    cold_load = make_load(many, FINISHED, 1, COLD_STEPS)
    print(f"cold: {len(cold_load.finished)} groups", file=sys.stderr)
    cold = medians(peers.cold_subjects, [cold_load], repeats, warm=False)
    costs = {drafter: found | cold.get(drafter, {}) for drafter, found in warm.items()}
    for what in ("append_sample", "append_3"):  # it appends nothing but the samples
        costs.get(FINISHED_ONLY, {}).pop(what, None)
    whats = dict.fromkeys(_what(key) for found in costs.values() for key in found)
    whats.pop("bytes_per_token", None)
    return [
        {"table": "costs", "traces": name, "what": LABELS.get(what, what), "drafter": drafter, **row}
        for what in whats
        for drafter, found in costs.items()
        if (row := _cells(found, what))
    ]


def _what(key: str) -> str:
    return key.removeprefix("cold ").removesuffix(" together")


def _cells(found: Costs, what: str) -> Row:
    """Where and how it was done."""
    columns = {
        "alone": what,
        "64 a call": f"{what} together",
        "cold": f"cold {what}",
        "cold, 64 a call": f"cold {what} together",
    }
    if what == "append_sample":
        columns["bytes/token"] = "bytes_per_token"
    return {column: _rounded(found[key]) for column, key in columns.items() if key in found}


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def accept_rows(traces: Traces, peers: Peers, quick: bool, fixed: bool = False) -> Iterator[Row]:
    """One row per drafter and shape; a column per number of references, with and without own history."""
    tokens = REPLAYED_TOKENS // (8 if quick else 1)
    groups = chosen(traces, tokens // len(FIXED_TARGETS) if fixed else tokens)
    most = min(map(len, groups)) - 1
    cells = {k: tasks_of(groups, k, fixed) for k in sorted({min(k, most) for k in REFERENCES})}
    label = f"{traces.name}, fixed targets" if fixed else traces.name
    for name, drafter in peers.drafters().items():
        if fixed and name == "sglang":  # which takes minutes
            continue
        for shape in SHAPES if name != "prompt lookup" else SHAPES[:1]:
            began_s = time.monotonic()
            row: Row = {"table": "accept length", "traces": label, "groups": len(groups)}
            row |= {"drafter": name, "draft": shape.label}
            for k, tasks in cells.items():
                for own in (False, True) if k else (True,):
                    found = replay(drafter, tasks, shape, own)
                    row[f"{k}{', own' if own else ''}"] = round(found.accept_length, 3)
            print(f"{label}, {name}, {shape.label}: {time.monotonic() - began_s:.1f} s", file=sys.stderr)
            yield row


def chosen(traces: Traces, tokens: int) -> Sequence[Sequence[Any]]:
    """Groups spread over the file, as many as have about that many tokens if a sample of each counts."""
    samples = sum(map(len, traces.groups))
    each = traces.tokens / samples
    every = max(1, round(len(traces.groups) * each / tokens))
    return traces.groups[::every]


def tasks_of(groups: Sequence[Sequence[Any]], k: int, fixed: bool) -> list[Task]:
    """Targets with `k` references."""
    targets = FIXED_TARGETS if fixed else (k,)
    return [Task(group[:k], group[target]) for group in groups for target in targets]


def figures_of(rows: Sequence[Row], main: str) -> dict[str, float]:
    """Ratios to Arctic with the values that they are of, and accept lengths of the main traces."""
    costs = {
        (str(row["drafter"]), str(row["what"]), column): float(str(value))
        for row in rows
        if row["table"] == "costs"
        for column, value in row.items()
        if isinstance(value, int | float)
    }
    figures: dict[str, float] = {}
    for name, what, ours, theirs in (
        ("append", "append samples", "alone", "alone"),
        ("append_3", "append 3 tokens", "alone", "alone"),
        ("append_3_batched", "append 3 tokens", "64 a call", "alone"),
        ("append_3_cold", "append 3 tokens", "cold", "cold"),
        ("append_3_cold_batched", "append 3 tokens", "cold, 64 a call", "cold"),
        ("chain_batched", "chain 8", "64 a call", "alone"),
        ("chain_alone", "chain 8", "alone", "alone"),
        ("chain_cold_batched", "chain 8", "cold, 64 a call", "cold"),
        ("tree32", "tree 32", "64 a call", "alone"),
        ("tree32_cold", "tree 32", "cold, 64 a call", "cold"),
    ):
        own_us = costs.get(("ours", what, ours))
        if own_us is None:
            continue
        figures[f"{name}_us"] = own_us
        for peer, suffix in (("arctic", "cpp"), (FINISHED_ONLY, "cpp_finished_only")):
            if (their_us := costs.get((peer, what, theirs))) is not None:
                figures[f"{name}_us_{suffix}"] = their_us
                figures[f"{name}_x_{suffix}"] = round(their_us / own_us, 2)
    for peer, suffix in (("ours", ""), ("arctic", "_cpp"), ("sglang", "_sglang")):
        if (held := costs.get((peer, "append samples", "bytes/token"))) is not None:
            figures[f"bytes_per_token{suffix}"] = held
    return figures | accept_figures(rows, main)


def accept_figures(rows: Sequence[Row], main: str) -> dict[str, float]:
    """Of the main traces with all references and own history; in how many cells a peer is better."""
    found: dict[tuple[Value, Value, str], dict[str, float]] = {}
    for row in rows:
        for column, value in row.items():
            if row["table"] == "accept length" and column[0].isdigit():
                cell = found.setdefault((row["traces"], row["draft"], column), {})
                cell[str(row["drafter"])] = float(str(value))
    most = f"{REFERENCES[-1]}, own"
    figures: dict[str, float] = {}
    for draft, name in (("chain 8", "accept_chain8_k15"), ("tree 32", "accept_tree32_k15")):
        for drafter, value in found.get((main, draft, most), {}).items():
            suffix = "" if drafter == "ours" else f"_{drafter.replace(' ', '_')}"
            figures[name + suffix] = value
    gains = [
        cell["ours"] - max(value for drafter, value in cell.items() if drafter != "ours")
        for cell in found.values()
        if len(cell) > 1
    ]
    if not gains:
        return figures
    figures["cells"] = len(gains)
    figures["cells_where_a_peer_is_better"] = sum(gain < 0 for gain in gains)
    figures["least_gain"] = round(min(gains), 3)
    return figures


def main() -> None:
    """Measure costs on the traces with the most samples in a group, accept lengths on all."""
    parser = argparse.ArgumentParser(description="Cost and accept length of drafters.")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--traces", type=Path, help="folder of groups; else the small model is sampled")
    parser.add_argument("--ranks", type=Path, help="byte-pair table in tiktoken's form")
    parser.add_argument("--arctic", type=Path, help="folder of the compiled _C module")
    parser.add_argument("--quick", action="store_true", help="fewer groups and repeats")
    args = parser.parse_args()
    if args.traces is None:
        sets = [sample_small_model(prompts=8 if args.quick else 16, samples=FINISHED + LIVE + 1)]
    else:
        sets = load_folder(args.traces, args.ranks or find_ranks())
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    peers = Peers(find_arctic(args.arctic), find_sglang())
    missing = [name for name in ("arctic", "sglang") if getattr(peers, name) is None]
    large = max(sets, key=lambda traces: (len(traces.groups[0]) > FINISHED + LIVE) * traces.tokens)
    rows = cost_rows(large.name, large.groups, peers, args.quick)
    for traces in sets:
        rows += accept_rows(traces, peers, args.quick)
    if min(map(len, large.groups)) > FIXED_TARGETS[-1]:
        rows += accept_rows(large, peers, args.quick, fixed=True)
    note = f" Left out, not installed: {', '.join(missing)}." if missing else ""
    finish(Report("bench.drafter", rows, figures_of(rows, large.name), title=TITLE + note), args.json)


if __name__ == "__main__":
    main()
