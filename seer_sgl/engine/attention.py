"""Attention on a CPU: verify with a tree of drafts, decode and prefill.

SGLang's `torch_native` backend computes one request at a time, copies its KV, and at prefill computes
the cached prefix's rows again to throw them away; it has no verify. Here the requests of a step that are
of similar length share one call, a request's KV is read once for all its rows, and prefill computes new
rows only. What is decided per step (which requests together, which slots, which mask) is decided once
and serves all layers. Layers with a sliding window or cross attention go to SGLang's backend.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch.nn.functional import scaled_dot_product_attention

from seer_sgl.engine.verify import BoolArray, IntArray, LongArray, Rows, ancestor_mask
from seer_sgl.spec.compiled import kernel

FloatArray = npt.NDArray[np.float32]

WASTE = 1.3
"""Requests share a call while the longest has at most this many times the shortest's tokens, and"""
WASTE_TOKENS = 128
"""this many more: below that a call costs more than the filling."""


class Piece(NamedTuple):
    """Requests that are computed together."""

    rows: torch.Tensor | None
    """`[requests * width]` rows of the queries; None for all in order."""
    outputs: tuple[torch.Tensor, torch.Tensor] | None
    """(row of the output, row of the computed) where a request has fewer rows than `width`."""
    requests: int
    width: int
    slots: torch.Tensor
    """`[requests * tokens]` KV slots, filled up with any."""
    mask: torch.Tensor | None
    """`[requests, 1, width, tokens]` added to the scores; None lets every row see everything."""


class _Batch(NamedTuple):
    """What a step computes, as arrays."""

    table: IntArray
    requests: LongArray
    prefixes: LongArray
    starts: IntArray
    tree: BoolArray


class _Filled(NamedTuple):
    """A piece's arrays, `[members, ...]`."""

    slots: IntArray
    mask: FloatArray
    rows: LongArray


@kernel
def _fill_piece(batch: _Batch, members: LongArray, out: _Filled) -> None:
    for place in range(len(members)):
        member = members[place]
        line = batch.table[batch.requests[member]]
        first, prefix = batch.starts[member], batch.prefixes[member]
        width = batch.starts[member + 1] - first
        out.slots[place, : prefix + width] = line[: prefix + width]
        out.slots[place, prefix + width :] = line[0]
        for row in range(out.rows.shape[1]):
            real = min(row, width - 1)
            out.rows[place, row] = first + real
            out.mask[place, row, :prefix] = 0.0
            out.mask[place, row, prefix:] = -np.inf
            for other in range(width):
                if batch.tree[first + real, other]:
                    out.mask[place, row, prefix + other] = 0.0


def group_by_length(tokens: Sequence[int]) -> list[list[int]]:
    """Members of each call, such that filling them up to the longest wastes little."""
    order = sorted(range(len(tokens)), key=tokens.__getitem__)
    groups = [[order[0]]]
    for member in order[1:]:
        shortest = tokens[groups[-1][0]]
        if tokens[member] <= max(shortest * WASTE, shortest + WASTE_TOKENS):
            groups[-1].append(member)
        else:
            groups.append([member])
    return groups


def plan_step(
    table: torch.Tensor, requests: torch.Tensor, prefixes: torch.Tensor, rows: Rows
) -> list[Piece]:
    """Pieces of a step.

    Args:
        table: KV slot of every token, by request and position.
        requests: their lines in `table`.
        prefixes: tokens of each that all its rows see.
        rows: the step's; only `starts` and `parents` are read.
    """
    ids, known = requests.numpy(), prefixes.numpy()
    widths = rows.widths
    if len(ids) == 1:
        return [_lone_piece(table, int(ids[0]), int(known[0]), rows)]
    tree = np.empty((rows.starts[-1], widths.max()), np.bool_)
    ancestor_mask(rows.starts, rows.parents, tree)
    batch = _Batch(table.numpy(), ids, known, rows.starts, tree)
    tokens = known + widths
    return [
        _piece(batch, np.array(group), int(widths[group].max()), int(tokens[group].max()))
        for group in group_by_length(tokens.tolist())
    ]


def _piece(batch: _Batch, members: LongArray, width: int, longest: int) -> Piece:
    count = len(members)
    filled = _Filled(
        np.empty((count, longest), np.int32),
        np.empty((count, width, longest), np.float32),
        np.empty((count, width), np.int64),
    )
    _fill_piece(batch, members, filled)
    rows = filled.rows.reshape(-1)
    whole, first = np.unique(rows, return_index=True)
    return Piece(
        rows=torch.from_numpy(rows),
        outputs=(torch.from_numpy(whole), torch.from_numpy(first)),
        requests=count,
        width=width,
        slots=torch.from_numpy(filled.slots.reshape(-1)),
        mask=torch.from_numpy(filled.mask).unsqueeze(1),
    )


