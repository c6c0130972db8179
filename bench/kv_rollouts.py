"""Rollouts of the small model through a router over two servers and their pool.

The same prompts, one way after the other: with eager release, without it, with every chunk moved, and
with the pool taken off the servers. Then prompts before and after weights were changed.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from bench.kv_footprint import Footprint, footprint_of, sampled, until_empty, watched_pool
from bench.kv_servers import PAGE_TOKENS, Servers, fresh_ids
from bench.report import Row
from seer_sgl.rollout.client import Prompt, Rollout, SampleResult, run_rollout
from seer_sgl.rollout.report import Report, chunks_of, report_on
from seer_sgl.router.core import Policy, policy_named
from seer_sgl.router.core.policy import DIVIDED
from seer_sgl.router.service import RouterService
from seer_sgl.smallmodel.problems import prompts
from seer_sgl.testing.cluster import attached_router
from seer_sgl.testing.policies import ALWAYS_MOVE

CHUNK_TOKENS = 128
MAX_NEW_TOKENS = 2000
SETTLED_S = 1.0
CLEARINGS, CLEARING_S = 6, 1.0
LOOK_S = 0.02
"""Between two looks at the router's state."""
STALE_NEW_TOKENS = 96
GREEDY: dict[str, Any] = {"max_new_tokens": STALE_NEW_TOKENS, "temperature": 0.0}
ROLLOUTS = "rollouts of the small model"


class Size(msgspec.Struct, frozen=True):
    """Of a rollout."""

    groups: int
    group_size: int
    stale_prompts: int


FULL = Size(groups=24, group_size=8, stale_prompts=16)
QUICK = Size(groups=8, group_size=8, stale_prompts=8)


class Way(msgspec.Struct, frozen=True):
    """How a rollout runs."""

    name: str
    policy: Policy = DIVIDED
    release: bool = True
    """The router tells the pool's keeper what runs, and it frees what is over. Otherwise nobody does."""
    part: int = 1
    """Of so many groups, one is run."""


WAYS = (
    Way("eager release", policy_named("seer")),
    Way("no release", policy_named("seer"), release=False),
    Way("every chunk moves", ALWAYS_MOVE, part=2),
)
APART = Way("every chunk moves, no pool", ALWAYS_MOVE, part=2)
"""On servers that share nothing."""


class Run(msgspec.Struct, frozen=True):
    """One rollout."""

    way: Way
    report: Report
    footprint: Footprint | None
    """None where there is no pool."""
    running_s: float
    """Seconds on engines, in sum over requests."""
    move_wait_s: float
    """Seconds that requests waited in the router until their KV might be in the pool, in sum."""

    @property
    def kv_time_share(self) -> float:
        """Of the time of requests that do not wait for room, what they spend waiting for KV."""
        waited_s = self.report.pool_wait_s + self.move_wait_s
        total_s = self.running_s + self.move_wait_s
        return waited_s / total_s if total_s else 0.0


