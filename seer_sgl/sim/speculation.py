"""Speculative decoding in the simulator: tokens per step against the time of a longer one.

What drafts bring is measured: mean accept lengths of our drafter on real groups, by draft tokens and by
siblings (`python -m bench.accepted`, on samples of a 3B model that learns maths by RL). What a step
takes follows from the engine's model. All requests of a step draft as many tokens; a real engine's
budget (`seer_sgl.spec.budget`) does better.
"""

from bisect import bisect_right

import msgspec

from seer_sgl.sim.model import EngineModel

DRAFT_TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 31)
"""Of each request in a step; the best of these is taken."""
ALONE = (1.372, 1.554, 1.662, 1.733, 1.821, 1.879, 1.947, 1.99, 2.033, 2.056)
"""Mean accept length with so many draft tokens and a sample's own history, the bonus token included."""
GROUPED = (1.637, 2.062, 2.37, 2.592, 2.923, 3.163, 3.48, 3.689, 3.949, 4.115)
"""The same with 15 siblings."""
SIBLINGS = (0, 1, 3, 7, 15)
GAINED = (0.0, 0.336, 0.593, 0.808, 1.0)
"""Of the gain that 15 siblings bring, the share that so many of them bring, over all draft lengths."""


class Drafting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Grouped speculative decoding: a draft tree is verified per step where that pays."""

    max_draft: int = 31
    """Draft tokens of a request and step at most."""
    step_x: float = 1.0
    """A speculative step takes so many times what its tokens alone would take: drafting, sampling and
    bookkeeping between verifications."""
    accepted_x: float = 1.0
    """The accepted draft tokens are so many times the measured ones: 0 for none at all."""


def gained(siblings: int) -> float:
    """Share of the gain from 15 siblings that the output of so many brings."""
    high = bisect_right(SIBLINGS, siblings)
    if high == len(SIBLINGS):
        return 1.0
    low_n, high_n = SIBLINGS[high - 1], SIBLINGS[high]
    part = (siblings - low_n) / (high_n - low_n)
    return GAINED[high - 1] + part * (GAINED[high] - GAINED[high - 1])


def accept_lengths(drafting: Drafting, share: float) -> list[float]:
    """Tokens per step for each of `DRAFT_TOKENS`, where siblings bring that share of their gain."""
    return [
        1.0 + drafting.accepted_x * (alone + share * (grouped - alone) - 1.0)
        for alone, grouped in zip(ALONE, GROUPED, strict=True)
    ]


def best_draft(
    model: EngineModel, drafting: Drafting, requests: int, kv_tokens: float, share: float
) -> tuple[float, float]:
    """(Seconds of a step without KV, tokens per step) of the draft that takes least time per token.

    Args:
        share: mean over the batch of what siblings bring (`gained`).
    """
    kv_s = kv_tokens * model.kv_token_s
    best = model.step_s(requests, 0.0), 1.0
    best_s = best[0] + kv_s
    for draft_tokens, pace in zip(DRAFT_TOKENS, accept_lengths(drafting, share), strict=True):
        if draft_tokens > drafting.max_draft:
            break
        products_s = model.step_s(requests, 0.0, 1.0 + draft_tokens)
        # What is beside the products and the KV grows with both, and is added to the part without KV.
        step_s = products_s + (drafting.step_x - 1.0) * (products_s + kv_s)
        if (step_s + kv_s) / pace < best_s:
            best, best_s = (step_s, pace), (step_s + kv_s) / pace
    return best
