"""Tokens that a step brings with our drafts, by draft tokens and siblings: for the simulator.

    python -m bench.accepted --traces FOLDER [--json FILE] [--ranks FILE] [--quick]

Mean accept length, the verifier's own token included, of trees drafted from real groups: a group's last
samples are targets, so many of its first ones their references (the rule of `bench.replay`). Own history
is always there. FOLDER as in `bench.drafter`; of its files the one with the most samples counts. Without
one the small model is sampled. `seer_sgl.sim.speculation` holds the figures of the committed run.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.drafter import chosen
from bench.groups import find_ranks, load_folder, sample_small_model
from bench.ours import Ours
from bench.replay import IntArray, Shape, Task, replay
from bench.report import Report, Row, finish
from seer_sgl.sim.speculation import DRAFT_TOKENS, SIBLINGS

TARGETS = 2
"""Of each group: its last samples."""
REPLAYED_TOKENS = 150_000


def rows_of(groups: Sequence[Sequence[IntArray]], targets: int) -> list[Row]:
    """A row per number of siblings, a column per number of draft tokens."""
    rows: list[Row] = []
    for siblings in SIBLINGS:
        began_s = time.monotonic()
        tasks = [
            Task(group[:siblings], group[-1 - target]) for group in groups for target in range(targets)
        ]
        row: Row = {"siblings": siblings}
        for nodes in DRAFT_TOKENS:
            row[str(nodes)] = round(replay(Ours(), tasks, Shape(nodes, False), True).accept_length, 3)
        rows.append(row)
        print(f"{siblings} siblings: {time.monotonic() - began_s:.1f} s", file=sys.stderr)
    return rows


def figures_of(rows: Sequence[Row]) -> dict[str, float]:
    """Of what the most siblings add to own history, the share that fewer add, over all draft lengths."""
    lengths = np.array([[float(str(row[str(nodes)])) for nodes in DRAFT_TOKENS] for row in rows])
    gains = lengths - lengths[0]
    shares = gains.sum(axis=1) / gains[-1].sum()
    return {f"gained_{row['siblings']}": float(share) for row, share in zip(rows, shares, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Accept lengths for the simulator.")
    parser.add_argument("--traces", type=Path, help="folder of groups; else the small model is sampled")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--ranks", type=Path, help="byte-pair table in tiktoken's form")
    parser.add_argument("--quick", action="store_true", help="fewer groups")
    args = parser.parse_args()
    most = SIBLINGS[-1] + TARGETS
    if args.traces is None:
        sets = [sample_small_model(prompts=8 if args.quick else 24, samples=most)]
    else:
        sets = load_folder(args.traces, args.ranks or find_ranks())
    traces = max(sets, key=lambda each: (min(map(len, each.groups)) >= most) * each.tokens)
    groups = chosen(traces, REPLAYED_TOKENS // (8 if args.quick else 1))
    rows = rows_of(groups, 1 if args.quick else TARGETS)
    title = f"{(__doc__ or '').partition(chr(10))[0]} {len(groups)} groups of {traces.name}."
    finish(Report("bench.accepted", rows, figures_of(rows), title=title), args.json)


if __name__ == "__main__":
    main()
