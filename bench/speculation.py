"""How much to draft: readings of a draft token's worth, on simulated engines that decode real samples.

    python -m bench.speculation [--json FILE] [--traces FOLDER] [--ranks FILE] [--quick]

Drafts are real: samples are replayed through the drafter, each with finished and with growing siblings,
and what is accepted is what the sample goes on with. Only the clock is made up: a step takes what the
engine's formula says (`ENGINES`). Cells are tokens per second as multiples of plain decoding on the same
engine.

`fixed 8` drafts 8 tokens whatever it costs. `paper` and `marginal` are the two readings of the paper's
Algorithm 1 (arXiv 2511.14617v3, 3.4), on chains as there; `confidence` takes the surest nodes of all
requests, on chains and on trees, and on trees with one width for the whole batch (`uniform`). All these
know what steps cost; `unprofiled` is `confidence` on trees that has to find out, from its first step on.
FOLDER as in `bench.drafter`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.groups import find_ranks, load_folder, sample_small_model
from bench.replay import matched
from bench.report import Report, Row, finish
from seer_sgl.sim.files import load_workload
from seer_sgl.spec.acceptance import Acceptance, taken_nodes
from seer_sgl.spec.budget import Budget, Load, Reading, Rules
from seer_sgl.spec.cost import Step, StepCost
from seer_sgl.spec.forest import Drafts, Forest

IntArray = npt.NDArray[np.int32]
Group = Sequence[IntArray]

BATCHES = ((1, 0), (4, 0), (16, 2), (16, 8), (64, 8), (64, 32), (256, 32))
"""Requests, and how many of them are probes."""
QUICK_BATCHES = ((1, 0), (16, 8), (64, 8))
FINISHED = 8
"""Samples of each group that are there from the start."""
PROMPT_TOKENS = 256
STEPS = 400
WARM_UP = 100
"""Steps before those that count: acceptance is learnt."""
LEAST_REQUESTS = 16
"""Where the batch is smaller, so many are decoded in several runs."""
MAX_DEPTH = 16
BUDGET_BYTES = 4 << 30


# ---- made-up engines ----

QWEN = load_workload("qwen2-vl-72b").engine
KIMI = load_workload("kimi-k2").engine


def dense_gpu(step: Step) -> float:
    """Qwen2-VL-72B on 8 H800, as `bench.policy` simulates it: 132 rows come for free."""
    return QWEN.step_s(step.requests, step.kv_tokens, step.rows / step.requests)


EXPERTS, PER_TOKEN, SHARED = 384, 8, 0.15
"""Of Kimi-K2 (config.json); the share of the weights that every token goes through is assumed."""


def moe_gpu(step: Step) -> float:
    """Kimi-K2 on one of 32 ranks, as `bench.policy` has it, but rows read the experts that they meet."""
    met = 1.0 - (1.0 - PER_TOKEN / EXPERTS) ** (step.rows * 32)
    weights_s = KIMI.weights_s * (SHARED + (1.0 - SHARED) * met)
    products_s = max(weights_s, step.rows * KIMI.token_s)
    return KIMI.fixed_s + products_s + step.kv_tokens * KIMI.kv_token_s


def cpu(step: Step) -> float:
    """A padded small model: 17 ms a step, 1.13 times that with 8 rows; requests cost some Python."""
    verify_s = 3e-4 if step.rows > step.requests else 0.0
    return 0.0167 + verify_s + 1e-4 * step.requests + 2.5e-4 * step.rows + 2e-8 * step.kv_tokens


ENGINES: dict[str, Callable[[Step], float]] = {"dense GPU": dense_gpu, "MoE GPU": moe_gpu, "CPU": cpu}


# ---- what decides ----


@dataclass(frozen=True)
class Way:
    """How much is drafted."""

    reading: Reading | None = None
    """None: plainly, or `fixed`."""
    fixed: int = 0
    chain: bool = True
    uniform: bool = False
    profiled: bool = True

    def budget(self, engine: Callable[[Step], float]) -> Budget | None:
        """None where nothing is to be decided."""
        if self.reading is None:
            return None
        cost = StepCost(profile_of(engine) if self.profiled else ())
        rules = Rules(reading=self.reading, uniform=self.uniform)
        return Budget(rules, cost, Acceptance(MAX_DEPTH))


WAYS = {
    "plain": Way(),
    "fixed 8": Way(fixed=8),
    "paper": Way("paper"),
    "marginal": Way("marginal"),
    "confidence, chains": Way("confidence"),
    "confidence": Way("confidence", chain=False),
    "uniform": Way("confidence", chain=False, uniform=True),
    "unprofiled": Way("confidence", chain=False, profiled=False),
}


def profile_of(engine: Callable[[Step], float]) -> list[tuple[Step, float]]:
    """What a profile of this engine would measure."""
    steps = [
        Step(requests, requests * width, requests * held)
        for requests in (1, 4, 16, 64, 256)
        for width in (1, 2, 4, 8, 16, 32)
        for held in (256.0, 2048.0)
    ]
    return [(step, engine(step)) for step in steps]


# ---- a batch that decodes known samples ----


class Batch:
    """Requests that say what their samples say; who is done makes place for the group's next sample.

    Args:
        groups: their samples; the first ones are finished, the others are said here.
        requests: how many at a time, spread over the groups.
    """

    def __init__(self, groups: Sequence[Group], requests: int) -> None:
        self.forest = Forest(BUDGET_BYTES)
        self.requests = requests
        self._groups = [groups[i % len(groups)] for i in range(requests)]
        self._names = [str(i % len(groups)) for i in range(requests)]
        self._next = [FINISHED + i // len(groups) for i in range(requests)]
        self._apart = max(1, -(-requests // len(groups)))
        """Requests of one group."""
        for name, group in dict(zip(self._names, self._groups, strict=True)).items():
            for number, sample in enumerate(group[:FINISHED]):
                self.forest.append(self.forest.open(name, number), 0, sample)
        self.paths = np.zeros(requests, np.int32)
        self._targets = [np.zeros(0, np.int32)] * requests
        self._said = np.zeros(requests, np.int64)
        self._samples = 0
        for request in range(requests):
            self._begin(request)

    def _begin(self, request: int) -> None:
        group = self._groups[request]
        sample = group[self._next[request] % len(group)]
        self._next[request] += self._apart
        self._samples += 1
        self.paths[request] = self.forest.open(self._names[request], 10_000 + self._samples)
        self._targets[request] = sample
        self._said[request] = 0
        self._say(np.array([request]), np.ones(1, np.int64))

    @property
    def kv_tokens(self) -> float:
        """Held by all."""
        return float(self._said.sum() + self.requests * PROMPT_TOKENS)

    def verify(self, drafts: Drafts) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Tokens that each request gets, and which nodes they took."""
        sizes = np.array([target.size for target in self._targets], np.int64)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        truth = np.concatenate(self._targets).astype(np.int32)
        places = offsets[:-1] + self._said
        gained = matched(drafts.starts, drafts.tokens, drafts.parents, truth, places, offsets[1:]) + 1
        given_starts, given = _cut(truth, places, gained)
        taken = taken_nodes(drafts.starts, drafts.tokens, drafts.parents, given_starts, given)
        self._say(np.arange(self.requests), gained)
        for request in np.flatnonzero(self._said >= sizes):
            self.forest.close(int(self.paths[request]))
            self._begin(int(request))
        return gained, taken

    def _say(self, requests: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
        rows = [
            self._targets[request][self._said[request] : self._said[request] + count]
            for request, count in zip(requests, counts, strict=True)
        ]
        starts = np.concatenate([[0], np.cumsum([row.size for row in rows])]).astype(np.int32)
        self.forest.append_many(self.paths[requests], starts, np.concatenate(rows))
        self._said[requests] += counts


def _cut(
    truth: IntArray, places: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> tuple[IntArray, IntArray]:
    starts = np.concatenate([[0], np.cumsum(counts)])
    index = np.repeat(places - starts[:-1], counts) + np.arange(starts[-1])
    return starts.astype(np.int32), truth[index]


def prefixes(drafts: Drafts, nodes: IntArray) -> Drafts:
    """Of each request's draft the first nodes only."""
    kept = np.arange(drafts.starts[-1]) - np.repeat(drafts.starts[:-1], np.diff(drafts.starts))
    mask = kept < np.repeat(nodes, np.diff(drafts.starts))
    starts = np.concatenate([[0], np.cumsum(nodes)]).astype(np.int32)
    tokens, parents, depths = drafts.tokens[mask], drafts.parents[mask], drafts.depths[mask]
    return Drafts(starts, tokens, parents, depths, drafts.confidences[mask])


# ---- one cell ----


@dataclass
class Spent:
    """Sums over the steps that count."""

    steps: int = 0
    tokens: int = 0
    rows: int = 0
    seconds: float = 0.0


class Setting(NamedTuple):
    """What is decoded, and by what."""

    engine: Callable[[Step], float]
    groups: Sequence[Group]
    requests: int
    probes: int
    steps: int


def run(way: Way, setting: Setting) -> Spent:
    """So many steps of a batch, after as many as it takes to learn."""
    requests, spent = setting.requests, Spent()
    batch, budget = Batch(setting.groups, requests), way.budget(setting.engine)
    probes = np.arange(requests) < setting.probes
    for number in range(WARM_UP + setting.steps):
        load = Load(requests, setting.probes, batch.kv_tokens)
        drafts = _drafts(way, batch, budget, load, probes)
        rows = _rows(drafts, requests, budget if way.uniform else None)
        gained, taken = batch.verify(drafts)
        step = Step(requests, rows, load.kv_tokens)
        step_s = setting.engine(step)
        if budget:
            budget.observe(step, step_s)
            budget.acceptance.observe(drafts.starts, drafts.parents, drafts.confidences, taken)
        if number >= WARM_UP:
            spent.steps += 1
            spent.tokens += int(gained.sum())
            spent.rows += rows
            spent.seconds += step_s
    return spent


def _drafts(
    way: Way, batch: Batch, budget: Budget | None, load: Load, probes: npt.NDArray[np.bool_]
) -> Drafts:
    """What is verified in this step."""
    cap = budget.cap(load) if budget else way.fixed
    if not cap:
        nothing = np.zeros(0, np.int32)
        starts = np.zeros(load.requests + 1, np.int32)
        return Drafts(starts, nothing, nothing, nothing, nothing.astype(np.float32))
    wanted = np.full(load.requests, min(cap, MAX_DEPTH) if way.chain else cap, np.int32)
    if way.chain:
        drafts = batch.forest.draft_chains(batch.paths, wanted)
    else:
        drafts = batch.forest.draft(batch.paths, wanted, MAX_DEPTH)
    if budget is None:
        return drafts
    return prefixes(
        drafts, budget.choose(load, drafts.starts, drafts.confidences, probes, drafts.depths)
    )


def _rows(drafts: Drafts, requests: int, uniform: Budget | None) -> int:
    if uniform is None:
        return requests + int(drafts.starts[-1])
    widest = 1 + int(np.diff(drafts.starts).max())
    return requests * min(width for width in uniform.rules.widths if width >= widest)


def cell(way: Way, setting: Setting) -> Spent:
    """A batch, or for small ones several with different groups."""
    total, groups = Spent(), setting.groups
    for number in range(max(1, LEAST_REQUESTS // setting.requests)):
        first = number * setting.requests % len(groups)
        spent = run(way, setting._replace(groups=[*groups[first:], *groups[:first]]))
        total.steps += spent.steps
        total.tokens += spent.tokens
        total.rows += spent.rows
        total.seconds += spent.seconds
    return total


def rows_of(groups: Sequence[Group], batches: Sequence[tuple[int, int]], steps: int) -> list[Row]:
    """A row per engine and batch; the last two columns tell more of `confidence`."""
    return [
        row_of(name, Setting(engine, groups, requests, probes, steps))
        for name, engine in ENGINES.items()
        for requests, probes in batches
    ]


def row_of(engine: str, setting: Setting) -> Row:
    """All ways."""
    began_s = time.monotonic()
    found = {name: cell(way, setting) for name, way in WAYS.items()}
    plain = found["plain"].tokens / found["plain"].seconds
    ours = found["confidence"]
    row: Row = {"engine": engine, "requests": setting.requests, "probes": setting.probes}
    row["plain_tokens_per_s"] = round(plain, 1)
    for name, spent in found.items():
        if name != "plain":
            row[name] = round(spent.tokens / spent.seconds / plain, 3)
    row["accept_length"] = round(ours.tokens / ours.steps / setting.requests, 3)
    row["rows_each"] = round(ours.rows / ours.steps / setting.requests, 2)
    print(f"{engine}, {setting.requests}: {time.monotonic() - began_s:.1f} s", file=sys.stderr)
    return row


def figures_of(rows: Sequence[Row]) -> dict[str, float]:
    """Geometric means over engines and batches, and the worst cell."""
    figures: dict[str, float] = {}
    for name in WAYS:
        values = [float(str(row[name])) for row in rows if name in row]
        if values:
            short = name.replace(", ", "_").replace(" ", "_")
            figures[f"{short}_x"] = float(np.exp(np.mean(np.log(values))))
            figures[f"{short}_x_min"] = min(values)
    return figures


def main() -> None:
    """Every way on every engine and batch, on the traces with the most samples."""
    parser = argparse.ArgumentParser(description="Readings of how much to draft.")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--traces", type=Path, help="folder of groups; else the small model is sampled")
    parser.add_argument("--ranks", type=Path, help="byte-pair table in tiktoken's form")
    parser.add_argument("--quick", action="store_true", help="fewer batches and steps")
    args = parser.parse_args()
    if args.traces is None:
        sets = [sample_small_model(prompts=8 if args.quick else 32, samples=2 * FINISHED)]
    else:
        sets = load_folder(args.traces, args.ranks or find_ranks())
    traces = max(sets, key=lambda each: (len(each.groups[0]) > FINISHED) * each.tokens)
    groups = [group for group in traces.groups if len(group) > FINISHED]
    batches = QUICK_BATCHES if args.quick else BATCHES
    rows = rows_of(groups, batches, STEPS // 4 if args.quick else STEPS)
    title = f"{(__doc__ or '').partition('. ')[0].partition(chr(10))[0]} Samples: {traces.name}."
    finish(Report("bench.speculation", rows, figures_of(rows), title=title), args.json)


if __name__ == "__main__":
    main()
