"""The worker's side of drafting: limits, failures, requests that left, and counts."""

from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from seer_sgl.engine import drafting
from seer_sgl.engine.drafting import Drafting, Engine, with_tail
from seer_sgl.engine.verify import Nodes
from seer_sgl.spec.settings import DRAFT_VARIABLE, DraftSettings, encode


class Recorder:
    """A drafter that drafts a chain as long as it may, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.excess = 0
        self.broken = False

    def step(self, batch: Sequence[Any]) -> Nodes:
        if self.broken:
            raise RuntimeError("no memory")
        self.told.append([(entry.rid, entry.tag, entry.max_nodes) for entry in batch])
        counts = [entry.max_nodes + self.excess for entry in batch]
        starts = np.cumsum([0, *counts]).astype(np.int32)
        chains = [place - 1 for count in counts for place in range(count)]
        parents = np.array(chains, np.int32)
        return Nodes(starts, np.zeros(starts[-1], np.int32), parents, parents + 2)

    def verified(self, accepted: Sequence[int], step_s: float) -> None:
        self.told.append((list(accepted), step_s >= 0))

    def finished(self, rid: str, output: Sequence[int]) -> None:
        assert list(output) == [5]
        self.told.append(rid)

    def reset(self) -> None:
        self.told.append("reset")

    def counters(self) -> dict[str, float]:
        return {"groups": 1}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(drafting, "_make_drafter", lambda _settings, _engine: made)
    return made


def one_rank(**settings: Any) -> Drafting:
    return Drafting(DraftSettings(**settings), Engine(uniform=False, vocab_size=10), None, 0)


def request(rid: str, custom: Any = None, **params: Any) -> Any:
    plain = {
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "min_new_tokens": 0,
        "custom_params": custom,
    }
    return SimpleNamespace(
        rid=rid,
        origin_input_ids_unpadded=[1],
        output_ids=[5],
        sampling_params=SimpleNamespace(**{**plain, **params}),
    )


def test_a_request_gets_its_tag_and_no_more_nodes_than_settings_and_room_allow(
    recorder: Recorder,
) -> None:
    tagged = request("a", {"seer": {"group": "g"}, "theirs": 1})
    nodes = one_rank(max_nodes=4).step([tagged, request("b")], [[5], [6]], [9, 2])
    assert recorder.told == [[("a", {"group": "g"}, 4), ("b", None, 2)]]
    assert nodes.starts.tolist() == [0, 4, 6]


@pytest.mark.parametrize(
    "params",
    [
        {"frequency_penalty": 0.1},
        {"presence_penalty": -0.1},
        {"repetition_penalty": 1.1},
        {"min_new_tokens": 3},
    ],
)
def test_nothing_is_drafted_where_a_node_would_need_a_penalty_of_its_own(
    recorder: Recorder, params: dict[str, Any]
) -> None:
    one_rank().step([request("a", **params)], [[5]], [9])
    assert recorder.told == [[("a", None, 0)]]


def test_a_draft_beyond_its_limit_is_not_used(recorder: Recorder) -> None:
    recorder.excess = 1
    nodes = one_rank().step([request("a", min_new_tokens=1)], [[5]], [9])
    assert nodes.starts.tolist() == [0, 0]


def test_a_drafter_that_fails_is_left_alone(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    feed = one_rank()
    recorder.broken = True
    for _ in range(2):
        assert feed.step([request("a")], [[5]], [9]).starts.tolist() == [0, 0]
    feed.left("a")
    feed.reset()
    assert recorder.told == []
    assert feed.counters()["drafter_failures"] == 1
    assert caplog.text.count("goes on without drafts") == 1


def test_requests_that_left_are_told_once(recorder: Recorder) -> None:
    feed = one_rank(max_nodes=1)
    feed.step([request("a"), request("b")], [[5], [6]], [1, 1])
    feed.left("a")
    feed.step([request("c")], [[7]], [1])
    feed.left("b")
    assert [told for told in recorder.told if isinstance(told, str)] == ["a", "b"]


def test_counts_tell_rows_widths_and_accept_length(recorder: Recorder) -> None:
    feed = one_rank(max_nodes=3)
    feed.step([request("a"), request("b")], [[5], [6]], [3, 0])
    feed.verified(np.array([4, 1], np.int32), [3, 1])
    feed.verified(np.array([1, 1], np.int32), [1, 1])
    assert recorder.told[1:] == [([2, 0], True), ([0, 0], True)]
    assert feed.counters() == {
        "groups": 1,
        "verify_steps": 1,
        "plain_steps": 1,
        "requests": 4,
        "rows": 7,
        "accepted": 6,
        "drafter_failures": 0,
        "widths": {"1": 3, "4": 1},
        "accept_length": 1.5,
    }


def test_without_speculation_nothing_is_made() -> None:
    feed = one_rank(mode="off")
    assert feed.step([request("a")], [[5]], [9]).starts.tolist() == [0, 0]


def test_settings_come_from_the_launcher_or_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DRAFT_VARIABLE, raising=False)
    assert drafting.settings_from_environment() == DraftSettings()
    given = DraftSettings(mode="fixed", servers=("tcp://127.0.0.1:1",), max_nodes=7)
    monkeypatch.setenv(DRAFT_VARIABLE, encode(given))
    assert drafting.settings_from_environment() == given


@pytest.mark.parametrize(
    ("field", "value"), [("widths", (2, 4)), ("widths", (1, 4, 4)), ("max_nodes", 32), ("max_depth", 0)]
)
def test_settings_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        DraftSettings(**{field: value})


def test_a_tail_is_added_to_a_copy() -> None:
    known = array("q", [1, 2])
    assert with_tail(known, [3]).tolist() == [1, 2, 3]
    assert with_tail(known, []) is known
    assert known.tolist() == [1, 2]
