"""Fits the simulator's workloads to veRL's row in the Seer paper, and to nothing else of it.

    python -m bench.fit

Two constants per workload, in `seer_sgl/sim/workloads`: `efficiency`, so that the rollout takes as long
as in the paper's Figure 8, and `spread`, so that what else the paper tells of veRL's rollout comes out
best: the share of time spent on the last 10 % of the requests (Figure 8), and for Qwen2-VL-72B idle time
and preemptions (Figure 3). Then `correlation`, once for all: the paper's rule reaches its share of the
oracle on Qwen2-VL-72B (Figure 10).
"""

import statistics
import tomllib
from collections.abc import Callable
from typing import Any

import msgspec

from bench.paper import BASELINE, FIGURE_3, FIGURE_8, ORACLE_SHARE
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.sim.files import WORKLOADS
from seer_sgl.sim.hardware import Hardware, ModelShape, engine_model
from seer_sgl.sim.result import SimResult
from seer_sgl.sim.run import simulate
from seer_sgl.sim.workload import Workload

SEEDS = (1, 2, 3, 4, 5)
SPREADS = [round(0.4 + 0.1 * step, 1) for step in range(11)]
CORRELATIONS = (0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
QWEN = "qwen2-vl-72b"
CONSTANT = CoreSettings(chunk_plan="constant", settle_s=0.0)
"""The paper's chunks, as far as it tells."""


def workload_with(name: str, efficiency: float, **lengths: float) -> Workload:
    """The built-in workload with other constants."""
    tables: dict[str, Any] = tomllib.loads((WORKLOADS / f"{name}.toml").read_text(encoding="utf-8"))
    shape = msgspec.convert(tables.pop("model"), ModelShape)
    hardware = msgspec.convert(tables.pop("hardware") | {"efficiency": efficiency}, Hardware)
    tables["lengths"] |= lengths
    return msgspec.convert(
        tables | {"engine": engine_model(shape, hardware)}, Workload, from_attributes=True
    )


def mean_of(workload: Workload, policy: str, value: Callable[[SimResult], float], **how: Any) -> float:
    """Over the seeds."""
    return statistics.fmean(value(simulate(workload, policy, seed=seed, **how)) for seed in SEEDS)


def fit_spread(name: str, correlation: float) -> float:
    """The spread of the grid with the least sum of squared relative errors of what the paper tells."""
    errors = {}
    for spread in SPREADS:
        workload = workload_with(name, 0.5, spread=spread, correlation=correlation)
        runs = [simulate(workload, BASELINE[name], seed=seed) for seed in SEEDS]
        found = {
            "tail": statistics.fmean(run.tail_s / run.makespan_s for run in runs),
            "idle": statistics.fmean(run.idle_share for run in runs),
            "preemptions": statistics.fmean(run.preemptions for run in runs),
        }
        wanted = {"tail": FIGURE_8[name]["tail_s"] / FIGURE_8[name]["total_s"]} | FIGURE_3.get(name, {})
        errors[spread] = sum((found[key] / value - 1) ** 2 for key, value in wanted.items())
        shown = ", ".join(f"{key} {found[key]:.3g} ({value:.3g})" for key, value in wanted.items())
        print(f"  {name}: spread {spread}: {shown}: {errors[spread]:.4f}", flush=True)
    return min(errors, key=lambda spread: errors[spread])


def fit_efficiency(name: str, spread: float, correlation: float) -> float:
    """Times are nearly in inverse proportion to it, so two corrections do."""
    efficiency = 0.5
    for _ in range(2):
        workload = workload_with(name, efficiency, spread=spread, correlation=correlation)
        seconds = mean_of(workload, BASELINE[name], lambda result: result.makespan_s)
        efficiency *= seconds / FIGURE_8[name]["total_s"]
    return efficiency


def fit_correlation(spread: float) -> float:
    """On Qwen2-VL-72B."""
    distances = {}
    for correlation in CORRELATIONS:
        workload = workload_with(QWEN, 0.5, spread=spread, correlation=correlation)
        rule_s = mean_of(
            workload, "seer", lambda result: result.makespan_s, estimate="finished", settings=CONSTANT
        )
        oracle_s = mean_of(workload, "oracle", lambda result: result.makespan_s, settings=CONSTANT)
        print(
            f"  correlation {correlation}: {oracle_s / rule_s:.3f}, wanted {ORACLE_SHARE:.3f}",
            flush=True,
        )
        distances[correlation] = abs(oracle_s / rule_s - ORACLE_SHARE)
    return min(distances, key=lambda correlation: distances[correlation])


def main() -> None:
    spread = fit_spread(QWEN, 0.95)
    correlation = fit_correlation(spread)
    for name in (QWEN, *(name for name in BASELINE if name != QWEN)):
        if name != QWEN:
            spread = fit_spread(name, correlation)
        efficiency = fit_efficiency(name, spread, correlation)
        print(f"{name}: spread {spread}, correlation {correlation}, efficiency {efficiency:.3f}")


if __name__ == "__main__":
    main()
