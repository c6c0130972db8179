"""Calls and answers without a socket between: how both sides are warmed up, and tested."""

import math

import numpy as np

from seer_sgl.spec.sharing.answers import DraftServer
from seer_sgl.spec.sharing.heads import AnswerHead, head_of
from seer_sgl.spec.sharing.logs import Batch
from seer_sgl.spec.sharing.messages import answer_of, frames_of
from seer_sgl.spec.sharing.reading import Records
from seer_sgl.spec.sharing.session import LOST_PAUSE_S, Session
from seer_sgl.spec.store import MIN_BUDGET_BYTES, DraftStore


def warm_up() -> None:
    """Compile what server and engines call, or load it from the disk: no call is to wait for that."""
    server = DraftServer(DraftStore(MIN_BUDGET_BYTES), quiet=True)
    sessions = [Session(1, MIN_BUDGET_BYTES, 0, 1.0) for _ in range(2)]
    for session in sessions:
        exchange(session, server)
        exchange(session, server)
        starts, tokens = np.array([0, 1], np.int32), np.ones(1, np.int32)
        for request in range(2):
            log_number = np.array([session.open("", request)], np.int32)
            session.append(Batch(log_number, np.zeros(1, np.int32), starts, tokens))
        exchange(session, server)
    server.store.expire(math.inf)
    for _ in range(3):
        exchange(sessions[0], server, LOST_PAUSE_S)


def exchange(
    session: Session, server: DraftServer, now_s: float = 0.0, number: int = 0
) -> Records | None:
    """One call and its answer without a socket between; `number` is the server's for the session."""
    call = session.call(number, now_s)
    if call is None:
        return None
    frames = server.answer([bytes(frame) for frame in frames_of(call)])
    assert frames is not None
    head = head_of([bytes(frames[0])])
    assert isinstance(head, AnswerHead)
    return session.answered(number, answer_of(head, [bytes(frame) for frame in frames]), now_s)