def _lone_piece(table: torch.Tensor, request: int, prefix: int, rows: Rows) -> Piece:
    width = int(rows.starts[-1])
    mask = None
    if width > 1:
        tree = np.empty((width, width), np.bool_)
        ancestor_mask(rows.starts, rows.parents, tree)
        whole = np.zeros((1, 1, width, prefix + width), np.float32)
        whole[0, 0, :, prefix:][~tree] = -np.inf
        mask = torch.from_numpy(whole)
    return Piece(None, None, 1, width, table[request, : prefix + width], mask)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """Attention of `[requests, width, heads, dim]` queries to `[requests, tokens, kv_heads, dim]`.

    The query heads that share a KV head become rows of it, so its keys and values are read once.
    """
    requests, width, heads, dim = query.shape
    kv_heads = keys.shape[2]
    shared = heads // kv_heads
    rows = query.view(requests, width, kv_heads, shared, dim).permute(0, 2, 1, 3, 4)
    rows = rows.reshape(requests, kv_heads, width * shared, dim)
    if mask is not None and shared > 1:
        mask = mask.repeat_interleave(shared, dim=2)
    out = scaled_dot_product_attention(
        rows, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, scale=scaling
    )
    out = out.view(requests, kv_heads, width, shared, -1).permute(0, 2, 1, 3, 4)
    return out.reshape(requests * width, -1)


class CpuAttention(TorchNativeAttnBackend):  # type: ignore[misc]
    """Registered under the name `torch_native`, which SGLang tests for to stay off Triton."""

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Plan the step, once for all layers."""
        super().init_forward_metadata(forward_batch)
        self._pieces: list[Piece] = []
        mode = forward_batch.forward_mode
        if len(forward_batch.req_pool_indices) == 0:
            return
        if mode.is_target_verify():
            rows, prefixes = forward_batch.spec_info.rows, forward_batch.seq_lens
        elif mode.is_decode():
            count = len(forward_batch.req_pool_indices)
            none = np.zeros(0, np.int64)
            parents = np.full(count, -1, np.int32)
            rows = Rows(np.arange(count + 1, dtype=np.int32), none, none, parents)
            prefixes = forward_batch.seq_lens - 1
        else:
            return
        table = self.req_to_token_pool.req_to_token
        self._pieces = plan_step(table, forward_batch.req_pool_indices, prefixes, rows)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """One row per request."""
        if not self._is_plain(layer):
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        return self._compute_pieces(q, k, v, layer, forward_batch, save_kv_cache)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """Verify, or prefill of new tokens behind a cached prefix."""
        plain = self._is_plain(layer)
        if forward_batch.forward_mode.is_target_verify():
            if not plain:
                raise NotImplementedError(
                    f"layer {layer.layer_id} has a sliding window or cross attention, whose drafts the "
                    "CPU platform cannot verify; serve this model without speculation"
                )
            return self._compute_pieces(q, k, v, layer, forward_batch, save_kv_cache)
        if not plain or layer.attn_type == AttentionType.ENCODER_ONLY:
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        return self._prefill(q, k, v, layer, forward_batch, save_kv_cache)

    def _is_plain(self, layer: Any) -> bool:
        window = layer.sliding_window_size
        return not (
            layer.is_cross_attention
            or self.use_sliding_window_kv_pool
            or (window is not None and window > -1)
        )

    def _store(self, k: torch.Tensor, v: torch.Tensor, layer: Any, forward_batch: Any) -> None:
        where = KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc)
        self.token_to_kv_pool.set_kv_buffer(layer, where, k, v)

    def _read(self, layer: Any, slots: torch.Tensor, like: torch.Tensor) -> list[torch.Tensor]:
        pool = self.token_to_kv_pool
        buffers = (pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id))
        return [buffer.index_select(0, slots).to(like.dtype) for buffer in buffers]

    def _compute_pieces(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool,
    ) -> torch.Tensor:
        if save_kv_cache and k is not None:
            self._store(k, v, layer, forward_batch)
        q = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = None
        for piece in self._pieces:
            query = q if piece.rows is None else q.index_select(0, piece.rows)
            query = query.view(piece.requests, piece.width, *q.shape[1:])
            keys, values = (
                part.view(piece.requests, -1, *part.shape[1:])
                for part in self._read(layer, piece.slots, q)
            )
            computed = attend(query, keys, values, piece.mask, layer.scaling)
            if piece.outputs is None:
                return computed
            if out is None:
                out = computed.new_empty((len(q), computed.shape[1]))
            rows, places = piece.outputs
            out[rows] = computed[places]
        assert out is not None, "a step without requests has no attention"
        return out

    def _prefill(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool,
    ) -> torch.Tensor:
        if save_kv_cache and k is not None:
            self._store(k, v, layer, forward_batch)
        q = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        table = self.req_to_token_pool.req_to_token
        outs, start = [], 0
        for request, prefix, new in zip(
            forward_batch.req_pool_indices.tolist(),
            forward_batch.extend_prefix_lens_cpu,
            forward_batch.extend_seq_lens_cpu,
            strict=True,
        ):
            keys, values = self._read(layer, table[request, : prefix + new], q)
            mask = torch.full((new, prefix + new), -torch.inf, dtype=q.dtype).triu_(prefix + 1)
            query = q[start : start + new]
            start += new
            outs.append(attend(query[None], keys[None], values[None], mask[None, None], layer.scaling))
        return torch.cat(outs)
