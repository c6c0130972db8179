"""Products of few rows with a large matrix, on a CPU in float32.

A step of decode or verify multiplies a handful of rows with every weight. It should take as long as
reading the weights; torch's own product packs them first, and takes three times as long for eight rows
as for one. Here a tile of rows times weights is kept in vector registers while the weights stream by
once, and what comes next is fetched ahead. The tile is written in LLVM's vector types, which serve
whatever the machine has.

A row's result does not depend on how many rows there are: verifying a token computes what decoding it
would have computed.
"""

from collections.abc import Callable
from typing import Any

import numba
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from seer_sgl.spec.compiled import kernel

LANES = 16
BLOCK = 4
"""Weight rows, and rows at most, of one tile: 16 sums in registers."""
DEPTH = 1024
"""Columns per pass, so that the rows stay in the nearest cache."""
AHEAD = 2 * BLOCK
"""How many weight rows ahead are fetched."""
MAX_ROWS = 32
"""Above, there is arithmetic enough for torch's product to be as fast."""
WORTH_SHARING = 1 << 18
"""Weights of a matrix below which waking another thread takes longer than it saves."""

# One of numba's layers that waits without spinning; only the scheduler's thread shares work.
numba.config.THREADING_LAYER = "workqueue"


def _tile(rows: int) -> Any:
    """`y[r, c] = x[r] . w[c]`, or added to it, for `rows` rows and `BLOCK` weight rows."""

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        _typing: Any, x: Any, w: Any, stride: Any, y: Any, y_stride: Any, depth: Any, add: Any
    ) -> Any:
        """Addresses and strides in bytes; `depth` columns, a multiple of `LANES`."""
        signature = types.void(*[types.int64] * 7)

        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            _Tile(builder, rows, *args).generate()
            return ir.Constant(ir.IntType(8).as_pointer(), None)

        return signature, generate

    return tile


