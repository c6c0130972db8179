"""An engine without a model: a real agent over a server that makes tokens up.

Its next token is a function of all tokens before it, so a request that was cut into chunks, moved or
retried must give the same tokens as one that was not.
"""

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec

from seer_sgl.engine.sglang import Answer, EngineInfo, SGLangClient
from seer_sgl.errors import ChildFailedError, EngineUnreachable
from seer_sgl.testing.controls import ANSWERS, END_TOKEN, Asked, FakeState, Reply, piece
from seer_sgl.types import EngineId, EngineSpec

VOCABULARY = 256

FAKE_SPEC = EngineSpec(
    engine_id=EngineId("fake-0"),
    kv_capacity_tokens=4096,
    page_tokens=16,
    max_running_requests=4,
    context_tokens=2048,
    vocab_size=VOCABULARY,
)


def next_token(ids: list[int]) -> int:
    """The token after `ids`; one in about 64 ends the sample."""
    value = zlib.crc32(bytes(token % 256 for token in ids))
    return END_TOKEN if value % 64 == 0 else 2 + value % (VOCABULARY - 2)


def continuation(ids: list[int], max_new_tokens: int) -> list[int]:
    """What a fake engine answers for a prompt, the end token included."""
    output: list[int] = []
    while len(output) < max_new_tokens:
        output.append(next_token(ids + output))
        if output[-1] == END_TOKEN:
            break
    return output


