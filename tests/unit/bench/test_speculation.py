"""The comparison of readings: what its simulated engines count."""

import numpy as np
import pytest

from bench import accepted, speculation
from bench.speculation import ENGINES, WAYS, Setting, cell, dense_gpu, prefixes, profile_of
from seer_sgl.sim.speculation import DRAFT_TOKENS, SIBLINGS
from seer_sgl.spec.cost import Step, StepCost
from seer_sgl.spec.forest import Drafts

LOOP = np.tile(np.arange(20, dtype=np.int32), 40)
ALIKE = [[LOOP[first : first + 600] for first in range(20)]] * 2
"""Groups whose samples say the same."""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "WARM_UP", 20)
    monkeypatch.setattr(speculation, "LEAST_REQUESTS", 1)


def test_plain_decoding_is_a_token_a_step_and_request() -> None:
    spent = cell(WAYS["plain"], Setting(dense_gpu, ALIKE, 4, 0, 30))
    assert (spent.steps, spent.tokens, spent.rows) == (30, 120, 120)
    assert spent.seconds == pytest.approx(30 * dense_gpu(Step(4, 4, 0.0)), rel=0.02)


@pytest.mark.parametrize("way", ["fixed 8", "confidence", "uniform", "paper", "marginal", "unprofiled"])
def test_samples_that_say_the_same_are_drafted_from_each_other(way: str) -> None:
    spent = cell(WAYS[way], Setting(dense_gpu, ALIKE, 4, 1, 100))
    assert spent.tokens > 4 * spent.steps * (1 if way == "unprofiled" else 4)
    assert spent.rows > 4 * spent.steps


@pytest.mark.parametrize("name", ENGINES)
def test_its_engines_are_learnt_from_their_profiles(name: str) -> None:
    cost = StepCost(profile_of(ENGINES[name]))
    errors = [cost.seconds(step) / seconds - 1 for step, seconds in profile_of(ENGINES[name])]
    assert max(map(abs, errors)) < 0.25
    assert np.median(np.abs(errors)) < 0.05


def test_a_prefix_keeps_the_first_nodes_of_each_request() -> None:
    nodes = np.arange(5, dtype=np.int32)
    drafts = Drafts(np.array([0, 2, 5], np.int32), nodes, nodes, nodes, nodes.astype(np.float32))
    kept = prefixes(drafts, np.array([1, 2], np.int32))
    assert kept.starts.tolist() == [0, 1, 3]
    assert kept.tokens.tolist() == [0, 2, 3]


def test_accept_lengths_grow_with_drafts_and_siblings() -> None:
    luck = np.random.default_rng(0)
    text = luck.integers(0, 400, 300).astype(np.int32)
    group = []
    for _ in range(SIBLINGS[-1] + 1):
        sample = text.copy()
        places = luck.integers(0, text.size, 40)
        sample[places] = luck.integers(0, 400, 40)
        group.append(sample)
    rows = accepted.rows_of([group], 1)
    assert [row["siblings"] for row in rows] == list(SIBLINGS)
    first, last = str(DRAFT_TOKENS[0]), str(DRAFT_TOKENS[-1])
    assert float(str(rows[-1][last])) > float(str(rows[-1][first])) > float(str(rows[0][first]))
    assert accepted.figures_of(rows)["gained_15"] == 1.0
