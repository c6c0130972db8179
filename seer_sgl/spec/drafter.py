"""What an engine drafts in each step: takes in what requests generated, decides how much, drafts.

One thread, the engine's scheduler, calls it. Nothing here waits for another process.
"""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seer_sgl.spec.acceptance import Acceptance, taken_nodes
from seer_sgl.spec.automaton import IntArray
from seer_sgl.spec.budget import Budget, Load, Rules
from seer_sgl.spec.client import ClientSettings, DraftClient
from seer_sgl.spec.compiled import cache_failures
from seer_sgl.spec.cost import Step, StepCost, profiled_steps
from seer_sgl.spec.filler import filler, forced_nodes
from seer_sgl.spec.forest import LEAST_BUDGET_BYTES, Drafts, Forest
from seer_sgl.spec.paths import PROMPT_TOKENS, Live, Siblings, as_tokens, read_tag
from seer_sgl.spec.settings import DraftSettings

log = logging.getLogger(__name__)


KEPT_S = 30.0
"""How long a group is read on that has no request here: its next chunk may well come."""


class StepRequest(NamedTuple):
    """One request of a step."""

    rid: str
    tag: Any
    """What the router said of it, see `paths.read_tag`; None where it said nothing."""
    prompt: Sequence[int]
    """Input ids of this chunk."""
    output: Sequence[int]
    """All tokens that this chunk generated so far; the last one is the root of the draft."""
    max_nodes: int
    """0: nothing is to be drafted for it in this step."""


