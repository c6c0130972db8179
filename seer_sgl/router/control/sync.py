"""Which engines have the weights that they should have. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from seer_sgl.types import EngineId


@dataclass(slots=True)
class _Known:
    updates: int = 0
    """Updates that it has taken."""
    failed: bool = False
    """The last one failed: its weights may be anything."""
    reset: bool = False
    """It has missed an update for good: only a whole set of weights brings it back."""
    takes_part: bool = False
    """In a series of partial updates, from the beginning."""
    loaded: bool = False
    """It has got weights in that series."""


class Sync:
    """Follows updates engine by engine.

    A failed update puts an engine out of step only where another one took an update that it did not:
    what fails everywhere (a path that does not exist) changes nothing anywhere.

    A whole set of weights brings an engine back. That is one update of a kind that replaces all weights,
    or a series of partial ones that it took part in from its beginning to its end without a failure.
    A series lasts from `begin_weight_update` to `end_weight_update`, or else from a pause to its end.
    """

    def __init__(self) -> None:
        self._known: dict[EngineId, _Known] = {}

    def joined(self, engine: EngineId, stale: bool) -> None:
        """An engine is here, with the weights that it started with."""
        self._known[engine] = _Known(updates=self._most(), reset=stale)

    def left(self, engine: EngineId) -> None:
        self._known.pop(engine, None)

    def series_begins(self, engines: Iterable[EngineId]) -> None:
        """A series of partial updates begins for these; one that has begun goes on."""
        for known in self._of(engines):
            if not known.takes_part:
                known.takes_part, known.loaded = True, False

    def series_ends(self, engines: Iterable[EngineId]) -> None:
        for known in self._of(engines):
            if known.takes_part and known.loaded:
                known.failed = known.reset = False
                known.updates = self._most()
            known.takes_part = known.loaded = False

    def updated(self, results: Mapping[EngineId, bool], full: bool) -> None:
        """An update has ended.

        Args:
            results: whether it succeeded, by engine.
            full: it replaces all weights.
        """
        back = []
        for engine, good in results.items():
            known = self._known.setdefault(engine, _Known(self._most()))
            known.loaded = good and known.takes_part
            known.takes_part &= good
            if known.reset:
                back += [known] if good and full else []
            else:
                known.updates += good
                known.failed = not good
        top = self._most()
        for known in back:
            known.updates, known.failed, known.reset = top, False, False
        for known in self._known.values():
            known.reset |= known.failed and known.updates < top

    def out_of_step(self) -> set[EngineId]:
        """Engines that may not get traffic."""
        return {engine for engine, known in self._known.items() if known.reset}

    def _of(self, engines: Iterable[EngineId]) -> list[_Known]:
        return [self._known.setdefault(engine, _Known(self._most())) for engine in engines]

    def _most(self) -> int:
        """Updates of the engines in step."""
        return max((k.updates for k in self._known.values() if not k.reset), default=0)
