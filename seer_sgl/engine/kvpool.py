"""The KV pool of the CPU platform: SGLang's own, without its Triton copy kernel.

SGLang 0.5.23 prepares that kernel as soon as a speculative algorithm is on
(`sglang/srt/mem_cache/memory_pool.py`, `MHATokenToKVPool._init_kv_copy_and_warmup`).
"""

from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from seer_sgl.spec.compiled import kernel


class CpuKVPool(MHATokenToKVPool):  # type: ignore[misc]
    """Keys and values as `[slots, heads, head_dim]` per layer, moved with plain indexing."""

    def _init_kv_copy_and_warmup(self) -> None:
        self._kv_copy_config = None

    def _move_kv_cache_impl(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> None:
        # A source may be a target of the same call: indexing reads all of them before it writes.
        for buffer in (*self.k_buffer, *self.v_buffer):
            buffer[tgt_loc] = buffer[src_loc]


def assign_slots(
    requests: torch.Tensor,
    table: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    slots: torch.Tensor,
    _batch_size: int,
) -> None:
    """Write new slots into each request's line of `table`: SGLang's `assign_req_to_token_pool_func`."""
    _assign_slots(requests.numpy(), table.numpy(), starts.numpy(), ends.numpy(), slots.numpy())


@kernel
def _assign_slots(requests: Any, table: Any, starts: Any, ends: Any, slots: Any) -> None:
    used = 0
    for place in range(len(requests)):
        for token in range(starts[place], ends[place]):
            table[requests[place], token] = slots[used]
            used += 1
