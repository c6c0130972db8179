"""What a rollout did, from its answers alone. Pure."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import msgspec

from seer_sgl.rollout.client import SampleResult

Chunk: TypeAlias = dict[str, Any]
"""An entry of `meta_info.seer.chunks`."""


class Report(msgspec.Struct, frozen=True):
    """Figures of one rollout."""

    groups: int
    samples: int
    failed: int
    tokens: int
    seconds: float
    tokens_per_s: float
    tail_s: float
    """Time spent on the last 10 % of requests alone."""
    chunks: int
    moved_chunks: int
    """Chunks that resumed on another engine."""
    prefix_found_share: float | None
    """Of the whole KV pages that moved chunks could find, the share that was not computed again."""
    pool_share: float | None
    """The part of it that came from the pool, the rest being on the engine already."""
    moved_without_prefix: int
    """Of the moved chunks, those that found nothing: the pool was late, full, or gone."""
    computed_again_tokens: int
    """Prefill tokens of resumed chunks that were neither on their engine nor in the pool, though an
    earlier chunk had computed them. After a change of weights there is nothing to find: none count."""
    pool_wait_s: float
    """Seconds that chunks waited on engines for what the pool had, in sum over all chunks. Engines tell
    with `--enable-metrics`."""
    retractions: int
    reward: float | None


def report_on(
    results: Sequence[SampleResult], page_tokens: int, rewards: Sequence[float] | None = None
) -> Report:
    """Sum up.

    Args:
        results: one per sample, in any order; at least one.
        page_tokens: KV page size; only whole pages can be found.
        rewards: of the samples that have an answer.
    """
    answered = [result for result in results if result.status == 200]
    tokens = sum(len(result.output_ids) for result in answered)
    chunks = [chunk for result in answered for chunk in chunks_of(result)]
    moved = [chunk for chunk in chunks if chunk["came_from"] is not None]
    renewed = {id(chunk) for chunk in _renewed(answered)}
    pulled = [chunk for chunk in moved if id(chunk) not in renewed]
    resumed = [c for r in answered for c in chunks_of(r)[1:] if id(c) not in renewed]
    findable = sum(_findable(chunk, page_tokens) for chunk in pulled)
    seconds = max((result.finished_s for result in results), default=0.0)
    return Report(
        groups=len({result.group_id for result in results}),
        samples=len(results),
        failed=len(results) - len(answered),
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=tokens / seconds if seconds else 0.0,
        tail_s=tail_seconds([result.finished_s for result in results]),
        chunks=len(chunks),
        moved_chunks=len(moved),
        prefix_found_share=_share(sum(chunk["cached_tokens"] for chunk in pulled), findable),
        pool_share=_share(sum(chunk["pool_tokens"] for chunk in pulled), findable),
        moved_without_prefix=sum(
            not chunk["cached_tokens"] and _findable(chunk, page_tokens) > 0 for chunk in pulled
        ),
        computed_again_tokens=sum(
            max(0, _findable(chunk, page_tokens) - chunk["cached_tokens"]) for chunk in resumed
        ),
        pool_wait_s=sum(chunk.get("pool_wait_s", 0.0) for chunk in chunks),
        retractions=sum(result.meta_info.get("num_retractions", 0) for result in answered),
        reward=sum(rewards) / len(rewards) if rewards else None,
    )


def tail_seconds(finished_s: Sequence[float]) -> float:
    """From the moment when 90 % of requests were finished to the end (the Seer paper, Figure 8)."""
    ordered = sorted(finished_s)
    return ordered[-1] - ordered[max(0, -(-len(ordered) * 9 // 10) - 1)]


def chunks_of(result: SampleResult) -> list[Chunk]:
    """What a router of ours tells of a sample's chunks; empty where something else answered."""
    chunks: list[Chunk] = result.meta_info.get("seer", {}).get("chunks", [])
    return chunks


def _renewed(answered: Sequence[SampleResult]) -> Iterator[Chunk]:
    """Chunks that went on under other weights than the chunk before: they have nothing to find."""
    for result in answered:
        for before, chunk in pairwise(chunks_of(result)):
            if before.get("epoch") != chunk.get("epoch"):
                yield chunk


def _findable(chunk: Chunk, page_tokens: int) -> int:
    """Whole pages of its input. The last token is always computed: its logits give the next one."""
    pages: int = (chunk["input_tokens"] - 1) // page_tokens
    return pages * page_tokens


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
