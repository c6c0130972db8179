"""HiCache's host pool without CUDA: a pageable allocator and torch copies between pool layouts.

Layouts, as SGLang 0.5.23 names them (`sglang/srt/mem_cache/pool_host/mha.py`): *layer first* (`lf`) is
the engine's own pool, one `[tokens, heads, head_dim]` tensor per layer; *page first* (`pf`) is the host
pool, `[pages, layers, page_size, heads, head_dim]`, so that one page is one run of bytes in the store.
"""

from typing import Any

import torch


def install() -> None:
    """Give SGLang's host pools what they take from `sgl_kernel` elsewhere. Idempotent."""
    from sglang.srt.mem_cache.pool_host import common, mha

    common.ALLOC_MEMORY_FUNCS["cpu"] = allocate_pageable
    mha.transfer_kv_all_layer_direct_lf_pf = copy_layers_to_pages
    mha.transfer_kv_per_layer_direct_pf_lf = copy_pages_to_layer


def allocate_pageable(
    dims: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    pin_memory: bool,
    allocator: Any,
    registration_granularity_bytes: int | None = None,
) -> torch.Tensor:
    """A host tensor of shape `dims`; `allocator` is HiCache's own when its store wants the memory."""
    del pin_memory, registration_granularity_bytes  # both serve cudaHostRegister alone
    if allocator is None:
        return torch.empty(dims, dtype=dtype, device=device)
    tensor: torch.Tensor = allocator.allocate(dims, dtype=dtype, device=device)
    return tensor


def copy_layers_to_pages(
    src_ptrs: list[torch.Tensor],
    dst_ptrs: list[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Write whole pages of every layer from the engine's pool into the host pool.

    `src_ptrs` holds the K tensors of all layers, then the V tensors; `dst_ptrs` the host K and V. Some
    pools have K alone.
    `src_indices` and `dst_indices` are token slots, shape `[pages * page_size]`, page by page.
    """
    layers = len(src_ptrs) // len(dst_ptrs)
    src_slots = src_indices.view(-1, page_size)
    dst_pages = dst_indices.view(-1, page_size)[:, 0] // page_size
    for half, host in enumerate(dst_ptrs):
        for layer in range(layers):
            host[dst_pages, layer] = src_ptrs[half * layers + layer][src_slots]


def copy_pages_to_layer(
    src_ptrs: list[torch.Tensor],
    dst_ptrs: list[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    layer_id: int,
    page_size: int,
) -> None:
    """Load one layer of whole pages from the host pool; arguments mirror `copy_layers_to_pages`."""
    src_pages = src_indices.view(-1, page_size)[:, 0] // page_size
    for host, pool in zip(src_ptrs, dst_ptrs, strict=True):
        pool[dst_indices] = host[src_pages, layer_id].reshape(-1, *pool.shape[1:])
