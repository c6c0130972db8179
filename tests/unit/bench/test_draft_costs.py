"""The load that drafters' costs are measured on, and what is made of the figures."""

from collections.abc import Sequence

import numpy as np
import pytest

from bench.draft_costs import STEP_TOKENS, Load, Timer, make_load, measure, visits
from bench.drafter import accept_figures, figures_of
from bench.peer_costs import ngrams
from bench.replay import IntArray, Shape
from bench.report import Row


def group(*sizes: int) -> list[IntArray]:
    return [np.arange(size, dtype=np.int32) for size in sizes]


def test_requests_of_a_load_say_their_second_half_step_by_step() -> None:
    load = make_load([group(5, 9, 100, 4, 50), group(5, 9, 100, 4)], finished=2, live=2, steps=2)
    assert [len(samples) for samples in load.finished] == [2]  # the other group has too few long samples
    assert [said.size for said in load.said] == [50, 25]
    assert [[row.tolist() for row in rows] for rows in load.steps] == [
        [[50, 51, 52], [25, 26, 27]],
        [[53, 54, 55], [28, 29, 30]],
    ]
    assert load.tokens == 5 + 9 + 50 + 25 + 4 * STEP_TOKENS


def test_warm_single_calls_stay_with_a_group_and_cold_ones_go_round() -> None:
    load = make_load([group(9, 99, 99), group(9, 99, 99)], finished=1, live=2, steps=4)
    together = [(range(4), 2, True), (range(4), 3, True)]
    first, second = range(2), range(2, 4)
    assert list(visits(load, warm=True)) == [
        *((requests, step, False) for requests in (first, second) for step in (0, 1)),
        *together,
    ]
    assert list(visits(load, warm=False)) == [(range(4), 0, False), (range(4), 1, False), *together]


class Noted:
    """A subject that notes what it is asked for."""

    name = "noted"
    shapes: Sequence[Shape] = (Shape(8, True), Shape(8, False))
    own_thread = False

    def __init__(self, together: bool) -> None:
        self.together = together
        self.grown = 0
        self.drafted: list[tuple[str, bool]] = []

    def open(self, load: Load) -> None: ...

    def take(self, group: int, samples: Sequence[IntArray]) -> None: ...

    def join(self, load: Load) -> None: ...

    def ready(self, requests: range, rows: Sequence[IntArray]) -> None:
        self.rows = rows
        assert len(rows) == len(requests)

    def grow(self, together: bool) -> None:
        self.grown += sum(row.size for row in self.rows)

    def draft(self, shape: Shape, together: bool) -> None:
        self.drafted.append((shape.label, together))

    def bytes_per_token(self) -> float | None:
        return None


@pytest.mark.parametrize("together", [True, False])
def test_one_call_for_many_is_timed_where_there_is_one(together: bool) -> None:
    load = make_load([group(9, 99, 99), group(9, 99, 99)], finished=1, live=2, steps=4)
    subject, timer = Noted(together), Timer()
    measure(subject, load, timer, warm=False)
    assert subject.drafted == [("chain 8", False), ("tree 8", False)] + together * [
        ("chain 8", True),
        ("tree 8", True),
    ]
    assert subject.grown == 4 * STEP_TOKENS * (4 if together else 2)
    singles = {"cold append_sample", "cold append_3", "cold chain 8", "cold tree 8"}
    assert {name for name in timer.counts if "together" not in name} == singles
    assert any("together" in name for name in timer.counts) == together
    assert timer.counts["cold append_3"] == 2 * 4 * STEP_TOKENS


def test_ngrams_are_counted_once() -> None:
    samples = [np.array(row, np.int32) for row in ([1, 2, 1, 2], [2, 1])]
    load = Load([[samples[0]]], 1, [samples[1]], [[np.array([], np.int32)]])
    seen = {
        tuple(row[i:j].tolist())
        for row in samples
        for i in range(row.size)
        for j in range(i + 1, min(row.size, i + 3) + 1)
    }
    assert ngrams(load, 3) == len(seen)


def test_figures_are_ratios_to_what_is_there() -> None:
    rows: list[Row] = [
        {"table": "costs", "what": "tree 32", "drafter": "ours", "alone": 9.0, "64 a call": 2.0},
        {"table": "costs", "what": "tree 32", "drafter": "arctic", "alone": 10.0},
        {"table": "accept length", "traces": "a", "draft": "tree 32", "drafter": "ours", "15, own": 4.0},
        {
            "table": "accept length",
            "traces": "a",
            "draft": "tree 32",
            "drafter": "sglang",
            "15, own": 4.5,
        },
        {"table": "accept length", "traces": "a", "draft": "tree 16", "drafter": "ours", "15, own": 3.0},
    ]
    assert figures_of(rows, "a") == {
        "tree32_us": 2.0,
        "tree32_us_cpp": 10.0,
        "tree32_x_cpp": 5.0,
        "accept_tree32_k15": 4.0,
        "accept_tree32_k15_sglang": 4.5,
        "cells": 1,
        "cells_where_a_peer_is_better": 1,
        "least_gain": -0.5,
    }
    assert accept_figures(rows[:1], "a") == {}