class Drafter:
    """Drafts for the requests of one engine.

    Args:
        uniform: the engine verifies one width per batch only.
        vocab_size: token ids are below this; 0: not known.
    """

    def __init__(self, settings: DraftSettings, uniform: bool = False, vocab_size: int = 0) -> None:
        self._settings = settings
        self._forest = Forest(settings.budget_bytes)
        self._siblings = Siblings(self._forest, vocab_size)
        self._acceptance = Acceptance(settings.max_depth + 1)
        rules = Rules(
            reading=settings.reading,
            widths=settings.widths,
            max_nodes=settings.max_nodes,
            uniform=uniform,
            priority=settings.priority,
            deepest=settings.probe_max,
        )
        self._budget = Budget(rules, StepCost(_profile(settings.profile)), self._acceptance)
        self._client: DraftClient | None = None
        if settings.servers:
            told = ClientSettings(vocab_size=vocab_size)
            self._client = DraftClient(settings.servers, settings.engine, self._siblings, told)
            self._client.start()
        self._live: dict[str, Live] = {}
        self._groups: dict[str, int] = {}
        """Requests of each group that run here."""
        self._left_s: dict[str, float] = {}
        """When the last one of a group left; the group that is away for longest comes first."""
        self._last: tuple[list[str], Drafts] | None = None
        self._load = Load(0, 0, 0.0)
        self._uniform = uniform
        self._rows = 0
        _warm_up()

    # -- a step

    def step(self, batch: Sequence[StepRequest]) -> Drafts:
        """Take in what the requests generated since the last step, and draft for them.

        Request i of the answer is `batch[i]`. Where no node comes back at all, plain decoding is best.
        """
        self._release_groups(time.monotonic() - KEPT_S)
        lives = [self._of(request) for request in batch]
        given_starts, given = self._take_in(batch, lives)
        self._learn(batch, given_starts, given)
        probes = np.array([live.tag.probe for live in lives], np.bool_)
        kv_tokens = float(sum(len(request.prompt) + len(request.output) for request in batch))
        self._load = Load(len(batch), int(probes.sum()), kv_tokens)
        limits = np.array([request.max_nodes for request in batch], np.int32)
        if any(live.forced >= 0 for live in lives):
            drafts = filler(np.minimum(limits, [max(0, live.forced) for live in lives]))
            self._last = None  # what became of fillers says nothing of drafts
        else:
            drafts = self._draft(np.array([live.path for live in lives], np.int32), limits, probes)
            self._last = [request.rid for request in batch], drafts
        self._rows = self._rows_of(drafts)
        return drafts

    def verified(self, accepted: Sequence[int], step_s: float) -> None:
        """How long the last step took. What became of its drafts shows in the next step's tokens."""
        del accepted
        if self._load.requests:
            self._budget.observe(Step(self._load.requests, self._rows, self._load.kv_tokens), step_s)

    def finished(self, rid: str, output: Sequence[int] = ()) -> None:
        """The request has ended here, or was moved elsewhere. What it said stays for its siblings.

        Args:
            output: all that it generated in this chunk: no step shows the last one's tokens.
        """
        live = self._live.get(rid)
        if live is None:
            return
        if len(output) > live.taken and self._forest.alive(live.path):
            self._take_in([StepRequest(rid, None, (), output, 0)], [live])
        del self._live[rid]
        group = live.tag.group
        self._forest.close(live.path)
        if self._client is not None:
            self._client.finished(group, live.tag.request)
        self._groups[group] -= 1
        if not self._groups[group]:
            del self._groups[group]
            self._left_s[group] = time.monotonic()

    def reset(self) -> None:
        """Forget all texts: other weights say other things."""
        for rid in list(self._live):
            self.finished(rid)
        self._release_groups(math.inf)
        self._forest.clear()
        self._last = None

    def close(self) -> None:
        """End the thread that talks to the draft servers."""
        if self._client is not None:
            self._client.close()

    def counters(self) -> dict[str, float]:
        """Counts since the start, and what is held now."""
        shared = {} if self._client is None else self._client.counters()
        return {
            "groups": self._forest.group_count,
            "tokens": self._forest.stored_tokens,
            "bytes": self._forest.held_bytes,
            "evicted_groups": self._forest.evicted_groups,
            "sibling_tokens": self._siblings.taken_tokens,
            "sibling_gaps": self._siblings.gaps,
            "bad_tokens": self._siblings.bad_tokens,
            "explored_steps": self._budget.explored,
            "kernels_not_cached": len(cache_failures),
            **{f"shared_{name}": value for name, value in shared.items()},
        }

    # -- parts of a step

    def _release_groups(self, before_s: float) -> None:
        """Read no more of groups whose last request left before then, and forget what was sent."""
        while self._left_s and next(iter(self._left_s.values())) < before_s:
            group = next(iter(self._left_s))
            del self._left_s[group]
            if self._client is not None:
                self._client.release(group)

    def _of(self, request: StepRequest) -> Live:
        live = self._live.get(request.rid)
        if live is not None and self._forest.alive(live.path):
            return live
        if live is not None:  # its group was dropped for lack of memory: begin again with what comes
            self.finished(request.rid)
        return self._begin(request)

    def _begin(self, request: StepRequest) -> Live:
        """A request that is new here, or continues here."""
        tag = read_tag(request.tag, request.rid, len(request.prompt))
        prompt = request.prompt[: len(request.prompt) - tag.done][-PROMPT_TOKENS:]
        said = request.prompt[len(request.prompt) - tag.done :]
        path = self._forest.open(tag.group, tag.request, as_tokens(prompt))
        if self._forest.length(path) > tag.done:
            # An earlier try of this chunk was lost, and this one may say something else.
            path = self._forest.reopen(tag.group, tag.request)
        if said:
            self._forest.append(path, 0, as_tokens(said))
        number = -1
        if self._client is not None:
            if tag.group not in self._groups and tag.group not in self._left_s:
                self._client.register(tag.group)
            self._client.resume(tag.group, tag.request, said)
            number = self._client.open(tag.group, tag.request)
        self._groups[tag.group] = self._groups.get(tag.group, 0) + 1
        self._left_s.pop(tag.group, None)
        live = self._live[request.rid] = Live(tag, path, number, forced_nodes(request.tag))
        return live

    def _take_in(self, batch: Sequence[StepRequest], lives: list[Live]) -> tuple[IntArray, IntArray]:
        """Append what is new to the trees, and tell it; each request's new tokens, one after another."""
        starts = np.zeros(len(batch) + 1, np.int32)
        prevs = np.zeros(len(batch), np.int32)
        new: list[int] = []
        for at, (request, live) in enumerate(zip(batch, lives, strict=True)):
            prevs[at] = live.tag.done + live.taken
            new.extend(request.output[live.taken :])
            live.taken = len(request.output)
            starts[at + 1] = len(new)
        tokens = np.array(new, np.int32)
        paths = np.array([live.path for live in lives], np.int32)
        self._forest.append_many(paths, starts, tokens)
        if self._client is not None:
            numbers = np.array([live.number for live in lives], np.int32)
            self._client.update_many(numbers, prevs, starts, tokens)
        return starts, tokens

    def _learn(self, batch: Sequence[StepRequest], given_starts: IntArray, given: IntArray) -> None:
        """What became of the last step's drafts."""
        if self._last is None or not len(self._last[1].tokens):
            return
        rids, drafts = self._last
        places = {request.rid: at for at, request in enumerate(batch)}
        keep = [at for at, rid in enumerate(rids) if rid in places]
        kept = _chosen(drafts, np.array(keep, np.int64))
        now = [places[rids[at]] for at in keep]
        pieces = [given[given_starts[at] : given_starts[at + 1]] for at in now]
        starts = np.cumsum([0, *(len(piece) for piece in pieces)]).astype(np.int32)
        tokens = np.concatenate(pieces) if pieces else given[:0]
        taken = taken_nodes(kept.starts, kept.tokens, kept.parents, starts, tokens)
        self._acceptance.observe(kept.starts, kept.parents, kept.confidences, taken)

    def _rows_of(self, drafts: Drafts) -> int:
        """Rows that the engine computes, roots and filling included."""
        requests, drafted = len(drafts.starts) - 1, len(drafts.tokens)
        if not self._uniform or not drafted:
            return requests + drafted
        widest = int(np.diff(drafts.starts).max()) + 1
        return requests * next(width for width in self._settings.widths if width >= widest)

    def _draft(self, paths: IntArray, limits: IntArray, probes: Any) -> Drafts:
        settings = self._settings
        if settings.mode == "off" or not len(paths):
            return _nothing(len(paths))
        if settings.mode == "fixed":
            return self._forest.draft(
                paths, np.minimum(limits, settings.max_nodes).astype(np.int32), settings.max_depth
            )
        cap = min(self._budget.cap(self._load), settings.max_nodes)
        if cap <= 0:
            return _nothing(len(paths))
        nodes = np.minimum(limits, cap).astype(np.int32)
        if settings.reading == "confidence":
            drafts = self._forest.draft(paths, nodes, settings.max_depth)
        else:
            drafts = self._forest.draft_chains(paths, nodes)
        chosen = self._budget.choose(
            self._load, drafts.starts, drafts.confidences, probes, drafts.depths
        )
        return _cut(drafts, chosen)


