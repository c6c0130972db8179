"""Length estimates on the lengths of real groups of samples, simulated.

    python -m bench.traces FOLDER [--json FILE]

FOLDER holds gzipped JSONL files, a sample per line with `group` and `text`. A text's length counts; all
are scaled to Qwen2-VL-72B's mean and cut at its limit. Groups are taken again, shuffled, until there
are as many requests for each engine as in the paper's rollout. `x` is the throughput as a multiple of
`divided`'s, `of_oracle` of the oracle's; both over 5 shuffles.
"""

import argparse
import gzip
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from random import Random

from bench.report import Report, Row, finish
from seer_sgl.router.core.estimates import ESTIMATES
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.sim.files import load_workload, with_changes
from seer_sgl.sim.run import simulate

ENGINES = 4
REQUESTS = 2_400
GROUP_SIZE = 16
SHUFFLES = 5


def group_lengths(path: Path) -> list[list[int]]:
    """Characters of each sample, by group."""
    groups: dict[str, list[int]] = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            groups[str(row["group"])].append(len(row["text"]) + 1)
    return list(groups.values())


def iteration(groups: list[list[int]], mean: float, limit: int, seed: int) -> list[list[int]]:
    """A rollout's worth of groups of at most `GROUP_SIZE`, scaled to a mean before they are cut."""
    random = Random(seed)
    scale = mean / statistics.fmean(length for samples in groups for length in samples)
    drawn: list[list[int]] = []
    while sum(map(len, drawn)) < REQUESTS:
        samples = random.choice(groups)
        few = random.sample(samples, min(GROUP_SIZE, len(samples)))
        drawn.append([min(limit, max(1, round(length * scale))) for length in few])
    return drawn


def measure(name: str, groups: list[list[int]]) -> list[Row]:
    """One row per policy and estimate."""
    changes = {"engines": ENGINES, "speculation": None}
    workload = with_changes(load_workload("qwen2-vl-72b"), changes)
    mean, limit = workload.lengths.mean_tokens, workload.max_new_tokens
    drawn = [iteration(groups, mean, limit, seed) for seed in range(SHUFFLES)]
    constant = CoreSettings(chunk_plan="constant", settle_s=0.0)

    def seconds(policy: str, estimate: str | None = None) -> float:
        runs = (
            simulate(workload, policy, estimate=estimate, lengths=lengths, settings=constant)
            for lengths in drawn
        )
        return statistics.fmean(run.makespan_s for run in runs)

    found = {"divided": seconds("divided"), "oracle": seconds("oracle")}
    found |= {f"seer, {estimate}": seconds("seer", estimate) for estimate in ESTIMATES}
    return [
        {
            "traces": name,
            "policy": policy,
            "seconds": round(took_s, 1),
            "x": round(found["divided"] / took_s, 3),
            "of_oracle": round(found["oracle"] / took_s, 3),
        }
        for policy, took_s in found.items()
    ]


def figures_of(rows: Iterable[Row]) -> dict[str, float]:
    """The mean share of the oracle of each estimate."""
    shares: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if str(row["policy"]).startswith("seer, "):
            shares[str(row["policy"]).removeprefix("seer, ")].append(float(str(row["of_oracle"])))
    return {f"of_oracle_{name}": statistics.fmean(values) for name, values in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Length estimates on real groups, simulated.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args()
    rows: list[Row] = []
    for path in sorted(args.folder.glob("*.jsonl.gz")):
        rows += measure(path.name.removesuffix(".jsonl.gz"), group_lengths(path))
    finish(Report("bench.traces", rows, figures_of(rows)), args.json)


if __name__ == "__main__":
    main()
