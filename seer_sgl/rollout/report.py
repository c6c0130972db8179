"""What a rollout did, from its answers alone. Pure."""

from collections.abc import Sequence

import msgspec

from seer_sgl.rollout.client import SampleResult


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
    chunks = [c for r in answered for c in r.meta_info.get("seer", {}).get("chunks", [])]
    moved = [chunk for chunk in chunks if chunk["came_from"] is not None]
    # The last token of a prompt is always computed: its logits give the next one.
    findable = sum((c["input_tokens"] - 1) // page_tokens * page_tokens for c in moved)
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
        prefix_found_share=_share(sum(chunk["cached_tokens"] for chunk in moved), findable),
        pool_share=_share(sum(chunk["pool_tokens"] for chunk in moved), findable),
        retractions=sum(result.meta_info.get("num_retractions", 0) for result in answered),
        reward=sum(rewards) / len(rewards) if rewards else None,
    )


def tail_seconds(finished_s: Sequence[float]) -> float:
    """From the moment when 90 % of requests were finished to the end (the Seer paper, Figure 8)."""
    ordered = sorted(finished_s)
    return ordered[-1] - ordered[max(0, -(-len(ordered) * 9 // 10) - 1)]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
