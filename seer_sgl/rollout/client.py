"""Sends every sample of every group to a router as one request, and yields answers as they come."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import msgspec

from seer_sgl.errors import SeerError


class Prompt(msgspec.Struct, frozen=True):
    """One group to sample."""

    group_id: str
    text: str | None = None
    input_ids: list[int] | None = None


class Rollout(msgspec.Struct, frozen=True):
    """What to send."""

    url: str
    prompts: list[Prompt]
    group_size: int
    sampling: dict[str, Any]
    extra: dict[str, Any] = {}
    """Further top-level fields of every body."""


class SampleResult(msgspec.Struct, frozen=True):
    """One answer."""

    group_id: str
    sample: int
    status: int
    """HTTP status; 200 where there is an answer."""
    finished_s: float
    """Seconds after the rollout began."""
    text: str = ""
    output_ids: list[int] = []
    meta_info: dict[str, Any] = {}
    error: str = ""


async def run_rollout(rollout: Rollout) -> AsyncIterator[SampleResult]:
    """Send everything at once, as a trainer does; yield each sample when it is there.

    A sample that is refused is yielded with its error, and the others go on.

    Raises:
        SeerError: the router cannot be reached.
    """
    limits = httpx.Limits(max_connections=None)
    timeout = httpx.Timeout(None, connect=60.0)
    began_s = time.monotonic()
    async with httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as client:
        tasks = [
            asyncio.create_task(_one(client, rollout, prompt, sample, began_s))
            for prompt, sample in _jobs(rollout)
        ]
        try:
            for task in asyncio.as_completed(tasks):
                yield await task
        except httpx.TransportError as error:
            raise SeerError(f"lost the router at {rollout.url}: {error}") from None
        finally:
            for pending in tasks:
                pending.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _jobs(rollout: Rollout) -> Iterator[tuple[Prompt, int]]:
    for prompt in rollout.prompts:
        for sample in range(rollout.group_size):
            yield prompt, sample


async def _one(
    client: httpx.AsyncClient, rollout: Rollout, prompt: Prompt, sample: int, began_s: float
) -> SampleResult:
    body: dict[str, Any] = {
        **rollout.extra,
        "group_id": prompt.group_id,
        "sampling_params": rollout.sampling,
    }
    if prompt.text is not None:
        body["text"] = prompt.text
    if prompt.input_ids is not None:
        body["input_ids"] = prompt.input_ids
    response = await client.post(f"{rollout.url}/generate", json=body)
    finished_s = time.monotonic() - began_s
    if response.status_code != 200:
        message = _error_of(response)
        return SampleResult(prompt.group_id, sample, response.status_code, finished_s, error=message)
    answer = msgspec.json.decode(response.content)
    finish = answer["meta_info"]["finish_reason"]
    if finish["type"] == "abort":
        status = finish.get("status_code") or 503
        return SampleResult(prompt.group_id, sample, status, finished_s, error=finish["message"])
    return SampleResult(
        prompt.group_id,
        sample,
        200,
        finished_s,
        answer["text"],
        answer["output_ids"],
        answer["meta_info"],
    )


def _error_of(response: httpx.Response) -> str:
    """The router's message; what stands between us and the router may answer anything."""
    try:
        return str(msgspec.json.decode(response.content)["error"]["message"])
    except (msgspec.DecodeError, LookupError, TypeError):
        return response.text[:200] or f"HTTP status {response.status_code}"


async def page_tokens_of(url: str) -> int:
    """KV page size of the router's engines, in tokens.

    Raises:
        SeerError: the router cannot be reached, or has no engine.
    """
    try:
        async with httpx.AsyncClient(timeout=30.0, trust_env=False) as client:
            engines = (await client.get(f"{url}/engines")).raise_for_status().json()["engines"]
    except httpx.HTTPError as error:
        raise SeerError(f"no router answers at {url}: {error}") from None
    if not engines:
        raise SeerError(f"the router at {url} has no engine yet")
    return int(engines[0]["page_tokens"])