class FakeServer:
    """What an agent takes for an SGLang server.

    Args:
        spec: what it says of itself.
        token_s: seconds per generated token.
        refuse: given a chunk's body, the status and error message to answer with, or None. Status 0
            is no answer.
        facts: what it says of its arguments, as `incremental_streaming_output`.
    """

    def __init__(
        self,
        spec: EngineSpec = FAKE_SPEC,
        token_s: float = 0.0,
        refuse: Callable[[dict[str, Any]], tuple[int, str] | None] | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.state = FakeState(spec, {"front": False, **(facts or {})})
        self.fake = FakeClient(self.state, token_s, refuse or (lambda body: None))
        self.client: SGLangClient = self.fake
        self._killed = asyncio.Event()

    async def start(self) -> EngineInfo:
        state = self.state
        return EngineInfo(state.spec, "fake-model", "0.0.0", state.weight_version, None, state.facts)

    async def wait_ended(self) -> ChildFailedError:
        await self._killed.wait()
        return ChildFailedError("the fake server was killed", "")

    async def stop(self) -> None:
        await self.client.close()

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        self._killed.set()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Every `/generate` body that it was sent."""
        return self.fake.bodies

    @property
    def calls(self) -> list[Asked]:
        """Every other call that it was sent, but for those by which an agent watches it."""
        return self.fake.calls

    @property
    def script(self) -> dict[str, Any]:
        """Answers by path that go before `ANSWERS`: a JSON value, a `Reply`, an exception to raise, or
        a function of the call that gives one of these."""
        return self.fake.script


class FakeClient(SGLangClient):
    """Answers by itself, without a connection."""

    def __init__(
        self,
        state: FakeState,
        token_s: float,
        refuse: Callable[[dict[str, Any]], tuple[int, str] | None],
    ) -> None:
        super().__init__("http://fake")
        self.bodies: list[dict[str, Any]] = []
        self.calls: list[Asked] = []
        self.script: dict[str, Any] = {}
        self._state = state
        self._token_s = token_s
        self._refuse = refuse

    @contextlib.asynccontextmanager
    async def open(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Answer]:
        asked = Asked(method, target, dict(headers or {}), body)
        reply = await self._reply(asked)
        events = reply.events
        try:
            yield FakeAnswer(reply)
        finally:
            if events is not None and hasattr(events, "aclose"):
                await events.aclose()

    async def load(self) -> tuple[int, int, int]:
        return len(self._state.running), len(self._state.waiting), self._state.tokens_held

    async def _reply(self, asked: Asked) -> Reply:
        if asked.path == "/generate" and asked.path not in self.script:
            return await self._generate(asked.json())
        self.calls.append(asked)
        default: Any = {"success": True, "message": ""}
        answer = self.script.get(asked.path, default)
        if asked.path not in self.script and asked.path in ANSWERS:
            answer = ANSWERS[asked.path](self._state, asked)
        if callable(answer):
            answer = answer(asked)
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, Reply) else Reply(200, answer)

    async def _generate(self, body: dict[str, Any]) -> Reply:
        self.bodies.append(body)
        refused = self._refuse(body)
        if refused is not None and refused[0] == 0:
            raise EngineUnreachable(refused[1])
        if refused is not None and not body.get("stream"):
            return Reply(refused[0], {"error": {"message": refused[1]}})
        if refused is not None:
            error = {"message": refused[1], "code": refused[0], "retryable": False}
            return Reply(200, events=_event_stream(_once({"error": error})))
        answers = self._answers(body)
        if body.get("stream"):
            return Reply(200, events=_event_stream(self._events(answers)))
        return Reply(200, [answer async for answer in answers][-1])

    async def _events(self, answers: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        incremental = self._state.facts.get("incremental_streaming_output")
        tokens, chars = 0, 0
        async for answer in answers:
            if not incremental:
                yield answer
                continue
            meta = dict(answer["meta_info"])
            if "output_token_logprobs" in meta:
                meta["output_token_logprobs"] = meta["output_token_logprobs"][tokens:]
            new_ids, text = answer["output_ids"][tokens:], answer["text"][chars:]
            tokens, chars = tokens + len(new_ids), chars + len(text)
            yield {"text": text, "output_ids": new_ids, "meta_info": meta}

    async def _answers(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Everything so far: after each token where the body streams, and at the end."""
        rid, state = body["rid"], self._state
        state.waiting[rid] = None
        try:
            await self._going_or_aborted(rid)
            del state.waiting[rid]
            state.running[rid] = None
            ids, limit = body["input_ids"], body["sampling_params"]["max_new_tokens"]
            output: list[int] = []
            for token in continuation(ids, limit):
                if not state.going.is_set():
                    await self._going_or_aborted(rid)
                if rid in state.aborted:
                    yield _answer(body, output, {"type": "abort", "message": "aborted"})
                    return
                if output and body.get("stream"):
                    yield _answer(body, output, None)
                output.append(token)
                if self._token_s:
                    await asyncio.sleep(self._token_s)
            stopped = output[-1] == END_TOKEN
            finish = (
                {"type": "stop", "matched": END_TOKEN}
                if stopped
                else {"type": "length", "length": limit}
            )
            yield _answer(body, output, finish)
        finally:
            state.waiting.pop(rid, None)
            state.running.pop(rid, None)

    async def _going_or_aborted(self, rid: str) -> None:
        while not self._state.going.is_set() and rid not in self._state.aborted:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class FakeAnswer:
    """A `Reply` as the client gives it."""

    def __init__(self, reply: Reply) -> None:
        kind = "application/json" if reply.events is None else "text/event-stream; charset=utf-8"
        self.status = reply.status
        self.headers = {"content-type": kind, **reply.headers}
        self._reply = reply

    async def read(self) -> bytes:
        if self._reply.events is None:
            return self._reply.encoded()
        return b"".join([part async for part in self._reply.events])

    async def parts(self) -> AsyncIterator[bytes]:
        if self._reply.events is None:
            yield self._reply.encoded()
            return
        async for part in self._reply.events:
            yield part


async def _once(event: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield event


async def _event_stream(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    """As SGLang streams."""
    async for event in events:
        yield b"data: " + msgspec.json.encode(event) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _answer(body: dict[str, Any], output: list[int], finish: dict[str, Any] | None) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "id": body["rid"],
        "finish_reason": finish,
        "prompt_tokens": len(body["input_ids"]),
        "completion_tokens": len(output),
        "cached_tokens": 0,
        "cached_tokens_details": None,
        "num_retractions": 0,
        "weight_versions": [{"version": "default", "start": 0, "end": len(output)}],
    }
    if body.get("return_logprob"):
        meta["output_token_logprobs"] = [[-1.0, token, None] for token in output]
    return {"text": "".join(map(piece, output)), "output_ids": list(output), "meta_info": meta}
