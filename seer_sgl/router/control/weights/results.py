"""What engines answered to one change of weights, and what the caller is told of it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seer_sgl.router.control.merging import Reply, refusal, refused, success
from seer_sgl.router.control.weights.outcome import Outcome
from seer_sgl.types import EngineId

_MIXED = (
    "may have a mixture of old and new weights: they get no requests until a whole update has reached "
    "them, by /update_weights_from_disk or by all parts of a series between a pause and its end"
)
_BEHIND = "do not have what the others have: they get no requests until they have it; send it again"


@dataclass(slots=True)
class Results:
    """Answers and outcomes of the engines that were asked and are still here."""

    replies: dict[EngineId, Reply] = field(default_factory=dict)
    outcomes: dict[EngineId, Outcome] = field(default_factory=dict)
    names: dict[EngineId, str] = field(default_factory=dict)
    """What weights are called now, where engines say so."""

    def of(self, outcome: Outcome) -> list[EngineId]:
        return [engine for engine, found in self.outcomes.items() if found is outcome]

    def set(self, engine: EngineId, reply: Reply, outcome: Outcome) -> None:
        self.replies[engine], self.outcomes[engine] = reply, outcome

    def drop(self, engine: EngineId) -> None:
        """It has left."""
        self.replies.pop(engine, None)
        self.outcomes.pop(engine, None)

    def forget(self, said: str) -> None:
        """Leave out refusals that say this: what was asked for was so already."""
        for engine, reply in list(self.replies.items()):
            if not reply.good and said in reply.said():
                self.drop(engine)

    @property
    def changed(self) -> bool:
        """Whether the weights of any engine are not what they were, or may not be."""
        return any(found is not Outcome.UNTOUCHED for found in self.outcomes.values())

    def told(self, versions: Mapping[EngineId, str]) -> Reply:
        """One answer for the caller: good only where all engines are; else with what each has said, what
        has become of it, and what to do.

        Args:
            versions: what the engines' weights are called now.
        """
        if not self.replies:
            return refused("all engines that were asked have left", 503)
        wrong = refusal(self.replies, versions)
        if wrong is None:
            return success(self.replies)
        body: dict[str, Any] = wrong.json()
        notes = [self._note(Outcome.DOUBTFUL, _MIXED)]
        if self.of(Outcome.TOOK):
            notes.append(self._note(Outcome.UNTOUCHED, _BEHIND))
        elif not self.of(Outcome.DOUBTFUL):
            notes.append("nothing was changed, and the weights from before go on serving")
        told = ". ".join([body.pop("message"), *filter(None, notes)])
        more = {key: value for key, value in body.items() if key not in ("success", "error")}
        return refused(told, wrong.status, **more)

    def _note(self, outcome: Outcome, text: str) -> str:
        engines = ", ".join(self.of(outcome))
        return f"Engines {engines} {text}" if engines else ""