class Rollouts:
    """Servers that rollouts run on."""

    def __init__(self, servers: Servers, size: Size) -> None:
        self._servers, self._size = servers, size

    async def run(self, way: Way) -> Run:
        """One rollout, on servers with empty caches and an empty pool."""
        await self._clear()
        asked = (await self._prompts())[:: way.part]
        async with self._router(way.policy, way.release) as (url, service):
            rollout = Rollout(
                url,
                asked,
                self._size.group_size,
                {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 1.0},
            )
            looks = sampled(lambda: state_of(service), LOOK_S)
            async with self._watched() as held, looks as states:
                results = [result async for result in run_rollout(rollout)]
        _check(results, len(asked) * self._size.group_size)
        running = footprint_of([(at_s, float(state[0])) for at_s, state in states])
        settling = footprint_of([(at_s, float(state[1])) for at_s, state in states])
        seconds = states[-1][0] - states[0][0]
        report = report_on(results, PAGE_TOKENS)
        return Run(
            way,
            report,
            footprint_of(held) if held else None,
            running.mean_bytes * seconds,
            settling.mean_bytes * seconds,
        )

    async def stale(self, checkpoints: list[Path], salted: bool) -> int:
        """Tokens of KV of old weights that prompts found after a change of weights.

        Each rollout asks for what the one before asked and got, so that all of it is in the pool.
        """
        await self._clear()
        rng = random.Random(7)
        asked = [fresh_ids(64, rng) for _ in range(self._size.stale_prompts)]
        found = 0
        async with self._router(DIVIDED, False, salted=salted) as (url, _):
            for number, checkpoint in enumerate([None, *checkpoints]):
                if checkpoint is not None:
                    await _update(url, checkpoint)
                named = [Prompt(f"{number} {index}", input_ids=ids) for index, ids in enumerate(asked)]
                rollout = Rollout(
                    url, named, 1, {"max_new_tokens": STALE_NEW_TOKENS, "temperature": 0.0}
                )
                results = [result async for result in run_rollout(rollout)]
                _check(results, len(named))
                by_name = {result.group_id: result for result in results}
                firsts = [chunks_of(result)[0] for result in results]
                if checkpoint is not None:
                    found += sum(chunk["cached_tokens"] for chunk in firsts)
                asked = [
                    ids + by_name[prompt.group_id].output_ids
                    for ids, prompt in zip(asked, named, strict=True)
                ]
                await asyncio.sleep(SETTLED_S)  # the last pages are written after the answer
        return found

    @contextlib.asynccontextmanager
    async def _router(
        self, policy: Policy, release: bool, **settings: Any
    ) -> AsyncIterator[tuple[str, RouterService]]:
        settings["pool_keeper"] = self._servers.keeper if release else ""
        async with attached_router(self._servers.urls, policy, CHUNK_TOKENS, None, **settings) as (
            url,
            service,
        ):
            yield url, service

    async def _prompts(self) -> list[Prompt]:
        """As token ids, or the first seconds would show how fast the servers tokenize."""
        texts = prompts(self._size.groups, seed=11)
        async with httpx.AsyncClient(timeout=60.0, trust_env=False) as client:
            answer = await client.post(f"{self._servers.urls[0]}/tokenize", json={"prompt": texts})
        ids = answer.raise_for_status().json()["tokens"]
        return [Prompt(f"group {number}", input_ids=each) for number, each in enumerate(ids)]

    def _watched(self) -> contextlib.AbstractAsyncContextManager[list[tuple[float, float]]]:
        if self._servers.metrics_url:
            return watched_pool(self._servers.metrics_url)
        return contextlib.nullcontext([])

    async def _clear(self) -> None:
        """Empty caches and pool."""
        await self._servers.post("/flush_cache?timeout=10")
        if not self._servers.metrics_url:
            return
        held = 1.0
        for _ in range(CLEARINGS):  # what was read a moment ago is leased, and stays
            await self._servers.post("/hicache/storage-backend/clear")
            if not (held := await until_empty(self._servers.metrics_url, CLEARING_S)):
                return
        raise RuntimeError(f"the pool keeps {held:,.0f} bytes that were to be removed")


def state_of(service: RouterService) -> tuple[int, int]:
    """Requests on engines, and requests that wait for their KV."""
    return len(service.core.chunks), len(service.core.settling)


async def _update(url: str, checkpoint: Path) -> None:
    async with httpx.AsyncClient(timeout=120.0, trust_env=False) as client:
        answer = await client.post(
            f"{url}/update_weights_from_disk", json={"model_path": str(checkpoint)}
        )
    if answer.status_code != 200:
        raise RuntimeError(f"the weights were not updated: {answer.status_code} {answer.text}")


def _check(results: list[SampleResult], samples: int) -> None:
    failed = [result for result in results if result.status != 200]
    if failed or len(results) != samples:
        shown = failed[0].error if failed else "nobody failed"
        raise RuntimeError(f"{len(results)} of {samples} samples came, {len(failed)} failed: {shown}")


def row_of(run: Run) -> Row:
    """What is shown of a rollout."""
    report, pool = run.report, run.footprint
    mean, peak, end = (pool.mean_bytes, pool.peak_bytes, pool.end_bytes) if pool else (None, None, None)
    return {
        "table": ROLLOUTS,
        "rollout": run.way.name,
        "seconds": report.seconds,
        "tokens": report.tokens,
        "chunks": report.chunks,
        "moved_chunks": report.moved_chunks,
        "prefix_found_share": report.prefix_found_share,
        "pool_share": report.pool_share,
        "computed_again_tokens": report.computed_again_tokens,
        "pool_wait_s": report.pool_wait_s,
        "move_wait_s": run.move_wait_s,
        "kv_time_share": run.kv_time_share,
        "pool_mean_mb": mean and mean / 1e6,
        "pool_peak_mb": peak and peak / 1e6,
        "pool_end_mb": end and end / 1e6,
    }


def figures_of(runs: Sequence[Run]) -> dict[str, float]:
    """Numbers that a text may quote, see `bench.kv`; what nothing was there to tell of is left out."""
    eager, kept, moving, apart = runs
    figures: dict[str, float | None] = {
        "prefix_found_share": eager.report.prefix_found_share,
        "prefix_found_share_every_move": moving.report.prefix_found_share,
        **_ratios(eager.footprint, kept.footprint),
        "kv_time_share": eager.kv_time_share,
        "kv_time_share_every_move": moving.kv_time_share,
        "no_pool_x": apart.report.seconds / moving.report.seconds,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _ratios(eager: Footprint | None, kept: Footprint | None) -> dict[str, float]:
    if eager is None or kept is None:
        return {}
    return {
        "footprint_x": eager.mean_bytes / kept.mean_bytes,
        "footprint_peak_x": eager.peak_bytes / kept.peak_bytes,
    }
