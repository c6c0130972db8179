"""What the end of a chunk means: what its sample keeps of it, and what the core is told."""

from collections.abc import Mapping
from typing import Any

from seer_sgl.router.core import RouterCore
from seer_sgl.router.core.actions import Dispatch
from seer_sgl.router.core.events import Cancelled, ChunkFailed, ChunkFinished, ChunkTiming, Event
from seer_sgl.router.live import Live
from seer_sgl.router.pooling import Pooling


class Endings:
    """Chunk ends as events.

    Args:
        core: asked for what it has told the chunk to do; told nothing here.
        pooling: hears of every chunk that has brought tokens.
    """

    def __init__(self, core: RouterCore, pooling: Pooling) -> None:
        self._core, self._pooling = core, pooling

    def answered(self, live: Live, dispatch: Dispatch, answer: dict[str, Any]) -> list[Event]:
        """An engine's whole answer, in SGLang's shape."""
        finish = answer["meta_info"]["finish_reason"] or {}
        new_tokens = len(answer["output_ids"])
        if new_tokens > dispatch.max_new_tokens:
            reason = f"{dispatch.engine_id} sent {new_tokens} tokens for {dispatch.max_new_tokens}"
            live.transcript.drop_progress()
            return [ChunkFailed(dispatch.chunk_id, reason)]
        if finish.get("type") == "abort":
            return self._aborted(live, dispatch, answer, finish)
        # SGLang also ends with `length` where it cut the budget itself: nothing would follow.
        ended = finish.get("type") != "length" or new_tokens < dispatch.max_new_tokens
        return [self._took(live, dispatch, answer, ended)]

    def broke(self, live: Live, dispatch: Dispatch, reason: str, status: int | None) -> list[Event]:
        """An engine refused it, or gave no answer. `status`: HTTP's, where there was one."""
        live.last_status = status
        stays = self.lost(live, dispatch, reason)
        return [stays or ChunkFailed(dispatch.chunk_id, reason, not _refused(status))]

    def lost(self, live: Live, dispatch: Dispatch, reason: str) -> Event | None:
        """What to tell the core of a lost chunk that a client has seen something of.

        Another run would bring other tokens: those that were shown stay. A sample that cannot go on from
        them ends here.
        """
        transcript = live.transcript
        if not transcript.shown_tokens:
            return None
        tokens = transcript.keep_progress(dispatch.engine_id, dispatch.came_from)
        self._pooling.ended(live, tokens)
        if live.sample.divisible:
            live.complete = transcript.ended_tokens >= live.budget_tokens
            return ChunkFinished(dispatch.chunk_id, tokens, ended=False)
        return ChunkFailed(dispatch.chunk_id, f"{reason}; what it has shown stays", retryable=False)

    def _aborted(
        self, live: Live, dispatch: Dispatch, answer: dict[str, Any], finish: dict[str, Any]
    ) -> list[Event]:
        """What was asked for ends the sample. Of what an engine did by itself, or what was only called
        back, the tokens are kept."""
        status = finish.get("status_code")
        request = self._core.buffer.requests.get(dispatch.request_id)
        cancelled = bool(live.aborted) or (request is not None and request.cancelled)
        if self._core.is_recalled(dispatch.chunk_id) and not cancelled:
            if live.sample.divisible:
                return [self._took(live, dispatch, answer, ended=False)]
            if not live.transcript.shown_tokens:
                return [ChunkFinished(dispatch.chunk_id, 0, ended=False)]
            live.aborted = "Recalled, and what a client has seen cannot go on elsewhere"
            cancelled = True
        if (cancelled or self._core.scheduler.paused) and status is None:
            finished = self._took(live, dispatch, answer, ended=True)
            live.complete = False
            live.aborted = live.aborted or "Abort by an engine"
            return [Cancelled(dispatch.request_id), finished]
        live.last_status = status
        if answer["output_ids"] and live.sample.divisible and status is None:
            return [self._took(live, dispatch, answer, ended=False)]
        reason = f"{dispatch.engine_id} aborted it: {finish.get('message')}"
        return self.broke(live, dispatch, reason, status)

    def _took(
        self, live: Live, dispatch: Dispatch, answer: dict[str, Any], ended: bool
    ) -> ChunkFinished:
        """Take what a chunk has brought. `ended`: nothing follows."""
        tokens = len(answer["output_ids"])
        live.transcript.add(answer, dispatch.engine_id, dispatch.came_from)
        self._pooling.ended(live, tokens)
        live.complete = ended or live.transcript.ended_tokens >= live.budget_tokens
        return ChunkFinished(dispatch.chunk_id, tokens, ended, _timing(answer["meta_info"]))


def _timing(meta: Mapping[str, Any]) -> ChunkTiming | None:
    """What SGLang tells of a chunk's start; with `--enable-metrics` only."""
    began_s, computed_s = meta.get("forward_entry_time"), meta.get("prefill_finished_time")
    if began_s is None or computed_s is None:
        return None
    return ChunkTiming(
        computed_tokens=max(0, meta.get("prompt_tokens", 0) - meta.get("cached_tokens", 0)),
        prefill_s=max(0.0, computed_s - began_s),
        loaded_tokens=(meta.get("cached_tokens_details") or {}).get("storage", 0),
        load_s=meta.get("storage_prefetch_wait", 0.0),
    )


def _refused(status: int | None) -> bool:
    return status is not None and 400 <= status < 500