def _profile(path: str | None) -> list[tuple[Step, float]]:
    """Measured steps; none where the file is of no use: then they are learnt while serving."""
    if path is None:
        return []
    try:
        return profiled_steps(Path(path).read_bytes())
    except Exception as error:
        log.warning("the profile %s is of no use, step times are learnt instead: %s", path, error)
        return []


def _nothing(requests: int) -> Drafts:
    none = np.zeros(0, np.int32)
    return Drafts(np.zeros(requests + 1, np.int32), none, none, none, np.zeros(0, np.float32))


def _cut(drafts: Drafts, nodes: IntArray) -> Drafts:
    """The first `nodes[i]` nodes of each request's draft."""
    starts = np.zeros_like(drafts.starts)
    np.cumsum(nodes, out=starts[1:])
    if starts[-1] == drafts.starts[-1]:
        return drafts
    picked = np.repeat(drafts.starts[:-1] - starts[:-1], nodes) + np.arange(starts[-1])
    return Drafts(starts, *(column[picked] for column in drafts[1:]))


def _chosen(drafts: Drafts, requests: Any) -> Drafts:
    """The drafts of some requests."""
    if len(requests) == len(drafts.starts) - 1:
        return drafts
    counts = np.diff(drafts.starts)[requests]
    starts = np.zeros(len(requests) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    picked = np.repeat(drafts.starts[:-1][requests] - starts[:-1], counts) + np.arange(starts[-1])
    return Drafts(starts, *(column[picked] for column in drafts[1:]))


def _warm_up() -> None:
    """Compile or load every kernel now, so that no request waits for it."""
    forest = Forest(LEAST_BUDGET_BYTES)
    path = forest.open("warm-up", 0)
    forest.append(path, 0, np.array([1, 2, 3, 1, 2, 3, 1, 2], np.int32))
    one, nodes = np.array([path], np.int32), np.array([4], np.int32)
    drafts = forest.draft(one, nodes, 4)
    forest.draft_chains(one, nodes)
    acceptance = Acceptance()
    taken = taken_nodes(drafts.starts, drafts.tokens, drafts.parents, drafts.starts, drafts.tokens)
    acceptance.observe(drafts.starts, drafts.parents, drafts.confidences, taken)
    budget = Budget(Rules(), StepCost([]), acceptance)
    load = Load(1, 1, 8.0)
    for rows in (1, 4) * 40:
        if budget.cap(load):
            budget.choose(load, drafts.starts, drafts.confidences, np.ones(1, np.bool_))
        budget.observe(Step(1, rows, 8.0), 0.01)
