"""Speculative decoding in the simulator: tokens per step against the time of a longer one."""

from bisect import bisect_right

import msgspec

from seer_sgl.sim.model import EngineModel

_REFERENCES = (0, 1, 5, 15)
_GAINED = (0.0, 0.41, 0.75, 1.0)
"""Of the gain that 15 siblings bring, the share that 0, 1 and 5 of them bring: mean accept lengths of
1.70, 2.04, 2.32 and 2.53 (arXiv 2511.14617v3, Table 2, linear drafts)."""


class Drafting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Grouped speculative decoding: a draft of up to `max_draft` tokens is verified per step."""

    acceptance_alone: float
    """Chance that a drafted token is accepted, given the one before, while no sibling has output yet."""
    acceptance_grouped: float
    """The same with 15 siblings' output to draft from."""
    max_draft: int = 8
    """The paper's choice (arXiv 2511.14617v3, 4.1)."""
    step_x: float = 1.0
    """A speculative step takes so many times what its tokens alone would take: drafting, sampling and
    bookkeeping between verifications."""

    def acceptance(self, siblings: int) -> float:
        """With the output of so many siblings to draft from."""
        high = bisect_right(_REFERENCES, siblings)
        if high == len(_REFERENCES):
            share = 1.0
        else:
            low_n, high_n = _REFERENCES[high - 1], _REFERENCES[high]
            part = (siblings - low_n) / (high_n - low_n)
            share = _GAINED[high - 1] + part * (_GAINED[high] - _GAINED[high - 1])
        return self.acceptance_alone + share * (self.acceptance_grouped - self.acceptance_alone)


def accepted_tokens(acceptance: float, draft_tokens: int) -> float:
    """Expected tokens of a step, the bonus token included (same paper, 3.4.1)."""
    return (1 - acceptance ** (draft_tokens + 1)) / (1 - acceptance)


def best_draft(
    model: EngineModel, drafting: Drafting, requests: int, kv_tokens: float, acceptance: float
) -> tuple[float, float]:
    """(Seconds of a step without KV, tokens per step) of the draft that takes least time per token."""
    kv_s = kv_tokens * model.kv_token_s
    best = model.step_s(requests, 0.0), 1.0
    best_s = best[0] + kv_s
    for draft_tokens in range(1, drafting.max_draft + 1):
        products_s = model.step_s(requests, 0.0, 1.0 + draft_tokens)
        # What is beside the products and the KV grows with both, and is added to the part without KV.
        step_s = products_s + (drafting.step_x - 1.0) * (products_s + kv_s)
        pace = accepted_tokens(acceptance, draft_tokens)
        if (step_s + kv_s) / pace < best_s:
            best, best_s = (step_s, pace), (step_s + kv_s) / pace
    return best
