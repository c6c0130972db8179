"""Values that every layer shares. Frozen, and nothing here knows a socket, a clock or SGLang."""

from typing import NewType

import msgspec

EngineId = NewType("EngineId", str)
GroupId = NewType("GroupId", str)
RequestId = NewType("RequestId", str)
ChunkId = NewType("ChunkId", int)

UNKNOWN_MODEL = "unknown"
"""The model of a server that does not say what it serves."""


class EngineSpec(msgspec.Struct, frozen=True):
    """What an engine can hold. It does not change while the engine is up."""

    engine_id: EngineId
    kv_capacity_tokens: int
    """Tokens of the KV pool, as SGLang's `max_total_num_tokens`."""
    page_tokens: int
    """Tokens per KV page; memory is taken and shared in whole pages."""
    max_running_requests: int
    context_tokens: int
    """Longest prompt plus output that the model takes."""
    vocab_size: int | None = None
    """None where the engine does not say; then SGLang alone checks token ids."""

    @property
    def longest_request_tokens(self) -> int:
        """Prompt plus output that fits the empty engine.

        SGLang keeps one token of the context and of the pool, and one more when it cuts
        `max_new_tokens` (0.5.23 `tp_worker.get_worker_info`, `scheduler.init_req_max_new_tokens`).
        """
        pages_tokens = self.kv_capacity_tokens // self.page_tokens * self.page_tokens
        return min(self.context_tokens, pages_tokens) - 2
