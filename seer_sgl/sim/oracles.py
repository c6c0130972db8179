"""Policies that know every length beforehand: a bound for the others, and the best rival."""

from collections.abc import Iterable

from seer_sgl.router.core.context import LengthContext
from seer_sgl.router.core.fleet import Fleet
from seer_sgl.router.core.placement import PlacementSettings, balanced_prefix
from seer_sgl.router.core.policy import Policy
from seer_sgl.router.core.state import Engine, Request
from seer_sgl.sim.workload import Workload
from seer_sgl.types import EngineId, GroupId

LONG_SHARE = 0.2
"""Groups that StreamRL takes for the long tail (arXiv 2504.15930, 5.3)."""


def oracle(lengths: list[list[int]]) -> Policy:
    """The paper's rule with the true length of each request for the estimate of its group: the longest
    request first."""

    def key(request: Request) -> float:
        return -_length(lengths, request)

    return Policy("oracle", balanced_prefix, lambda _context, request: key(request), key)


def oracle_left(lengths: list[list[int]]) -> Policy:
    """The request with most tokens left first, a somewhat better use of the same knowledge."""

    def key(request: Request) -> float:
        return request.generated_tokens - _length(lengths, request)

    return Policy("oracle_left", balanced_prefix, lambda _context, request: key(request), key)


def _length(lengths: list[list[int]], request: Request) -> int:
    group, sample = request.request_id.split(".")
    return lengths[int(group)][int(sample)]


def streamrl_oracle(lengths: list[list[int]], workload: Workload) -> Policy:
    """Some engines for the longest groups alone, groups whole, longest first: StreamRL's dispatch
    (arXiv 2504.15930, 5.3) with true lengths for its ranker's, as the Seer paper's StreamRL-Oracle."""
    homes = _homes(lengths, workload)

    def rank(_context: LengthContext, request: Request) -> float:
        return -max(lengths[int(request.group.group_id)])

    def place(
        request: Request, _need_tokens: int, fleet: Fleet, _settings: PlacementSettings
    ) -> Engine | None:
        return fleet.engines.get(homes[request.group.group_id])

    return Policy(
        "streamrl_oracle", place, rank, lambda request: request.seq, divided=False, reserves=False
    )


def _homes(lengths: list[list[int]], workload: Workload) -> dict[GroupId, EngineId]:
    """An engine for each group: the split of the engines that should end first, then the longest group
    to the engine with least to do."""
    order = sorted(range(len(lengths)), key=lambda group: -max(lengths[group]))
    cut = max(1, round(LONG_SHARE * len(order)))
    classes = order[:cut], order[cut:]
    tokens = [[length for group in part for length in lengths[group]] for part in classes]

    def seconds(long_engines: int) -> float:
        counts = long_engines, workload.engines - long_engines
        return max(_seconds(part, count, workload) for part, count in zip(tokens, counts, strict=True))

    long_engines = min(range(1, workload.engines), key=seconds, default=0)
    if not long_engines or not classes[1]:
        return dict(_spread(order, lengths, range(workload.engines)))
    homes = dict(_spread(classes[0], lengths, range(long_engines)))
    return homes | dict(_spread(classes[1], lengths, range(long_engines, workload.engines)))


def _seconds(tokens: list[int], engines: int, workload: Workload) -> float:
    """How long engines take for samples of these lengths: its tokens, or its longest sample."""
    if not tokens:
        return 0.0
    model, prompt = workload.engine, workload.prompt_tokens
    mean = sum(tokens) / len(tokens)
    each = prompt + mean / 2
    fits = min(len(tokens) / engines, model.kv_capacity_tokens / each, model.max_running_requests)
    batch = max(1.0, fits)
    steps = sum(tokens) / (engines * batch), max(tokens)
    return max(steps) * model.step_s(batch, batch * each)


def _spread(
    groups: list[int], lengths: list[list[int]], engines: Iterable[int]
) -> list[tuple[GroupId, EngineId]]:
    load = dict.fromkeys(engines, 0)
    homes = []
    for group in groups:
        engine = min(load, key=lambda number: load[number])
        load[engine] += sum(lengths[group])
        homes.append((GroupId(str(group)), engine_name(engine)))
    return homes


def engine_name(number: int) -> EngineId:
    """The id under which a simulated engine joins."""
    return EngineId(f"e{number}")
