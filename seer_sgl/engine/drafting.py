"""The worker's side of drafting: who may be drafted for, one draft for all ranks, counts.

With tensor parallelism rank 0 alone holds trees and decides; the others get its nodes, so that all
verify the same. A drafter that fails is reported once and left alone: its engine goes on without drafts.
"""

import logging
import os
import time
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from seer_sgl.engine.verify import IntArray, Nodes
from seer_sgl.spec import settings as spec_settings
from seer_sgl.spec.settings import DraftSettings

log = logging.getLogger(__name__)

TAG = "seer"
"""Key of a request's group tag in `custom_params`."""
IDLE_S = 0.1
"""A pause between two steps that is longer is no part of a step: there was nothing to do."""


class Drafter(Protocol):
    """What drafts (`seer_sgl.spec.drafter`)."""

    def step(self, batch: Sequence[Any]) -> Any: ...
    def verified(self, accepted: Sequence[int], step_s: float) -> None: ...
    def finished(self, rid: str, output: Sequence[int]) -> None: ...
    def reset(self) -> None: ...
    def counters(self) -> dict[str, float]: ...


class Engine(NamedTuple):
    """What a drafter has to know of its engine."""

    uniform: bool
    """All requests of a step have the same number of rows."""
    vocab_size: int


class Known(NamedTuple):
    """What does not change over a request's life."""

    tag: Any
    nodes: int


