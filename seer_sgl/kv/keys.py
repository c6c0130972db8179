"""The names under which SGLang's servers put KV pages into the Mooncake store. Pure.

A page's digest is the SHA-256 of the digest before it and of its own token ids, each as four bytes, low
byte first; the first page follows a seed made of the request's `extra_key` and `cache_salt`. So a digest
stands for all tokens up to the end of its page. Layout as of SGLang 0.5.23 (`mem_cache/utils.py`,
`mem_cache/cpp_utils/hash_binding.cpp`, `mem_cache/storage/mooncake_store/mooncake_store.py`).
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ID_BYTES = 4
DIGEST_BYTES = 32
_NAMESPACE = b"sglang-cache-namespace-v1"


def packed(ids: Iterable[int]) -> bytes:
    """Token ids as they are hashed and as they travel: four bytes each, low byte first.

    Raises:
        OverflowError: an id is negative, or needs more than 32 bits.
    """
    words = array("I", ids)
    if words.itemsize != ID_BYTES or _BIG_ENDIAN:  # no machine that SGLang runs on
        return b"".join(word.to_bytes(ID_BYTES, "little") for word in words)
    return words.tobytes()


_BIG_ENDIAN = array("H", [1]).tobytes() != b"\x01\x00"


def namespace_seed(extra_key: str | None, cache_salt: str | None) -> bytes:
    """What the first page follows; empty where a request has neither.

    Args: as they stand in the body of a request. An empty one is none, as SGLang's server has it.
    """
    if not extra_key and not cache_salt:
        return b""
    digest = hashlib.sha256(_NAMESPACE)
    for part in (extra_key, cache_salt):
        if not part:
            digest.update(b"\x00")
        else:
            text = part.encode()
            digest.update(b"\x01" + len(text).to_bytes(8, "little") + text)
    return digest.digest()


def page_digests(ids: bytes, page_tokens: int, before: bytes) -> list[bytes]:
    """Digests of all whole pages of packed ids; what is left over has none.

    Args:
        before: the digest of the page before them, or the namespace's seed.
    """
    sha256, step = hashlib.sha256, ID_BYTES * page_tokens
    digests = []
    for start in range(0, len(ids) - step + 1, step):
        before = sha256(before + ids[start : start + step]).digest()
        digests.append(before)
    return digests


class PageChain:
    """The pages of one request as it grows: hashed once each, and only the last digest kept.

    Args:
        seed: of its namespace.
    """

    __slots__ = ("_before", "_page_tokens", "_rest", "pages")

    def __init__(self, seed: bytes, page_tokens: int) -> None:
        self._before, self._page_tokens, self._rest = seed, page_tokens, b""
        self.pages = 0
        """Whole ones so far."""

    @property
    def tokens(self) -> int:
        """All so far, also those of the page that is not whole."""
        return self.pages * self._page_tokens + len(self._rest) // ID_BYTES

    def extend(self, ids: bytes) -> list[bytes]:
        """Digests of the pages that packed ids complete."""
        ids = self._rest + ids
        digests = page_digests(ids, self._page_tokens, self._before)
        if digests:
            self._before = digests[-1]
        self._rest = ids[len(digests) * ID_BYTES * self._page_tokens :]
        self.pages += len(digests)
        return digests


@dataclass(frozen=True, slots=True)
class Objects:
    """What an engine makes of one page: some objects, one for each rank and part."""

    prefix: str
    """Before the digest, without the `_` between; empty where there is none."""
    suffixes: tuple[str, ...]
    """After the digest, with the `_`."""

    def keys(self, digests: Iterable[bytes]) -> list[str]:
        """Of all objects of these pages, page by page."""
        prefix = f"{self.prefix}_" if self.prefix else ""
        return [f"{prefix}{digest.hex()}{suffix}" for digest in digests for suffix in self.suffixes]


def mha_suffixes(shards: int, pp_size: int = 1) -> tuple[str, ...]:
    """Where heads are divided: keys and values of each part.

    Args:
        shards: parts of a layer's heads; as many as ranks, or more (`tp_lcm_size`) where pages are
            shared with servers that are divided otherwise.
    """
    ranks = [f"{shard}{stage}" for stage in _stages(pp_size) for shard in range(shards)]
    return tuple(f"_{rank}_{part}" for rank in ranks for part in "kv")


def mla_suffixes(pp_size: int = 1) -> tuple[str, ...]:
    """Where all ranks hold the same latent keys: one object for each stage."""
    return tuple(f"_{stage.removeprefix('_')}_k" for stage in _stages(pp_size))


def _stages(pp_size: int) -> Iterator[str]:
    if pp_size == 1:
        yield ""
        return
    for stage in range(pp_size):
        yield f"_{stage}"
