"""Control calls on their way to engines and back."""

import asyncio
from collections.abc import Mapping

from seer_sgl.errors import SeerError
from seer_sgl.router.calls import EngineAnswer, EngineCalls
from seer_sgl.router.control.merging import Replies, Reply, refused
from seer_sgl.router.control.views import in_order
from seer_sgl.router.roster import Roster
from seer_sgl.types import EngineId

_JSON_HEADERS = {"content-type": "application/json"}
NOBODY = "no engine is registered"
NO_ANSWER = 503
"""What stands for an engine's answer where there is none."""
TIMED_OUT = 504
"""What stands for it where there is none in time."""
NO_ANSWER_IN_TIME = (NO_ANSWER, TIMED_OUT)


class Engines:
    """Asks engines, and leaves out those that have left meanwhile."""

    def __init__(self, roster: Roster, calls: EngineCalls) -> None:
        self.roster = roster
        self._calls = calls

    def targets(self, only: EngineId | None = None) -> list[EngineId]:
        """The engines that a call is for, in the order of their ranks; those in quarantine, too.

        Raises:
            SeerError: there is none.
        """
        members = self.roster.members
        found = sorted(members, key=in_order) if only is None else [e for e in [only] if e in members]
        if not found:
            raise SeerError(NOBODY if only is None else f"engine {only} is not here now")
        return found

    def urls(self) -> dict[EngineId, str]:
        """Where the engines' own servers listen."""
        return {engine: member.card.url for engine, member in self.roster.members.items()}

    async def ask(
        self,
        engines: list[EngineId],
        method: str,
        target: str,
        body: bytes = b"",
        bodies: Mapping[EngineId, bytes] | None = None,
        timeout_s: float | None = None,
    ) -> Replies:
        """Answers of those that are still here, all asked at once.

        Args:
            timeout_s: how long each may take; then its call is stopped, and 504 stands for its answer.
                None waits for as long as it takes.

        Raises:
            SeerError: all of them have left.
        """
        found = await self._round(engines, method, target, bodies or {}, body, timeout_s)
        # SGLang hangs up after an error of its own, and the next call may meet that. A server that has
        # really ended has left by the time its agent says that there is no answer.
        broken = [engine for engine, reply in found.items() if reply.status == NO_ANSWER]
        if broken:
            again = await self._round(broken, method, target, bodies or {}, body, timeout_s)
            found = {e: again.get(e, reply) for e, reply in found.items() if e in self.roster.members}
        if not found:
            raise SeerError(f"{', '.join(engines)} left before the answer to {target}")
        return found

    async def _round(
        self,
        engines: list[EngineId],
        method: str,
        target: str,
        bodies: Mapping[EngineId, bytes],
        body: bytes,
        timeout_s: float | None,
    ) -> dict[EngineId, Reply]:
        asked = [(engine, bodies.get(engine, body)) for engine in engines]
        before = {engine: self.roster.members.get(engine) for engine in engines}
        answers = await asyncio.gather(
            *(self._one(engine, method, target, content, timeout_s) for engine, content in asked)
        )
        return {
            engine: answer
            for engine, answer in zip(engines, answers, strict=True)
            if before[engine] is not None and self.roster.members.get(engine) is before[engine]
        }

    async def any_of(
        self, engines: list[EngineId], method: str, target: str, body: bytes = b""
    ) -> tuple[EngineId, Reply]:
        """The answer of the first of them that gives one."""
        for engine in engines[:-1]:
            reply = await self._one(engine, method, target, body)
            if reply.status != NO_ANSWER:
                return engine, reply
        return engines[-1], await self._one(engines[-1], method, target, body)

    async def first_good(self, engines: list[EngineId], method: str, target: str) -> bool:
        """Whether one of them answers 200; returns as soon as one has."""
        tasks = [asyncio.ensure_future(self._one(engine, method, target, b"")) for engine in engines]
        try:
            for task in asyncio.as_completed(tasks):
                if (await task).status == 200:
                    return True
            return False
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(
        self,
        engine: EngineId,
        method: str,
        target: str,
        body: bytes,
        timeout_s: float | None = None,
    ) -> Reply:
        headers = _JSON_HEADERS if body else {}
        try:
            async with asyncio.timeout(timeout_s):
                return _as_reply(await self._calls.ask(engine, method, target, body, headers))
        except TimeoutError:
            return refused(
                f"no answer from engine {engine} to {target} within {timeout_s:g} s", TIMED_OUT
            )


def _as_reply(answer: EngineAnswer) -> Reply:
    return Reply(answer.status, answer.body, answer.headers.get("content-type", ""))
