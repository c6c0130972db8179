"""Prefixes through the store: how they are cut, and that what arrives is held against what was sent."""

from collections.abc import Sequence

import numpy as np
import pytest

from bench.kv_client import PAGES, _names
from bench.kv_store import CALL_OBJECTS, Layout, Part, _get, _put, _remove, parts_of, pattern

LARGE = Layout(token_bytes=327_680, page_tokens=64, ranks=8)
SMALL = Layout(token_bytes=1024, page_tokens=4, ranks=2)


def test_a_page_is_an_object_of_keys_and_one_of_values_for_each_device() -> None:
    assert LARGE.objects_per_page == 16
    assert LARGE.object_bytes == 80 * 1 * 128 * 2 * 64  # layers, a head, its size, bfloat16, tokens
    assert LARGE.objects_per_page * LARGE.object_bytes == LARGE.page_bytes == 64 * 327_680


@pytest.mark.parametrize(
    ("tokens", "window_pages", "objects"),
    [(4, 1, [4]), (5, 1, [4, 4]), (40, 4, [16, 16, 8]), (40, 100, [40]), (1, 0, [4])],
)
def test_a_prefix_is_cut_into_windows_of_whole_pages(
    tokens: int, window_pages: int, objects: list[int]
) -> None:
    parts = parts_of(tokens, SMALL, window_pages * SMALL.page_bytes, "p")
    assert [part.objects for part in parts] == objects
    keys = [key for part in parts for key in part.keys]
    assert len(set(keys)) == len(keys)


def test_no_two_objects_are_alike() -> None:
    rows = {pattern("a", number, 600).tobytes() for number in range(1000)}
    rows |= {pattern("b", number, 600).tobytes() for number in range(1000)}
    assert len(rows) == 2000
    assert np.array_equal(pattern("a", 3, 600), pattern("a", 3, 600))
    assert len(pattern("a long name", 3, 4)) == 4


class FakeStore:
    """A store in a dict, over the memory that it is given addresses of."""

    def __init__(self, buffer: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> None:
        self.buffer = buffer
        self.held: dict[str, bytes] = {}
        self.calls: list[int] = []

    def batch_is_exist(self, keys: Sequence[str]) -> list[int]:
        return [int(key in self.held) for key in keys]

    def batch_put_from(
        self, keys: Sequence[str], pointers: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        self.calls.append(len(keys))
        for key, pointer, size in zip(keys, pointers, sizes, strict=True):
            self.held[key] = self.buffer[pointer - 1000 : pointer - 1000 + size].tobytes()
        return [0] * len(keys)

    def batch_get_into(
        self, keys: Sequence[str], pointers: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        self.calls.append(len(keys))
        for key, pointer, size in zip(keys, pointers, sizes, strict=True):
            if key in self.held:
                held = np.frombuffer(self.held[key], np.uint8)
                self.buffer[pointer - 1000 : pointer - 1000 + size] = held
        return [len(self.held[key]) if key in self.held else -704 for key in keys]

    def batch_remove(self, keys: Sequence[str], force: bool) -> list[int]:
        assert force
        return [0 if self.held.pop(key, None) is not None else -704 for key in keys]


def store_of(part: Part) -> FakeStore:
    return FakeStore(np.zeros(part.objects * part.object_bytes, np.uint8))


def test_what_arrives_as_it_was_sent_is_not_wrong() -> None:
    part = Part("p", 600, 64)
    store = store_of(part)
    took_s = _put(store, store.buffer, 1000, part)
    assert isinstance(took_s, float)
    got = _get(store, store.buffer, 1000, part)
    assert isinstance(got, tuple)
    assert got[1] == 0
    assert max(store.calls) <= CALL_OBJECTS
    assert sum(store.calls) == 2 * 600
    assert _remove(store, store.buffer, 1000, part) == 0.0
    assert store.held == {}


def test_objects_that_are_mixed_up_or_spoilt_are_counted() -> None:
    part = Part("p", 10, 64)
    store = store_of(part)
    _put(store, store.buffer, 1000, part)
    first, second, third, *_ = part.keys
    store.held[first], store.held[second] = store.held[second], store.held[first]
    store.held[third] = store.held[third][:30] + b"\xff" + store.held[third][31:]
    got = _get(store, store.buffer, 1000, part)
    assert isinstance(got, tuple)
    assert got[1] == 3


def test_a_store_that_lost_an_object_is_an_error_and_no_measurement() -> None:
    part = Part("p", 10, 64)
    store = store_of(part)
    _put(store, store.buffer, 1000, part)
    del store.held[part.keys[4]]
    assert "9 of 10 objects" in str(_get(store, store.buffer, 1000, part))
    assert "kept objects of p" in str(_remove(store, store.buffer, 1000, part))
    store.held[part.keys[0]] = b"old"
    assert "had 1 of 10" in str(_put(store, store.buffer, 1000, part))


def test_every_page_has_two_names() -> None:
    assert _names() == 2 * PAGES
