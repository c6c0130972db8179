"""Copies between the engine's KV pool and the host's, on tensors that show every mistake."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from seer_sgl.engine.hicache import (  # noqa: E402 - torch may be missing
    allocate_pageable,
    copy_layers_to_pages,
    copy_pages_to_layer,
)

LAYERS, PAGE, PAGES, HEADS, DIM = 3, 4, 6, 2, 5


def slots_of(pages: list[int]) -> Any:
    return torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages])


@pytest.mark.parametrize("halves", [2, 1], ids=["K and V", "K alone"])
def test_pages_survive_the_way_to_the_host_and_back(halves: int) -> None:
    engine = [torch.rand(PAGES * PAGE, HEADS, DIM) for _ in range(halves * LAYERS)]
    host = [torch.zeros(PAGES, LAYERS, PAGE, HEADS, DIM) for _ in range(halves)]
    written, kept_at = [4, 0, 3], [2, 5, 0]
    copy_layers_to_pages(engine, host, slots_of(written), slots_of(kept_at), PAGE)

    for half in range(halves):
        for layer in range(LAYERS):
            pool = engine[half * LAYERS + layer].reshape(PAGES, PAGE, HEADS, DIM)
            assert torch.equal(host[half][kept_at, layer], pool[written])
        assert not host[half][[1, 3, 4]].any(), "a page that nobody named was written"

    other = [torch.zeros(PAGES * PAGE, HEADS, DIM) for _ in range(halves * LAYERS)]
    back_at = [1, 2, 5]
    for layer in range(LAYERS):
        target = [other[half * LAYERS + layer] for half in range(halves)]
        copy_pages_to_layer(host, target, slots_of(kept_at), slots_of(back_at), layer, PAGE)
    for before, after in zip(engine, other, strict=True):
        assert torch.equal(after[slots_of(back_at)], before[slots_of(written)])
        assert not after[slots_of([0, 3, 4])].any()


def test_host_memory_comes_from_the_stores_allocator_where_there_is_one() -> None:
    class Allocator:
        def allocate(self, dims: tuple[int, ...], dtype: object, device: str) -> Any:
            return torch.full(dims, 7, dtype=dtype, device=device)

    own = allocate_pageable((2, 3), torch.int8, "cpu", True, None)
    assert (own.shape, own.dtype, own.is_pinned()) == ((2, 3), torch.int8, False)
    theirs = allocate_pageable((2, 3), torch.int8, "cpu", True, Allocator(), 4096)
    assert (theirs == 7).all()
