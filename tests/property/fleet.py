"""A whole router without sockets: its real parts over a link to simulated engines. What may never
happen is judged where it would happen, as chunks go out and run."""

import asyncio
import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from seer_sgl.router.calls import EngineCalls
from seer_sgl.router.control.merging import Reply
from seer_sgl.router.control.plane import ControlPlane
from seer_sgl.router.core import RouterCore, policy_named
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.router.dispatcher import Dispatcher
from seer_sgl.router.messages import CallAnswered, ChunkAnswered, ChunkBroke, Leave, Register, RunChunk
from seer_sgl.router.requests import parse_generate
from seer_sgl.router.roster import Roster
from seer_sgl.types import ChunkId, EngineId
from tests.property.engines import Engine, Weights

TIMEOUT_S, SILENCE_S, RESTART_S = 1.0, 0.3, 0.1
CHUNK_TOKENS = 6


@dataclass(slots=True)
class Token:
    """The truth about a token: each is made once, and is a number of its own."""

    rid: str
    name: str
    """What the engine called its weights."""
    weights: Weights


@dataclass
class Fleet:
    """A router and its engines, wired together as the service wires them."""

    salted: bool = True
    delays_s: list[float] = field(default_factory=lambda: [0.001])
    """Of messages, by turns; they stay in order between two ends."""

    def __post_init__(self) -> None:
        self.serial = itertools.count(1)
        self.engines: dict[str, Engine] = {}
        self.truth: dict[int, Token] = {}
        self.salts: dict[str | None, Weights] = {}
        self.wrong: list[str] = []
        """What should never have happened."""
        self.dispatched = 0
        self.kept: list[tuple[bytes, Any]] = []
        self._delay = itertools.cycle(self.delays_s)
        self._not_before_s: dict[tuple[bytes, bool], float] = {}
        self.core = RouterCore(
            policy_named("seer"), CoreSettings(chunk_tokens=CHUNK_TOKENS, settle_s=0.0)
        )
        self.roster = Roster()
        link: Any = self
        self.calls = EngineCalls(link, self.roster)
        self.dispatcher = Dispatcher(self.core, link, self.roster, self.calls, salted=self.salted)
        self.plane = ControlPlane(self.dispatcher, self.roster, self.calls, TIMEOUT_S)

    # ---- the link ----

    def send(self, peer: bytes, message: Any) -> None:
        """From the router to an engine."""
        engine = self._behind(peer)
        if isinstance(message, RunChunk):
            self._judge_dispatch(engine, message)
        if engine is not None:
            self._later(peer, True, lambda: engine.take(copy.deepcopy(message)))

    def from_engine(self, peer: bytes, message: Any) -> None:
        self.kept.append((peer, copy.deepcopy(message)))
        self._later(peer, False, lambda: self.heard(peer, message))

    def _later(self, peer: bytes, out: bool, act: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        at_s = max(loop.time() + next(self._delay), self._not_before_s.get((peer, out), 0.0) + 1e-6)
        self._not_before_s[(peer, out)] = at_s
        loop.call_at(at_s, act)

    def heard(self, peer: bytes, message: Any) -> None:
        """As the service."""
        match message:
            case ChunkAnswered():
                self.dispatcher.chunk_answered(message)
            case ChunkBroke():
                self.dispatcher.chunk_broke(message)
            case CallAnswered():
                self.calls.answered(message)
            case Register():
                self._register(peer, message)
            case Leave():
                self.remove(message.engine_id, message.reason)

    def _register(self, peer: bytes, card: Register) -> None:
        if self.roster.objection_to(peer, card):
            self.wrong.append(f"{peer.decode()} was refused")
            return
        if card.spec.engine_id in self.roster.members:
            self.remove(card.spec.engine_id, "started afresh")
        member = self.roster.register(peer, card, asyncio.get_running_loop().time())
        self.plane.engine_joined(card.spec.engine_id)
        if not member.quarantine:
            self.dispatcher.engine_joined(card.spec)

    def remove(self, engine_id: EngineId, reason: str) -> None:
        if self.roster.remove(engine_id) is not None:
            self.calls.engine_left(engine_id)
            self.dispatcher.engine_left(engine_id, reason)
            self.plane.engine_left(engine_id)

    # ---- engines ----

    def join(self, name: str) -> None:
        """A fresh engine. Where one of this name lives, its server ends, and its agent starts another;
        where the router still takes a dead one for alive, it would be refused, and does not come."""
        old = self.engines.get(name)
        if old is not None and old.alive:
            old.die()
            self.from_engine(old.peer, Leave(old.name, "the server ended"))
        elif EngineId(name) in self.roster.members:
            return
        engine = self.engines[name] = Engine(self, name, next(self.serial))
        asyncio.get_running_loop().call_later(RESTART_S, engine.register)

    def lose_sight(self, engine: Engine) -> None:
        """The network is gone for so long that the router gives an engine up; then it is back."""
        self.remove(engine.name, "silent")
        engine.forget()
        asyncio.get_running_loop().call_later(RESTART_S, engine.register)

    def crash(self, engine: Engine) -> None:
        """An engine falls silent; the router takes note of that a while later."""
        engine.die()

        def silent() -> None:
            member = self.roster.members.get(engine.name)
            if member is not None and member.peer == engine.peer:
                self.remove(engine.name, "silent")

        asyncio.get_running_loop().call_later(SILENCE_S, silent)

    def _behind(self, peer: bytes) -> Engine | None:
        return next((engine for engine in self.engines.values() if engine.peer == peer), None)

    def serving(self) -> list[Engine]:
        """Engines that live and get traffic."""
        found = [self._behind(m.peer) for m in self.roster.members.values() if not m.quarantine]
        return [engine for engine in found if engine is not None and engine.alive]

    # ---- clients ----

    async def generate(self, rid: str, tokens: int, divisible: bool) -> dict[str, Any]:
        params: dict[str, Any] = {"max_new_tokens": tokens}
        if not divisible:
            params["stop"] = ["never"]
        body = {"input_ids": [1, 2, 3], "sampling_params": params, "rid": rid}
        return (await self.dispatcher.generate(parse_generate(body, rid).samples))[0]

    async def control(self, path: str, body: Any = None, only: str | None = None) -> Reply:
        """A control call, to the router or to an engine's port."""
        engine = None if only is None else EngineId(only)
        return await self.plane.perform(path, "POST", msgspec.json.encode(body or {}), "", engine)

    def new_token(self, rid: str, engine: Engine) -> int:
        self._judge_step(engine, rid)
        token = 10 + next(self.serial)
        self.truth[token] = Token(rid.rpartition(".")[0], engine.version, engine.weights)
        return token

    # ---- what may never happen ----

    def _judge_dispatch(self, engine: Engine | None, message: RunChunk) -> None:
        self.dispatched += 1
        if self.dispatcher.paused:
            self.wrong.append("dispatched in a pause")
        if engine is None or not engine.alive:
            return
        if engine.doubtful:
            self.wrong.append(f"{engine.name} has a mixture, and got a chunk")
        for other in self.serving():
            if other.weights != engine.weights:
                self.wrong.append(f"{engine.name} serves {engine.weights}, {other.name} {other.weights}")
        self._judge_salt(message, engine)

    def judge_prefill(self, engine: Engine, message: RunChunk) -> None:
        """KV comes into being under a salt."""
        # An adapter may come while a chunk is on its way: its KV has a namespace of its own.
        known = self.salts[message.body.get("cache_salt")]
        if known[: len(engine.content)] != engine.content:
            self.wrong.append(f"prefilled under the salt of {known} with {engine.weights}")

    def _judge_step(self, engine: Engine, rid: str) -> None:
        """A token is about to be made, for a chunk that the router has not given up."""
        if ChunkId(int(rid.rpartition(".")[2])) not in self.core.chunks:
            return
        if self.plane.weights.making.on:
            return  # another caller may end a pause in the middle of a change
        if engine.doubtful:
            self.wrong.append(f"{engine.name} makes tokens with a mixture")
        for other in self.serving():
            if other.works_for(self.core.chunks) and other.content != engine.content:
                self.wrong.append(
                    f"{engine.name} goes on with {engine.content}, {other.name} with others"
                )

    def _judge_salt(self, message: RunChunk, engine: Engine) -> None:
        salt = message.body.get("cache_salt")
        known = self.salts.setdefault(salt, engine.weights)
        if known != engine.weights:
            self.wrong.append(f"dispatched under the salt of {known} with {engine.weights}")


def judge_answer(fleet: Fleet, rid: str, answer: dict[str, Any], asked: int) -> None:
    """Whether an answer is made of this request's tokens, in order, and tells their weights."""
    ids, meta = answer["output_ids"], answer["meta_info"]
    assert len(ids) <= asked
    if meta["finish_reason"]["type"] != "abort":
        assert len(ids) == asked, "tokens are missing"
    assert len(set(ids)) == len(ids), "a token comes twice"
    truth = [fleet.truth[token] for token in ids]
    assert {token.rid for token in truth} <= {rid}, "tokens of another request"
    assert ids == sorted(ids), "tokens are out of order"
    told: list[str] = []
    for span in meta.get("weight_versions", ()):
        assert span["start"] == len(told), "spans have gaps"
        told += [span["version"]] * (span["end"] - span["start"])
    assert told == [token.name for token in truth], "spans do not tell the truth"
