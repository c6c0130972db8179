"""What an engine's drafter does from step to step."""

from typing import Any

import numpy as np
import pytest

from seer_sgl.spec.drafter import Drafter, StepRequest
from seer_sgl.spec.forest import LEAST_BUDGET_BYTES
from seer_sgl.spec.paths import Siblings, read_tag
from seer_sgl.spec.settings import DraftSettings
from seer_sgl.spec.sharing.reading import Records

PROMPT = [50, 51, 52]
TEXT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


@pytest.fixture
def drafter() -> Drafter:
    return Drafter(DraftSettings(mode="fixed", max_nodes=4, widths=(1, 2, 4, 8)))


def tag(request: int, group: str = "g", done: int = 0) -> dict[str, Any]:
    return {"group": group, "request": request, "done": done, "probe": False}


def asked(
    rid: str, told: Any, output: list[int], prompt: list[int] = PROMPT, nodes: int = 8
) -> StepRequest:
    return StepRequest(rid, told, prompt, output, nodes)


def drafted(drafter: Drafter, *batch: StepRequest) -> list[list[int]]:
    drafts = drafter.step(batch)
    drafter.verified([0] * len(batch), 0.01)
    return [
        drafts.tokens[low:high].tolist()
        for low, high in zip(drafts.starts[:-1], drafts.starts[1:], strict=True)
    ]


def test_a_sibling_that_ended_is_drafted_from(drafter: Drafter) -> None:
    drafted(drafter, asked("a", tag(0), TEXT))
    drafter.finished("a")
    assert drafted(drafter, asked("b", tag(1), TEXT[:3])) == [TEXT[3:7]]


def test_the_last_step_of_a_sibling_is_drafted_from_too(drafter: Drafter) -> None:
    drafted(drafter, asked("a", tag(0), TEXT[:8]))
    drafter.finished("a", TEXT)
    assert drafted(drafter, asked("b", tag(1), TEXT[:7])) == [TEXT[7:10]]
    drafter.finished("b", [])


def test_requests_of_one_step_see_each_other_and_no_other_group(drafter: Drafter) -> None:
    batch = [asked("a", tag(0), TEXT), asked("b", tag(1), TEXT[:2]), asked("c", tag(0, "h"), TEXT[:2])]
    assert drafted(drafter, *batch)[1:] == [TEXT[2:6], []]


def test_outputs_grow_and_only_what_is_new_goes_in(drafter: Drafter) -> None:
    for end in range(1, len(TEXT) + 1):
        drafted(drafter, asked("a", tag(0), TEXT[:end]))
    assert drafter.counters()["tokens"] == len(TEXT)


def test_a_chunk_goes_on_where_the_last_one_ended(drafter: Drafter) -> None:
    drafted(drafter, asked("a", tag(0), TEXT))
    drafted(drafter, asked("b", tag(1), TEXT[:2]))
    drafter.finished("b")
    again = asked("b2", tag(1, done=2), TEXT[2:4], PROMPT + TEXT[:2])
    assert drafted(drafter, again) == [TEXT[4:8]]
    assert drafter.counters()["tokens"] == len(TEXT) + 4


def test_a_chunk_from_elsewhere_brings_what_was_said_there(drafter: Drafter) -> None:
    drafted(drafter, asked("a", tag(0), TEXT))
    moved = asked("b", tag(1, done=4), [5], PROMPT + TEXT[:4])
    assert drafted(drafter, moved) == [TEXT[5:9]]
    assert drafter.counters()["tokens"] == len(TEXT) + 5


def test_a_chunk_that_is_tried_again_may_say_something_else(drafter: Drafter) -> None:
    drafted(drafter, asked("a", tag(0), [1, 2, 3]))
    drafter.finished("a")
    drafted(drafter, asked("b", tag(0), [1, 9]))
    assert drafted(drafter, asked("b", tag(0), [1, 9, 2, 3])) == [[]]
    drafter.finished("b")
    sibling = drafted(drafter, asked("c", tag(1), [9]))
    assert sibling == [[2, 3]]


def test_limits_are_kept(drafter: Drafter) -> None:
    drafted(drafter, asked("a", tag(0), TEXT))
    batch = [
        asked("b", tag(1), TEXT[:2], nodes=0),
        asked("c", tag(2), TEXT[:2], nodes=2),
        asked("d", tag(3), TEXT[:2], nodes=100),
    ]
    assert [len(tokens) for tokens in drafted(drafter, *batch)] == [0, 2, 4]


@pytest.mark.parametrize(
    "told", [None, "x", 3, {}, {"group": "g"}, {"group": "g", "request": "?", "done": 0}, [1]]
)
def test_without_a_usable_tag_a_request_is_a_group_of_its_own(drafter: Drafter, told: Any) -> None:
    drafted(drafter, asked("a", tag(0), TEXT))
    loop = [1, 2, 3, 1, 2, 3, 1]
    assert drafted(drafter, asked("odd", told, loop)) == [[2, 3, 1, 2]]
    assert read_tag(told, "odd", 3).group == "alone odd"


def test_more_is_said_to_be_done_than_there_is_prompt() -> None:
    assert read_tag(tag(0, done=9), "a", 4).done == 4


def test_a_reset_forgets_all(drafter: Drafter) -> None:
    drafted(drafter, asked("a", tag(0), TEXT))
    drafter.reset()
    assert drafted(drafter, asked("b", tag(1), TEXT[:3])) == [[]]