class _Tile:
    """Emits one tile's instructions."""

    def __init__(self, builder: Any, rows: int, *args: Any) -> None:
        self._builder, self._rows = builder, rows
        self._x, self._w, self._stride, self._y, self._y_stride, self._depth, self._add = args
        self._vector = ir.VectorType(ir.FloatType(), LANES)

    def generate(self) -> None:
        builder, int64 = self._builder, ir.IntType(64)
        xs = self._lines(self._x, self._stride, self._rows)
        ws = self._lines(self._w, self._stride, BLOCK)
        ahead = builder.mul(self._stride, ir.Constant(int64, AHEAD))
        before = builder.block
        loop, done = builder.append_basic_block("columns"), builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        column = builder.phi(int64)
        column.add_incoming(ir.Constant(int64, 0), before)
        sums = [builder.phi(self._vector) for _ in range(self._rows * BLOCK)]
        offset = builder.mul(column, ir.Constant(int64, 4))
        weights = [self._load(line, offset, self._vector) for line in ws]
        for line in ws:
            self._prefetch(builder.add(builder.add(line, offset), ahead))
        fma = self._declare("llvm.fma.v16f32", self._vector, [self._vector] * 3)
        grown: list[Any] = []
        for line in xs:
            value = self._load(line, offset, self._vector)
            grown += [
                builder.call(fma, [value, weight, sums[len(grown) + place]])
                for place, weight in enumerate(weights)
            ]
        for total, more in zip(sums, grown, strict=True):
            total.add_incoming(ir.Constant(self._vector, [0.0] * LANES), before)
            total.add_incoming(more, loop)
        following = builder.add(column, ir.Constant(int64, LANES))
        column.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, self._depth), loop, done)
        builder.position_at_end(done)
        self._store(self._fold(grown))

    def _lines(self, first: Any, stride: Any, count: int) -> list[Any]:
        builder, int64 = self._builder, ir.IntType(64)
        return [
            builder.add(first, builder.mul(stride, ir.Constant(int64, line))) for line in range(count)
        ]

    def _declare(self, name: str, result: Any, args: list[Any]) -> Any:
        module = self._builder.module
        known = module.globals.get(name)
        return known or ir.Function(module, ir.FunctionType(result, args), name)

    def _load(self, line: Any, offset: Any, kind: Any) -> Any:
        builder = self._builder
        address = builder.add(line, offset)
        return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)

    def _prefetch(self, address: Any) -> None:
        byte, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch = self._declare("llvm.prefetch.p0", ir.VoidType(), [byte, int32, int32, int32])
        read_near_data = [ir.Constant(int32, value) for value in (0, 3, 1)]
        self._builder.call(prefetch, [self._builder.inttoptr(address, byte), *read_near_data])

    def _pick(self, left: Any, right: Any, places: list[int]) -> Any:
        kind = ir.VectorType(ir.IntType(32), len(places))
        return self._builder.shuffle_vector(left, right, ir.Constant(kind, places))

    def _fold(self, vectors: list[Any]) -> Any:
        """One vector with the sum of each of `vectors` over its lanes, in order.

        Halves are added pair by pair, so that every addition works on full vectors.
        """
        held = 1
        while len(vectors) > 1:
            size = LANES // held
            low = [
                start + part * size + lane
                for start in (0, LANES)
                for part in range(held)
                for lane in range(size // 2)
            ]
            vectors = [
                self._halved(left, right, low, size)
                for left, right in zip(vectors[::2], vectors[1::2], strict=True)
            ]
            held *= 2
        folded, size = vectors[0], LANES // held
        while size > 1:
            low = [part * size + lane for part in range(held) for lane in range(size // 2)]
            folded = self._halved(folded, folded, low, size)
            size //= 2
        return folded

    def _halved(self, left: Any, right: Any, low: list[int], size: int) -> Any:
        high = [place + size // 2 for place in low]
        return self._builder.fadd(self._pick(left, right, low), self._pick(left, right, high))

    def _store(self, sums: Any) -> None:
        builder = self._builder
        kind = ir.VectorType(ir.FloatType(), BLOCK)
        nothing = ir.Constant(ir.IntType(64), 0)
        adds = builder.icmp_signed("!=", self._add, nothing)
        for row, line in enumerate(self._lines(self._y, self._y_stride, self._rows)):
            part = self._pick(sums, sums, list(range(row * BLOCK, row * BLOCK + BLOCK)))
            old = self._load(line, nothing, kind)
            total = builder.select(adds, builder.fadd(old, part), part)
            builder.store(total, builder.inttoptr(line, kind.as_pointer()), align=4)


_tile_1, _tile_2, _tile_4 = _tile(1), _tile(2), _tile(4)


@kernel
def _columns(x: Any, w: Any, y: Any, first: int, last: int) -> None:
    """Columns `first` to `last` of `y = x w^T`; all are contiguous."""
    rows, width = x.shape
    count = w.shape[0]
    for start in range(0, width, DEPTH):
        depth = min(DEPTH, width - start)
        x_at, w_at, y_at = x.ctypes.data + 4 * start, w.ctypes.data + 4 * start, y.ctypes.data
        for column in range(first, last, BLOCK):
            line = w_at + 4 * width * column
            row = 0
            while row < rows:
                x_line, out = x_at + 4 * width * row, y_at + 4 * (count * row + column)
                if rows - row >= 4:
                    _tile_4(x_line, line, 4 * width, out, 4 * count, depth, start)
                    row += 4
                elif rows - row >= 2:
                    _tile_2(x_line, line, 4 * width, out, 4 * count, depth, start)
                    row += 2
                else:
                    _tile_1(x_line, line, 4 * width, out, 4 * count, depth, start)
                    row += 1


@numba.njit(nogil=True, parallel=True)  # type: ignore[untyped-decorator]
def _columns_in_parts(x: Any, w: Any, y: Any, parts: int) -> None:
    blocks = w.shape[0] // BLOCK
    for part in numba.prange(parts):
        first, last = blocks * part // parts, blocks * (part + 1) // parts
        _columns(x, w, y, first * BLOCK, last * BLOCK)


def product(x: torch.Tensor, weight: torch.Tensor, threads: int) -> torch.Tensor:
    """`x weight^T`, for what `serves` says it serves."""
    out = x.new_empty((x.shape[0], weight.shape[0]))
    arrays = x.numpy(), weight.numpy(), out.numpy()
    if threads > 1 and weight.numel() >= WORTH_SHARING:
        _columns_in_parts(*arrays, threads)
    else:
        _columns(*arrays, 0, len(weight))
    return out


def serves(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `product` can take them, and is worth it."""
    fits: bool = (
        x.dim() == 2
        and 0 < x.shape[0] <= MAX_ROWS
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[0] % BLOCK == 0
        and weight.shape[1] % LANES == 0
        and x.is_contiguous()
        and weight.is_contiguous()
    )
    return fits


def apply_linear(
    original: Callable[..., torch.Tensor],
    method: Any,
    layer: Any,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hook around `UnquantizedLinearMethod.apply`."""
    weight = layer.weight.data
    if not serves(x, weight):
        return original(method, layer, x, bias)
    out = product(x, weight, torch.get_num_threads())
    return out if bias is None else out.add_(bias)
