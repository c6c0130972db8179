"""A keeper on a made-up store and a made-up clock."""

from collections.abc import Sequence

from seer_sgl.kv.client import PoolUnreachable, Room
from seer_sgl.kv.keeping import Keeping
from seer_sgl.kv.keys import Objects, namespace_seed, packed, page_digests
from seer_sgl.kv.ledger import LedgerSettings, Outcome
from seer_sgl.kv.messages import (
    Closed,
    FromRouter,
    Layout,
    LookUp,
    Message,
    Opened,
    Usage,
)

PAGE = 2
ROUTER = b"router"
LAYOUT = Layout("model", ["_0_k", "_0_v"], PAGE)
OBJECTS = Objects("model", ("_0_k", "_0_v"))
SETTINGS = LedgerSettings(
    sweeps_s=(1.0, 2.0),
    more_sweeps=2,
    more_s=1.0,
    linger_s=3.0,
    kept_s=50.0,
    silent_s=20.0,
    live_s=30.0,
)


class FakeStore:
    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.leased: set[str] = set()
        self.down = False
        self.asked = 0
        self.closed = False

    def exists(self, keys: Sequence[str]) -> list[bool]:
        if self.down:
            raise PoolUnreachable("down")
        self.asked += len(keys)
        return [key in self.keys for key in keys]

    def release(self, keys: Sequence[str]) -> list[Outcome]:
        return [self._remove(key) for key in keys]

    def _remove(self, key: str) -> Outcome:
        if self.down:
            return Outcome.FAILED
        if key in self.leased:
            return Outcome.LEASED
        if key not in self.keys:
            return Outcome.ABSENT
        self.keys.remove(key)
        return Outcome.REMOVED

    def close(self) -> None:
        self.closed = True


class Bench:
    """A keeper, its store, its clock, and what it has said."""

    def __init__(self, up: bool = True) -> None:
        self.store = FakeStore()
        self.connects = 0
        self.reachable = up
        self.room: Room | None = None
        self.now_s = 100.0
        self.said: list[tuple[bytes, Message]] = []
        self.keeping = Keeping(self.connect, lambda: self.room, SETTINGS, self.now_s)
        self.keeping.work(self.now_s)

    def connect(self) -> FakeStore:
        self.connects += 1
        if not self.reachable:
            raise PoolUnreachable("no master")
        self.store.closed = False
        return self.store

    def tell(self, *messages: FromRouter, router: bytes = ROUTER) -> list[Message]:
        """What is answered at once."""
        replies: list[tuple[bytes, Message]] = []
        for message in messages:
            replies += self.keeping.take(router, message, self.now_s)
        assert {peer for peer, _ in replies} <= {router}
        return [message for _, message in replies]

    def wait(self, seconds: float) -> list[Message]:
        """Let time pass as the process would; what is said meanwhile, without usage."""
        until_s = self.now_s + seconds
        said: list[tuple[bytes, Message]] = []
        while (step_s := self.keeping.wait_s(self.now_s)) + self.now_s <= until_s:
            self.now_s += step_s + 1e-6
            said += self.keeping.work(self.now_s)
        self.now_s = until_s
        self.said += said
        return [message for _, message in said if not isinstance(message, Usage)]

    def write(self, ids: list[int]) -> set[str]:
        keys = set(OBJECTS.keys(page_digests(packed(ids), PAGE, namespace_seed(None, "s"))))
        self.store.keys |= keys
        return keys


def opened(name: str, ids: list[int], group: str = "g") -> Opened:
    return Opened(name, group, None, "s", packed(ids))


def closed(name: str, done: int, finished: bool = True) -> Closed:
    return Closed(name, done, b"", finished)


def found(bench: Bench, name: str, tokens: int, patience_s: float = 5.0) -> list[Message]:
    return bench.tell(LookUp(name, tokens, patience_s))
