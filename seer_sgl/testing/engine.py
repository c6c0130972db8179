"""An engine without a model: a real agent over a server that makes tokens up.

Its next token is a function of all tokens before it, so a request that was cut into chunks, moved or
retried must give the same tokens as one that was not.
"""

import asyncio
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import msgspec

from seer_sgl.engine.sglang import EngineInfo, SGLangClient
from seer_sgl.errors import ChildFailedError
from seer_sgl.types import EngineId, EngineSpec

END_TOKEN = 1
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
        refuse: given a chunk's body, the status and error message to answer with, or None.
    """

    def __init__(
        self,
        spec: EngineSpec = FAKE_SPEC,
        token_s: float = 0.0,
        refuse: Callable[[dict[str, Any]], tuple[int, str] | None] | None = None,
    ) -> None:
        self.client: SGLangClient = _FakeClient(token_s, refuse or (lambda body: None))
        self._spec = spec
        self._killed = asyncio.Event()

    async def start(self) -> EngineInfo:
        return EngineInfo(self._spec, "fake-model", "0.0.0", "default", None)

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
        assert isinstance(self.client, _FakeClient)
        return self.client.bodies


class _FakeClient(SGLangClient):
    def __init__(
        self, token_s: float, refuse: Callable[[dict[str, Any]], tuple[int, str] | None]
    ) -> None:
        super().__init__("http://fake")
        self.bodies: list[dict[str, Any]] = []
        self._token_s = token_s
        self._refuse = refuse
        self._aborted: set[str] = set()

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/generate":
            self.bodies.append(body)
            refused = self._refuse(body)
            if refused is not None and refused[0] == 0:
                raise httpx.ReadError(refused[1])
            if refused is not None:
                return refused[0], {"error": {"message": refused[1]}}
            return 200, await self._generate(body)
        if path == "/abort_request":
            self._aborted.add(body["rid"])
            return 200, None
        if path == "/tokenize":
            return 200, {"tokens": [list(text.encode()) for text in body["prompt"]]}
        return 200, {"text": ["".join(map(_piece, ids)) for ids in body["tokens"]]}

    async def load(self) -> tuple[int, int, int]:
        return 0, 0, 0

    async def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, limit = body["input_ids"], body["sampling_params"]["max_new_tokens"]
        output: list[int] = []
        for token in continuation(ids, limit):
            if body["rid"] in self._aborted:
                return _answer(body, output, {"type": "abort", "message": "aborted"})
            output.append(token)
            if self._token_s:
                await asyncio.sleep(self._token_s)
        if output[-1] == END_TOKEN:
            return _answer(body, output, {"type": "stop", "matched": END_TOKEN})
        return _answer(body, output, {"type": "length", "length": limit})


def _piece(token: int) -> str:
    return "" if token == END_TOKEN else f"<{token}>"


def _answer(body: dict[str, Any], output: list[int], finish: dict[str, Any]) -> dict[str, Any]:
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
    answer = {"text": "".join(map(_piece, output)), "output_ids": output, "meta_info": meta}
    copied: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(answer))
    return copied
