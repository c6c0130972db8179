"""Tells the pool's keeper what becomes of samples, so that it knows which pages are whose."""

from collections import Counter

from seer_sgl.router.chunking import Epoch
from seer_sgl.router.live import Live
from seer_sgl.router.pool import NoPool, Reopened
from seer_sgl.types import RequestId

_UNKNOWN_KEYS = ("lora_path", "lora_id", "image_data", "video_data", "audio_data", "input_embeds")
"""Fields that become part of SGLang's keys in ways that only the engine knows: every server numbers its
adapters by itself, and images become tokens there."""


class Pooling:
    """Between the dispatcher and the keeper.

    Args:
        pool: the line to the keeper.
    """

    def __init__(self, pool: NoPool) -> None:
        self.pool = pool
        self._told: dict[RequestId, tuple[int, str | None]] = {}
        """Epoch and salt of samples, as the keeper knows them."""
        self._members: Counter[str] = Counter()
        """Samples of each group that have not been delivered, also those that have never run."""
        self._groups: dict[str, str] = {}
        """Groups that the keeper has heard of in this epoch, and under which name."""

    def submitted(self, live: Live) -> None:
        """It waits to run."""
        self._members[live.group_id] += 1

    def about_to_run(self, live: Live, epoch: Epoch) -> None:
        """A chunk of it goes out, or would if its KV were in the pool."""
        name, body = live.request_id, live.sample.body
        if any(body.get(field) for field in _UNKNOWN_KEYS):
            return
        told = self._told.get(name)
        if told is not None and told[0] == epoch.number:
            return
        salt = epoch.salt(body.get("cache_salt"))
        self._told[name] = epoch.number, salt
        group = self._groups[live.group_id] = epoch.group(live.group_id)
        self.pool.opened(name, group, body.get("extra_key"), salt, live.transcript.held_ids)

    def ended(self, live: Live, tokens: int) -> None:
        """A chunk of it has ended with so many tokens."""
        if live.request_id in self._told:
            done = live.transcript.ended_tokens
            self.pool.grew(live.request_id, live.transcript.output_ids[done - tokens : done])

    def over(self, live: Live, finished: bool) -> None:
        """One that was submitted is delivered. `finished`: nobody will go on from what it has."""
        if self._told.pop(live.request_id, None) is not None:
            self.pool.closed(live.request_id, (), finished)
        self._members[live.group_id] -= 1
        if not self._members[live.group_id]:
            del self._members[live.group_id]
            if (group := self._groups.pop(live.group_id, None)) is not None:
                self.pool.group_over(group)

    def new_epoch(self) -> None:
        """The weights change."""
        self._groups.clear()
        self.pool.epoch_changed()

    def told_of(self, live: Live, epoch: Epoch) -> Reopened | None:
        """What to tell a keeper that has lost its story."""
        told = self._told.get(live.request_id)
        if told is None or told[0] != epoch.number:
            return None
        extra_key, ids = live.sample.body.get("extra_key"), live.transcript.held_ids
        return Reopened(epoch.group(live.group_id), extra_key, told[1], ids)
