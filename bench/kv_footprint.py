"""What the pool holds over time, as its master tells."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import httpx
import msgspec

T = TypeVar("T")

ALLOCATED = "master_allocated_bytes"
EVERY_S = 0.2


class Footprint(msgspec.Struct, frozen=True):
    """Bytes in the pool over a rollout."""

    mean_bytes: float
    """Over time."""
    peak_bytes: float
    end_bytes: float


def metric(text: str, name: str) -> float:
    """A metric without labels, of Prometheus' text format.

    Raises:
        LookupError: it is not there.
    """
    for line in text.splitlines():
        found, _, value = line.partition(" ")
        if found == name:
            return float(value)
    raise LookupError(f"the pool's master tells no {name}")


def footprint_of(samples: Sequence[tuple[float, float]]) -> Footprint:
    """Sum up samples of (seconds, value) in order; each holds until the next.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(samples) < 2:
        raise ValueError("a footprint takes two samples or more")
    held = sum(value * (after_s - at_s) for (at_s, value), (after_s, _) in pairwise(samples))
    values = [value for _, value in samples]
    return Footprint(held / (samples[-1][0] - samples[0][0]), max(values), values[-1])


async def allocated_bytes(client: httpx.AsyncClient, metrics_url: str) -> float:
    """What the pool holds now."""
    answer = await client.get(f"{metrics_url}/metrics")
    return metric(answer.raise_for_status().text, ALLOCATED)


@contextlib.asynccontextmanager
async def sampled(read: Callable[[], T], every_s: float) -> AsyncIterator[list[tuple[float, T]]]:
    """Values of a cheap function of this process, with their times, until the block ends."""
    samples: list[tuple[float, T]] = [(time.monotonic(), read())]

    async def go_on() -> None:
        while True:
            await asyncio.sleep(every_s)
            samples.append((time.monotonic(), read()))

    task = asyncio.create_task(go_on())
    try:
        yield samples
    finally:
        task.cancel()
        samples.append((time.monotonic(), read()))


@contextlib.asynccontextmanager
async def watched_pool(
    metrics_url: str, every_s: float = EVERY_S
) -> AsyncIterator[list[tuple[float, float]]]:
    """What the pool holds, with times, until the block ends.

    Raises:
        httpx.HTTPError: the master does not answer.
    """
    samples: list[tuple[float, float]] = []
    async with httpx.AsyncClient(timeout=10.0, trust_env=False) as client:

        async def look() -> None:
            samples.append((time.monotonic(), await allocated_bytes(client, metrics_url)))

        async def go_on() -> None:
            while True:
                await asyncio.sleep(every_s)
                await look()

        await look()
        task = asyncio.create_task(go_on())
        try:
            yield samples
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await look()


async def until_empty(metrics_url: str, patience_s: float) -> float:
    """Wait until the pool holds nothing; what it holds at last, if that is longer than the patience."""
    end_s = time.monotonic() + patience_s
    async with httpx.AsyncClient(timeout=10.0, trust_env=False) as client:
        held = await allocated_bytes(client, metrics_url)
        while held and time.monotonic() < end_s:
            await asyncio.sleep(EVERY_S)
            held = await allocated_bytes(client, metrics_url)
    return held
