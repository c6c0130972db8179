"""No-op engines: real agents over servers that answer at once, within the process and without HTTP.

    python -m bench.noop_engines HOST:PORT [--engines 2] [--slots 256]

HOST:PORT is a router's agent port. What is left to measure is the router.
"""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from functools import partial
from types import TracebackType

from bench.mock_answers import CONTEXT_TOKENS, KV_TOKENS, MODEL, answer, decode_ask
from seer_sgl.engine.agent import Agent
from seer_sgl.engine.sglang import Answer, EngineInfo, SGLangClient
from seer_sgl.errors import ChildFailedError
from seer_sgl.loop import run_on_loop
from seer_sgl.types import EngineId, EngineSpec


class NoopAnswer:
    """An answer that is there; also the context in which it is read."""

    __slots__ = ("_body", "headers", "status")

    def __init__(self, body: bytes) -> None:
        self.status = 200
        self.headers = {"content-type": "application/json"}
        self._body = body

    async def read(self) -> bytes:
        return self._body

    async def parts(self) -> AsyncIterator[bytes]:
        yield self._body

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class NoopClient(SGLangClient):
    """Answers `/generate` with as many tokens as are asked for, and anything else with nothing."""

    def open(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> contextlib.AbstractAsyncContextManager[Answer]:
        if target != "/generate":
            return NoopAnswer(b"{}")
        ask = decode_ask(body)
        return NoopAnswer(answer(ask, ask.new_tokens))

    async def load(self) -> tuple[int, int, int]:
        return 0, 0, 0


class NoopServer:
    """What an agent takes for an SGLang server."""

    def __init__(self, name: str, slots: int) -> None:
        self.client: SGLangClient = NoopClient("http://noop")
        self._spec = EngineSpec(
            engine_id=EngineId(name),
            kv_capacity_tokens=KV_TOKENS,
            page_tokens=16,
            max_running_requests=slots,
            context_tokens=CONTEXT_TOKENS,
        )

    async def start(self) -> EngineInfo:
        return EngineInfo(self._spec, MODEL, "0.5.23", "default", None, {"front": False})

    async def wait_ended(self) -> ChildFailedError:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("it never ends")

    async def stop(self) -> None:
        await self.client.close()


async def serve(head: str, engines: int, slots: int) -> None:
    """Serve a router until cancelled."""
    async with asyncio.TaskGroup() as group:
        for index in range(engines):
            group.create_task(Agent(partial(NoopServer, f"noop-{index}", slots), head).run())


def main() -> None:
    """Run the engines."""
    parser = argparse.ArgumentParser(description="Engines that do nothing, at once.")
    parser.add_argument("head", help="HOST:PORT of a router's agent port")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--slots", type=int, default=256, help="requests that each runs at once")
    args = parser.parse_args()
    run_on_loop(serve(args.head, args.engines, args.slots))


if __name__ == "__main__":
    main()
