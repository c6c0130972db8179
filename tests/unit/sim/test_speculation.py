"""Speculation in the simulator: what a draft brings, against chance played out; when there is none."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from seer_sgl.sim.model import EngineModel
from seer_sgl.sim.speculation import Drafting, accepted_tokens, best_draft

MODEL = EngineModel(
    fixed_s=1e-3,
    weights_s=0.02,
    token_s=1e-4,
    kv_token_s=1e-8,
    prefill_token_s=1e-4,
    kv_capacity_tokens=1 << 20,
    page_tokens=16,
    max_running_requests=1024,
)
FREE = replace(MODEL, token_s=0.0)
"""A step that verifies takes no longer than one that does not."""

DRAFTING = Drafting(acceptance_alone=0.41, acceptance_grouped=0.6)
chances = st.floats(0.0, 0.99)


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("draft_tokens", [0, 1, 3, 8])
def test_a_step_brings_what_is_accepted_in_a_row_and_one_more(
    acceptance: float, draft_tokens: int
) -> None:
    """Over every outcome of every drafted token."""
    expected = 0.0
    for outcome in itertools.product((True, False), repeat=draft_tokens):
        row = len(list(itertools.takewhile(bool, outcome)))
        chance = 1.0
        for hit in outcome:
            chance *= acceptance if hit else 1 - acceptance
        expected += chance * (row + 1)
    assert accepted_tokens(acceptance, draft_tokens) == pytest.approx(expected)


def test_so_it_does_by_lot() -> None:
    luck = random.Random(0)
    tries = [
        1 + sum(1 for _ in itertools.takewhile(lambda _: luck.random() < 0.7, range(5)))
        for _ in range(20_000)
    ]
    assert accepted_tokens(0.7, 5) == pytest.approx(sum(tries) / len(tries), rel=0.02)


@pytest.mark.parametrize(("siblings", "share"), [(0, 0.0), (1, 0.41), (5, 0.75), (15, 1.0), (99, 1.0)])
def test_the_acceptance_goes_through_the_papers_points(siblings: int, share: float) -> None:
    assert DRAFTING.acceptance(siblings) == pytest.approx(0.41 + share * 0.19)


def test_between_two_points_it_is_a_line() -> None:
    assert DRAFTING.acceptance(3) == pytest.approx((DRAFTING.acceptance(1) + DRAFTING.acceptance(5)) / 2)
    assert DRAFTING.acceptance(10) == pytest.approx(
        (DRAFTING.acceptance(5) + DRAFTING.acceptance(15)) / 2
    )


@given(chances, chances)
def test_every_sibling_helps_a_little_more(one: float, other: float) -> None:
    drafting = Drafting(min(one, other), max(one, other))
    got = [drafting.acceptance(siblings) for siblings in range(20)]
    assert all(before <= after + 1e-12 for before, after in itertools.pairwise(got))
    assert got[0] == pytest.approx(drafting.acceptance_alone)
    assert got[-1] == pytest.approx(drafting.acceptance_grouped)


@given(
    acceptance=st.one_of(chances, st.floats(0.7, 0.95)),
    requests=st.integers(1, 500),
    kv_tokens=st.integers(0, 1 << 20),
    max_draft=st.integers(1, 12),
    step_x=st.sampled_from([1.0, 1.2, 1.5, 4.0]),
)
def test_a_draft_is_the_best_there_is_and_never_worse_than_none(
    acceptance: float, requests: int, kv_tokens: int, max_draft: int, step_x: float
) -> None:
    drafting = Drafting(acceptance, acceptance, max_draft, step_x)
    step_s, pace = best_draft(MODEL, drafting, requests, kv_tokens, acceptance)
    kv_s = kv_tokens * MODEL.kv_token_s
    per_token_s = [MODEL.step_s(requests, kv_tokens)] + [
        step_x * MODEL.step_s(requests, kv_tokens, 1.0 + draft) / accepted_tokens(acceptance, draft)
        for draft in range(1, max_draft + 1)
    ]
    assert (step_s + kv_s) / pace == pytest.approx(min(per_token_s))
    assert (step_s + kv_s) / pace <= per_token_s[0]


@pytest.mark.parametrize(
    ("acceptance", "step_x", "requests"),
    [(0.0, 1.0, 1), (0.9, 1e3, 1), (0.1, 1.0, 1000)],
    ids=["nothing is accepted", "drafts cost too much", "verification costs too much"],
)
def test_nothing_is_drafted_where_it_does_not_pay(
    acceptance: float, step_x: float, requests: int
) -> None:
    drafting = Drafting(acceptance, acceptance, 8, step_x)
    chosen = best_draft(MODEL, drafting, requests, 1000.0, acceptance)
    assert chosen == (MODEL.step_s(requests, 0.0), 1.0)


def test_where_verification_is_free_the_longest_draft_is_best() -> None:
    drafting = Drafting(0.8, 0.8, 8)
    chosen = best_draft(FREE, drafting, 64, 0.0, 0.8)
    assert list(chosen) == pytest.approx([0.021, accepted_tokens(0.8, 8)])


def test_a_larger_batch_drafts_less() -> None:
    drafting = Drafting(0.8, 0.8, 8)
    paces = [best_draft(MODEL, drafting, requests, 0.0, 0.8)[1] for requests in (20, 80, 150, 1000)]
    assert paces == sorted(paces, reverse=True)
    assert len(set(paces)) == len(paces)
