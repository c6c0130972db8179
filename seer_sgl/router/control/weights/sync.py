"""Which engines have the weights that they should have. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from seer_sgl.types import EngineId

Key = tuple[str, ...]
"""What tells one update from another: its version where it names one, else where it came from."""

LATE = "it came after the weights had changed, and waits for a whole update"
BEHIND = "an update that other engines have had has not reached it"
HALF = "a part of a series of weight updates failed on it, and it waits for a whole one"
ADAPTERS = "it lacks what was last done to these adapters: "
_NAMING = ("version", "name")
_REMEMBERED = 512
"""Updates that an engine that is behind may still catch up with."""


@dataclass(frozen=True, slots=True)
class Unproven:
    """An engine that may have all weights after a series, if it is out of step otherwise.

    Args:
        mark: what it has, as long as nothing else happens to it.
        doubt: what is held against it until then.
        key: of the weights of the series.
        clean: it has taken all of the series, as far as one can know.
    """

    engine: EngineId
    mark: int
    doubt: str
    key: Key
    clean: bool


@dataclass(slots=True)
class _Series:
    version: str = ""
    loaded: bool = False
    broken: bool = False
    """An update in it may have left anything behind."""
    refused: set[bytes] = field(default_factory=set)
    """Digests of its updates that were refused and have not been repeated with success."""


@dataclass(slots=True)
class _Known:
    mark: int
    late: bool = False
    doubt: str = ""
    """Why its weights may be anything; only a whole set of weights ends that."""
    adapters: dict[str, int] = field(default_factory=dict)
    had_adapters: dict[str, int] = field(default_factory=dict)
    """The last mark of each adapter, those that were unloaded as well."""
    series: _Series | None = None


class Sync:
    """Follows weight changes engine by engine.

    Every state of the weights has a *mark*, a number that grows with time; the *wanted* one is the
    newest that was asked for. An engine that has another one is out of step, and so is one of which
    nobody knows what it has. Two engines come to the same mark in two ways:

    - by a part, from the same mark, under the same key: the parts of a series in their order;
    - by a whole set of weights under the same key, from anywhere: one update of a kind that replaces all
      weights. One under a key that an engine has had before is a new one.

    A series of parts that an engine took part in from its beginning to its end without a failure may be
    a whole set, too. It lasts from `begin_weight_update` to `end_weight_update`, or else from a pause to
    its end. Its engines come to one mark where they prove that they have the same.

    Adapters have marks of their own, by name.
    """

    def __init__(self) -> None:
        self._known: dict[EngineId, _Known] = {}
        self._last = 0
        self._wanted = 0
        self._wanted_adapters: dict[str, int] = {}
        self._first: tuple[str, str] | None = None
        """What the first engine said of itself whose word can be taken."""
        self._next: dict[tuple[int, Key], int] = {}
        self._whole: dict[Key, int] = {}
        self._adapters: dict[Key, int] = {}

    # ---- engines ----

    def joined(
        self,
        engine: EngineId,
        version: str,
        adapters: str = "",
        names: Iterable[str] = (),
        why: str = "",
    ) -> None:
        """An engine is here.

        Args:
            version: what it says of its weights. Before any change, the same means the same weights.
            adapters: what it says of its adapters. Before any was loaded here, the same of both.
            names: of adapters that it may have.
            why: its weights may be anything, whatever it says.
        """
        self.left(engine)
        if not why and (self._first is None or not (self._known or self._wanted)):
            self._first = (version, adapters)
        told = (version, adapters)
        if self._adapters and self._first is not None:
            told = (version, self._first[1])
        mark = 0 if told == self._first and not why else self._new()
        known = self._known[engine] = _Known(mark, late=mark != self._wanted, doubt=why)
        if self._adapters:
            # Which ones they are nobody knows; they make way for what is wanted.
            known.adapters = {name: self._new() for name in names}

    def left(self, engine: EngineId) -> None:
        self._known.pop(engine, None)

    def has_caught_up(self, engine: EngineId, mark: int) -> None:
        """Weights were repeated for it. `mark`: what was wanted when that began."""
        known = self._known.get(engine)
        if known is not None:
            known.mark, known.late, known.doubt = mark, False, ""
            known.series = None if known.series is None else _Series()

    def has_got_adapter(self, engine: EngineId, name: str, mark: int) -> None:
        """An adapter was repeated for it. `mark`: what was wanted of this name when that began."""
        known = self._known.get(engine)
        if known is not None:
            known.adapters[name] = known.had_adapters[name] = mark

    # ---- series of updates ----

    def series_begins(self, engines: Iterable[EngineId]) -> None:
        """A series of partial updates begins for these; one that has begun goes on."""
        for engine in engines:
            known = self._known.get(engine)
            if known is not None and known.series is None:
                known.series = _Series()

    def series_ends(self, engines: Iterable[EngineId]) -> list[Unproven]:
        """Returns those that may have all weights now, if what was loaded since its beginning is a whole
        set: it may also have been meant as a change to what only others had.
        """
        unproven: list[Unproven] = []
        for engine in engines:
            known = self._known.get(engine)
            if known is None or (series := known.series) is None:
                continue
            known.series = None
            if series.loaded and series.refused:
                known.doubt = known.doubt or HALF
            elif series.loaded:
                key = ("version", series.version) if series.version else ("series", "")
                unproven.append(Unproven(engine, known.mark, known.doubt, key, not series.broken))
        return unproven

    def loaded_in_series(self, engines: Iterable[EngineId]) -> list[EngineId]:
        """Those of them that have loaded something in a series that goes on."""
        known = ((engine, self._known.get(engine)) for engine in engines)
        return [engine for engine, found in known if found and found.series and found.series.loaded]

    def engines(self) -> list[EngineId]:
        """All that are here."""
        return list(self._known)

    def is_still(self, unproven: Unproven) -> bool:
        """Whether nothing has happened to it since."""
        known = self._known.get(unproven.engine)
        if known is None:
            return False
        return (known.mark, known.doubt) == (unproven.mark, unproven.doubt)

    def proven(self, engines: Iterable[EngineId]) -> None:
        """These have the weights of one that is in step."""
        for engine in engines:
            known = self._known[engine]
            known.mark, known.late, known.doubt = self._wanted, False, ""

    # ---- changes ----

    def whole(self, engines: Iterable[EngineId], key: Key) -> None:
        """These have taken a whole set of weights at once."""
        here = [engine for engine in engines if engine in self._known]
        for engine in here:
            if self._known[engine].series is not None:
                self._known[engine].series = _Series()
        if here:
            self._replaced(here, key)

    def part(
        self, engines: Iterable[EngineId], key: Key, digest: bytes = b"", loads: bool = True
    ) -> None:
        """These have taken a part of the weights, or another change that leaves the rest as it was.

        Args:
            digest: of the call, to know it again after a refusal.
            loads: it brought weights.
        """
        wanted = self._wanted
        here = [self._known[engine] for engine in engines if engine in self._known]
        for known in here:
            step, in_step = (known.mark, key), known.mark == wanted and not known.doubt
            if step not in self._next:
                self._next[step] = self._new()
            known.mark = self._next[step]
            if in_step:  # whoever made the step: a doubtful engine may have come first
                self._wanted = known.mark
            if (series := known.series) is not None:
                series.loaded |= loads
                series.refused.discard(digest)
                series.version = key[1] if key[0] in _NAMING else series.version
        self._forget()

    def refused(self, engines: Iterable[EngineId], digest: bytes) -> None:
        """These have not taken a part, and nothing of theirs has changed."""
        for engine in engines:
            known = self._known.get(engine)
            if known is not None and known.series is not None:
                known.series.refused.add(digest)

    def doubted(self, engine: EngineId, why: str) -> None:
        """Nobody knows which weights this one has."""
        known = self._known.get(engine)
        if known is not None:
            known.doubt = why
            if known.series is not None:
                known.series.broken = True

    def loaded(self, engines: Collection[EngineId], name: str, source: str) -> None:
        """These have loaded an adapter."""
        here = [self._known[engine] for engine in engines if engine in self._known]
        if not here:
            return
        key = (name, source)
        mark, wanted = self._adapters.get(key, 0), self._wanted_adapters.get(name)
        others = [known for engine, known in self._known.items() if engine not in engines]
        left = wanted in (None, mark) or any(known.adapters.get(name) == wanted for known in others)
        if not left or mark <= max(known.had_adapters.get(name, 0) for known in here):
            mark = self._adapters[key] = self._wanted_adapters[name] = self._new()
        for known in here:
            known.adapters[name] = known.had_adapters[name] = mark
        self._wanted_adapters.setdefault(name, mark)

    def unloaded(self, engines: Iterable[EngineId], name: str) -> None:
        """These have an adapter no more."""
        for engine in engines:
            had = self._known[engine].adapters.pop(name, None) if engine in self._known else None
            if had is not None and had == self._wanted_adapters.get(name):
                del self._wanted_adapters[name]

    # ---- what follows ----

    def out_of_step(self) -> dict[EngineId, str]:
        """Engines that may not get traffic, each with the reason."""
        found = {engine: self._reason(known) for engine, known in self._known.items()}
        return {engine: reason for engine, reason in found.items() if reason}

    def doubtful(self) -> dict[EngineId, str]:
        """Those of which nobody knows what they have, with the reason."""
        return {engine: known.doubt for engine, known in self._known.items() if known.doubt}

    @property
    def wanted(self) -> int:
        """The mark of the weights that all should have."""
        return self._wanted

    def has_wanted_weights(self, engine: EngineId) -> bool:
        """Whether it has the weights that it should have, whatever its adapters are."""
        known = self._known.get(engine)
        return known is not None and known.mark == self._wanted and not known.doubt

    def has_first_weights(self, engine: EngineId) -> bool:
        """Whether it has those that all engines started with."""
        known = self._known.get(engine)
        return known is not None and not known.mark and not known.doubt

    def wanted_adapter(self, name: str) -> int:
        """The mark of the adapter of this name that all should have; 0 where there is none."""
        return self._wanted_adapters.get(name, 0)

    def has_wanted_adapter(self, engine: EngineId, name: str) -> bool:
        """Whether it has the one of this name that it should have."""
        known = self._known.get(engine)
        had = None if known is None else known.adapters.get(name)
        return had is not None and had == self._wanted_adapters.get(name)

    def odd_adapters(self, engine: EngineId) -> tuple[list[str], list[str]]:
        """Adapters that it has and should not have, and those that it lacks."""
        had = self._known[engine].adapters
        wanted = self._wanted_adapters
        return (
            [name for name, mark in had.items() if wanted.get(name) != mark],
            [name for name, mark in wanted.items() if had.get(name) != mark],
        )

    # ---- inside ----

    def _reason(self, known: _Known) -> str:
        if known.doubt:
            return known.doubt
        if known.mark != self._wanted:
            return LATE if known.late else BEHIND
        if known.adapters != self._wanted_adapters:
            odd = known.adapters.items() ^ self._wanted_adapters.items()
            return ADAPTERS + ", ".join(sorted({name for name, _ in odd}))
        return ""

    def _replaced(self, engines: list[EngineId], key: Key) -> None:
        mark = self._whole.get(key)
        others = [engine for engine in self._known if engine not in engines]
        left = mark == self._wanted or any(map(self.has_wanted_weights, others))
        # Of weights that nobody has any more nobody is behind: what is asked for now is wanted.
        if mark is None or not left or mark <= max(self._known[engine].mark for engine in engines):
            self._whole.pop(key, None)  # the newest last
            mark = self._whole[key] = self._wanted = self._new()
        for engine in engines:
            known = self._known[engine]
            known.mark, known.doubt, known.late = mark, "", False
        self._forget()

    def _new(self) -> int:
        self._last += 1
        return self._last

    def _forget(self) -> None:
        """Keep the newest updates; nobody catches up with older ones but by a newer whole one."""
        if len(self._next) > 2 * _REMEMBERED:
            self._next = dict(list(self._next.items())[-_REMEMBERED:])
        if len(self._whole) > 2 * _REMEMBERED:
            self._whole = dict(list(self._whole.items())[-_REMEMBERED:])
