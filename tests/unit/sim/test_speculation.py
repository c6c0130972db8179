"""Speculation in the simulator: what a draft brings, and when there is none."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from seer_sgl.sim.model import EngineModel
from seer_sgl.sim.speculation import (
    ALONE,
    DRAFT_TOKENS,
    GAINED,
    GROUPED,
    SIBLINGS,
    Drafting,
    accept_lengths,
    best_draft,
    gained,
)

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
MEASURED = Path(__file__).parents[3] / "bench/results/accepted.json"
shares = st.floats(0.0, 1.0)


def test_accept_lengths_are_those_of_the_committed_run() -> None:
    report = json.loads(MEASURED.read_text(encoding="utf-8"))
    rows = {row["siblings"]: [row[str(count)] for count in DRAFT_TOKENS] for row in report["rows"]}
    assert tuple(rows) == SIBLINGS
    assert rows[0] == pytest.approx(ALONE, abs=1e-3)
    assert rows[SIBLINGS[-1]] == pytest.approx(GROUPED, abs=1e-3)
    shown = [report["figures"][f"gained_{count}"] for count in SIBLINGS]
    assert shown == pytest.approx(GAINED, abs=1e-3)


def test_more_drafts_and_more_siblings_never_bring_less() -> None:
    assert list(ALONE) == sorted(ALONE)
    assert list(GROUPED) == sorted(GROUPED)
    assert all(alone < grouped for alone, grouped in zip(ALONE, GROUPED, strict=True))
    assert list(GAINED) == sorted(GAINED)


@pytest.mark.parametrize(("siblings", "share"), [*zip(SIBLINGS, GAINED, strict=True), (99, 1.0)])
def test_what_siblings_bring_goes_through_the_measured_points(siblings: int, share: float) -> None:
    assert gained(siblings) == pytest.approx(share)


def test_between_two_points_it_is_a_line() -> None:
    assert gained(2) == pytest.approx((gained(1) + gained(3)) / 2)
    assert gained(11) == pytest.approx((gained(7) + gained(15)) / 2)


def test_every_sibling_helps_a_little_more() -> None:
    got = [gained(siblings) for siblings in range(20)]
    assert all(before <= after for before, after in itertools.pairwise(got))


def test_accepted_tokens_can_be_taken_off_and_multiplied() -> None:
    assert accept_lengths(Drafting(accepted_x=0.0), 1.0) == [1.0] * len(DRAFT_TOKENS)
    doubled = [2 * length - 1 for length in GROUPED]
    assert accept_lengths(Drafting(accepted_x=2.0), 1.0) == pytest.approx(doubled)


@given(
    share=shares,
    requests=st.integers(1, 500),
    kv_tokens=st.integers(0, 1 << 20),
    max_draft=st.integers(1, 40),
    step_x=st.sampled_from([1.0, 1.2, 1.5, 4.0]),
)
def test_a_draft_is_the_best_there_is_and_never_worse_than_none(
    share: float, requests: int, kv_tokens: int, max_draft: int, step_x: float
) -> None:
    drafting = Drafting(max_draft, step_x)
    step_s, pace = best_draft(MODEL, drafting, requests, kv_tokens, share)
    kv_s = kv_tokens * MODEL.kv_token_s
    per_token_s = [MODEL.step_s(requests, kv_tokens)] + [
        step_x * MODEL.step_s(requests, kv_tokens, 1.0 + draft) / tokens
        for draft, tokens in zip(DRAFT_TOKENS, accept_lengths(drafting, share), strict=True)
        if draft <= max_draft
    ]
    assert (step_s + kv_s) / pace == pytest.approx(min(per_token_s))
    assert (step_s + kv_s) / pace <= per_token_s[0]


@pytest.mark.parametrize(
    ("accepted_x", "step_x", "requests"),
    [(0.0, 1.0, 1), (1.0, 1e3, 1), (0.1, 1.0, 1000)],
    ids=["nothing is accepted", "drafts cost too much", "verification costs too much"],
)
def test_nothing_is_drafted_where_it_does_not_pay(
    accepted_x: float, step_x: float, requests: int
) -> None:
    drafting = Drafting(step_x=step_x, accepted_x=accepted_x)
    chosen = best_draft(MODEL, drafting, requests, 1000.0, 1.0)
    assert chosen == (MODEL.step_s(requests, 0.0), 1.0)


def test_where_verification_is_free_the_longest_draft_is_best() -> None:
    assert list(best_draft(FREE, Drafting(), 64, 0.0, 1.0)) == pytest.approx([0.021, GROUPED[-1]])
    assert list(best_draft(FREE, Drafting(8), 64, 0.0, 0.0)) == pytest.approx([0.021, ALONE[5]])


def test_a_larger_batch_drafts_less() -> None:
    paces = [best_draft(MODEL, Drafting(), requests, 0.0, 1.0)[1] for requests in (5, 20, 80, 1000)]
    assert paces == sorted(paces, reverse=True)
    assert len(set(paces)) == len(paces)
