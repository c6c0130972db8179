"""Routers of any policy over SGLang servers that run already, for tests and benchmarks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from msgspec.structs import replace

from seer_sgl.config import RouterConfig
from seer_sgl.engine.agent import Agent
from seer_sgl.engine.attached import AttachedServer
from seer_sgl.engine.process import free_port
from seer_sgl.router.core import Policy
from seer_sgl.router.service import RouterService
from seer_sgl.spec.settings import DraftSettings


@contextlib.asynccontextmanager
async def attached_router(
    urls: Sequence[str],
    policy: Policy,
    chunk_tokens: int,
    draft: DraftSettings | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[str, RouterService]]:
    """A router with an agent for each server, all in this process; yields its URL and itself.

    Its chunks are short, and moved ones always pull their prefix: what small models show of large ones.

    Args:
        draft: how the servers speculate, if they do.
        settings: fields of `RouterConfig` that are to be others than here.
    """
    config = RouterConfig(
        http_port=free_port(),
        agent_port=free_port(),
        chunk_tokens=chunk_tokens,
        pull_margin_tokens=0,
        draft=draft,
    )
    config = replace(config, **settings)
    head = f"{config.host}:{config.agent_port}"
    async with RouterService(config, policy) as service:
        agents = [
            Agent(partial(AttachedServer, f"engine-{index}", url), head)
            for index, url in enumerate(urls)
        ]
        tasks = [asyncio.create_task(agent.run()) for agent in agents]
        try:
            await asyncio.gather(*(agent.ready.wait() for agent in agents))
            yield f"http://{config.host}:{config.http_port}", service
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