class Drafting:
    """Drafts for the requests of one engine.

    Args:
        settings: what the engine was told.
        engine: what is verified here.
        ranks: process group of this engine's ranks on the host; None if there is one rank.
        rank: this one's number among them.
    """

    def __init__(self, settings: DraftSettings, engine: Engine, ranks: Any, rank: int) -> None:
        self.settings = settings
        self._ranks = ranks
        self._drafter = _make_drafter(settings, engine) if rank == 0 else None
        self._drafts_here = rank == 0
        self._known: dict[str, Known] = {}
        self._previous: dict[str, Any] = {}
        self._ended_s = 0.0
        self._pause_s = 0.0
        self._began_s = 0.0
        self._widths: dict[int, int] = {}
        self._counts = dict.fromkeys(
            ("verify_steps", "plain_steps", "requests", "rows", "accepted", "drafter_failures"), 0
        )

    def step(self, requests: Sequence[Any], outputs: Sequence[Any], limits: Sequence[int]) -> Nodes:
        """Draft.

        Args:
            requests: SGLang's, in the order of the batch.
            outputs: what each has generated in this chunk, up to its root.
            limits: most nodes that a request has room for; 0 drafts nothing for it.
        """
        self._began_s = time.perf_counter()
        pause_s = self._began_s - self._ended_s
        self._pause_s = pause_s if pause_s < IDLE_S else 0.0
        self._forget_left({request.rid: request for request in requests})
        nodes = self._draft(requests, outputs, limits) if self._drafts_here else None
        return nodes if self._ranks is None and nodes is not None else self._share(nodes, len(requests))

    def verified(self, widths: IntArray, counts: Sequence[int]) -> None:
        """The step is over: `counts` tokens of each request were accepted from so many rows."""
        self._ended_s = time.perf_counter()
        rows = int(widths.sum())
        self._counts["verify_steps" if rows > len(widths) else "plain_steps"] += 1
        self._counts["requests"] += len(widths)
        self._counts["rows"] += rows
        self._counts["accepted"] += sum(counts)
        for width in widths.tolist():
            self._widths[width] = self._widths.get(width, 0) + 1
        step_s = self._ended_s - self._began_s + self._pause_s
        self._guard("verified", [count - 1 for count in counts], step_s)

    def left(self, rid: str) -> None:
        """A request has ended, or was taken from the engine."""
        if self._known.pop(rid, None) is not None:
            self._guard("finished", rid, self._previous[rid].output_ids)

    def reset(self) -> None:
        """The weights changed, or the cache was flushed."""
        self._known.clear()
        self._previous.clear()
        self._guard("reset")

    def counters(self) -> dict[str, Any]:
        """For the proof line of `/server_info`."""
        requests = max(self._counts["requests"], 1)
        drafter = self._drafter.counters() if self._drafter is not None else {}
        return {
            **drafter,
            **self._counts,
            "widths": {str(width): count for width, count in sorted(self._widths.items())},
            "accept_length": self._counts["accepted"] / requests,
        }

    def _forget_left(self, present: dict[str, Any]) -> None:
        # SGLang tells of most ends, but not of aborts and retractions.
        for rid in self._previous.keys() - present.keys():
            self.left(rid)
        self._previous = present

    def _draft(self, requests: Sequence[Any], outputs: Sequence[Any], limits: Sequence[int]) -> Nodes:
        from seer_sgl.spec.drafter import StepRequest

        batch = []
        for request, output, limit in zip(requests, outputs, limits, strict=True):
            known = self._known.get(request.rid)
            if known is None:
                known = self._known[request.rid] = self._know(request)
            prompt = request.origin_input_ids_unpadded
            batch.append(StepRequest(request.rid, known.tag, prompt, output, min(limit, known.nodes)))
        drafts = self._guard("step", batch)
        # No request fails for a drafter's mistake: a limit may stand for what cannot be verified.
        if drafts is None or (np.diff(drafts.starts) > [entry.max_nodes for entry in batch]).any():
            nothing = np.zeros(0, np.int32)
            return Nodes(np.zeros(len(requests) + 1, np.int32), nothing, nothing, nothing)
        return Nodes(*drafts[:4])

    def _know(self, request: Any) -> Known:
        params = request.sampling_params
        custom = params.custom_params
        tag = custom.get(TAG) if isinstance(custom, dict) else None
        # A penalty depends on the tokens of the path to a node, and SGLang keeps it per request only.
        penalized = (
            params.frequency_penalty != 0.0
            or params.presence_penalty != 0.0
            or params.repetition_penalty != 1.0
            or params.min_new_tokens > 0
        )
        return Known(tag, 0 if penalized else self.settings.max_nodes)

    def _share(self, nodes: Nodes | None, count: int) -> Nodes:
        """Rank 0's nodes, on every rank. One message of a length that all know beforehand."""
        room = count * self.settings.max_nodes
        message = np.zeros(count + 1 + 3 * room, np.int32)
        if nodes is not None:
            message[: count + 1] = nodes.starts
            for part, values in enumerate(nodes[1:]):
                first = count + 1 + part * room
                message[first : first + len(values)] = values
        torch.distributed.broadcast(
            torch.from_numpy(message), torch.distributed.get_global_rank(self._ranks, 0), self._ranks
        )
        total = message[count]
        parts = (message[count + 1 + part * room :][:total] for part in range(3))
        return Nodes(message[: count + 1], *parts)

    def _guard(self, name: str, *args: Any) -> Any:
        if self._drafter is None:
            return None
        try:
            return getattr(self._drafter, name)(*args)
        except Exception:
            self._counts["drafter_failures"] += 1
            log.exception("the drafter failed in %s; this engine goes on without drafts", name)
            self._drafter = None
            return None


def settings_from_environment() -> DraftSettings:
    """What the launcher said, or the defaults where SGLang was started by hand."""
    text = os.environ.get(spec_settings.DRAFT_VARIABLE)
    return spec_settings.decode(text) if text else DraftSettings()


def _make_drafter(settings: DraftSettings, engine: Engine) -> Drafter | None:
    if settings.mode == "off":
        return None
    from seer_sgl.spec.drafter import Drafter as GroupDrafter

    drafter: Drafter = GroupDrafter(settings, engine.uniform, engine.vocab_size)
    return drafter


def with_tail(output: "array[int]", tail: Sequence[int]) -> "array[int]":
    """Output tokens with those that SGLang has not filed yet."""
    return output + array(output.typecode, tail) if len(tail) else output
