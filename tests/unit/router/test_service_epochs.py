"""What runs under which weights: salts, recalls, and what the pool's keeper hears of it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from seer_sgl.router.pool import NoPool
from seer_sgl.router.pooling import Pooling
from seer_sgl.testing.engine import continuation
from seer_sgl.types import RequestId
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, server, together, until

CHUNK = 20
BODY: dict[str, Any] = {"sampling_params": {"max_new_tokens": LONG}}


class Noted(NoPool):
    """A keeper's line that only notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Any, ...]] = []

    def opened(
        self,
        request: RequestId,
        group: str,
        extra_key: str | None,
        salt: str | None,
        ids: Sequence[int],
    ) -> None:
        self.told.append(("opened", salt, list(ids)))

    def grew(self, request: RequestId, ids: Sequence[int]) -> None:
        self.told.append(("grew", list(ids)))

    def closed(self, request: RequestId, ids: Sequence[int], finished: bool) -> None:
        self.told.append(("closed", finished))

    def epoch_changed(self) -> None:
        self.told.append(("epoch",))


def noting(it: Cluster) -> Noted:
    """Put a noting line in the place of the service's own."""
    noted, dispatcher = Noted(), it.service.dispatcher
    pooling: Pooling = dispatcher._pooling
    pooling.pool = noted
    return noted


async def recalled(it: Cluster) -> None:
    dispatcher = it.service.dispatcher
    dispatcher.pause()
    dispatcher.recall()
    await until(lambda: not dispatcher.queue_load().in_flight)


def test_a_recalled_sample_goes_on_under_the_new_weights_from_where_it_was() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engine = server(token_s=0.005)
        async with (
            cluster(engine, chunk_tokens=CHUNK, chunk_plan="constant") as it,
            together(it.generate(prompt, **BODY)) as call,
        ):
            noted = noting(it)
            await until(lambda: len(engine.bodies) == 2)
            await asyncio.sleep(0.03)
            await recalled(it)
            before = len(engine.bodies)
            it.service.dispatcher.new_epoch()
            assert len(engine.bodies) == before, "nothing runs during a pause"
            it.service.dispatcher.resume()
            answer = await call
        assert answer["output_ids"] == continuation(prompt, LONG)
        assert answer["meta_info"]["finish_reason"]["type"] == "length"
        chunks = answer["meta_info"]["seer"]["chunks"]
        assert 0 < chunks[before - 1]["new_tokens"] < CHUNK, "it was cut short, and nothing was lost"
        epochs = [chunk["epoch"] for chunk in chunks]
        assert epochs == [0] * before + [1] * (len(chunks) - before)
        salts = [body["cache_salt"] for body in engine.bodies]
        assert len(set(salts[:before])) == len(set(salts[before:])) == 1
        assert salts[0] != salts[-1]
        # The request was on its way when the line began to note.
        opened = [each for each in noted.told if each[0] == "opened"]
        assert [salt for _, salt, _ in opened][-1] == salts[-1]
        held = sum(chunk["new_tokens"] for chunk in chunks[:before])
        assert opened[-1][2] == prompt + answer["output_ids"][:held], "all of it is computed again"
        assert noted.told[-1] == ("closed", True)

    run(scenario())


def test_a_recalled_sample_that_its_client_aborts_is_answered_at_once() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engine = server(token_s=0.005)
        async with (
            cluster(engine, chunk_tokens=LONG, chunk_plan="constant") as it,
            together(it.generate(prompt, rid="mine", **BODY)) as call,
        ):
            await until(lambda: engine.bodies)
            await asyncio.sleep(0.03)
            await recalled(it)
            assert it.service.dispatcher.abort("mine") == 1
            answer = await call
        ids = answer["output_ids"]
        assert answer["meta_info"]["finish_reason"]["type"] == "abort"
        assert 0 < len(ids) < LONG
        assert ids == continuation(prompt, len(ids))

    run(scenario())


WHOLE: dict[str, Any] = {"sampling_params": {"max_new_tokens": LONG, "frequency_penalty": 0.5}}


def test_what_cannot_be_divided_begins_anew_under_the_new_weights() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engine = server(token_s=0.002)
        async with (
            cluster(engine, chunk_tokens=CHUNK) as it,
            together(it.generate(prompt, **WHOLE)) as call,
        ):
            await until(lambda: engine.bodies)
            await asyncio.sleep(0.03)
            await recalled(it)
            it.service.dispatcher.new_epoch()
            it.service.dispatcher.resume()
            answer = await call
        assert [body["input_ids"] for body in engine.bodies] == [prompt, prompt]
        assert engine.bodies[0]["cache_salt"] != engine.bodies[1]["cache_salt"]
        assert answer["output_ids"] == continuation(prompt, LONG)
        assert [chunk["epoch"] for chunk in answer["meta_info"]["seer"]["chunks"]] == [1]

    run(scenario())


def test_what_cannot_be_divided_and_was_seen_ends_with_that() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engine = server(token_s=0.005)
        async with cluster(engine, chunk_tokens=CHUNK) as it:
            body = {"input_ids": prompt, "stream": True, **WHOLE}
            async with it.http.stream("POST", "/generate", json=body) as response:
                lines = response.aiter_lines()
                events = [await anext(lines)]
                await recalled(it)
                events += [line async for line in lines]
        told = [msgspec.json.decode(e.removeprefix("data: ")) for e in events if e[:7] == "data: {"]
        assert told[-1]["meta_info"]["finish_reason"]["type"] == "abort"
        ids = told[-1]["output_ids"]
        assert 0 < len(ids) < LONG
        assert ids == continuation(prompt, len(ids))

    run(scenario())


def test_the_keeper_hears_of_every_token_of_the_life_of_a_request() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engine = server()
        async with cluster(engine, chunk_tokens=CHUNK, chunk_plan="constant") as it:
            noted = noting(it)
            answer = await it.generate(prompt, **BODY)
        opened, *grown, closed = noted.told
        assert opened == ("opened", engine.bodies[0]["cache_salt"], prompt)
        assert [tokens for _, ids in grown for tokens in ids] == answer["output_ids"]
        assert closed == ("closed", True)

    run(scenario())


def test_pages_of_requests_that_are_given_up_stay_for_a_while() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engine = server(token_s=0.005)
        async with cluster(engine, chunk_tokens=CHUNK) as it:
            noted = noting(it)
            async with together(it.generate(prompt, rid="mine", **BODY)) as call:
                await until(lambda: len(engine.bodies) == 2)
                it.service.dispatcher.abort("mine")
                await call
        assert noted.told[-1] == ("closed", False)

    run(scenario())


def test_the_keeper_is_not_told_of_keys_that_only_an_engine_knows() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engine = server()
        async with cluster(engine, chunk_tokens=CHUNK) as it:
            noted = noting(it)
            await it.generate(prompt, lora_path="adapter", **BODY)
        assert noted.told == []

    run(scenario())
