"""Policies at the paper's scale, simulated: its ablation and length oracle, and what moves them.

    python -m bench.policy [--json FILE] [--only PART ...] [--seeds N]

"Paper" is arXiv 2511.14617v3. Parts: `ablation` (Tables 3 and 4, Figures 7, 8 and 10), `chunks`,
`groups`, `correlation`, `tails`, `engines`, `estimates`, `plans` and `iterations` on Qwen2-VL-72B with a
quarter of the paper's engines, and `scale`. Each cell is the mean over the same seeds for every policy.
`x` is the throughput as a multiple of the baseline's, veRL's way; `of_oracle` of the oracle's.

The constants in `seer_sgl/sim/workloads` were fitted by `python -m bench.fit` on the baseline alone.
Rows with `+sd` do not repeat the paper's: their accept lengths are our drafter's, measured on real
groups by `python -m bench.accepted` (RL of a 3B model on maths, for all three workloads).
`table4_error_max` is of the rows without. `sd_x` is what drafts add to the paper's rule, `sd_paper_x`
the same step of Table 4.
"""

import argparse
import gc
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from bench.paper import BASELINE, FIGURE_7, FIGURE_10, TABLE_4
from bench.report import Report, Row, finish
from seer_sgl.router.core.context import LengthContext
from seer_sgl.router.core.estimates import ESTIMATES, longest_likely
from seer_sgl.router.core.policy import Policy, seer
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.router.core.state import Request
from seer_sgl.sim.files import load_workload, with_changes
from seer_sgl.sim.lengths import draw_lengths
from seer_sgl.sim.result import SimResult
from seer_sgl.sim.run import sim_policy, simulate
from seer_sgl.sim.simulation import Simulation
from seer_sgl.sim.workload import Workload

SEEDS = 5
QWEN = "qwen2-vl-72b"
QUARTER = {"engines": 4, "groups": 150}
LARGE_FLEET = 64
TITLE = (
    "Policies at the paper's scale, simulated: its ablation and length oracle, and what moves them. "
    "Rows with `+sd` take their accept lengths from `bench.accepted`, measured with our drafter, and do "
    "not repeat the paper's."
)
PAPER_RULE = "finished"
"""The paper's length estimate."""


class Cell(msgspec.Struct, frozen=True):
    """One simulated setting; picklable, as cells run in other processes."""

    part: str
    setting: str
    workload: str
    policy: str
    changes: dict[str, Any] = {}
    estimate: str | None = None
    speculation: bool = False
    plan: str = ""
    """The chunk plan; by default the core's, and for the paper's rule the paper's."""

    @property
    def label(self) -> str:
        """The policy as tables show it."""
        name = "paper_rule" if (self.policy, self.estimate) == ("seer", PAPER_RULE) else self.policy
        if self.estimate not in (None, PAPER_RULE):
            name = str(self.estimate)
        return f"{name}+sd" if self.speculation else name


class Outcome(msgspec.Struct, frozen=True):
    """Means over the seeds."""

    seconds: float
    tail_s: float
    preemptions: float
    moved_tokens: float
    idle_share: float


# ---- what is simulated ----


def ablation() -> list[Cell]:
    """Each workload with groups of 8 and 16, the iteration's number of requests kept."""
    cells = []
    for name in TABLE_4:
        workload = load_workload(name)
        for size in (8, 16):
            groups = workload.groups * workload.group_size // size
            changes = {"group_size": size, "groups": groups}
            names = ["fifo_group", "least_loaded", "streamrl_oracle", "divided", "seer", "oracle"]
            if name == QWEN:
                names.append("oracle_left")
            kinds: list[tuple[str, str | None]] = [(policy, None) for policy in names]
            kinds.append(("seer", PAPER_RULE))
            for policy, estimate in kinds:
                cells.append(Cell("ablation", f"group {size}", name, policy, changes, estimate))
            for policy, estimate in ((BASELINE[name], None), ("seer", PAPER_RULE), ("seer", None)):
                cells.append(
                    Cell("ablation", f"group {size}", name, policy, changes, estimate, speculation=True)
                )
    return cells


