"""The engines that are registered: who they are, how to reach them, when they were last heard."""

from dataclasses import dataclass

import msgspec

from seer_sgl.kv.salts import epoch_name, new_life
from seer_sgl.router.messages import Heartbeat, Register
from seer_sgl.types import EngineId, EngineSpec


@dataclass(slots=True)
class Member:
    """One registered engine."""

    peer: bytes
    card: Register
    seen_s: float
    load: Heartbeat | None = None
    quarantine: str = ""
    """Why it gets no traffic; nothing where it does."""

    @property
    def engine_id(self) -> EngineId:
        return self.card.spec.engine_id


class Roster:
    """Registered engines by id. Those in quarantine are members, and get no traffic."""

    def __init__(self) -> None:
        self.members: dict[EngineId, Member] = {}
        self.epoch = 0
        """Weight changes since the router started."""
        self._life = new_life()

    def __len__(self) -> int:
        """Engines that get traffic."""
        return sum(not member.quarantine for member in self.members.values())

    @property
    def epoch_name(self) -> str:
        """Of the epoch, among all epochs of all routers."""
        return epoch_name(self._life, self.epoch)

    def register(self, peer: bytes, card: Register, now_s: float) -> Member:
        """Take an engine in. Whether it may get traffic is not decided here."""
        member = self.members[card.spec.engine_id] = Member(peer, card, now_s)
        return member

    def set_weight_version(self, engine_id: EngineId, version: str) -> None:
        """Note what an engine's weights are called now."""
        member = self.members.get(engine_id)
        if member is not None:
            member.card = msgspec.structs.replace(member.card, weight_version=version)

    def remove(self, engine_id: EngineId) -> Member | None:
        return self.members.pop(engine_id, None)

    def heard(self, peer: bytes, beat: Heartbeat, now_s: float) -> bool:
        """Note a heartbeat. False where the engine is unknown, or known from another connection."""
        member = self.members.get(beat.engine_id)
        if member is None or member.peer != peer:
            return False
        member.seen_s, member.load = now_s, beat
        return True

    def silent_since(self, deadline_s: float) -> list[EngineId]:
        """Engines that were last heard before `deadline_s`."""
        return [engine_id for engine_id, m in self.members.items() if m.seen_s < deadline_s]

    def specs(self) -> list[EngineSpec]:
        """Of the engines that get traffic."""
        return [member.card.spec for member in self.members.values() if not member.quarantine]

    def objection_to(self, peer: bytes, card: Register) -> str:
        """Why an engine may not join, or nothing. All engines must serve one model with one page size:
        a chunk that goes on elsewhere must find the same weights and the same pages.

        Once weights have changed, be it under an earlier router, a version says nothing about an engine
        that joins: it is taken in, and kept in quarantine until it has had an update, too.
        """
        for member in self.members.values():
            ours, theirs = member.card, card
            if ours.spec.engine_id == theirs.spec.engine_id:
                if member.peer != peer:
                    return f"another engine is called {theirs.spec.engine_id!r}; choose a --name"
                continue
            if ours.spec.page_tokens != theirs.spec.page_tokens:
                return f"page size {theirs.spec.page_tokens} differs from {ours.spec.page_tokens}"
            sizes = {ours.spec.vocab_size, theirs.spec.vocab_size} - {None}
            if len(sizes) > 1:
                return f"vocabulary {theirs.spec.vocab_size} differs from {ours.spec.vocab_size}"
            fresh = not (self.epoch or ours.weight_history or theirs.weight_history)
            if fresh and ours.weight_version != theirs.weight_version:
                return f"weights {theirs.weight_version!r} differ from {ours.weight_version!r}"
        return ""
