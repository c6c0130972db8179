"""What tests of weight changes share: questions, what their answers show, and hands on the KV store."""

import re
import time
import urllib.request
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.integration.conftest import Cluster

PROMPT_TOKENS = 200
NEW_TOKENS = 48
PAGE_TOKENS = 16
TOLERANCE = 1e-3
OTHER = 0.1
"""Log-probabilities of other weights are further apart than this somewhere."""
_PAGES_S = 10.0
_SEGMENT_BYTES = 0
_BUFFER_BYTES = 64 << 20

Answer = dict[str, Any]


def post(http: httpx.Client, path: str, **body: Any) -> Any:
    """What a call says that goes well."""
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json() if answer.content else None


def ask(http: httpx.Client, prompts: list[list[int]], **more: Any) -> list[Answer]:
    """Greedy answers to all of them, asked at once."""
    sampling = {"max_new_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}

    def one(ids: list[int]) -> Answer:
        said: Answer = post(
            http, "/generate", input_ids=ids, sampling_params=sampling, return_logprob=True, **more
        )
        return said

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(one, prompts))


def furthest(answers: list[Answer], others: list[Answer]) -> float:
    """The largest difference between log-probabilities of the same places."""
    metas = [(one["meta_info"], other["meta_info"]) for one, other in zip(answers, others, strict=True)]
    logprobs = "output_token_logprobs"
    worst: float = max(
        abs(mine[0] - its[0])
        for one, other in metas
        for mine, its in zip(one[logprobs], other[logprobs], strict=True)
    )
    return worst


def found(answers: list[Answer], where: str | None = None) -> int:
    """Prompt tokens whose KV was found: anywhere, or on one level."""
    metas = [answer["meta_info"] for answer in answers]
    if where is None:
        return sum(meta["cached_tokens"] for meta in metas)
    return sum((meta["cached_tokens_details"] or {}).get(where) or 0 for meta in metas)


def engines(answers: list[Answer]) -> set[str]:
    """Where they ran."""
    return {chunk["engine"] for each in answers for chunk in each["meta_info"]["seer"]["chunks"]}


def check_same(answers: list[Answer], others: list[Answer]) -> None:
    """They are of the same weights."""
    assert [each["output_ids"] for each in answers] == [each["output_ids"] for each in others]
    assert furthest(answers, others) < TOLERANCE


def check_only_new(answers: list[Answer], cold: list[Answer]) -> None:
    """Nothing of earlier weights was found, and what was computed is what a cold server computes."""
    assert found(answers) == 0
    assert [found(answers, level) for level in ("device", "host", "storage")] == [0, 0, 0]
    assert len(engines(answers)) == 2, "both engines were asked"
    check_same(answers, cold)


def check_whole(cluster: Cluster, version: str) -> None:
    """Every engine serves, under this version."""
    state = {(engine["weight_version"], engine["quarantine"]) for engine in cluster.engines()}
    assert state == {(version, None)}
    assert len(cluster.engines()) == 2


class Pages:
    """The objects of a cluster's KV store, past everybody's back.

    Use as a context manager.
    """

    def __init__(self, cluster: Cluster) -> None:
        from mooncake.store import MooncakeDistributedStore

        lines = [" ".join(process.cmdline()) for process in cluster.family()]
        self._master = next(line for line in lines if "mooncake_master" in line)
        self._store = MooncakeDistributedStore()
        where = f"127.0.0.1:{self._flag('rpc_port')}"
        metadata = "P2PHANDSHAKE"
        if "enable_http_metadata_server=true" in self._master:
            metadata = f"http://127.0.0.1:{self._flag('http_metadata_server_port')}/metadata"
        sizes = (_SEGMENT_BYTES, _BUFFER_BYTES)
        assert self._store.setup("127.0.0.1", metadata, *sizes, "tcp", "", where) == 0

    def __enter__(self) -> "Pages":
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def _flag(self, name: str) -> str:
        found = re.search(rf"--{name}=(\S+)", self._master)
        assert found, self._master
        return found[1]

    def keys(self) -> set[str]:
        """Of all objects."""
        url = f"http://127.0.0.1:{self._flag('metrics_port')}/get_all_keys"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return set(answer.read().decode().split())

    def wait_for(self, count: int, besides: set[str]) -> set[str]:
        """The objects that are new, once there are so many."""
        deadline_s = time.monotonic() + _PAGES_S
        while len(fresh := self.keys() - besides) < count:
            assert time.monotonic() < deadline_s, f"{len(fresh)} of {count} pages"
            time.sleep(0.05)
        return fresh

    def read(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Those of them that are there."""
        found = {key: self._store.get(key) for key in keys}
        return {key: content for key, content in found.items() if content}

    def write(self, pages: Mapping[str, bytes]) -> None:
        for key, content in pages.items():
            assert self._store.put(key, content) == 0, key

    def remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._store.remove(key, True)
