"""Engines for tests of the draft server: sessions that check whatever they are handed."""

import numpy as np

from seer_sgl.spec.sharing.answers import DraftServer
from seer_sgl.spec.sharing.exchange import exchange
from seer_sgl.spec.sharing.reading import Records
from seer_sgl.spec.sharing.session import Session
from seer_sgl.spec.store import DraftStore

BUDGET_BYTES = 1 << 24


class Clock:
    """Time as a test wants it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def server(clock: Clock, budget_bytes: int = BUDGET_BYTES) -> DraftServer:
    return DraftServer(DraftStore(budget_bytes), clock)


def truth(group: str, request: int, start: int, end: int) -> list[int]:
    """What a request generates: the same whoever runs it, and different from any other."""
    first = hash((group, request)) % 1000 * 100_000
    return list(range(first + start, first + end))


class Engine:
    """One engine: generates what is true, and checks that it reads what is true, once and in order."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES, vocab_size: int = 0) -> None:
        self.session = Session(1, budget_bytes, vocab_size, ttl_s=60.0)
        self.has: dict[tuple[str, int], int] = {}
        """Tokens of each request that it generated, was resumed with, or read."""
        self.read_tokens = 0

    def generate(self, group: str, request: int, start: int, end: int) -> None:
        self.session.append_one(group, request, start, truth(group, request, start, end))
        self.has[group, request] = max(end, self.has.get((group, request), 0))

    def resume(self, group: str, request: int, done: int) -> None:
        self.session.resume(group, request, truth(group, request, 0, done))
        self.has[group, request] = max(done, self.has.get((group, request), 0))

    def talk(self, server: DraftServer, clock: Clock, calls: int = 1) -> "Engine":
        for _ in range(calls):
            records = exchange(self.session, server, clock.now_s)
            if records is not None:
                self.take(records)
        self.check()
        return self

    def take(self, records: Records) -> None:
        assert records.tokens.dtype == records.starts.dtype == np.int32
        assert records.starts[0] == 0
        assert records.starts[-1] == len(records.tokens)
        for index, request in enumerate(records.request_ids.tolist()):
            group = records.group_ids[records.group_of[index]]
            start, end = records.starts[index : index + 2].tolist()
            prev = int(records.prev_counts[index])
            assert prev == self.has.get((group, request), 0), "each token once, in order"
            tokens = records.tokens[start:end].tolist()
            assert tokens == truth(group, request, prev, prev + len(tokens))
            self.has[group, request] = prev + len(tokens)
            self.read_tokens += len(tokens)

    def check(self) -> None:
        self.session.tokens.check()
        self.session.groups.check()
