"""What a draft server does with what it hears: frames in, frames out, no socket.

Every frame may be anything. What is wrong is counted, logged once per kind, and answered where there is
an answer; it never ends the process.
"""

import logging
import secrets
import time
from collections.abc import Callable

import msgspec
import numpy as np

from seer_sgl.spec.sharing.heads import (
    AnswerHead,
    AskStatistics,
    CallHead,
    Frames,
    MessageError,
    Rejected,
    Statistics,
    encode,
    head_of,
)
from seer_sgl.spec.sharing.messages import Answer, Call, call_of, frames_of
from seer_sgl.spec.store import KINDS, DraftStore

log = logging.getLogger(__name__)


class DraftServer:
    """What the process does with what it hears.

    Args:
        store: the state.
        clock: seconds that never go back.
        quiet: count what is wrong, and log nothing.
    """

    def __init__(
        self, store: DraftStore, clock: Callable[[], float] = time.monotonic, quiet: bool = False
    ) -> None:
        self.store = store
        self.instance = secrets.token_hex(8)
        """Tells engines that they talk to another server than before."""
        self._clock = clock
        self._calls = self._malformed = self._crashes = 0
        self._quiet = quiet
        self._told: set[str] = set()

    def answer(self, frames: Frames) -> Frames | None:
        """The frames to send back; None where the peer expects nothing."""
        try:
            head = head_of(frames)
            if isinstance(head, CallHead):
                return frames_of(self._called(call_of(head, frames)))
            if isinstance(head, AskStatistics):
                return [encode(Statistics(counters=self.counters()))]
            reason = f"{type(head).__name__} is not for a draft server"
        except MessageError as error:
            reason = str(error)
        except Exception:
            # A bug of ours: the engines go on without this answer.
            self._crashes += 1
            log.exception("a bug: a call could not be answered")
            return None
        self._malformed += 1
        self._tell_once("malformed", f"a message was rejected: {reason}")
        return [encode(Rejected(reason=reason))]

    def expire(self) -> None:
        """Drop what nobody reads any more."""
        self.store.expire(self._clock())

    def counters(self) -> dict[str, float]:
        """Counts and gauges by name, for the router's metrics."""
        counts = msgspec.structs.asdict(self.store.statistics())
        troubles: dict[str, int] = counts.pop("troubles")
        refused = {f"refused_{kind}": number for kind, number in troubles.items()}
        own = {"calls": self._calls, "malformed": self._malformed, "crashes": self._crashes}
        return {**counts, **refused, **own}

    def _called(self, call: Call) -> Answer:
        now_s = self._clock()
        self._calls += 1
        head = call.head
        registered = np.array(
            [self.store.register_group(name, head.ttl_s, head.vocab_size, now_s) for name in head.names],
            np.int32,
        ).reshape(-1, 3)
        answer_head = AnswerHead(instance=self.instance)
        none = np.empty((0, 3), np.int32)
        if head.instance != self.instance:
            # Its slots are those of an earlier server.
            return Answer(answer_head, registered, none, none, none.ravel())
        troubles = none
        if len(call.updates):
            troubles = self.store.update_cst(call.updates, call.tokens, now_s)
            if len(troubles):
                self._tell_of_updates()
        results, words = self.store.fetch_cst(call.fetches, call.known, now_s)
        return Answer(answer_head, registered, troubles, results, words)

    def _tell_of_updates(self) -> None:
        for kind, count in self.store.statistics().troubles.items():
            if count:
                self._tell_once(
                    kind,
                    f"an update was refused: {_REASONS[kind]}. Drafts of that request are missing "
                    "elsewhere until it is sent again; this is counted, and not told again",
                )
        if self.store.statistics().evicted_in_use:
            self._tell_once("evicted_in_use", _REASONS["full"])

    def _tell_once(self, kind: str, message: str) -> None:
        if kind not in self._told and not self._quiet:
            self._told.add(kind)
            log.warning("%s", message)


_REASONS = {
    "unknown_group": "its group is not, or no longer, registered here",
    "gap": "tokens before it are missing here, as after a restart; its engine sends them again",
    "bad_token": "a token id is negative or outside the vocabulary",
    "bad_request": "a request's number or token count is negative or too large",
    "full": "groups in use do not fit its memory: serve with more --draft-mib, or more --draft-shards",
}
assert _REASONS.keys() == set(KINDS.values())
