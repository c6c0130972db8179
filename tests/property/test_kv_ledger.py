"""The ledger of KV pages against a model that works every holder out anew: sets of pages, no runs."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from seer_sgl.kv.keys import namespace_seed, packed, page_digests
from seer_sgl.kv.ledger import Ledger, LedgerSettings, Outcome

PAGE = 2
TIMES = LedgerSettings(
    sweeps_s=(1.0, 3.0, 9.0),
    more_sweeps=50,
    more_s=5.0,
    failed_s=4.0,
    linger_s=6.0,
    kept_s=40.0,
    silent_s=200.0,
    live_s=1000.0,
)
ROUTERS = [b"one", b"two"]
names = st.sampled_from([(router, f"r{number}") for router in ROUTERS for number in range(4)])
tokens = st.lists(st.integers(0, 1), max_size=9)
"""Few and short: they share beginnings all the time."""


def pages_of(salt: str, ids: list[int]) -> list[bytes]:
    return page_digests(packed(ids), PAGE, namespace_seed(None, salt))


def common_of(one: list[bytes], other: list[bytes]) -> list[bytes]:
    return [page for page, same in zip(one, other, strict=False) if page == same]


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(PAGE, TIMES)
        self.now_s = 0.0
        self.live: dict[tuple[bytes, str], dict[str, Any]] = {}
        self.kept: dict[tuple[bytes, tuple[bytes, ...]], float] = {}
        self.aborted: list[tuple[tuple[bytes, str], str, str, list[int]]] = []
        self.groups: dict[tuple[bytes, str], dict[str, Any]] = {}
        self.store: set[bytes] = set()
        self.known: set[bytes] = set()

    # ---- what routers do ----

    @rule(name=names, group=st.sampled_from("ab"), salt=st.sampled_from("st"), ids=tokens)
    def open(self, name: tuple[bytes, str], group: str, salt: str, ids: list[int]) -> None:
        self.ledger.opened(*name, group, namespace_seed(None, salt), packed(ids), self.now_s)
        pages = pages_of(salt, ids)
        older = self.live.pop(name, None)
        of = self.groups.setdefault((name[0], group), {"live": 0, "begun": False, "shared": []})
        of["live"] += 1
        of["open"] = True
        of["shared"] = common_of(of["shared"], pages) if of["begun"] else pages
        of["begun"] = True
        self.live[name] = {"group": group, "salt": salt, "ids": list(ids), "stale": False}
        for router, path in list(self.kept):
            if router == name[0] and tuple(pages[: len(path)]) == path:
                del self.kept[router, path]
        if older is not None:
            self.leave(name[0], older)
        self.write(pages)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), ids=tokens)
    def grow(self, data: st.DataObject, ids: list[int]) -> None:
        name = data.draw(st.sampled_from(list(self.live)))
        live = self.live[name]
        assert self.ledger.grew(*name, len(live["ids"]), packed(ids), self.now_s)
        live["ids"] += ids
        self.write(pages_of(live["salt"], live["ids"]))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), ids=tokens, finished=st.booleans())
    def close(self, data: st.DataObject, ids: list[int], finished: bool) -> None:
        name = data.draw(st.sampled_from(list(self.live)))
        live = self.live.pop(name)
        assert self.ledger.closed(*name, len(live["ids"]), packed(ids), finished, self.now_s)
        pages = tuple(pages_of(live["salt"], live["ids"] + ids))
        if pages and not finished and not live["stale"]:
            self.kept[name[0], pages] = self.now_s
            self.aborted.append((name, live["group"], live["salt"], live["ids"] + ids))
        self.leave(name[0], live)
        self.write(list(pages))

    @precondition(lambda self: self.aborted)
    @rule(ids=tokens)
    def come_back(self, ids: list[int]) -> None:
        name, group, salt, done = self.aborted.pop()
        self.open(name, group, salt, done + ids)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def lose_a_message(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.live)))
        told = len(self.live[name]["ids"]) + 1
        assert not self.ledger.grew(*name, told, packed([1, 1, 1]), self.now_s)

    @rule(name=names)
    def speak_of_a_stranger(self, name: tuple[bytes, str]) -> None:
        if name not in self.live:
            assert not self.ledger.grew(*name, 0, packed([1, 1]), self.now_s)
            assert not self.ledger.closed(*name, 0, packed([1, 1]), True, self.now_s)
            assert self.ledger.wanted(*name, 8) is None

    @rule(router=st.sampled_from(ROUTERS), group=st.sampled_from("ab"))
    def end_group(self, router: bytes, group: str) -> None:
        self.ledger.group_over(router, group, self.now_s)
        self.shut((router, group))

    @rule(router=st.sampled_from(ROUTERS))
    def change_epoch(self, router: bytes) -> None:
        self.ledger.epoch_changed(router, self.now_s)
        for name in self.groups:
            if name[0] == router:
                self.shut(name)
        for name, live in self.live.items():
            live["stale"] |= name[0] == router
        for (owner, _), group in self.groups.items():
            if owner == router:
                group["begun"], group["shared"] = False, []
        self.kept = {name: since for name, since in self.kept.items() if name[0] != router}

    # ---- time and the store ----

    @rule(seconds=st.sampled_from([0.5, 2.0, 7.0, 15.0, 50.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        for router in ROUTERS:
            self.ledger.heard(router, self.now_s)
        self.ledger.tick(self.now_s)
        self.kept = {n: since for n, since in self.kept.items() if self.now_s - since < TIMES.kept_s}
        for name, group in list(self.groups.items()):
            if not (group["live"] or group["open"]) and self.now_s - group["ended_s"] >= TIMES.linger_s:
                del self.groups[name]

    @rule(hindered=st.sampled_from([Outcome.LEASED, Outcome.FAILED, None]), most=st.integers(1, 8))
    def sweep(self, hindered: Outcome | None, most: int) -> None:
        for run in self.ledger.due(self.now_s, most):
            digests = run.split_digests()
            assert not self.held() & set(digests), "a page that is held was to be removed"
            outcomes = [hindered or self.remove(digest) for digest in digests]
            self.ledger.swept(run, outcomes, self.now_s)

    @rule()
    def press(self) -> None:
        self.ledger.pressed(100, 100, self.now_s)
        held = {d for run in self.ledger.runs if run.holders for d in run.split_digests()}
        live = {page for live in self.live.values() for page in self.pages(live)}
        assert live <= held
        names = list(self.kept)
        self.kept = {n: s for n, s in self.kept.items() if n in self.kept_names()}
        assert list(self.kept) == names[len(names) - len(self.kept) :], "the oldest go first"
        for name in [name for name in self.groups if name not in self.ledger._groups]:
            group = self.groups.pop(name)
            assert not group["live"], "what runs needs its prompt"
            assert not group["open"], "what has not run yet will"
        over = [group for group in self.groups.values() if not group["live"] and not group["open"]]
        assert not over or len(self.kept) == len(names), "those that are over go first"

    # ---- what holds ----

    @invariant()
    def held_pages_are_those_of_the_model(self) -> None:
        runs = list(self.ledger.runs)
        held = [digest for run in runs if run.holders for digest in run.split_digests()]
        assert sorted(held) == sorted(self.held())
        assert self.ledger.runs.held_pages == len(held)
        everything = [digest for run in runs for digest in run.split_digests()]
        assert self.ledger.runs.pages == len(everything) == len(set(everything))

    @invariant()
    def a_live_request_knows_its_pages(self) -> None:
        for name, live in self.live.items():
            most = max(0, len(live["ids"]) - 1) // PAGE
            pages = [] if live["stale"] else pages_of(live["salt"], live["ids"])[:most]
            assert self.ledger.wanted(*name, 100) == pages

    @invariant()
    def what_nobody_holds_is_on_its_way_out(self) -> None:
        for run in self.ledger.runs:
            waits = run.due_s is not None or (run.swept and run.children)
            assert bool(run.holders) != bool(waits)

    def teardown(self) -> None:
        for name, live in list(self.live.items()):
            self.ledger.closed(*name, len(live["ids"]), b"", True, self.now_s)
        for name in self.groups:
            self.ledger.group_over(*name, self.now_s)
        for _ in range(200):
            self.now_s += 5
            self.ledger.tick(self.now_s)
            for run in self.ledger.due(self.now_s, 100):
                outcomes = [self.remove(digest) for digest in run.split_digests()]
                self.ledger.swept(run, outcomes, self.now_s)
        assert self.ledger.runs.pages == self.ledger.runs.held_pages == 0
        assert not self.store & self.known, "pages are left behind"
        assert not self.ledger._live
        assert not self.ledger._groups
        assert not self.ledger._open
        assert not self.ledger._kept

    # ---- the model ----

    def pages(self, live: dict[str, Any]) -> list[bytes]:
        return [] if live["stale"] else pages_of(live["salt"], live["ids"])

    def held(self) -> set[bytes]:
        held = {page for live in self.live.values() for page in self.pages(live)}
        held |= {page for _, path in self.kept for page in path}
        return held | {page for group in self.groups.values() for page in group["shared"]}

    def kept_names(self) -> set[tuple[bytes, tuple[bytes, ...]]]:
        return {
            (router, tuple(d for run in reversed([*last.path()]) for d in run.split_digests()))
            for router, last in self.ledger._kept
        }

    def leave(self, router: bytes, live: dict[str, Any]) -> None:
        group = self.groups[router, live["group"]]
        group["live"] -= 1
        if not group["live"]:
            group["ended_s"] = self.now_s

    def shut(self, name: tuple[bytes, str]) -> None:
        group = self.groups.get(name)
        if group is not None and group["open"]:
            group["open"], group["ended_s"] = False, self.now_s

    def write(self, pages: list[bytes]) -> None:
        self.store |= set(pages)
        self.known |= set(pages)

    def remove(self, digest: bytes) -> Outcome:
        if digest not in self.store:
            return Outcome.ABSENT
        self.store.remove(digest)
        return Outcome.REMOVED


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
