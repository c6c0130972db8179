"""How long an engine takes: the time of a step, of a prefill and of a move, in closed form."""

from typing import Literal

import msgspec


class EngineModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One engine's speed and size. Times in seconds, of one engine that may span several devices.

    A decoding step that verifies `v` tokens for each of `b` requests, whose KV holds `n` tokens, takes

        fixed_s + max(weights_s, b * v * token_s) + n * kv_token_s

    The matrix products either wait for the weights or for the arithmetic; attention reads all the KV.
    """

    fixed_s: float
    """What every step costs whatever it does: launches, host work, collective calls."""
    weights_s: float
    """Reading the weights once; 0 where steps grow with the batch from the first request on."""
    token_s: float
    """One more token through the matrix products."""
    kv_token_s: float
    """Reading the KV of one cached token."""
    prefill_token_s: float
    """One prompt token in a prefill; decoding stands still meanwhile."""
    kv_capacity_tokens: int
    page_tokens: int
    max_running_requests: int
    admission: Literal["eager", "sglang"] = "eager"
    """What it does with requests that nobody has reserved KV for: `eager` starts one as soon as its
    prompt fits, as vLLM does; `sglang` wants room for its output, too. Both preempt when KV runs out."""
    prefill_s: float = 0.0
    """What starting a chunk costs the others besides its tokens: decoding stands still meanwhile."""
    prefix_token_s: float = 0.0
    """One token of a prefix that is cached, when a chunk starts from it; decoding stands still."""
    turnaround_s: float = 0.0
    """From the end of a chunk to the first step of the next one, on the same engine."""
    move_s: float = 0.0
    """Latency that a move to another engine adds; also before KV begins to be written to the pool."""
    move_token_s: float = 0.0
    """Time to move the KV of one token from another engine; also to write it to the pool."""

    def step_s(self, requests: float, kv_tokens: float, verified: float = 1.0) -> float:
        """One decoding step: `requests` running, `kv_tokens` cached in sum, `verified` tokens each."""
        products_s = max(self.weights_s, requests * verified * self.token_s)
        return self.fixed_s + products_s + kv_tokens * self.kv_token_s

    def move_takes_s(self, tokens: float) -> float:
        """Loading the KV of so many tokens, or writing it to the pool."""
        return self.move_s + tokens * self.move_token_s

    def start_s(self, prefill_tokens: float, prefix_tokens: float) -> float:
        """How long decoding stands still when a chunk starts: tokens to compute, tokens cached."""
        computed_s = prefill_tokens * self.prefill_token_s
        return self.prefill_s + computed_s + prefix_tokens * self.prefix_token_s
