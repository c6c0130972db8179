"""Which requests are samples of one prompt, and where the KV of a prompt's beginning is. Pure.

A client may name the group. Else requests with the same prompt, model state and sampling (less seed
and budget) are one, while they come close together in time. One that goes on from a known prompt
(partial rollout, another turn of a conversation) belongs to that prompt's group. All of this is a hint,
for drafts and expectations of length: nothing here may change a result.

Prompts are compared by a chain of hashes over blocks of tokens, so that a lookup costs a hash of the
prompt and a dictionary access per block.
"""

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from seer_sgl.types import EngineId

BLOCK = 32
"""Tokens of a block."""
ALIKE = 16
"""Known beginnings that end within one block after the same blocks; older ones are forgotten."""
MOST_GROUPS, MOST_ENDS = 8192, 32_768
"""Prompts and ended samples that are remembered."""

_STATE = ("lora_path", "lora_id", "extra_key", "cache_salt", "image_data", "video_data", "audio_data")
"""Fields on which the KV of a prompt depends."""
_NOT_SAMPLING = ("sampling_seed", "max_new_tokens", "n")
_TOKEN_BYTES = array("i").itemsize
_BLOCK_BYTES = BLOCK * _TOKEN_BYTES


class Placed(NamedTuple):
    """What is known of a request when it comes."""

    group_id: str
    prompt_key: str
    """Equal for equal prompts of groups, whenever they come."""
    shared_tokens: int
    """How much of its prompt is the group's own prompt."""
    held_tokens: int
    """How much of its prompt has been computed before, by a request that has ended."""
    held_on: EngineId | None
    """By which engine, while that is here."""
    in_pool: bool = True
    """What that one wrote to the pool has not been freed since."""


@dataclass(slots=True, eq=False)
class _Prompt:
    """A group's prompt, and the group that is open for it."""

    key: str
    tokens: int
    sampling: bytes
    group_id: str = ""
    seen: int = 0
    last_s: float = 0.0
    epoch: int = -1
    """Of the group; before there is one, none."""


@dataclass(slots=True, eq=False)
class _Known:
    """A beginning that has been seen: a group's prompt, or all tokens of a sample that has ended."""

    tokens: int
    place: tuple[Hashable, bytes]
    """Hash of its whole blocks, and the rest."""
    prompt: _Prompt | None
    group_id: str | None = None
    """Of the sample; None for a prompt."""
    epoch: int = 0
    engine: tuple[EngineId, int] | None = None
    """The engine, and which of its lives."""
    in_pool: bool = True


@dataclass(slots=True)
class Trail:
    """The hashes of a request's tokens, to go on from when it ends."""

    chain: list[int] = field(default_factory=list)
    """Hash at the end of each whole block, the model state's first."""
    rest: bytes = b""
    tokens: int = 0
    prompt: "_Prompt | None" = None
    """The group's prompt that it goes on from, or is."""

    def follow(self, ids: list[int]) -> None:
        """Go on by these tokens."""
        data = self.rest + array("i", ids).tobytes()
        self.tokens += len(ids)
        chain, last = self.chain, self.chain[-1]
        whole = len(data) - len(data) % _BLOCK_BYTES
        for start in range(0, whole, _BLOCK_BYTES):
            last = hash((last, data[start : start + _BLOCK_BYTES]))
            chain.append(last)
        self.rest = data[whole:]

    def beginnings(self) -> Iterator[tuple[int, int]]:
        """(hash, tokens) at the end of each whole block, longest first."""
        for blocks in range(len(self.chain) - 1, -1, -1):
            yield self.chain[blocks], blocks * BLOCK


