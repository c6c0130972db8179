"""What an agent makes of one real server: streams, aborts, and control calls that it is spared."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from seer_sgl.config import EngineConfig
from seer_sgl.engine.server import LaunchedServer
from seer_sgl.engine.work import Work
from seer_sgl.router import messages as m
from seer_sgl.types import ChunkId
from tests.integration.conftest import MODEL

LONG = 2000
REFUSED = {
    "/release_memory_occupation": {},
    "/resume_memory_occupation": {},
    "/update_weights_from_disk": {"model_path": MODEL, "load_format": "bogus"},
    "/update_weights_from_tensor": {"serialized_named_tensors": ["eA=="]},
    "/init_weights_update_group": {
        "master_address": "127.0.0.1",
        "master_port": 1,
        "group_name": "",
        "backend": "gloo",
        "rank_offset": 1,
        "world_size": 2,
    },
    "/send_weights_to_remote_instance": {"master_address": "127.0.0.1", "ports": "1"},
    "/start_expert_distribution_record": {},
    "/set_internal_state": {"server_args": {"pp_max_micro_batch_size": "x"}},
    "/configure_logging": {"log_level": "loud"},
    "/stop_profile": {},
}
"""Calls that end SGLang's server, or that it answers with an internal error."""


def chunk(rid: str, tokens: int, streams: bool) -> m.PostChunk:
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body = {"rid": rid, "input_ids": [5, 6, 7], "sampling_params": sampling, "stream": streams}
    body |= {"return_logprob": True, "top_logprobs_num": 2}
    return m.PostChunk(ChunkId(1), rid, msgspec.json.encode(body), streams)


class Told:
    """What a router would hear."""

    def __init__(self) -> None:
        self.progress: list[m.ChunkProgress] = []
        self.last: Any = None

    def __call__(self, message: m.AgentMessage) -> None:
        heard = m.decode_from_agent(m.encode(message))
        if isinstance(heard, m.ChunkProgress):
            self.progress.append(heard)
        else:
            self.last = heard

    @property
    def ids(self) -> list[int]:
        return [token for step in self.progress for token in step.new_ids]

    @property
    def text(self) -> str:
        text = ""
        for step in self.progress:
            text = text[: step.keep_chars] + step.text
        return text


@contextlib.asynccontextmanager
async def running(told: Told, work: Work, rid: str) -> AsyncIterator[None]:
    """A long chunk that has said something; over after the block."""
    told.progress.clear()
    task = asyncio.create_task(work.run_chunk(chunk(rid, LONG, True)))
    async with asyncio.timeout(30.0):
        while len(told.progress) < 10:  # noqa: ASYNC110 - what is waited for is told to nobody
            await asyncio.sleep(0.005)
        yield
        await task


def assert_partial(told: Told) -> None:
    """The answer is an abort's, with all that the stream told, in every list."""
    assert isinstance(told.last, m.ChunkAnswered)
    answer, meta = told.last.answer, told.last.answer["meta_info"]
    assert meta["finish_reason"]["type"] == "abort"
    assert answer["output_ids"] == told.ids
    assert answer["text"] == told.text
    assert [entry[1] for entry in meta["output_token_logprobs"]] == told.ids
    assert 0 < len(told.ids) == meta["completion_tokens"] < LONG


def test_one_server(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = LaunchedServer(EngineConfig(name="alone", model=MODEL), True, tmp_path)
        try:
            info = await server.start()
            told = Told()
            work = Work(server.client, info, told)
            await streams_say_what_whole_answers_say(work, told)
            await aborted_chunks_keep_what_they_have(server, work, told)
            await what_would_end_it_is_refused(work, told)
            assert await server.client.healthy()
        finally:
            await server.stop()

    asyncio.run(scenario())


async def streams_say_what_whole_answers_say(work: Work, told: Told) -> None:
    await work.run_chunk(chunk("whole", 60, False))
    whole = told.last.answer
    await work.run_chunk(chunk("streamed", 60, True))
    streamed = told.last.answer
    assert told.ids == streamed["output_ids"] == whole["output_ids"]
    assert told.text == streamed["text"] == whole["text"]
    assert len(told.progress) > 10
    for key in ("finish_reason", "output_top_logprobs", "completion_tokens", "weight_versions"):
        assert streamed["meta_info"][key] == whole["meta_info"][key], key
    assert set(whole["meta_info"]) <= set(streamed["meta_info"])


async def aborted_chunks_keep_what_they_have(server: LaunchedServer, work: Work, told: Told) -> None:
    async with running(told, work, "aborted"):
        await work.abort("aborted")
    assert_partial(told)
    async with running(told, work, "paused"):
        status, _ = await server.client.post("/pause_generation", {"mode": "abort"})
        assert status == 200
    assert_partial(told)
    await server.client.post("/continue_generation", {})
    async with running(told, work, "retracted"):
        await server.client.post("/pause_generation", {"mode": "retract"})
        await asyncio.sleep(0.3)
        await work.abort("retracted")
        await asyncio.sleep(0.3)
        await server.client.post("/continue_generation", {})
    assert_partial(told)


async def what_would_end_it_is_refused(work: Work, told: Told) -> None:
    for path, body in REFUSED.items():
        headers = {"content-type": "application/json"}
        await work.perform(m.Call(1, "POST", path, headers, msgspec.json.encode(body)))
        assert told.last.status == 400, path
        assert path in msgspec.json.decode(told.last.body)["error"]["message"]
