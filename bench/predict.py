"""What a simulation says of a rollout that ran, given the engines' profile and the lengths that came.

What only the real thing could know is taken from it: how long each sample got. Everything else - order,
placement, chunks, time - is the simulator's own.
"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations

import msgspec

from seer_sgl.rollout.client import SampleResult
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.sim.model import EngineModel
from seer_sgl.sim.result import SimResult
from seer_sgl.sim.run import simulate
from seer_sgl.sim.workload import Lengths, Workload


class Forecaster(msgspec.Struct, frozen=True):
    """Servers as they were profiled, and the router's settings."""

    engine: EngineModel
    engines: int
    core: CoreSettings
    max_new_tokens: int

    def predict(self, policy: str, results: Sequence[SampleResult], groups: Sequence[str]) -> SimResult:
        """Simulate a rollout under the same policy, with the same output lengths, sample by sample.

        Args:
            results: one per sample, each with an answer.
            groups: their groups' ids in the order in which they were sent.
        """
        lengths = lengths_of(results, groups)
        # The simulator knows one length for all prompts.
        prompt_tokens = round(statistics.mean(result.meta_info["prompt_tokens"] for result in results))
        workload = Workload(
            name="live",
            engine=self.engine,
            engines=self.engines,
            groups=len(lengths),
            group_size=max(map(len, lengths)),
            prompt_tokens=prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            lengths=Lengths(mean_tokens=1, spread=0, correlation=0),  # not drawn from
            chunk_tokens=self.core.chunk_tokens,
        )
        return simulate(workload, policy, lengths=lengths, settings=self.core)


def lengths_of(results: Sequence[SampleResult], groups: Sequence[str]) -> list[list[int]]:
    """Output tokens by group and sample, both in the order in which they were sent."""
    ordered = sorted(results, key=lambda result: result.sample)
    of_group: dict[str, list[int]] = {group: [] for group in groups}
    for result in ordered:
        of_group[result.group_id].append(len(result.output_ids))
    return list(of_group.values())


def prediction_figures(
    measured_s: Mapping[str, Sequence[float]], predicted_s: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """How far medians of predicted seconds lie from measured ones, by policy, over the same rounds.

    A pair of policies is level where rounds disagree on which of the two is faster.
    """
    real = {name: statistics.median(seconds) for name, seconds in measured_s.items()}
    said = {name: statistics.median(seconds) for name, seconds in predicted_s.items()}
    pairs = list(combinations(real, 2))
    agreeing = sum((real[a] < real[b]) == (said[a] < said[b]) for a, b in pairs)
    return {
        "prediction_error_max": max(abs(said[name] / real[name] - 1) for name in real),
        "same_order": int(agreeing == len(pairs)),
        "order_pairs_agreeing": agreeing / len(pairs),
        "order_pairs_level": sum(b in level_with(a, measured_s) for a, b in pairs),
    }


def level_with(policy: str, measured_s: Mapping[str, Sequence[float]]) -> list[str]:
    """Policies that were faster than this one in some rounds and slower in others."""
    found = []
    for other, seconds in measured_s.items():
        faster = {theirs < ours for theirs, ours in zip(seconds, measured_s[policy], strict=True)}
        if other != policy and len(faster) == 2:
            found.append(other)
    return found
