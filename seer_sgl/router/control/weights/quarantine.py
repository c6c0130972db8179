"""Keeps engines that are out of step out of traffic, and puts those back that are not any more."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from seer_sgl.engine.history import told_of
from seer_sgl.errors import SeerError
from seer_sgl.router.control.asking import Engines
from seer_sgl.router.control.holds import Holds
from seer_sgl.router.control.weights.sync import Sync
from seer_sgl.router.dispatcher import Dispatcher
from seer_sgl.types import EngineId

log = logging.getLogger(__name__)

IN_THE_MIDDLE = "it came in the middle of a weight change"
UNSURE = "a weight update has failed on its server before it came, and it waits for a whole one"
ABORT_S = 30.0
"""How long an engine in quarantine may take to end what it runs before nobody waits for it."""


class Quarantine:
    """Acts on what `Sync` says of the engines.

    One that may have anything goes out at once. One that is only behind may be about to get what it
    lacks, as where a caller updates engines by their own ports: it goes out before anything is
    dispatched again.
    """

    def __init__(self, dispatcher: Dispatcher, engines: Engines, holds: Holds) -> None:
        self.sync = Sync()
        self._dispatcher = dispatcher
        self._engines = engines
        self._holds = holds
        holds.before_resume = self.settle
        self._tasks: set[asyncio.Task[None]] = set()

    def joined(self, engine: EngineId, changing: bool) -> str:
        """Note a fresh engine. Returns why it gets no traffic for now; nothing where it does.

        Args:
            changing: a weight change is on.
        """
        member = self._engines.roster.members[engine]
        told = told_of(member.card.weight_history)
        version = f"{member.card.weight_version} {told.weights}"
        why = UNSURE if told.unsure else ""
        self.sync.joined(engine, version, told.adapters, told.names, why)
        member.quarantine = self.sync.out_of_step().get(engine) or (IN_THE_MIDDLE if changing else "")
        if member.quarantine:
            log.warning("engine %s is in quarantine: %s", engine, member.quarantine)
        return member.quarantine

    def settle(self) -> None:
        """Let exactly those have traffic that are in step."""
        out = self.sync.out_of_step()
        self._put_out(out)
        for engine, member in self._engines.roster.members.items():
            if member.quarantine and engine not in out:
                member.quarantine = ""
                log.info("engine %s is back from quarantine", engine)
                self._dispatcher.engine_joined(member.card.spec)

    def settle_if_going(self) -> None:
        """The same, unless dispatch is held; then it is done before that ends."""
        if not self._holds:
            self.settle()

    def put_out(self, continued: Iterable[EngineId] = ()) -> None:
        """Take those out that may have anything.

        Args:
            continued: nothing more is to come for these: those that are behind go out, too.
        """
        out = self.sync.out_of_step()
        doubtful = self.sync.doubtful()
        self._put_out({e: why for e, why in out.items() if e in doubtful or e in set(continued)})

    async def quiet(self) -> None:
        """Wait until those that went out were told to end what they ran."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _put_out(self, out: dict[EngineId, str]) -> None:
        gone = []
        for engine, reason in out.items():
            member = self._engines.roster.members.get(engine)
            if member is None:
                continue
            if not member.quarantine:
                log.warning("engine %s is in quarantine: %s", engine, reason)
                self._dispatcher.engine_left(engine, reason)
                gone.append(engine)
            member.quarantine = reason
        if gone:
            task = asyncio.create_task(self._abort(gone), name="quarantine")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _abort(self, engines: list[EngineId]) -> None:
        """What they held on to runs elsewhere by now."""
        with contextlib.suppress(SeerError):
            body = b'{"abort_all":true}'
            await self._engines.ask(engines, "POST", "/abort_request", body, timeout_s=ABORT_S)
