"""A router and an engine as processes of their own, to be killed."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from seer_sgl.config import RouterConfig
from seer_sgl.engine.agent import Agent
from seer_sgl.router.service import RouterService
from seer_sgl.testing.engine import FAKE_SPEC, FakeServer


async def router(http_port: str, agent_port: str, data_dir: str) -> None:
    """Serve until killed."""
    config = RouterConfig(
        http_port=int(http_port), agent_port=int(agent_port), data_dir=Path(data_dir), settle_s=0.0
    )
    async with RouterService(config) as service:
        await service.wait_failed()


async def engine(agent_port: str, log: str, token_s: str) -> None:
    """Note the prompt of every chunk in a file, and answer it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(body: dict[str, Any]) -> None:
        os.write(descriptor, msgspec.json.encode(body["input_ids"]) + b"\n")

    spec = msgspec.structs.replace(FAKE_SPEC, max_running_requests=64, kv_capacity_tokens=1 << 20)
    agent = Agent(
        lambda: FakeServer(spec, token_s=float(token_s), refuse=note), f"127.0.0.1:{agent_port}"
    )
    await agent.run()


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "router":
        asyncio.run(router(*arguments))
    else:
        asyncio.run(engine(*arguments))
