"""Drafts of a width that a request asks for."""

import numpy as np
import pytest

from seer_sgl.spec.filler import FILLER, filler, forced_nodes


def test_each_request_gets_a_chain_of_what_it_asks_for() -> None:
    drafts = filler([2, 0, 3])
    assert drafts.starts.tolist() == [0, 2, 2, 5]
    assert drafts.parents.tolist() == [-1, 0, -1, 0, 1]
    assert drafts.depths.tolist() == [1, 2, 1, 2, 3]
    assert set(drafts.tokens.tolist()) == {FILLER}
    assert all(column.dtype == np.int32 for column in drafts[:4])
    assert drafts.confidences.tolist() == [0.0] * 5


def test_nobody_asks_for_anything() -> None:
    assert filler([0, 0]).starts.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("tag", "nodes"),
    [
        ({"force": 7}, 7),
        ({"force": 0}, 0),
        ({}, -1),
        (None, -1),
        ({"force": -3}, -1),
        ({"force": "7"}, -1),
    ],
)
def test_what_a_tag_asks_for(tag: object, nodes: int) -> None:
    assert forced_nodes(tag) == nodes
