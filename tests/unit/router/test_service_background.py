"""Requests that a client waits for, and those that may wait, by header and from batches."""

import asyncio

from seer_sgl.engine.front import KEPT_HEADERS
from seer_sgl.router.http.batches import line_answerer
from seer_sgl.router.http.generate import BACKGROUND_HEADER
from seer_sgl.router.http.openai import _passed_on
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, server, together, until

BACKGROUND = {BACKGROUND_HEADER: "1"}


async def order_of(it: Cluster, lines: bool) -> list[str]:
    """A request that may wait runs, two wait, then comes one that may not: in which order they end."""
    ended: list[str] = []
    running, second, third, urgent = prompts(4, tokens_at_least=LONG)

    async def ask(name: str, ids: list[int], may_wait: bool) -> None:
        body = {"input_ids": ids, "sampling_params": {"max_new_tokens": LONG}}
        if may_wait and lines:
            answer = line_answerer(it.service._front)
            status, _ = await answer(
                "/generate", it.http.build_request("POST", "/", json=body).content, name
            )
            assert status == 200
        else:
            headers = BACKGROUND if may_wait else {}
            assert (await it.http.post("/generate", json=body, headers=headers)).status_code == 200
        ended.append(name)

    async with together(ask("running", running, True)) as first:
        await until(lambda: it.service.core.statistics().in_flight)
        async with (
            together(ask("second", second, True)) as two,
            together(ask("third", third, True)) as three,
        ):
            await until(lambda: it.service.core.statistics().waiting == 2)
            await ask("urgent", urgent, False)
            await asyncio.gather(first, two, three)
    return ended


def test_a_client_that_waits_goes_first() -> None:
    async def scenario() -> None:
        slow = {"token_s": 0.001, "max_running_requests": 1}
        for lines in (False, True):
            async with cluster(server("a", **slow), chunk_tokens=LONG, chunk_plan="constant") as it:
                assert (await order_of(it, lines))[:2] == ["running", "urgent"]

    run(scenario())


def test_the_header_travels_with_a_chat() -> None:
    assert BACKGROUND_HEADER in KEPT_HEADERS
    passed = _passed_on({"X-Seer-Background": "1", "X-Seer-Group": "g", "X-Seer-Rid": "mine"})
    assert (passed[BACKGROUND_HEADER], passed["x-seer-group"]) == ("1", "g")
    assert passed["x-seer-rid"] != "mine"
