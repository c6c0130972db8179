"""What a client and the engines would know of a rollout, as plain as can be: the model's nouns."""

from bisect import bisect_left
from dataclasses import dataclass, field

from seer_sgl.router.core.actions import Dispatch
from seer_sgl.router.core.events import Submitted
from seer_sgl.types import ChunkId, EngineSpec


@dataclass(eq=False)
class Prompt:
    """What the samples of a group share."""

    on: "set[Machine]" = field(default_factory=set)
    """The machines that have computed it."""
    in_pool: bool = True


@dataclass(eq=False)
class Sample:
    """A request as its client sees it."""

    event: Submitted
    prompt: Prompt
    begun_on: "Machine | None" = None
    """Where an earlier request computed the beginning of its prompt."""
    begun_tokens: int = 0
    """How much that was; 0 once the weights have changed."""
    generated_tokens: int = 0
    failures: int = 0
    ended: bool = False
    cancelled: bool = False
    hopeless: bool = False
    """A failure that is not to be retried."""
    last_on: "Machine | None" = None
    ready_s: float = 0.0
    aside: bool = False
    """It may have been set aside since then, so that it is not known for how long it has waited."""
    running: Dispatch | None = None
    recalled: bool = False
    """What runs was told to stop and to come back."""
    of_old: bool = False
    """What runs was dispatched before the weights changed."""
    pool_life: int = 0
    """The pool's when that was dispatched."""
    in_pool: bool = True
    """All that it has computed is in the pool, or will be in a moment."""
    settled_tokens: int = 0
    """So much of it is there."""
    lacks: bool = False
    """A look-up missed some of what it had computed on its last machine."""
    ended_s: float = 0.0
    """When the last chunk that left KV ended."""
    asked_tokens: int = 0
    found_tokens: int | None = None
    asked_s: float = 0.0
    until_s: float = 0.0
    """Of the look-up after that: what for, what it found, when it was, and how long it is waited for."""

    @property
    def remaining_tokens(self) -> int:
        return self.event.max_new_tokens - self.generated_tokens

    @property
    def held_tokens(self) -> int:
        return self.event.prompt_tokens + self.generated_tokens

    def prefix_on(self, machine: "Machine") -> int:
        if machine is self.last_on:
            return self.held_tokens
        begun = self.begun_tokens if machine is self.begun_on else 0
        return max(begun, self.shared_tokens if machine in self.prompt.on else 0)

    @property
    def shared_tokens(self) -> int:
        shared = self.event.shared_tokens
        return self.event.prompt_tokens if shared is None else shared


@dataclass(eq=False)
class Machine:
    """One life of an engine: another one under the same id is another machine."""

    spec: EngineSpec
    needs: dict[ChunkId, int] = field(default_factory=dict)
    """KV tokens of each running chunk, in whole pages."""

    draft_tokens: int = 0

    @property
    def capacity_tokens(self) -> int:
        return self.spec.kv_capacity_tokens - self.spec.kv_capacity_tokens % self.spec.page_tokens

    @property
    def free_tokens(self) -> int:
        return self.capacity_tokens - sum(self.needs.values())

    def pages(self, tokens: int) -> int:
        with_draft = tokens + self.draft_tokens
        whole = -(-with_draft // self.spec.page_tokens) * self.spec.page_tokens
        return min(whole, self.capacity_tokens)

    def able(self, tokens: int) -> bool:
        return tokens <= self.capacity_tokens

    def fits(self, tokens: int) -> bool:
        slot = len(self.needs) < self.spec.max_running_requests
        return slot and self.able(tokens) and self.pages(tokens) <= self.free_tokens

    @property
    def room_tokens(self) -> int:
        """The longest request that fits."""
        lengths = range(1, self.capacity_tokens + 1)
        return bisect_left(lengths, True, key=lambda tokens: not self.fits(tokens))
