"""Questions to any one engine that are no chunks: tokenize, detokenize."""

import asyncio
from itertools import count
from typing import Any

from seer_sgl.errors import SeerError
from seer_sgl.router.link import AgentLink
from seer_sgl.router.messages import Call, CallAnswered
from seer_sgl.router.roster import Roster
from seer_sgl.types import EngineId

ATTEMPTS = 5
_POLL_S = 0.1


class CallError(SeerError):
    """No engine could answer."""


class EngineCalls:
    """Sends a call to an engine and waits for its answer; asks another one if the first goes away."""

    def __init__(self, link: AgentLink, roster: Roster) -> None:
        self._link = link
        self._roster = roster
        self._ids = count(1)
        self._waiting: dict[int, tuple[EngineId, asyncio.Future[CallAnswered]]] = {}
        self._turn = count()

    async def call(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer of one engine to a POST. Waits where no engine is registered.

        Raises:
            CallError: an engine answered with an error, or none stayed long enough to answer.
        """
        reason = ""
        for _ in range(ATTEMPTS):
            while not len(self._roster):  # noqa: ASYNC110 - rare, and soon over
                await asyncio.sleep(_POLL_S)
            members = list(self._roster.members.values())
            member = members[next(self._turn) % len(members)]
            call_id, future = next(self._ids), asyncio.get_running_loop().create_future()
            self._waiting[call_id] = (member.engine_id, future)
            self._link.send(member.peer, Call(call_id, path, body))
            try:
                answer: CallAnswered = await future
            finally:
                del self._waiting[call_id]
            if answer.status == 200:
                return answer.body
            reason = f"{member.engine_id} answered {answer.status}: {answer.body}"
            if answer.status < 500:
                break
        raise CallError(f"{path} failed: {reason}")

    def answered(self, message: CallAnswered) -> None:
        waiting = self._waiting.get(message.call_id)
        if waiting is not None and waiting[0] == message.engine_id and not waiting[1].done():
            waiting[1].set_result(message)

    def engine_left(self, engine_id: EngineId) -> None:
        """Calls that the engine had are asked again elsewhere."""
        for call_id, (asked, future) in self._waiting.items():
            if asked == engine_id and not future.done():
                future.set_result(CallAnswered(engine_id, call_id, 503, "the engine left"))
