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
    m.Head("model", PoolAddress("h:1", "http://h:2/metadata"), ["--x"]),
    m.Head("model", None, []),
    m.Head("model", None, [], DraftSettings(servers=("tcp://h:3",), max_nodes=7)),
    m.Welcome(1.0, 8000),
    m.Refused("no"),
    m.WhoAreYou(),
    m.RunChunk(ChunkId(1), {"input_ids": [1, 2]}),
    m.StopChunk(ChunkId(1)),
    m.RunChunk(ChunkId(1), {"input_ids": [1, 2]}, streams=True),
    m.Call(1, "POST", "/x?y=1", {"content-type": "text/plain"}, b"\xff"),
    m.StopCall(1),
]


@pytest.mark.parametrize("message", FROM_AGENTS, ids=lambda x: type(x).__name__)
def test_agent_messages_round_trip(message: m.AgentMessage) -> None:
    assert m.decode_from_agent(m.encode(message)) == message


@pytest.mark.parametrize("message", FROM_ROUTERS, ids=lambda x: type(x).__name__)
def test_router_messages_round_trip(message: m.RouterMessage) -> None:
    assert m.decode_from_router(m.encode(message)) == message


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