def sensitivity() -> list[Cell]:
    """One thing changed at a time."""
    settings: list[tuple[str, str, dict[str, Any]]] = []
    for tokens in (1024, 2048, 4096, 8192, 16384, 32768, 65536):
        settings.append(("chunks", f"chunk {tokens}", QUARTER | {"chunk_tokens": tokens}))
    for size in (4, 8, 16, 32):
        settings.append(
            ("groups", f"group {size}", QUARTER | {"group_size": size, "groups": 2400 // size})
        )
    for correlation in (0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
        changes = QUARTER | {"lengths.correlation": correlation}
        settings.append(("correlation", f"correlation {correlation}", changes))
    for spread in (0.3, 0.6, 1.5):
        settings.append(("tails", f"spread {spread}", QUARTER | {"lengths.spread": spread}))
    for engines in (8, 64, 512):
        changes = {"engines": engines, "groups": 600 * engines // 16}
        settings.append(("engines", f"engines {engines}", changes))
    kinds = [
        ("fifo_group", None),
        ("divided", None),
        ("seer", PAPER_RULE),
        ("seer", None),
        ("oracle", None),
    ]
    return [
        Cell(part, setting, QWEN, policy, changes, estimate)
        for part, setting, changes in settings
        for policy, estimate in kinds
    ]


def estimates() -> list[Cell]:
    """All estimates, and wrong ones on purpose, at three correlations."""
    names = [name for name in ESTIMATES if name not in (PAPER_RULE, "likely")] + list(WRONG)
    return [
        Cell("estimates", f"correlation {c}", QWEN, "seer", QUARTER | {"lengths.correlation": c}, name)
        for c in (0.95, 0.8, 0.5)
        for name in names
    ] + [
        Cell("plans", f"chunk plan {plan}", QWEN, "seer", QUARTER, plan=plan)
        for plan in ("constant", "short_probe", "short_first", "growing")
    ]


def shortest_first(context: LengthContext, request: Request) -> float:
    """The default turned round."""
    return -longest_likely(context, request)


def at_random(_context: LengthContext, request: Request) -> float:
    """As good as nothing known."""
    return Random(request.request_id).random()


WRONG: dict[str, Callable[[LengthContext, Request], float]] = {
    "wrong: shortest first": shortest_first,
    "wrong: at random": at_random,
}


# ---- running it ----


def run_cell(cell: Cell, seeds: int) -> Outcome:
    """The cell's mean over seeds 1 to `seeds`."""
    workload = with_changes(load_workload(cell.workload), cell.changes)
    if workload.engines >= LARGE_FLEET and cell.part == "engines":
        seeds = 1  # as many requests in one run as in all seeds of another cell
    plan = cell.plan or ("constant" if cell.estimate == PAPER_RULE else CoreSettings().chunk_plan)
    settings = CoreSettings(chunk_tokens=workload.chunk_tokens, chunk_plan=plan, settle_s=0.0)
    results: list[SimResult] = []
    for seed in range(1, seeds + 1):
        lengths = draw_lengths(workload, seed)
        results.append(
            simulate(
                workload,
                _policy(cell, workload, lengths),
                lengths=lengths,
                speculation=cell.speculation,
                settings=settings,
            )
        )
    mean = statistics.fmean
    return Outcome(
        seconds=mean(result.makespan_s for result in results),
        tail_s=mean(result.tail_s for result in results),
        preemptions=mean(result.preemptions for result in results),
        moved_tokens=mean(result.moved_tokens for result in results),
        idle_share=mean(result.idle_share for result in results),
    )


def run_iterations(seeds: int) -> list[Row]:
    """Three iterations over the same prompts: the second one knows them."""
    workload = with_changes(load_workload(QWEN), QUARTER | {"speculation": None})
    settings = CoreSettings(chunk_tokens=workload.chunk_tokens, settle_s=0.0)
    shares: list[list[float]] = [[], [], []]
    seconds: list[list[float]] = [[], [], []]
    for seed in range(1, seeds + 1):
        context = LengthContext()
        for number in range(3):
            lengths = draw_lengths(workload, seed, number)
            policy = sim_policy("seer", None, workload, lengths)
            ours = Simulation(workload, policy, lengths, settings, context=context).run()
            best = simulate(workload, "oracle", lengths=lengths)
            seconds[number].append(ours.makespan_s)
            shares[number].append(best.makespan_s / ours.makespan_s)
    return [
        {
            "part": "iterations",
            "workload": QWEN,
            "setting": f"iteration {number + 1}",
            "policy": "seer",
            "seconds": round(statistics.fmean(seconds[number]), 1),
            "of_oracle": round(statistics.fmean(shares[number]), 3),
        }
        for number in range(3)
    ]


def _policy(cell: Cell, workload: Workload, lengths: list[list[int]]) -> Policy:
    if cell.estimate in WRONG:
        return seer(WRONG[cell.estimate], cell.estimate)
    return sim_policy(cell.policy, cell.estimate, workload, lengths)


def run_scale() -> Row:
    """A million requests on 4,096 engines under the default policy."""
    workload = with_changes(load_workload(QWEN), {"engines": 4096, "groups": 62_500})
    lengths = draw_lengths(workload, 1)
    settings = CoreSettings(chunk_tokens=workload.chunk_tokens, settle_s=0.0)
    policy = sim_policy("seer", None, workload, lengths)
    gc.disable()  # a million live requests make every full collection as long as the decisions between
    began_s = time.perf_counter()
    result = Simulation(workload, policy, lengths, settings, time.thread_time_ns).run()
    return {
        "part": "scale",
        "setting": f"{result.requests:,} requests, {workload.engines:,} engines",
        "policy": "seer",
        "seconds": round(result.makespan_s, 1),
        "chunks": result.chunks,
        "decision_us": round(result.decision_us, 1),
        "wall_s": round(time.perf_counter() - began_s, 1),
        "memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


# ---- the report ----


Outcomes = dict[tuple[str, str, str, str], Outcome]
"""By part, workload, setting and label."""


def rows_of(outcomes: Outcomes) -> list[Row]:
    """One row per cell, with the paper's figure beside ours where it has one."""
    rows: list[Row] = []
    for (part, workload, setting, label), outcome in outcomes.items():
        base = outcomes.get((part, workload, setting, BASELINE.get(workload, "fifo_group")))
        best = outcomes.get((part, workload, setting, "oracle"))
        rows.append(
            {
                "part": part,
                "workload": workload,
                "setting": setting,
                "policy": label,
                "seconds": round(outcome.seconds, 1),
                "tail_s": round(outcome.tail_s, 1),
                "x": round(base.seconds / outcome.seconds, 3) if base else None,
                "paper_x": _paper_x(workload, setting, label) if part == "ablation" else None,
                "tail_x": round(outcome.tail_s / base.tail_s, 3) if base else None,
                "of_oracle": round(best.seconds / outcome.seconds, 3) if best else None,
                "preemptions": round(outcome.preemptions),
                "idle": round(outcome.idle_share, 3),
            }
        )
    return rows


def _paper_x(workload: str, setting: str, label: str) -> float | None:
    """Table 4 for the default group size; Figure 7 for StreamRL-Oracle and for the whole of it."""
    default = setting == f"group {load_workload(workload).group_size}"
    if label in TABLE_4[workload] and default:
        return TABLE_4[workload][label]
    if workload == QWEN and label in FIGURE_10 and default:
        return FIGURE_10[label]
    return FIGURE_7[workload, setting].get(label)


def figures_of(outcomes: Outcomes) -> dict[str, float]:
    """What the text may quote."""
    figures: dict[str, float] = {}
    worst = 0.0
    for name, table in TABLE_4.items():
        size = load_workload(name).group_size
        base = outcomes["ablation", name, f"group {size}", BASELINE[name]]
        seconds = {label: outcomes["ablation", name, f"group {size}", label].seconds for label in table}
        for label, paper_x in table.items():
            if label.endswith("+sd"):
                figures[f"sd_x_{name}"] = seconds[label.removesuffix("+sd")] / seconds[label]
                figures[f"sd_paper_x_{name}"] = paper_x / table[label.removesuffix("+sd")]
                continue
            error = base.seconds / seconds[label] / paper_x - 1
            figures[f"table4_error_{name}_{label}"] = error
            worst = max(worst, abs(error))
    figures["table4_error_max"] = worst
    qwen = {key[3]: outcome for key, outcome in outcomes.items() if key[:3] == _QWEN_DEFAULT}
    best = min(qwen[name].seconds for name in ("fifo_group", "least_loaded", "streamrl_oracle"))
    ours = qwen["seer"]
    figures |= {
        "of_oracle_qwen": qwen["oracle"].seconds / ours.seconds,
        "of_oracle_left_qwen": qwen["oracle_left"].seconds / ours.seconds,
        "paper_rule_of_oracle_qwen": qwen["oracle"].seconds / qwen["paper_rule"].seconds,
        "tail_cut_qwen": 1 - ours.tail_s / qwen["fifo_group"].tail_s,
        "x_verl_qwen": qwen["fifo_group"].seconds / ours.seconds,
        "x_verl_sd_qwen": qwen["fifo_group"].seconds / qwen["seer+sd"].seconds,
        "x_best_baseline_qwen": best / ours.seconds,
        "x_streamrl_oracle_qwen": qwen["streamrl_oracle"].seconds / ours.seconds,
    }
    return figures | _correlation_figures(outcomes)


_QWEN_DEFAULT = ("ablation", QWEN, "group 16")


def _correlation_figures(outcomes: Outcomes) -> dict[str, float]:
    losses = {}
    figures = {}
    for (part, _, setting, label), ours in outcomes.items():
        if part != "correlation" or label != "seer":
            continue
        there = {
            key[3]: outcome for key, outcome in outcomes.items() if key[2] == setting and key[0] == part
        }
        correlation = float(setting.split()[1])
        losses[correlation] = ours.seconds / there["divided"].seconds - 1
        gap_s = there["paper_rule"].seconds - there["oracle"].seconds
        figures[f"gap_closed_{correlation}"] = (there["paper_rule"].seconds - ours.seconds) / gap_s
    if losses:
        figures["corr0_loss"] = max(loss for corr, loss in losses.items() if corr <= 0.5)
    return figures


def main() -> None:
    args = _arguments()
    cells = [*ablation(), *sensitivity(), *estimates()]
    parts = args.only or [*dict.fromkeys(cell.part for cell in cells), "iterations", "scale"]
    cells = [cell for cell in cells if cell.part in parts]
    with ProcessPoolExecutor(max_workers=args.processes) as pool:
        scale = pool.submit(run_scale) if "scale" in parts else None
        found = pool.map(run_cell, cells, [args.seeds] * len(cells))
        outcomes = {
            (cell.part, cell.workload, cell.setting, cell.label): outcome
            for cell, outcome in zip(cells, found, strict=True)
        }
        rows = rows_of(outcomes)
        rows += run_iterations(args.seeds) if "iterations" in parts else []
        figures = figures_of(outcomes) if {"ablation", "correlation"} <= set(parts) else {}
        if scale is not None:
            rows.append(scale.result())
            figures["decision_us_median"] = float(str(rows[-1]["decision_us"]))
    finish(Report("bench.policy", rows, figures, title=TITLE), args.json)


def _arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Policies in simulated time, at the paper's scale.")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--only", nargs="+", help="parts to run")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
