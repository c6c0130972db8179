"""What the draft servers count, asked for now and then, for this router's metrics.

They are asked, not waited for: a server that does not answer is left out until it does.
"""

import asyncio
from collections.abc import Sequence

import zmq
import zmq.asyncio

from seer_sgl.spec.sharing.heads import AskStatistics, MessageError, Statistics, encode, head_of

ASK_S = 2.0
"""How often they are asked; an answer that took longer is none."""


class DraftWatch:
    """Keeps the last counts of each server.

    Args:
        servers: their ZeroMQ addresses.
    """

    def __init__(self, servers: Sequence[str]) -> None:
        self.servers = tuple(servers)
        self.counters: dict[str, dict[str, float]] = {}
        """By address; of servers that answered when they were last asked."""

    async def watch(self) -> None:
        """Ask until cancelled."""
        if not self.servers:
            await asyncio.Event().wait()
        # The group waits for all to be cancelled before the context closes; `gather` would not.
        with zmq.asyncio.Context() as context:
            async with asyncio.TaskGroup() as group:
                for address in self.servers:
                    group.create_task(self._watch_one(context, address))

    async def _watch_one(self, context: zmq.asyncio.Context, address: str) -> None:
        while True:
            counters = await self._ask(context, address)
            if counters is None:
                self.counters.pop(address, None)
            else:
                self.counters[address] = counters
            await asyncio.sleep(ASK_S)

    async def _ask(self, context: zmq.asyncio.Context, address: str) -> dict[str, float] | None:
        # A socket for each question: on an older one the answer to the last could still come.
        with context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.IPV6, 1)
            try:
                dealer.connect(address)
                await dealer.send(encode(AskStatistics()))
                # Not `wait_for`: before Python 3.12 it loses a cancellation that comes with an answer.
                async with asyncio.timeout(ASK_S):
                    answer = head_of(await dealer.recv_multipart())
            except (TimeoutError, zmq.ZMQError, MessageError):
                return None
        return answer.counters if isinstance(answer, Statistics) else None
