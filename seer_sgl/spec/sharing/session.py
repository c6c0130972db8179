"""An engine's side of the draft servers: calls, and what answers mean. No socket, thread or clock.

Groups are spread over the servers by name. Each server has at most one call under way; what it lost is
sent again. A server is told apart from the one before it by its `instance`: at a new one every group is
registered anew, every token sent again, and what this engine has seen left out of what it reads. Nothing
is handed on twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seer_sgl.spec.sharing.blocks import NONE, IntArray, LongArray
from seer_sgl.spec.sharing.groups import HERE, LEAVING, WANTED, BoolArray, GroupTable, wire_name
from seer_sgl.spec.sharing.heads import CallHead
from seer_sgl.spec.sharing.logs import MUTED, Batch, TokenLogs, collect_updates, known_counts
from seer_sgl.spec.sharing.messages import Answer, Call
from seer_sgl.spec.sharing.reading import Reader, Records
from seer_sgl.spec.sharing.records import (
    COUNT,
    FETCH_COLUMNS,
    GAP,
    KNOWN_ROWS,
    MORE,
    PREV,
    UNKNOWN_GROUP,
    UPDATE_COLUMNS,
)

CALL_ROWS = 4096
CALL_TOKENS = 256 * 1024
"""Most tokens of one call. An engine that has more to say calls again."""
COMPARED_S = 5.0
"""How long after a server came back what this engine has seen is told with every fetch."""
COMPARED_REQUESTS = 1 << 16
"""Of more requests than these it is not told."""
OVERLAP_S = 2.0
"""The same, for a group of which something came twice."""
LOST_PAUSE_S = 1.0
"""How long a group that the server gave up stays away: if memory is short, all come back at once."""
LEAVE_S = 2.0
"""How long a group that is left waits for its last tokens to get through."""


Tokens = Sequence[int] | IntArray


class _Pending(NamedTuple):
    """What a call under way is about; serials tell whether it is still the same."""

    registering: list[int]
    registering_serials: LongArray
    updates: IntArray
    log_serials: LongArray
    fetching: LongArray
    fetching_serials: LongArray


class Session:
    """All that one engine knows of its draft servers.

    Args:
        servers: how many there are.
        budget_bytes: for the tokens that this engine keeps until their groups are left.
        vocab_size: token ids are below this; 0: not known.
        ttl_s: how long a server keeps a group that no engine reads.
    """

    def __init__(self, servers: int, budget_bytes: int, vocab_size: int, ttl_s: float) -> None:
        self.tokens = TokenLogs(budget_bytes, vocab_size)
        self.groups = GroupTable(servers)
        self.hungry = [False] * servers
        """Whether a server had more to tell than fits an answer."""
        self._vocab_size = vocab_size
        self._ttl_s = ttl_s
        self._instances = [""] * servers
        self._pending: list[_Pending | None] = [None] * servers
        self._turns = [0] * servers
        self._reader = Reader(self.tokens)
        self._counts = dict.fromkeys(
            "calls answers lost_calls sent_tokens received_records received_tokens "
            "server_restarts lost_groups refused_updates resends bad_requests".split(),
            0,
        )

    # ---- the engine's side ----

    def register(self, group_id: str) -> int:
        """The group's number. It is read from its server until it is released."""
        group = self.groups.numbers.get(group_id)
        if group is not None and self.groups.states[group] == LEAVING:
            self._drop(group)
            group = None
        return self.groups.add(group_id) if group is None else group

    def release(self, group_id: str, now_s: float) -> None:
        """Read the group no more; it goes when its last tokens are sent."""
        group = self.groups.numbers.get(group_id)
        if group is None:
            return
        if self.groups.states[group] == WANTED:
            self._drop(group)
        elif self.groups.states[group] == HERE:
            self.groups.states[group] = LEAVING
            self.groups.due_s[group] = now_s + LEAVE_S

    def open(self, group_id: str, request_id: int) -> int:
        """The number of a request's log, for `append`; its group is registered where it is not.

        NONE where the request has a number that no server takes.
        """
        if not 0 <= request_id < 2**31:
            self._counts["bad_requests"] += 1
            return NONE
        return self.tokens.open(self.register(group_id), request_id)

    def append(self, batch: Batch) -> None:
        """Take new tokens of requests that run here.

        Raises:
            ValueError: the arrays do not fit together.
        """
        # As they were compiled for: anything else would be compiled now, in the middle of a step.
        batch = Batch(*(np.require(array, np.int32, ("C", "W")) for array in batch))
        starts = batch.starts
        if not len(batch.logs) == len(batch.prevs) == len(starts) - 1 or (
            starts[0] < 0 or starts[-1] > len(batch.tokens) or (starts[1:] < starts[:-1]).any()
        ):
            raise ValueError(
                f"{len(batch.logs)} requests, {len(batch.prevs)} counts, {len(starts)} starts and "
                f"{len(batch.tokens)} tokens do not fit together"
            )
        self.tokens.append(batch)

    def append_one(self, group_id: str, request_id: int, prev: int, tokens: Tokens) -> int:
        """Take new tokens of one request; its log's number."""
        log = self.open(group_id, request_id)
        try:
            new = np.array(tokens, np.int32)
            before = np.array([prev], np.int32)
        except (OverflowError, ValueError, TypeError):
            self._counts["bad_requests"] += 1
            return NONE
        self.append(Batch(np.array([log], np.int32), before, np.array([0, len(new)], np.int32), new))
        return log

    def resume(self, group_id: str, request_id: int, tokens: Tokens) -> None:
        """What earlier chunks of the request generated, wherever: kept, and not sent unasked."""
        log = self.open(group_id, request_id)
        kept = int(self.tokens.logs.sent[log]) if log != NONE else 0
        if self.append_one(group_id, request_id, 0, tokens) == NONE:
            return
        logs, chains = self.tokens.logs, self.tokens.chains
        length = int(logs.bases[log] + chains.lengths[log])
        logs.sent[log] = logs.acked[log] = max(kept, min(length, len(tokens)))

    def ended(self, group_id: str, request_id: int) -> None:
        """The request generates nothing more here."""
        group = self.groups.numbers.get(group_id)
        if group is not None:
            self.tokens.ended(group, request_id)

    def counters(self) -> dict[str, float]:
        """Counts since the start."""
        appended, gaps, bad_tokens = self.tokens.totals.tolist()
        return {
            **self._counts,
            "groups": len(self.groups.numbers),
            "appended_tokens": appended,
            "gaps": gaps,
            "bad_tokens": bad_tokens,
            "dropped_tokens": self.tokens.dropped_tokens,
            **self._reader.counters(),
        }

    # ---- the servers' side ----

    def call(self, server: int, now_s: float) -> Call | None:
        """What to send to a server; None where there is nothing to say or one call is under way."""
        if self._pending[server] is not None:
            return None
        self._drop_left(now_s)
        ours = self.groups.servers == server
        waiting = ours & (self.groups.states == WANTED) & (self.groups.due_s <= now_s)
        registering = np.flatnonzero(waiting)[:CALL_ROWS].tolist()
        updates, tokens = self._collect(ours & (self.groups.states >= HERE))
        fetching = np.flatnonzero(ours & (self.groups.states == HERE))
        if not (registering or len(updates) or len(fetching)):
            return None
        if self._turns[server]:
            fetching = np.roll(fetching, -self._turns[server])
        fetches, known = self._fetches(fetching, now_s)
        self._pending[server] = _Pending(
            registering,
            self.groups.serials[registering],
            updates,
            self.tokens.serials[updates[:, UPDATE_COLUMNS]],
            fetching,
            self.groups.serials[fetching],
        )
        self._counts["calls"] += 1
        self._counts["sent_tokens"] += len(tokens)
        names = [wire_name(self.groups.names[group]) for group in registering]
        head = CallHead(
            instance=self._instances[server],
            ttl_s=self._ttl_s,
            vocab_size=self._vocab_size,
            names=names,
        )
        return Call(head, updates[:, :UPDATE_COLUMNS], tokens, fetches, known)

    def lost(self, server: int) -> None:
        """No answer will come to the call under way."""
        pending, self._pending[server] = self._pending[server], None
        if pending is None:
            return
        self._counts["lost_calls"] += 1
        logs = self._same_logs(pending)
        self.tokens.logs.sent[logs] = self.tokens.logs.acked[logs]

    def answered(self, server: int, answer: Answer, now_s: float) -> Records | None:
        """Take an answer; what it brought, if anything.

        Raises:
            ValueError: it does not answer the call. Then the call still has to be given up.
        """
        pending = self._pending[server]
        if pending is None:
            return None
        is_same = answer.head.instance == self._instances[server]
        _check_answers(answer, pending, is_same)
        self._pending[server] = None
        self._counts["answers"] += 1
        if not is_same:
            self._begin_anew(server, answer.head.instance, now_s)
        self._note_registered(pending, answer.registered, now_s)
        if not is_same:
            return None
        self._note_updates(pending, answer.troubles, now_s)
        return self._read(server, pending, answer, now_s)

    # ---- groups ----

    def _drop(self, group: int) -> None:
        self.tokens.drop_group(group)
        self.groups.drop(group)

    def _drop_left(self, now_s: float) -> None:
        for group in np.flatnonzero(self.groups.states == LEAVING).tolist():
            if self.groups.due_s[group] <= now_s or not self.tokens.has_unacked(group):
                self._drop(group)

    def _register_again(self, groups: BoolArray, not_before_s: float) -> None:
        """What the server said of these groups holds no more."""
        for group in np.flatnonzero(groups & (self.groups.states == LEAVING)).tolist():
            self._drop(group)
        groups = groups & (self.groups.states == HERE)
        self.groups.states[groups] = WANTED
        self.groups.due_s[groups] = not_before_s
        self.groups.compared_until_s[groups] = not_before_s + COMPARED_S
        self.tokens.rewind(groups)

    # ---- calls ----

    def _collect(self, wanted: BoolArray) -> tuple[IntArray, IntArray]:
        """New tokens for the groups that are wanted."""
        logs, chains = self.tokens.logs, self.tokens.chains
        left = int((logs.bases + chains.lengths - logs.sent).sum(dtype=np.int64))
        tokens = np.empty(min(left, CALL_TOKENS), np.int32)
        updates = np.empty((min(len(logs.states), CALL_ROWS), UPDATE_COLUMNS + 1), np.int32)
        rows, used = collect_updates(chains, logs, self.groups.remotes, wanted, updates, tokens)
        return updates[:rows], tokens[:used]

    def _fetches(self, fetching: LongArray, now_s: float) -> tuple[IntArray, IntArray]:
        """Where to read each group from, and what has been seen where the server may not know it."""
        fetches = np.zeros((len(fetching), FETCH_COLUMNS), np.int32)
        fetches[:, :4] = self.groups.remotes[fetching]
        compared = np.flatnonzero(self.groups.compared_until_s[fetching] > now_s)
        if not len(compared):
            return fetches, np.empty((0, 2), np.int32)
        seen = np.empty((min(self.tokens.ledger.used, COMPARED_REQUESTS), 2), np.int32)
        counts = np.zeros(len(compared), np.int32)
        used = known_counts(self.tokens.ledger, fetching[compared], counts, seen)
        fetches[compared, KNOWN_ROWS] = counts
        return fetches, seen[:used]

    # ---- answers ----

    def _same_logs(self, pending: _Pending) -> LongArray:
        """The logs of the call's updates that still stand for the same requests."""
        logs = pending.updates[:, UPDATE_COLUMNS].astype(np.int64)
        same: LongArray = logs[self.tokens.serials[logs] == pending.log_serials]
        return same

    def _begin_anew(self, server: int, instance: str, now_s: float) -> None:
        self._counts["server_restarts"] += bool(self._instances[server])
        self._instances[server] = instance
        self._register_again(self.groups.servers == server, now_s)

    def _note_registered(self, pending: _Pending, registered: IntArray, now_s: float) -> None:
        for group, serial, remote in zip(
            pending.registering, pending.registering_serials, registered, strict=True
        ):
            if self.groups.serials[group] != serial or self.groups.states[group] != WANTED:
                continue
            if remote[0] < 0:
                self.groups.due_s[group] = now_s + LOST_PAUSE_S
                continue
            self.groups.remotes[group, :3], self.groups.remotes[group, 3] = remote, 0
            self.groups.states[group] = HERE

    def _note_updates(self, pending: _Pending, troubles: IntArray, now_s: float) -> None:
        updates = pending.updates
        logs = updates[:, UPDATE_COLUMNS].astype(np.int64)
        same = self.tokens.serials[logs] == pending.log_serials
        taken = same.copy()
        taken[troubles[:, 0]] = False
        ends = updates[:, PREV] + updates[:, COUNT]
        mine = self.tokens.logs
        mine.acked[logs[taken]] = ends[taken]
        self._counts["refused_updates"] += len(troubles)
        if not len(troubles):
            return
        lost = np.zeros(len(self.groups.states), np.bool_)
        for row, what, known in troubles.tolist():
            log = int(logs[row])
            if not same[row]:
                continue
            if what == UNKNOWN_GROUP:
                lost[mine.groups[log]] = True
            elif what == GAP and mine.bases[log] <= known <= ends[row]:
                self._counts["resends"] += 1
                mine.sent[log] = mine.acked[log] = known
            else:
                mine.states[log] = MUTED
        self._lose(lost, now_s)

    def _lose(self, groups: BoolArray, now_s: float) -> None:
        self._counts["lost_groups"] += int((groups & (self.groups.states == HERE)).sum())
        self._register_again(groups, now_s + LOST_PAUSE_S)

    def _read(self, server: int, pending: _Pending, answer: Answer, now_s: float) -> Records | None:
        fetching, results = pending.fetching, answer.results
        same = self.groups.serials[fetching] == pending.fetching_serials
        same &= self.groups.states[fetching] == HERE
        here = same & (results[:, 0] != UNKNOWN_GROUP)
        self.groups.remotes[fetching[here], 3] = results[here, 1]
        more = np.flatnonzero(results[:, 0] == MORE)
        self.hungry[server] = bool(len(more))
        self._turns[server] = (self._turns[server] + int(more[0])) % len(fetching) if len(more) else 0
        owners = np.where(here, fetching, NONE).astype(np.int32)
        records, repeated = self._reader.unpack(self.groups.names, owners, results, answer.words)
        until_s = self.groups.compared_until_s
        until_s[repeated] = np.maximum(until_s[repeated], now_s + OVERLAP_S)
        if (same & ~here).any():
            lost = np.zeros(len(self.groups.states), np.bool_)
            lost[fetching[same & ~here]] = True
            self._lose(lost, now_s)
        return records


def _check_answers(answer: Answer, pending: _Pending, is_same: bool) -> None:
    if len(answer.registered) != len(pending.registering):
        raise ValueError(f"{len(answer.registered)} of {len(pending.registering)} groups are answered")
    if not is_same:
        return
    if len(answer.results) != len(pending.fetching):
        raise ValueError(f"{len(answer.results)} of {len(pending.fetching)} fetches are answered")
    rows = answer.troubles[:, 0]
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(pending.updates):
        raise ValueError("an update that was not sent is said to have failed")
