"""Engines that come, go, break and lie, as a whole router sees them."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from seer_sgl.errors import EngineUnreachable, StartError
from seer_sgl.router.core.policy import DIVIDED
from seer_sgl.testing.controls import END_TOKEN, Asked
from seer_sgl.testing.engine import FakeServer, continuation
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, server, together, until

PROMPTS = prompts(12, tokens_at_least=40)


def test_requests_wait_until_an_engine_joins() -> None:
    async def scenario() -> None:
        async with cluster() as it, together(it.generate([5, 6])) as waiting:
            health = await it.http.get("/health")
            assert health.status_code == 503
            assert "no engine is registered" in health.json()["error"]["message"]
            assert (await it.http.get("/engines")).json() == {"engines": [], "total": 0}
            assert not waiting.done()
            await it.join(server())
            assert (await waiting)["output_ids"] == continuation([5, 6], 128)
            assert (await it.http.get("/health")).status_code == 200

    run(scenario())


async def all_done(it: Cluster, kill: FakeServer) -> None:
    """Send every prompt, kill a server in the middle, and compare all answers."""
    sampling = {"max_new_tokens": 60}
    tasks = [asyncio.create_task(it.generate(p, sampling_params=sampling)) for p in PROMPTS]
    await until(lambda: any(len(body["input_ids"]) > 20 for body in kill.bodies))
    assert it.service.core.statistics().in_flight
    kill.kill()
    answers = await asyncio.gather(*tasks)
    assert [answer["output_ids"] for answer in answers] == [continuation(p, 60) for p in PROMPTS]
    assert it.service.core.statistics().delivered == len(PROMPTS)
    assert it.service.core.statistics().in_flight == 0


def test_a_killed_engines_work_is_done_by_another() -> None:
    async def scenario() -> None:
        a, b, reborn = server("a", token_s=0.001), server("b", token_s=0.001), server("a")
        async with cluster(b, chunk_tokens=20) as it:
            await it.join(a, reborn)
            await all_done(it, kill=a)
            await until(lambda: len(it.service.roster) == 2)

    run(scenario())


def test_a_lone_engine_comes_back_and_goes_on() -> None:
    async def scenario() -> None:
        first, reborn = server(token_s=0.001), server()
        async with cluster(chunk_tokens=20) as it:
            await it.join(first, reborn)
            await all_done(it, kill=first)
        assert any(len(body["input_ids"]) > 20 for body in reborn.bodies), "no work was kept"

    run(scenario())


def test_an_engine_that_refuses_connections_before_it_ends_loses_nothing() -> None:
    async def scenario() -> None:
        broken = [False]
        a = server("a", token_s=0.001, refuse=lambda _: (0, "refused") if broken[0] else None)
        b = server("b", token_s=0.001)
        async with cluster(b, chunk_tokens=20) as it:
            await it.join(a, server("a"))
            work = [asyncio.create_task(it.generate(p)) for p in PROMPTS]
            await until(lambda: a.bodies)
            broken[0] = True
            await asyncio.sleep(0.1)
            a.kill()
            answers = await asyncio.gather(*work)
        assert [answer["output_ids"] for answer in answers] == [continuation(p, 128) for p in PROMPTS]

    run(scenario())


def refusing(status: int, reason: str) -> FakeServer:
    return server(refuse=lambda _body: (status, reason))


def test_a_refusal_is_passed_on_and_not_tried_again() -> None:
    async def scenario() -> None:
        engine = refusing(400, "custom_params: too odd")
        async with cluster(engine) as it:
            answer = await it.post({"input_ids": [5]})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "custom_params: too odd"
        assert len(engine.bodies) == 1

    run(scenario())


@pytest.mark.parametrize(("status", "seen"), [(0, 503), (500, 500)])
def test_an_engine_that_breaks_every_time_is_given_up(
    status: int, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seer_sgl.engine.work.BROKEN_PAUSE_S", 0.01)

    async def scenario() -> None:
        engine = refusing(status, "it broke")
        async with cluster(engine) as it:
            answer = await it.post({"input_ids": [5]})
            tries = it.service.core.settings.max_failures
        # Clients send again and again what ends in an error.
        finish = answer.json()["meta_info"]["finish_reason"]
        assert (answer.status_code, finish["type"], finish["status_code"]) == (200, "abort", seen)
        assert "it broke" in finish["message"]
        assert len(engine.bodies) == tries

    run(scenario())


def test_a_failed_sample_does_not_spoil_its_list() -> None:
    async def scenario() -> None:
        engine = server(refuse=lambda body: (400, "no sixes") if body["input_ids"][0] == 6 else None)
        async with cluster(engine) as it:
            answers = (await it.post({"input_ids": [[5], [6], [7]]})).json()
        assert [answer["output_ids"] for answer in answers] == [
            continuation([5], 128),
            [],
            continuation([7], 128),
        ]
        finish = answers[1]["meta_info"]["finish_reason"]
        assert finish == {
            "type": "abort",
            "message": "no sixes",
            "status_code": 400,
            "err_type": None,
        }

    run(scenario())


def test_a_sample_that_fails_half_way_keeps_what_it_has() -> None:
    async def scenario() -> None:
        engine = server(refuse=lambda body: (400, "too long") if len(body["input_ids"]) > 20 else None)
        async with cluster(engine, chunk_tokens=20) as it:
            answer = await it.generate(PROMPTS[0])
        assert answer["output_ids"] == continuation(PROMPTS[0], 20)
        assert answer["text"] == "".join(f"<{token}>" for token in answer["output_ids"])
        assert answer["meta_info"]["finish_reason"]["message"] == "too long"

    run(scenario())


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"page_tokens": 32}, "page size 32 differs from 16"),
        ({"vocab_size": 300}, "vocabulary 300 differs from 256"),
        ({"name": "a"}, "another engine is called 'a'"),
    ],
)
def test_an_engine_unlike_the_others_is_refused(other: dict[str, Any], reason: str) -> None:
    async def scenario() -> None:
        async with cluster(server("a")) as it:
            with pytest.raises(StartError, match=reason):
                await it.join(server(**{"name": "b", **other}))
            assert list(it.service.roster.members) == ["a"]
            assert (await it.generate([5]))["output_ids"]

    run(scenario())


def test_an_engine_with_other_weights_is_refused() -> None:
    async def scenario() -> None:
        late = server("b")
        info = await late.start()

        async def other_weights() -> Any:
            return type(info)(info.spec, info.model, info.sglang_version, "step-9", info.plugin)

        late.start = other_weights  # type: ignore[method-assign]
        async with cluster(server("a")) as it:
            with pytest.raises(StartError, match="weights 'step-9' differ from 'default'"):
                await it.join(late)
        await late.stop()

    run(scenario())


def test_a_silent_engine_is_taken_for_gone() -> None:
    async def scenario() -> None:
        silent = server("a", token_s=0.02)
        beats: Iterator[bool] = iter([True] * 2)

        async def load() -> tuple[int, int, int]:
            if next(beats, False):
                return 0, 0, 0
            await asyncio.Event().wait()
            raise AssertionError

        async with cluster(policy=DIVIDED, engine_timeout_s=0.2, chunk_tokens=20) as it:
            silent.client.load = load  # type: ignore[method-assign]
            await it.join(silent)
            async with together(it.generate(prompts(1, LONG)[0])) as answer:
                await until(lambda: not len(it.service.roster))
                assert (await it.http.get("/health")).status_code == 503
                await it.join(server("b"))
                chunks = (await answer)["meta_info"]["seer"]["chunks"]
                assert {chunk["engine"] for chunk in chunks} == {"b"}

    run(scenario())


def test_an_engine_that_says_more_than_it_was_asked_for_is_not_believed() -> None:
    async def scenario() -> None:
        liar = server("a")
        meta = {"finish_reason": {"type": "length", "length": 50}}
        liar.script["/generate"] = {"text": "", "output_ids": [9] * 250, "meta_info": meta}
        async with cluster(liar) as it:
            answer = await it.post({"input_ids": [5], "sampling_params": {"max_new_tokens": 50}})
        finish = answer.json()["meta_info"]["finish_reason"]
        assert (answer.status_code, finish["type"], finish["status_code"]) == (200, "abort", 503)
        assert "tokens for 50" in finish["message"]

    run(scenario())


def test_a_lone_engine_that_dies_before_the_text_is_made() -> None:
    async def scenario() -> None:
        dying = server("a")

        def refuse_last_step(_: Asked) -> Exception:
            asyncio.get_running_loop().call_later(0.05, dying.kill)
            return EngineUnreachable("refused")

        dying.script["/detokenize"] = refuse_last_step
        async with cluster(chunk_tokens=20) as it:
            await it.join(dying, server("a"))
            answer = await it.generate(PROMPTS[0])
        expected = continuation(PROMPTS[0], 128)
        assert answer["text"] == "".join(f"<{token}>" for token in expected if token != END_TOKEN)

    run(scenario())
