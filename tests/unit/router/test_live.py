"""Samples on their way, and the calls that wait for them."""

import asyncio
from typing import Any

import pytest

from seer_sgl.errors import RequestError
from seer_sgl.router.core.actions import Deliver, Outcome
from seer_sgl.router.live import Call, Live, Registry
from seer_sgl.router.requests import parse_generate
from seer_sgl.router.transcript import Transcript
from seer_sgl.types import EngineId, RequestId


def lives(**body: Any) -> list[Live]:
    samples = parse_generate({"rid": "r", **body}, "new").samples
    return [Live(s, RequestId(s.rid), 0, Transcript(s.rid, s.prompt_ids)) for s in samples]


def ended(live: Live, outcome: Outcome = "finished", reason: str = "") -> dict[str, Any]:
    live.end(Deliver(live.request_id, outcome, reason))
    return live.finished(None, "v7")


def add(live: Live, ids: list[int], finish: dict[str, Any]) -> None:
    answer = {"text": "t", "output_ids": ids, "meta_info": {"finish_reason": finish}}
    live.transcript.add(answer, EngineId("a"), None)


BY_ENGINE = {"type": "abort", "message": "by the engine", "status_code": None}


@pytest.mark.parametrize(
    ("finish", "complete", "outcome", "told"),
    [
        ({"type": "stop", "matched": 1}, True, "finished", ("stop", None)),
        ({"type": "stop", "matched": 1}, True, "cancelled", ("stop", None)),
        ({"type": "length", "length": 2}, True, "cancelled", ("length", None)),
        ({"type": "length", "length": 2}, False, "cancelled", ("abort", "asked for")),
        (BY_ENGINE, False, "cancelled", ("abort", "by the engine")),
        (BY_ENGINE, True, "finished", ("length", None)),
        (None, True, "finished", ("length", None)),
        ({"type": "length", "length": 2}, False, "failed", ("abort", "it broke")),
    ],
)
def test_how_a_sample_ends(
    finish: dict[str, Any], complete: bool, outcome: Outcome, told: tuple[str, str | None]
) -> None:
    (live,) = lives(input_ids=[5])
    add(live, [7, 8], finish)
    live.complete, live.aborted = complete, "asked for"
    answer = ended(live, outcome, "it broke" if outcome == "failed" else "")
    reason = answer["meta_info"]["finish_reason"]
    assert (reason["type"], reason.get("message")) == told
    assert answer["meta_info"]["weight_version"] == "v7"
    assert answer["output_ids"] == [7, 8]
    if outcome == "failed":
        assert reason["status_code"] == 503
    if reason["type"] == "length":
        assert reason["length"] == 2


def test_a_call_hears_of_growth_and_of_each_end_once() -> None:
    async def scenario() -> None:
        one, two = lives(input_ids=[[5], [6]])
        call = Call([one, two])
        waiting = asyncio.ensure_future(call.next())
        await asyncio.sleep(0)
        two.grew()
        two.grew()
        assert await waiting == 1
        one.grew()
        ended(two)
        one.grew()
        assert [await call.next(), await call.next()] == [0, 1]
        ended(one)
        assert await call.next() == 0
        assert await call.next() is None

    asyncio.run(scenario())


def test_a_sample_that_had_ended_before_is_told_to_who_comes_late() -> None:
    async def scenario() -> None:
        one, two = lives(input_ids=[[5], [6]])
        first = Call([one, two])
        ended(one)
        late = Call([one, two])
        assert await late.next() == 0
        ended(two)
        await asyncio.gather(first.ended(), late.ended())
        assert [await late.next(), await late.next()] == [1, None]

    asyncio.run(scenario())


def test_what_can_never_run_is_raised_to_all_who_wait() -> None:
    async def scenario() -> None:
        one, two = lives(input_ids=[[5], [6]])
        calls = [Call([one, two]), Call([two])]
        waits = [asyncio.ensure_future(call.ended()) for call in calls]
        await asyncio.sleep(0)
        two.end(None, RequestError("input_ids", "too long"))
        for wait in waits:
            with pytest.raises(RequestError, match="too long"):
                await wait
        with pytest.raises(RequestError, match="too long"):
            await Call([two]).next()

    asyncio.run(scenario())


def test_samples_are_found_by_all_their_names() -> None:
    registry = Registry()
    everyone = lives(input_ids=[[5], [6]], sampling_params={"n": 2})
    for live in everyone:
        registry.add(live)
    assert registry.named("r") == everyone
    assert registry.named("r_1") == everyone[2:]
    assert registry.named("r_1_0") == [everyone[2]]
    assert registry.named("") == registry.named("r_") == registry.named("r_1_") == []
    for live in everyone:
        registry.remove(live)
    assert not registry.by_rid
    assert not registry._named


def test_an_id_that_was_taken_over_stays_with_its_new_owner() -> None:
    registry = Registry()
    (old,), (new,) = lives(input_ids=[5]), lives(input_ids=[5])
    registry.add(old)
    registry.add(new)
    registry.remove(old)
    assert registry.named("r") == [new]