class GroupBook:
    """Groups and ended samples of the recent past.

    Args:
        group_size: samples of a group, where known: the next one opens another group.
        window_s: a group that has been idle for longer is closed.
    """

    def __init__(self, group_size: int | None = None, window_s: float = 60.0) -> None:
        self._size, self._window_s = group_size, window_s
        self._epoch = 0
        self._serial = 0
        self._prompts: OrderedDict[tuple[int, bytes, bytes], _Prompt] = OrderedDict()
        self._known: dict[Hashable, list[_Known]] = {}
        self._ends: OrderedDict[tuple[Hashable, bytes], _Known] = OrderedDict()
        self._lives: dict[EngineId, int] = {}

    def __len__(self) -> int:
        """Prompts and ends that are remembered."""
        return len(self._prompts) + len(self._ends)

    def begin(
        self, body: dict[str, Any], ids: list[int], named: str | None, now_s: float, count: int = 1
    ) -> tuple[Placed, Trail]:
        """Place samples of one prompt that come now, in one group.

        Args:
            body: what is common to them: fields of `/generate` less the prompt.
            ids: the prompt.
            named: the group as the client calls it.
            count: how many samples come.
        """
        trail = Trail([_state_of(body)])
        trail.follow(ids)
        sampling = _sampling_of(body)
        prompt, end = self._find(trail, ids, sampling)
        held = (end.tokens, self._engine_of(end), end.in_pool) if end else (0, None)
        if named is not None:
            key = f"{trail.chain[-1] ^ hash(trail.rest):x}"
            return Placed(named, key, len(ids), *held), trail
        same = (trail.chain[-1], trail.rest, sampling)
        known = self._prompts.get(same)
        if known is None and end is not None and end.prompt is not None and end.group_id:
            trail.prompt = end.prompt
            shared = end.prompt.tokens
            return Placed(end.group_id, end.prompt.key, shared, *held), trail
        if known is None:
            known = prompt if prompt is not None else self._new_prompt(trail, same, ids)
        else:
            self._prompts.move_to_end(same)
        trail.prompt = known
        group_id = self._group_of(known, now_s, count)
        return Placed(group_id, known.key, known.tokens, *held), trail

    def end(
        self,
        trail: Trail,
        output_ids: list[int],
        group_id: str,
        engine_id: EngineId,
        in_pool: bool = True,
    ) -> None:
        """A sample has ended there, with this output: all its KV but the last token's exists.

        Args:
            in_pool: in the pool as well as on the engine, where there is one.
        """
        trail = Trail(trail.chain[:], trail.rest, trail.tokens, trail.prompt)
        trail.follow(output_ids)
        place = (trail.chain[-1], trail.rest)
        engine = (engine_id, self._lives.get(engine_id, 0))
        self._forget(self._ends.pop(place, None))
        known = _Known(trail.tokens, place, trail.prompt, group_id, self._epoch, engine, in_pool)
        self._ends[place] = known
        self._list(known)
        if len(self._ends) > MOST_ENDS:
            self._forget(self._ends.popitem(last=False)[1])

    def engine_gone(self, engine_id: EngineId) -> None:
        """What it held in its own memory is lost; what it wrote to the pool is not."""
        self._lives[engine_id] = self._lives.get(engine_id, 0) + 1

    def new_epoch(self) -> None:
        """The weights have changed: all groups are closed, and KV is worth nothing."""
        self._epoch += 1

    # ---- groups ----

    def _new_prompt(self, trail: Trail, same: tuple[int, bytes, bytes], ids: list[int]) -> _Prompt:
        digest = blake2b(array("i", ids).tobytes(), digest_size=8)
        digest.update(repr((trail.chain[0], same[2])).encode())
        prompt = self._prompts[same] = _Prompt(digest.hexdigest(), len(ids), same[2])
        self._list(_Known(len(ids), (trail.chain[-1], trail.rest), prompt))
        if len(self._prompts) > MOST_GROUPS:
            (last, rest, _), _ = self._prompts.popitem(last=False)
            self._forget(next((k for k in self._known.get(last, ()) if k.place[1] == rest), None))
        return prompt

    def _group_of(self, prompt: _Prompt, now_s: float, count: int) -> str:
        """The group that is open for a prompt, or a new one."""
        full = self._size is not None and prompt.seen >= self._size
        idle = now_s > prompt.last_s + self._window_s
        if full or idle or prompt.epoch != self._epoch:
            self._serial += 1
            prompt.group_id, prompt.seen = f"{prompt.key}-{self._serial}", 0
            prompt.epoch = self._epoch
        prompt.seen, prompt.last_s = prompt.seen + count, now_s
        return prompt.group_id

    # ---- beginnings ----

    def _find(
        self, trail: Trail, ids: list[int], sampling: bytes
    ) -> tuple[_Prompt | None, _Known | None]:
        """The prompt that this one goes on from, and the longest ended sample that it begins with.

        What is shorter than a block tells nothing, unless it is all.
        """
        prompt: _Prompt | None = None
        end: _Known | None = self._ends.get((trail.chain[-1], trail.rest))
        prompt = end.prompt if end is not None else None
        for at, tokens in trail.beginnings():
            if prompt is not None and end is not None:
                break
            candidates = self._known.get(at)
            if not candidates:
                continue
            rest = array("i", ids[tokens : tokens + BLOCK]).tobytes()
            fitting = [k for k in candidates if rest.startswith(k.place[1])]
            fitting.sort(key=lambda k: (-k.tokens, k.prompt is None or k.prompt.sampling != sampling))
            for known in fitting:
                if known.group_id is not None:
                    end = end or known
                elif known.tokens == len(ids):
                    continue  # the same prompt, sampled in another way
                prompt = prompt or known.prompt
        if end is not None and end.epoch != self._epoch:
            return prompt, None
        return prompt, end

    def _engine_of(self, end: _Known) -> EngineId | None:
        if end.engine is None:
            return None
        engine_id, life = end.engine
        return engine_id if self._lives.get(engine_id, 0) == life else None

    def _list(self, known: _Known) -> None:
        if known.tokens < BLOCK:
            return
        alike = self._known.setdefault(known.place[0], [])
        alike.append(known)
        if len(alike) > ALIKE:
            oldest = alike.pop(0)
            if self._ends.get(oldest.place) is oldest:
                del self._ends[oldest.place]

    def _forget(self, known: _Known | None) -> None:
        if known is None or known not in (alike := self._known.get(known.place[0], [])):
            return
        alike.remove(known)
        if not alike:
            del self._known[known.place[0]]


def _state_of(body: dict[str, Any]) -> int:
    """What the KV of a prompt depends on besides its tokens."""
    state = [(key, body[key]) for key in _STATE if body.get(key)]
    return hash(msgspec.msgpack.encode(state)) if state else 0


def _sampling_of(body: dict[str, Any]) -> bytes:
    params = body["sampling_params"]
    kept = {key: params[key] for key in sorted(params) if key not in _NOT_SAMPLING}
    return msgspec.msgpack.encode(kept)
