"""Messages survive the wire; strangers are told apart."""

import msgspec
import pytest

from seer_sgl.kv.pool import PoolAddress
from seer_sgl.router import messages as m
from seer_sgl.spec.settings import DraftSettings
from seer_sgl.testing.engine import FAKE_SPEC
from seer_sgl.types import ChunkId, EngineId

E = EngineId("e")

FROM_AGENTS: list[m.AgentMessage] = [
    m.AskHead(),
    m.Register(FAKE_SPEC, "http://x", "model", "0.5.23", "v1", {"tp_size": 2, "quantization": None}),
    m.Heartbeat(E, 1, 2, 3),
    m.ChunkAnswered(E, ChunkId(5), {"output_ids": [1], "meta_info": {"x": None}}),
    m.ChunkBroke(E, ChunkId(5), "why", 400),
    m.ChunkProgress(E, ChunkId(5), 3, "abc", [1, 2], {"finish_reason": None}),
    m.CallAnswered(E, 3, 200, {"content-type": "text/plain"}, b"\xff\x00"),
    m.CallBegan(E, 3, 200, {"content-type": "text/event-stream"}),
    m.CallPart(E, 3, b"data: {}\n\n"),
    m.CallEnded(E, 3, ""),
    m.Leave(E, "bye"),
]
FROM_ROUTERS: list[m.RouterMessage] = [
    m.Head("model", PoolAddress("h:1", segment_bytes=7), ["--x"]),
    m.Head("model", None, []),
    m.Head("model", None, [], DraftSettings(servers=("tcp://h:3",), max_nodes=7)),
    m.Welcome(1.0, 8000),
    m.Refused("no"),
    m.WhoAreYou(),
    m.StopChunk(ChunkId(1)),
    m.PostChunk(ChunkId(1), "r", b"{}", True),
    m.Call(1, "POST", "/x?y=1", {"content-type": "text/plain"}, b"\xff"),
    m.StopCall(1),
]


@pytest.mark.parametrize("message", FROM_AGENTS, ids=lambda x: type(x).__name__)
def test_agent_messages_round_trip(message: m.AgentMessage) -> None:
    assert m.decode_from_agent(m.encode(message)) == message


@pytest.mark.parametrize("message", FROM_ROUTERS, ids=lambda x: type(x).__name__)
def test_router_messages_round_trip(message: m.RouterMessage) -> None:
    assert m.decode_from_router(m.encode(message)) == message


@pytest.mark.parametrize("streams", [False, True])
def test_a_chunk_arrives_as_the_json_to_post(streams: bool) -> None:
    body = {"rid": "r", "input_ids": [1, 2]}
    post = m.decode_from_router(m.encode(m.RunChunk(ChunkId(1), body, streams)))
    assert isinstance(post, m.PostChunk)
    assert (post.chunk_id, post.rid, post.streams) == (1, "r", streams)
    assert msgspec.json.decode(post.body) == {**body, **({"stream": True} if streams else {})}


def test_an_answer_that_was_passed_on_unread_is_read_on_arrival() -> None:
    reply = m.ChunkReplied(E, ChunkId(5), b'{"output_ids":[1]}')
    assert m.decode_from_agent(m.encode(reply)) == m.ChunkAnswered(E, ChunkId(5), {"output_ids": [1]})


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"a":'])
def test_an_answer_that_is_none_breaks_its_chunk_and_not_the_connection(body: bytes) -> None:
    broke = m.decode_from_agent(m.encode(m.ChunkReplied(E, ChunkId(5), body)))
    assert isinstance(broke, m.ChunkBroke)
    assert (broke.engine_id, broke.chunk_id, broke.status) == (E, 5, None)
    assert "an answer that is none" in broke.reason


def test_another_version_is_refused_with_both_numbers() -> None:
    frame = msgspec.msgpack.encode({"type": "AskHead", "protocol": 99})
    with pytest.raises(m.ProtocolError, match="speaks protocol 99, this side 2"):
        m.decode_from_agent(frame)


@pytest.mark.parametrize("frame", [b"", b"junk", msgspec.msgpack.encode({"protocol": 2})])
def test_junk_is_refused(frame: bytes) -> None:
    with pytest.raises(m.ProtocolError):
        m.decode_from_agent(frame)


def test_a_router_message_is_none_of_an_agents() -> None:
    with pytest.raises(m.ProtocolError):
        m.decode_from_agent(m.encode(m.Welcome(1.0)))
