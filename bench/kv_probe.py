"""What a chunk finds of its prefix on another server, by how long ago the chunk before ended.

And what prefixes of several lengths take on a server that has to load or to compute them. Everything is
asked of real servers of the small model, without a router.
"""

import asyncio
import random
import statistics
from collections.abc import Sequence

import msgspec

from bench.kv_servers import Said, Servers, ask, findable, fresh_ids, load_on
from bench.report import Row
from seer_sgl.engine.sglang import SGLangClient

AFTER_MS = (0, 10, 20, 50, 100, 200, 500, 1000, 2000)
QUICK_AFTER_MS = (0, 20, 100, 500)
PROMPT_TOKENS = 448
NEW_TOKENS = 64
"""Of the chunk before: together a prefix of 512 tokens."""
LOAD_REQUESTS = 6
"""On each server, beside the probes."""
LENGTHS = (512, 1024, 2048, 4096, 6144)
QUICK_LENGTHS = (512, 2048)
SETTLED_S = 1.0
WARM_TOKENS = 1024


class Plan(msgspec.Struct, frozen=True):
    """How much is measured."""

    after_ms: Sequence[int]
    quiet_samples: int
    loaded_samples: int
    lengths: Sequence[int]
    repeats: int


FULL = Plan(AFTER_MS, 6, 4, LENGTHS, 3)
QUICK = Plan(QUICK_AFTER_MS, 3, 2, QUICK_LENGTHS, 2)


class Prober:
    """Two servers under measurement."""

    def __init__(self, servers: Servers, seed: int | None = None) -> None:
        self._clients = servers.clients
        self._rng = random.Random(seed)

    async def measure(self, plan: Plan) -> list[Row]:
        """All rows."""
        await self._length(WARM_TOKENS, 4)  # the first of each kind takes longer
        rows = [await self._length(tokens, plan.repeats) for tokens in plan.lengths]
        rows += [await self._after("quiet", ms, plan.quiet_samples) for ms in plan.after_ms]
        async with load_on(self._clients, LOAD_REQUESTS):
            rows += [await self._after("loaded", ms, plan.loaded_samples) for ms in plan.after_ms]
        return rows

    async def _length(self, tokens: int, repeats: int) -> Row:
        """A prefix of this length loaded from the pool, beside the same number of tokens computed."""
        loaded, computed = [], []
        for number in range(repeats):
            first, second = self._pair(number)
            ids = fresh_ids(tokens, self._rng)
            computed.append(await ask(first, ids, 1))
            await asyncio.sleep(SETTLED_S)
            loaded.append(await ask(second, ids, 1))
        return {
            "table": "small model: a prefix loaded from the pool or computed",
            "tokens": tokens,
            "found_share": share_found(loaded, tokens),
            "load_ms": 1000 * _median(loaded),
            "pool_wait_ms": 1000 * statistics.median(said.pool_wait_s for said in loaded),
            "compute_ms": 1000 * _median(computed),
            "load_over_compute": _median(loaded) / _median(computed),
        }

    async def _after(self, kind: str, after_ms: int, samples: int) -> Row:
        """A prefix asked for elsewhere, so long after the chunk that wrote it has ended."""
        tokens = PROMPT_TOKENS + NEW_TOKENS
        resumed, computed = [], []
        for number in range(samples):
            first, second = self._pair(number)
            ids = fresh_ids(PROMPT_TOKENS, self._rng)
            ids = ids + (await ask(first, ids, NEW_TOKENS)).ids
            await asyncio.sleep(after_ms / 1000)
            resumed.append(await ask(second, ids, 1))
            computed.append(await ask(second, fresh_ids(tokens, self._rng), 1))
        missing = findable(tokens) * (1 - share_found(resumed, tokens))
        return {
            "table": "small model: a prefix found elsewhere, by time since its chunk ended",
            "servers": kind,
            "after_ms": after_ms,
            "samples": samples,
            "found_share": share_found(resumed, tokens),
            "found_whole": sum(said.cached_tokens == findable(tokens) for said in resumed),
            "first_token_ms": 1000 * _median(resumed),
            "first_token_max_ms": 1000 * max(said.seconds for said in resumed),
            "compute_all_ms": 1000 * _median(computed),
            "compute_missing_ms": 1000 * missing / tokens * _median(computed),
        }

    def _pair(self, number: int) -> tuple[SGLangClient, SGLangClient]:
        """Who writes and who reads, in turn."""
        first, second = self._clients
        return (second, first) if number % 2 else (first, second)


def share_found(said: Sequence[Said], tokens: int) -> float:
    """Of the whole pages of prompts of this length, the share that was not computed."""
    return statistics.mean(each.cached_tokens for each in said) / findable(tokens)


def _median(said: Sequence[Said]) -> float:
    return statistics.median(each.seconds for each in said)


def figures_of(rows: Sequence[Row]) -> dict[str, float]:
    """Numbers that a text may quote; see `bench.kv`."""
    names = {"quiet": "found_at_once_share", "loaded": "found_at_once_share_loaded"}
    at_once = [row for row in rows if row.get("after_ms") == 0]
    return {names[str(row["servers"])]: float(str(row["found_share"])) for row in at_once}
