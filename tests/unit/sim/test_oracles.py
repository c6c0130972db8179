"""Policies that know all lengths: what goes first, and which engine each group is given."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seer_sgl.router.core import Policy, RouterCore
from seer_sgl.router.core.actions import Action, Dispatch
from seer_sgl.router.core.events import ChunkFinished, EngineJoined, Event, Submitted
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.sim.model import EngineModel
from seer_sgl.sim.oracles import engine_name, oracle, oracle_left, streamrl_oracle
from seer_sgl.sim.simulation import request_name
from seer_sgl.sim.workload import Lengths, Workload
from seer_sgl.types import EngineSpec, GroupId, RequestId

PROMPT_TOKENS, LONGEST = 10, 1000


def workload(engines: int, capacity: int = 8192) -> Workload:
    model = EngineModel(1e-3, 1e-3, 1e-4, 1e-7, 1e-4, capacity, 1, 256)
    return Workload("known", model, engines, 1, 1, PROMPT_TOKENS, LONGEST, Lengths(100.0, 1.0, 0.5))


def start(
    policy: Policy, lengths: list[list[int]], engines: int, slots: int
) -> tuple[RouterCore, list[Dispatch]]:
    """A core with all of the groups' requests, and what it dispatches at once."""
    core = RouterCore(policy, CoreSettings(chunk_tokens=100, settle_s=0.0))
    events: list[Event] = [
        EngineJoined(EngineSpec(engine_name(number), 8192, 1, slots, 8192)) for number in range(engines)
    ]
    for group, samples in enumerate(lengths):
        for sample in range(len(samples)):
            name = request_name(group, sample)
            events.append(Submitted(name, GroupId(str(group)), PROMPT_TOKENS, LONGEST))
    return core, dispatches(core.handle_all(events, 0.0))


def dispatches(actions: list[Action]) -> list[Dispatch]:
    return [action for action in actions if isinstance(action, Dispatch)]


def homes(lengths: list[list[int]], engines: int) -> dict[int, str]:
    """The engine of each group; fails where a group is on two or where a sample goes nowhere."""
    policy = streamrl_oracle(lengths, workload(engines))
    found: dict[int, set[str]] = {}
    core, sent = start(policy, lengths, engines, 4)
    for action in sent:
        found.setdefault(int(action.request_id.split(".")[0]), set()).add(action.engine_id)
    core.check()
    assert len(sent) == sum(map(len, lengths)), "all go to their engines at once"
    assert all(len(engines) == 1 for engines in found.values()), "a group is torn apart"
    return {group: engines.pop() for group, engines in found.items()}


lengths_drawn = st.lists(
    st.lists(st.integers(1, LONGEST), min_size=1, max_size=4), min_size=1, max_size=12
)


@settings(max_examples=40, deadline=None)
@given(lengths_drawn, st.integers(1, 6))
def test_every_group_has_one_engine_that_is_there(lengths: list[list[int]], engines: int) -> None:
    found = homes(lengths, engines)
    assert sorted(found) == list(range(len(lengths)))
    assert set(found.values()) <= {engine_name(number) for number in range(engines)}


@settings(max_examples=40, deadline=None)
@given(st.permutations([900, 950, 100, 110, 120, 130, 140, 150, 160, 170]), st.integers(2, 5))
def test_the_longest_fifth_has_engines_of_its_own(longest: list[int], engines: int) -> None:
    lengths = [[tokens, tokens // 2] for tokens in longest]
    found = homes(lengths, engines)
    long = {found[group] for group, tokens in enumerate(longest) if tokens >= 900}
    others = {found[group] for group, tokens in enumerate(longest) if tokens < 900}
    assert not long & others


def test_each_class_gets_engines_by_its_work() -> None:
    """Of ten groups two are long."""
    long_work = homes([[1000] * 40] * 2 + [[10]] * 8, 4)
    assert [long_work[group] for group in range(2)] == ["e0", "e1"], "3 engines, of which it uses 2"
    assert {long_work[group] for group in range(2, 10)} == {"e3"}
    short_work = homes([[1000]] * 2 + [[900] * 40] * 8, 4)
    assert {short_work[group] for group in range(2)} == {"e0"}
    assert {short_work[group] for group in range(2, 10)} == {"e1", "e2", "e3"}


def test_groups_of_a_class_are_spread_by_their_work() -> None:
    """Five groups, of which the first makes the long class; the second is as much as the other three."""
    found = homes([[100], [100] * 3, [100], [100], [100]], 3)
    assert found == {0: "e0", 1: "e1", 2: "e2", 3: "e2", 4: "e2"}


@pytest.mark.parametrize("engines", [1, 2, 5])
def test_one_group_alone_has_an_engine(engines: int) -> None:
    assert homes([[500, 20]], engines) == {0: "e0"}


@pytest.mark.parametrize("groups", [1, 2, 9])
def test_one_engine_takes_all(groups: int) -> None:
    assert set(homes([[300, 200]] * groups, 1).values()) == {"e0"}


def test_streamrl_sends_the_group_with_the_longest_sample_first() -> None:
    lengths = [[100, 900], [600, 600], [1000, 1]]
    _, sent = start(streamrl_oracle(lengths, workload(1)), lengths, 1, 64)
    assert [action.request_id for action in sent] == ["2.0", "2.1", "0.0", "0.1", "1.0", "1.1"]
    assert {action.max_new_tokens for action in sent} == {LONGEST}, "undivided"


@settings(max_examples=40, deadline=None)
@given(lengths_drawn)
def test_oracles_take_the_longest_request_or_the_one_with_most_tokens_left(
    lengths: list[list[int]],
) -> None:
    """One slot: the order of dispatches is the order of all chunks."""
    whole = {
        request_name(group, sample): tokens
        for group, samples in enumerate(lengths)
        for sample, tokens in enumerate(samples)
    }
    check_order(oracle(lengths), lengths, dict(whole), whole)
    left = dict(whole)
    check_order(oracle_left(lengths), lengths, left, left)


def check_order(
    policy: Policy,
    lengths: list[list[int]],
    left: dict[RequestId, int],
    ranked: dict[RequestId, int],
) -> None:
    """Every chunk is of the unfinished request with the largest `ranked`; `left` is counted down."""
    core, sent = start(policy, lengths, 1, 1)
    while sent:
        (chunk,) = sent
        tokens = left[chunk.request_id]
        assert ranked[chunk.request_id] == max(ranked[name] for name in left)
        brought = min(tokens, chunk.max_new_tokens)
        left[chunk.request_id] -= brought
        over = not left[chunk.request_id]
        if over:
            del left[chunk.request_id]
        sent = dispatches(core.handle(ChunkFinished(chunk.chunk_id, brought, over), 1.0))
    assert not left
    core.check()
