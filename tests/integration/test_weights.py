"""New weights on real servers that share a pool: no KV of old ones is found, and nobody loses a request.

The engines start with the new weights: what they say then, cold, is what they have to say again.
"""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.weights import MAX_RUNNING, under_load
from seer_sgl.engine.sglang import SGLangClient
from seer_sgl.router.core import policy_named
from seer_sgl.smallmodel.problems import prompts
from seer_sgl.smallmodel.variants import changed, save_variant
from seer_sgl.testing.cluster import attached_router
from tests.integration.conftest import Cluster, start_cluster, stop_cluster
from tests.integration.weights import (
    NEW_TOKENS,
    OTHER,
    PAGE_TOKENS,
    PROMPT_TOKENS,
    TOLERANCE,
    Answer,
    Pages,
    ask,
    check_only_new,
    check_whole,
    found,
    furthest,
    post,
)

COUNT = 16
UPDATES = {"drain": 4, "abort": 8, "retract": 8}
"""Under load; the first kind waits for all requests that run."""
REPORT = "SEER_SGL_WEIGHTS_JSON"
"""Environment variable with the file that the times of updates go to."""


@dataclass
class Served:
    """A cluster, two sets of weights, and what it said when it was fresh."""

    cluster: Cluster
    http: httpx.Client
    new: str
    old: str
    asked: list[list[int]]
    cold: list[Answer]
    version: int = 0

    def update(self, folder: str) -> None:
        self.version += 1
        post(self.http, "/update_weights_from_disk", model_path=folder, weight_version=str(self.version))
        check_whole(self.cluster, str(self.version))

    def ask(self) -> list[Answer]:
        return ask(self.http, self.asked)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("weights")
    new, old = (str(save_variant(folder / str(seed), changed(seed))) for seed in (1, 2))
    options = ["--model", new, "--engines", "2"]
    options += ["--chunk-tokens", str(NEW_TOKENS), "--max-running", str(MAX_RUNNING)]
    options += ["--no-kv-release"]  # old pages stay: what keeps them away is the salt alone
    cluster = start_cluster(folder, *options)
    try:
        cluster.wait_for_engines(2)
        with httpx.Client(base_url=cluster.url, timeout=120) as http:
            texts = post(http, "/tokenize", prompt=prompts(COUNT, seed=5))["tokens"]
            asked = [(ids * PROMPT_TOKENS)[:PROMPT_TOKENS] for ids in texts]
            cold = ask(http, asked)
            assert found(cold) == 0
            yield Served(cluster, http, new, old, asked, cold)
        stop_cluster(cluster)
    finally:
        cluster.process.kill()
        cluster.process.wait()


def test_new_weights_find_nothing_of_old_ones(served: Served) -> None:
    served.update(served.old)
    first = served.ask()
    assert furthest(first, served.cold) > OTHER, "these are other weights"
    assert found(served.ask()) > 0.8 * COUNT * (PROMPT_TOKENS - PAGE_TOKENS), "while they stay"
    served.update(served.new)
    check_only_new(served.ask(), served.cold)


def test_old_pages_that_land_after_the_change_are_not_found(served: Served) -> None:
    with Pages(served.cluster) as pages:
        known = pages.keys()
        served.update(served.old)
        old = served.ask()
        # Two objects a page, of keys and of values; the last of a prompt is not whole.
        written = pages.wait_for(2 * COUNT * (PROMPT_TOKENS // PAGE_TOKENS), besides=known)
        served.update(served.new)
        before = pages.read(written)
        pages.remove(before)
        pages.write(before)
        assert before.keys() <= pages.keys(), "the old pages are there"
        check_only_new(served.ask(), served.cold)

        served.update(served.old)
        pages.remove(before)
        pages.write(before)
        again = served.ask()
        assert found(again) == 0, "nor are they when the same weights come back"
        assert furthest(again, old) < TOLERANCE


def test_times_of_updates_under_load(served: Served) -> None:
    async def scenario() -> list[dict[str, Any]]:
        client = SGLangClient(served.cluster.url)
        try:
            folders = [served.new, served.old]
            return await under_load(client, folders, UPDATES, served.version + 1)
        finally:
            await client.close()

    rows = asyncio.run(asyncio.wait_for(scenario(), 240))
    served.version += 2 + sum(UPDATES.values())
    check_whole(served.cluster, str(served.version))
    print(json.dumps(rows, indent=1))
    if file := os.environ.get(REPORT):
        Path(file).write_text(json.dumps(rows))
    assert [(row["faults"], row["problems"]) for row in rows] == [(0, 0)] * 3
    assert all(row["requests"] >= 256 for row in rows)
    assert [bool(row["aborted"]) for row in rows] == [False, True, False]


def test_without_the_salt_old_pages_are_found(served: Served) -> None:
    """So that the tests above could fail."""

    async def scenario() -> tuple[list[Answer], list[Answer]]:
        urls = served.cluster.server_urls()
        router = attached_router(urls, policy_named("seer"), NEW_TOKENS, salted=False)
        async with router as (url, _):
            return await asyncio.to_thread(unsalted, url)

    def unsalted(url: str) -> tuple[list[Answer], list[Answer]]:
        with httpx.Client(base_url=url, timeout=120) as http:
            said = []
            for folder in (served.old, served.new):
                post(http, "/update_weights_from_disk", model_path=folder)
                said.append(ask(http, served.asked))
                time.sleep(1.0)  # until all of it is written
            return said[0], said[1]

    old, new = asyncio.run(scenario())
    assert found(old) == 0
    assert found(new, "storage") > 0.8 * COUNT * (PROMPT_TOKENS - PAGE_TOKENS)
    assert furthest(new, served.cold) > TOLERANCE
    with pytest.raises(AssertionError):
        check_only_new(new, served.cold)
