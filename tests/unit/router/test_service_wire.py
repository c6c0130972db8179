"""What goes wrong between router and agents: restarts, strangers, late answers, taken ports."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from seer_sgl.config import RouterConfig
from seer_sgl.engine.agent import Agent
from seer_sgl.engine.process import free_port
from seer_sgl.errors import StartError
from seer_sgl.router import messages as m
from seer_sgl.router.link import AgentLink
from seer_sgl.router.service import RouterService
from seer_sgl.testing.engine import FAKE_SPEC, continuation
from seer_sgl.types import ChunkId, EngineId
from tests.unit.router.conftest import LONG, cluster, new_client, prompts, run, server, together, until


@contextlib.asynccontextmanager
async def raw_peer(head: str) -> AsyncIterator[zmq.asyncio.Socket]:
    """A socket that says whatever a test wants."""
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(f"tcp://{head}")
        yield peer


async def heard(peer: zmq.asyncio.Socket) -> m.RouterMessage:
    return m.decode_from_router(await asyncio.wait_for(peer.recv(), 2.0))


def test_agents_come_back_to_a_new_router_on_the_same_ports() -> None:
    async def scenario() -> None:
        config = RouterConfig(http_port=free_port(), agent_port=free_port(), heartbeat_s=0.02)
        agent = Agent(server, f"127.0.0.1:{config.agent_port}")
        agent._heartbeat_s = 0.02  # what it begins with, before a router has told it
        async with contextlib.AsyncExitStack() as stack:
            async with RouterService(config) as first:
                working = await stack.enter_async_context(together(agent.run()))
                await until(lambda: len(first.roster))
            async with RouterService(config) as second, new_client() as http:
                await until(lambda: len(second.roster))
                url = f"http://127.0.0.1:{config.http_port}/generate"
                answer = await http.post(url, json={"input_ids": [5, 6]})
                assert answer.json()["output_ids"] == continuation([5, 6], 128)
                assert not working.done()
                await stack.aclose()

    run(scenario())


@contextlib.asynccontextmanager
async def agent_of_a_made_up_router(
    token_s: float, **known: Any
) -> AsyncIterator[tuple[Callable[[m.Message], None], "asyncio.Queue[m.AgentMessage]"]]:
    """A real agent, a way to say something to it, and what it says less heartbeats."""
    port, heard_all = free_port(), asyncio.Queue[m.AgentMessage]()
    peers: list[bytes] = []

    def note(peer: bytes, message: m.AgentMessage) -> None:
        peers.append(peer)
        if not isinstance(message, m.Heartbeat):
            heard_all.put_nowait(message)

    link = AgentLink("127.0.0.1", port)
    try:
        async with together(link.receive_forever(note)):
            agent = Agent(lambda: server(token_s=token_s, **known), f"127.0.0.1:{port}")
            async with together(agent.run()):
                assert isinstance(await heard_all.get(), m.Register)

                def say(message: m.Message) -> None:
                    link.send(peers[-1], message)

                yield say, heard_all
    finally:
        link.close()


def chunk(chunk_id: int, ids: list[int], tokens: int) -> m.RunChunk:
    body = {"rid": f"r{ids[0]}", "input_ids": ids, "sampling_params": {"max_new_tokens": tokens}}
    return m.RunChunk(ChunkId(chunk_id), body)


def test_no_answer_to_an_old_router_reaches_a_new_one_that_uses_the_same_numbers() -> None:
    async def scenario() -> None:
        (long,) = prompts(1, LONG)
        async with agent_of_a_made_up_router(token_s=0.005) as (say, heard_all):
            say(chunk(1, long, LONG))
            say(m.Call(1, "POST", "/tokenize", {}, b'{"prompt":["old"]}'))
            say(m.WhoAreYou())
            assert isinstance(await heard_all.get(), m.Register)
            say(chunk(1, [5, 6], 3))
            answer = await heard_all.get()
            assert isinstance(answer, m.ChunkAnswered)
            assert answer.answer["output_ids"] == continuation([5, 6], 3)
            await asyncio.sleep(0.05)
            assert heard_all.empty()

    run(scenario())


def test_an_agent_stops_a_chunk() -> None:
    async def scenario() -> None:
        (long,) = prompts(1, LONG)
        async with agent_of_a_made_up_router(token_s=0.02) as (say, heard_all):
            say(chunk(1, long, LONG))
            await asyncio.sleep(0.05)
            say(m.StopChunk(ChunkId(1)))
            answer = await asyncio.wait_for(heard_all.get(), 1.0)
            assert isinstance(answer, m.ChunkAnswered)
            assert answer.answer["meta_info"]["finish_reason"]["type"] == "abort"

    run(scenario())


@pytest.mark.parametrize("incremental", [False, True])
def test_a_chunk_that_streams_tells_what_is_new_and_at_the_end_all(incremental: bool) -> None:
    async def scenario() -> None:
        (long,) = prompts(1, LONG)
        facts = {"incremental_streaming_output": incremental}
        async with agent_of_a_made_up_router(token_s=0.001, facts=facts) as (say, heard_all):
            asked = chunk(1, long, LONG)
            asked.body["return_logprob"] = True
            say(msgspec.structs.replace(asked, streams=True))
            text, ids, logprobs = "", list[int](), list[Any]()
            while isinstance(told := await heard_all.get(), m.ChunkProgress):
                text = text[: told.keep_chars] + told.text
                ids += told.new_ids
                logprobs += told.meta["output_token_logprobs"]
            assert isinstance(told, m.ChunkAnswered)
            assert ids == told.answer["output_ids"] == continuation(long, LONG)
            assert text == told.answer["text"]
            assert logprobs == told.answer["meta_info"]["output_token_logprobs"]
            assert [entry[1] for entry in logprobs] == ids

    run(scenario())


def test_an_answer_from_an_engine_that_was_not_asked_changes_nothing() -> None:
    async def scenario() -> None:
        async with (
            cluster(server("a", token_s=0.003)) as it,
            raw_peer(it.head) as peer,
            together(it.generate([5, 6])) as answer,
        ):
            await until(lambda: it.service.core.statistics().in_flight)
            (running,) = it.service.core.chunks
            meta = {"finish_reason": {"type": "stop"}}
            wrong = {"text": "", "output_ids": [9], "meta_info": meta}
            await peer.send(m.encode(m.ChunkAnswered(EngineId("x"), running, wrong)))
            await peer.send(m.encode(m.ChunkBroke(EngineId("x"), running, "no", 400)))
            assert (await answer)["output_ids"] == continuation([5, 6], 128)

    run(scenario())


def test_a_stranger_is_asked_who_it_is_and_a_leaver_is_gone_at_once() -> None:
    async def scenario() -> None:
        async with cluster() as it, raw_peer(it.head) as peer:
            await peer.send(m.encode(m.Heartbeat(EngineId("x"), 0, 0, 0)))
            assert await heard(peer) == m.WhoAreYou()
            spec = msgspec.structs.replace(FAKE_SPEC, engine_id=EngineId("x"))
            await peer.send(m.encode(m.Register(spec, "http://x", "model", "0", "default")))
            assert await heard(peer) == m.Welcome(0.05, it.config.http_port)
            assert list(it.service.roster.members) == ["x"]
            await peer.send(m.encode(m.Leave(EngineId("x"), "bye")))
            await until(lambda: not len(it.service.roster))

    run(scenario())


def test_an_engine_that_leaves_right_after_it_tokenized_a_prompt() -> None:
    async def scenario() -> None:
        x = EngineId("x")
        async with (
            cluster() as it,
            raw_peer(it.head) as peer,
            together(it.post({"text": "ab"})) as answer,
        ):
            spec = msgspec.structs.replace(FAKE_SPEC, engine_id=x)
            await peer.send(m.encode(m.Register(spec, "http://x", "model", "0", "default")))
            assert await heard(peer) == m.Welcome(0.05, it.config.http_port)
            call = await heard(peer)
            assert isinstance(call, m.Call)
            other = m.CallAnswered(EngineId("y"), call.call_id, 200, {}, b'{"tokens":[[9]]}')
            await peer.send(m.encode(other))
            right = m.CallAnswered(x, call.call_id, 200, {}, b'{"tokens":[[97,98]]}')
            await peer.send(m.encode(right))
            await peer.send(m.encode(m.Leave(x, "bye")))
            await until(lambda: not len(it.service.roster))
            await it.join(server())
            assert (await answer).json()["output_ids"] == continuation([97, 98], 128)

    run(scenario())


def test_the_head_tells_a_node_what_to_serve() -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {"model": "/models/x", "engine_args": ("--dtype", "auto")}
        async with cluster(**settings) as it, raw_peer(it.head) as peer:
            await peer.send(m.encode(m.AskHead()))
            assert await heard(peer) == m.Head("/models/x", None, ["--dtype", "auto"])

    run(scenario())


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ({"type": "AskHead", "protocol": 99}, "peer speaks protocol 99, this side 2"),
        ("junk", "not a message"),
    ],
)
def test_a_peer_of_another_protocol_is_refused(frame: Any, says: str) -> None:
    async def scenario() -> None:
        async with cluster(server()) as it, raw_peer(it.head) as peer:
            await peer.send(msgspec.msgpack.encode(frame))
            refusal = await heard(peer)
            assert isinstance(refusal, m.Refused)
            assert says in refusal.reason
            assert (await it.generate([5]))["output_ids"]

    run(scenario())


def test_an_agent_says_so_when_its_router_is_of_another_protocol() -> None:
    async def scenario() -> None:
        port = free_port()
        with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as router:
            router.bind(f"tcp://127.0.0.1:{port}")
            async with together(Agent(server, f"127.0.0.1:{port}").run()) as agent:
                peer, _ = await router.recv_multipart()
                newer = {"type": "Refused", "protocol": 3, "reason": "too old"}
                await router.send_multipart([peer, msgspec.msgpack.encode(newer)])
                with pytest.raises(StartError, match="speaks protocol 3, this side 2"):
                    await agent

    run(scenario())


@pytest.mark.parametrize(("taken", "option"), [("http_port", "--port"), ("agent_port", "--agent-port")])
def test_a_second_router_on_a_port_is_refused_and_the_first_goes_on(taken: str, option: str) -> None:
    async def scenario() -> None:
        async with cluster(server()) as it:
            port = getattr(it.config, taken)
            ports = {"http_port": free_port(), "agent_port": free_port(), taken: port}
            with pytest.raises(StartError, match=rf"127\.0\.0\.1:{port}: .*{option}\.") as caught:
                async with RouterService(RouterConfig(**ports)):
                    pass
            assert "\n" not in str(caught.value)
            assert (await it.generate([5]))["output_ids"] == continuation([5], 128)
            # What the second one had taken by then is free again.
            for other in {"http_port", "agent_port"} - {taken}:
                with socket.create_server(("127.0.0.1", ports[other])):
                    pass

    run(scenario())


def test_a_router_that_stops_tells_its_clients_at_once() -> None:
    async def scenario() -> None:
        async with cluster() as it, raw_peer(it.head) as peer:
            spec = msgspec.structs.replace(FAKE_SPEC, max_running_requests=1)
            await peer.send(m.encode(m.Register(spec, "http://x", "model", "0", "default")))
            calls = [asyncio.create_task(it.post({"input_ids": ids})) for ids in ([5], [6])]
            statistics = it.service.core.statistics
            await until(lambda: statistics().in_flight and statistics().waiting)
            async with asyncio.timeout(1.0):
                await it.stop_router()
            for call in calls:
                answer = await call
                assert answer.status_code == 503
                assert "stopping" in answer.json()["error"]["message"]

    run(scenario())


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(StartError, match="fifo_group, least_loaded, divided, seer"):
        RouterService(RouterConfig(policy="fast"))