def test_a_group_dropped_for_memory_begins_again() -> None:
    settings = DraftSettings(mode="fixed", budget_bytes=LEAST_BUDGET_BYTES)
    drafter = Drafter(settings)
    text = np.random.default_rng(0).integers(0, 999, 150_000).tolist()
    drafted(drafter, asked("a", tag(0), text))
    assert drafter.counters()["bytes"] <= LEAST_BUDGET_BYTES
    assert drafter.counters()["evicted_groups"] >= 1
    drafted(drafter, asked("a", tag(0), [*text, 1]))
    drafter.finished("a")
    assert len(drafted(drafter, asked("b", tag(1, "h"), TEXT * 2))[0]) > 0


def nodes_of_a_loop(row_s: float, steps: int = 120) -> int:
    """Draft nodes of a request that repeats itself, where each row more takes so long."""
    drafter = Drafter(DraftSettings())
    loop, at, nodes = [1, 2, 3, 4, 5] * 200, 10, 0
    for _ in range(steps):
        drafts = drafter.step([asked("a", tag(0), loop[:at], nodes=31)])
        count = len(drafts.tokens)
        nodes += count
        drafter.verified([count], 0.010 + row_s * count)
        at = min(at + 1 + min(count, 4), 900)
    return nodes


def test_adaptive_drafts_where_it_pays() -> None:
    cheap, dear = nodes_of_a_loop(0.0001), nodes_of_a_loop(0.05)
    assert cheap > 120
    assert cheap > 5 * dear


class Told:
    """A draft client that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def open(self, *_args: Any) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        def note(*args: Any) -> dict[str, float]:
            self.told.append((name, *args))
            return {}

        return note


def test_a_group_is_read_until_it_was_away_for_a_while(
    drafter: Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Told()
    drafter._client = client  # type: ignore[assignment]
    now_s = [100.0]
    monkeypatch.setattr("seer_sgl.spec.drafter.time.monotonic", lambda: now_s[0])
    for chunk in range(2):
        drafted(drafter, asked(f"a{chunk}", tag(0), [1, 2]))
        drafter.finished(f"a{chunk}")
        now_s[0] += 20.0
    shared = [call for call in client.told if call[0] in ("register", "release")]
    assert shared == [("register", "g")]
    now_s[0] += 11.0
    drafted(drafter, asked("b", tag(0, "h"), [1]))
    assert client.told.index(("release", "g")) < client.told.index(("register", "h"))
    drafter.reset()
    assert ("release", "h") in client.told


def test_off_drafts_nothing_and_still_listens() -> None:
    drafter = Drafter(DraftSettings(mode="off"))
    assert drafted(drafter, asked("a", tag(0), TEXT * 2)) == [[]]
    assert drafter.counters()["tokens"] == 2 * len(TEXT)


def test_a_profile_that_cannot_be_read_is_said_once(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "p.json").write_text("nonsense")
    Drafter(DraftSettings(profile=str(tmp_path / "p.json")))
    assert "is of no use" in caplog.text


def records(group: str, request: int, prev: int, tokens: list[int]) -> Records:
    return Records(
        [group],
        np.zeros(1, np.int32),
        np.array([request], np.int64),
        np.array([prev], np.int32),
        np.array([0, len(tokens)], np.int32),
        np.array(tokens, np.int32),
    )


def test_siblings_elsewhere_are_drafted_from(drafter: Drafter) -> None:
    siblings = drafter._siblings
    siblings.receive(records("g", 5, 0, TEXT[:6]))
    siblings.receive(records("g", 5, 4, TEXT[4:]))  # some of it again
    assert drafted(drafter, asked("a", tag(0), TEXT[:3])) == [TEXT[3:7]]
    assert drafter.counters()["sibling_tokens"] == 12


def test_a_gap_and_tokens_outside_the_vocabulary_are_left_out(
    drafter: Drafter, caplog: pytest.LogCaptureFixture
) -> None:
    siblings = Siblings(drafter._forest, vocab_size=100)
    for _ in range(2):
        siblings.receive(records("g", 5, 3, TEXT))
        siblings.receive(records("g", 6, 0, [1, 100]))
        siblings.receive(records("g", 6, 0, [-1]))
    assert siblings.gaps == 2
    assert siblings.bad_tokens == 4
    assert drafter.counters()["tokens"] == 0
    assert caplog.text.count("holds 0 tokens") == 1
    assert caplog.text.count("outside the vocabulary of 100") == 1


def test_a_request_that_measures_sets_the_width_of_its_steps(drafter: Drafter) -> None:
    forced = [asked(rid, {"force": nodes}, [1, 2]) for rid, nodes in (("a", 3), ("b", 0), ("c", 99))]
    assert [len(tokens) for tokens in drafted(drafter, *forced)] == [3, 0, 8]


def test_steps_of_one_width_are_learnt_as_they_ran() -> None:
    settings = DraftSettings(mode="fixed", max_nodes=4, widths=(1, 2, 4, 8))
    uniform, ragged = Drafter(settings, uniform=True), Drafter(settings)
    for drafter, rows in ((uniform, 16), (ragged, 6)):
        drafted(drafter, asked("a", tag(0), TEXT))
        drafter.step([asked("b", tag(1), TEXT[:2]), asked("c", tag(2, "h"), [40])])
        assert drafter._rows == rows
