"""KV leaves the pool with the requests that needed it, on real servers."""

import threading
import time
from typing import Any

import httpx

from seer_sgl.smallmodel.problems import prompts
from tests.integration.conftest import Cluster
from tests.integration.weights import Pages

GONE_S = 60.0
"""After the last answer: the prompts' linger, and the last look for pages that were written late."""


def test_a_rollout_leaves_no_page_behind(cluster: Cluster) -> None:
    body: dict[str, Any] = {
        "text": prompts(8, seed=11),
        "sampling_params": {"n": 4, "max_new_tokens": 300, "temperature": 1.0, "ignore_eos": True},
    }
    answers: list[Any] = []

    def generate() -> None:
        answers.append(httpx.post(f"{cluster.url}/generate", json=body, timeout=200).json())

    with Pages(cluster) as store:
        before = store.keys()
        running = threading.Thread(target=generate)
        running.start()
        seen = set[str]()
        while running.is_alive():
            seen |= store.keys() - before
            time.sleep(0.2)
        running.join()
        assert len(answers[0]) == 32
        assert all(len(answer["output_ids"]) == 300 for answer in answers[0])
        # Two objects for every 16 tokens, less what had gone before it was looked at.
        assert len(seen) > 32 * 300 / 16, "hardly anything was written"
        deadline_s = time.monotonic() + GONE_S
        while left := seen & store.keys():
            assert time.monotonic() < deadline_s, f"{len(left)} of {len(seen)} objects stay"
            time.sleep(0.5)
        assert not store.keys() - before, "something was written that nobody looks after"
    counted = httpx.get(f"{cluster.url}/metrics").text
    line = next(line for line in counted.splitlines() if line.startswith("seer_pool_released_pages"))
    assert float(line.split()[-1]) >= len(seen) / 2
