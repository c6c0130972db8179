"""The calls that give a fresh engine what the others have. Pure."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Repeated:
    """A call that can be made again."""

    target: str
    body: bytes


@dataclass(slots=True)
class Recipe:
    """Follows the changes that engines have taken."""

    weights: tuple[Repeated, ...] | None = ()
    """From the weights that an engine starts with; None where they came by a way that is gone."""
    starts_whole: bool = False
    """The first of them replaces all weights."""
    adapters: dict[str, Repeated | None] = field(default_factory=dict)
    """By name, in the order of their loading."""

    @property
    def is_whole(self) -> bool:
        """Whether it brings all weights to any engine, not only to one that has just started."""
        return bool(self.weights) and self.starts_whole

    def replaced(self, call: Repeated | None) -> None:
        """All weights are new. `call`: what would bring them again, if anything would."""
        self.weights, self.starts_whole = (None, False) if call is None else ((call,), True)

    def renamed(self, call: Repeated) -> None:
        """The weights have another name."""
        if self.weights is not None:
            before = [known for known in self.weights if known.target != call.target]
            self.weights = (*before, call)

    def loaded(self, name: str, call: Repeated | None) -> None:
        """An adapter was loaded. `call`: as in `replaced`."""
        self.adapters.pop(name, None)
        self.adapters[name] = call

    def unloaded(self, name: str) -> None:
        self.adapters.pop(name, None)

    def copy(self) -> "Recipe":
        """As it is now."""
        return Recipe(self.weights, self.starts_whole, dict(self.adapters))
