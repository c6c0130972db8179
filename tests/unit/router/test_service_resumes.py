"""Partial rollout: what comes back with its output so far finds its KV and its group."""

import asyncio
from typing import Any

import pytest

from seer_sgl.router.core.events import Submitted
from seer_sgl.router.live import Live
from seer_sgl.testing.engine import FakeServer, continuation
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, server, together, until


def group_of(body: dict[str, Any]) -> str:
    tag: dict[str, Any] = body["sampling_params"]["custom_params"]["seer"]
    return str(tag["group"])


async def aborted(it: Cluster, engine: FakeServer, prompt: list[int]) -> dict[str, Any]:
    """An answer that was cut short, from that engine."""
    async with together(it.generate(prompt, sampling_params={"max_new_tokens": LONG})) as call:
        await until(lambda: engine.bodies)
        await asyncio.sleep(0.04)
        assert it.service.dispatcher.abort_all() == 1
        answer: dict[str, Any] = await call
    assert 0 < len(answer["output_ids"]) < LONG
    return answer


@pytest.mark.parametrize("new_weights", [False, True])
def test_prompt_and_partial_output_go_back_to_where_they_were(new_weights: bool) -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        first, second = server("a", token_s=0.01), server("b", token_s=0.001)
        async with cluster(first) as it:
            partial = (await aborted(it, first, prompt))["output_ids"]
            await it.join(second)
            dispatcher = it.service.dispatcher
            if new_weights:
                dispatcher.new_epoch()
            # Were it not for its KV, it would go to the one that has fewer tokens reserved.
            async with together(it.generate([9, 9], sampling_params={"max_new_tokens": 40})):
                await until(lambda: it.service.core.statistics().in_flight)
                left = {"max_new_tokens": LONG - len(partial)}
                answer = await it.generate(prompt + partial, sampling_params=left)
        assert partial + answer["output_ids"] == continuation(prompt, LONG)
        (where,) = {chunk["engine"] for chunk in answer["meta_info"]["seer"]["chunks"]}
        assert where == ("b" if new_weights else "a")
        bodies = first.bodies + second.bodies
        resumed = [body for body in bodies if body["input_ids"] == prompt + partial]
        assert (group_of(resumed[0]) == group_of(first.bodies[0])) is not new_weights

    run(scenario())


def test_samples_that_come_one_by_one_are_one_group() -> None:
    async def scenario() -> None:
        engine = server(token_s=0.002, max_running_requests=8)
        async with cluster(engine, group_size=4) as it:
            await asyncio.gather(*(it.generate([5, 6, 7]) for _ in range(8)))
            await it.generate([5, 6, 7], group_id="mine")
        names = [group_of(body) for body in engine.bodies]
        assert len(set(names[:8])) == 2
        assert [names[:8].count(name) for name in set(names[:8])] == [4, 4]
        assert names[8] == "mine"

    run(scenario())


def test_what_began_under_old_weights_holds_nothing_of_the_new_ones() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engine = server("a", token_s=0.002)
        seen: list[int] = []
        async with cluster(engine) as it:
            dispatcher = it.service.dispatcher
            async with together(it.generate(prompt)) as call:
                await until(lambda: engine.bodies)
                dispatcher.pause()
                dispatcher.new_epoch()  # its engine keeps it in place
                dispatcher.resume()
                answer = await call
            submit = dispatcher._submit

            def noting(placed: list[tuple[Live, Submitted]]) -> None:
                seen.extend(event.held_tokens for _, event in placed)
                submit(placed)

            dispatcher._intake._submit = noting
            await it.generate(prompt + answer["output_ids"])
            again = await it.generate(prompt + answer["output_ids"])
            await it.generate(prompt + answer["output_ids"] + again["output_ids"])
        assert seen[:2] == [0, 0]
        assert seen[2], "what ran under the new ones does"

    run(scenario())
