"""Simulated rollouts by name: what the command, the benchmarks and the tests call."""

import msgspec

from seer_sgl.errors import StartError
from seer_sgl.router.core import POLICIES, Policy, policy_named
from seer_sgl.router.core.estimates import estimate_named
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.sim.lengths import draw_lengths
from seer_sgl.sim.oracles import oracle, oracle_left, streamrl_oracle
from seer_sgl.sim.result import SimResult
from seer_sgl.sim.simulation import Simulation
from seer_sgl.sim.workload import Workload

SIM_POLICIES: tuple[str, ...] = (*POLICIES, "oracle", "oracle_left", "streamrl_oracle")
"""Names that `simulate` takes."""


def simulate(
    workload: Workload,
    policy: str | Policy,
    *,
    seed: int = 0,
    estimate: str | None = None,
    speculation: bool = False,
    timeline_points: int = 0,
    lengths: list[list[int]] | None = None,
    settings: CoreSettings | None = None,
) -> SimResult:
    """One iteration of the workload under a policy. The same arguments give the same result.

    Args:
        estimate: the length estimate of a policy that uses one; its own where None.
        lengths: output tokens per group and sample, instead of those that `seed` draws.
        settings: of the core; by default the workload's chunk length, and no time for KV to settle:
            a move takes its time in the engine's model.

    Raises:
        StartError: no such policy or estimate.
    """
    lengths = lengths or draw_lengths(workload, seed)
    if isinstance(policy, str):
        policy = sim_policy(policy, estimate, workload, lengths)
    if not speculation:
        workload = msgspec.structs.replace(workload, speculation=None)
    settings = settings or CoreSettings(chunk_tokens=workload.chunk_tokens, settle_s=0.0)
    return Simulation(workload, policy, lengths, settings, timeline_points=timeline_points).run()


def sim_policy(name: str, estimate: str | None, workload: Workload, lengths: list[list[int]]) -> Policy:
    """A policy by its name; those that know all lengths beforehand, too."""
    if name == "oracle":
        return oracle(lengths)
    if name == "oracle_left":
        return oracle_left(lengths)
    if name == "streamrl_oracle":
        return streamrl_oracle(lengths, workload)
    if name not in POLICIES:
        raise StartError(f"no policy is called {name!r}; there are: {', '.join(SIM_POLICIES)}")
    return policy_named(name, estimate_named(estimate) if estimate else None)
