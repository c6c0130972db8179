"""The package that takes the stock router's name: started, asked and stopped as that one is."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from seer_sgl.engine.process import free_port
from tests.unit.mock_worker import MockWorker

SHIM = Path(__file__).resolve().parents[2] / "seer_sgl" / "shim"
PATIENCE_S = 20.0
START_S = 60.0


class StockRouter:
    """What programs take for the stock router, in a process of its own."""

    def __init__(self, *args: str) -> None:
        port, self.prometheus_port = free_port(), free_port()
        argv = [
            *(sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1"),
            *("--port", str(port), "--prometheus-port", str(self.prometheus_port)),
            *("--prometheus-host", "127.0.0.1", *args),
        ]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            argv, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(SHIM)}
        )
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)

    def healthy(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self.http.get("/health").status_code == 200
        assert self.process.poll() is None, self.process.communicate()[1]
        return False

    def urls(self) -> list[str]:
        return [worker["url"] for worker in self.http.get("/workers").json()["workers"]]

    def complete(self, prompt: str = "x", **headers: str) -> httpx.Response:
        body = {"model": "test-model", "prompt": prompt, "max_tokens": 1, "stream": False}
        return self.http.post("/v1/completions", json=body, headers=headers)

    def workers_seen(self, requests: int) -> set[str]:
        """Who answered so many requests, all of them well."""
        answers = [self.complete() for _ in range(requests)]
        assert {answer.status_code for answer in answers} == {200}, answers[0].text
        return {answer.headers["X-Worker-Id"] for answer in answers}

    def end(self) -> str:
        """Its log, after a SIGTERM that it obeys."""
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            _, said = self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.process.kill()
        assert self.process.returncode == 0, said
        assert "Traceback" not in said
        return said


@contextlib.contextmanager
def started(*args: str) -> Iterator[StockRouter]:
    router = StockRouter(*args)
    try:
        wait(router.healthy, START_S)
        yield router
    finally:
        router.end()


def wait(holds: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.05)


# ---- as a process ----


@pytest.fixture(scope="module")
def first() -> Iterator[MockWorker]:
    with MockWorker("first") as worker:
        yield worker


@pytest.fixture(scope="module")
def router(first: MockWorker) -> Iterator[StockRouter]:
    with started("--policy", "round_robin", "--worker-urls", first.url) as it:
        yield it


def test_a_worker_comes_and_goes_by_url(router: StockRouter, first: MockWorker) -> None:
    with MockWorker("second") as second:
        added = router.http.post("/workers", json={"url": second.url})
        assert added.status_code == 202
        assert added.json()["location"] == f"/workers/{added.json()['worker_id']}"
        assert router.workers_seen(6) == {"first", "second"}
        removed = router.http.delete(f"/workers/{quote(second.url, safe='')}")
        assert removed.status_code == 202
        assert router.workers_seen(6) == {"first"}
        assert router.urls() == [first.url]


def test_the_entries_are_the_stock_routers(router: StockRouter, first: MockWorker) -> None:
    listed = router.http.get("/workers").json()
    (entry,) = listed["workers"]
    assert listed["total"] == 1
    assert listed["stats"] == {"prefill_count": 0, "decode_count": 0, "regular_count": 1}
    assert isinstance(entry.pop("metadata"), dict)
    known = {key: entry.pop(key) for key in ("id", "url")}
    assert router.http.get(f"/workers/{known['id']}").json()["url"] == known["url"] == first.url
    assert entry == {
        "model_id": "unknown",
        "priority": 50,
        "cost": 1.0,
        "worker_type": "regular",
        "is_healthy": True,
        "load": 0,
        "connection_mode": "HTTP",
        "disable_health_check": False,
    }


def test_a_worker_that_dies_is_missed_and_found_again(router: StockRouter) -> None:
    def health() -> list[bool]:
        return [worker["is_healthy"] for worker in router.http.get("/workers").json()["workers"]]

    with MockWorker("mortal") as mortal:
        router.http.post("/workers", json={"url": mortal.url}).raise_for_status()
        assert router.workers_seen(4) == {"first", "mortal"}
        mortal.end()
        assert router.workers_seen(4) == {"first"}, "no request is lost"
        wait(lambda: health() == [True, False])
        mortal.start()
        wait(lambda: health() == [True, True])
        assert "mortal" in router.workers_seen(4)
        router.http.delete(f"/workers/{quote(mortal.url, safe='')}").raise_for_status()


def test_generate_reaches_a_server_that_says_nothing_of_itself(
    router: StockRouter, first: MockWorker
) -> None:
    body = {"input_ids": [3, 4, 5], "sampling_params": {"max_new_tokens": 9}, "custom": {"a": 1}}
    answer = router.http.post("/generate", json=body).json()
    assert (answer["text"], answer["output_ids"]) == ("first", [5, 7])
    assert answer["meta_info"]["prompt_tokens"] == 3
    sent = first.bodies[-1]
    assert (sent["input_ids"], sent["custom"]) == ([3, 4, 5], {"a": 1})


def test_a_failing_worker_is_no_failure(router: StockRouter) -> None:
    with MockWorker("broken", status=500) as broken:
        router.http.post("/workers", json={"url": broken.url}).raise_for_status()
        assert router.workers_seen(4) == {"first"}
        assert broken.bodies, "it was never asked"
        router.http.delete(f"/workers/{quote(broken.url, safe='')}").raise_for_status()


def test_a_worker_may_ask_for_a_key(router: StockRouter) -> None:
    with MockWorker("locked", key="secret") as locked:
        body = {"url": locked.url, "api_key": "secret"}
        router.http.post("/workers", json=body).raise_for_status()
        assert "locked" in router.workers_seen(4)
        router.http.delete(f"/workers/{quote(locked.url, safe='')}").raise_for_status()


def test_round_robin_is_even(router: StockRouter) -> None:
    with MockWorker("second") as second, MockWorker("third") as third:
        for worker in (second, third):
            router.http.post("/workers", json={"url": worker.url}).raise_for_status()
        answers = [router.complete(f"hello {number}") for number in range(30)]
        counts = Counter(answer.headers["X-Worker-Id"] for answer in answers)
        assert len(counts) == 3
        assert all(7 <= count <= 13 for count in counts.values()), counts
        for worker in (second, third):
            router.http.delete(f"/workers/{quote(worker.url, safe='')}").raise_for_status()


def test_arguments_that_are_obeyed() -> None:
    with MockWorker("one", key="secret") as one, MockWorker("two", key="secret") as two:
        urls = ("--worker-urls", one.url, two.url)
        with started("--policy", "cache_aware", "--max-payload-size", str(1 << 20), *urls) as router:
            assert router.complete().status_code == 401
            assert router.complete(authorization="Bearer wrong").status_code == 401
            key = {"authorization": "Bearer secret"}
            alike = [router.complete("repeated prompt for cache", **key) for _ in range(12)]
            assert {answer.status_code for answer in alike} == {200}
            assert len({answer.headers["X-Worker-Id"] for answer in alike}) == 1
            diverse = [router.complete(f"{number} is another prompt", **key) for number in range(24)]
            assert {answer.headers["X-Worker-Id"] for answer in diverse} == {"one", "two"}
            assert router.complete("x" * (1 << 19), **key).status_code == 200
            assert router.complete("x" * (5 << 18), **key).status_code == 413


def test_prometheus_has_a_port(router: StockRouter) -> None:
    url = f"http://127.0.0.1:{router.prometheus_port}"
    with httpx.Client(base_url=url, trust_env=False) as http:
        assert "# TYPE" in http.get("/metrics").text
        assert http.get("/workers").status_code == 404


# ---- what it refuses ----


def failed(*args: str) -> str:
    """What the command says that cannot start."""
    ran = subprocess.run(
        [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SHIM)},
    )
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr.splitlines()[-1]


def test_what_would_silently_be_missing_is_refused() -> None:
    said = failed("--pd-disaggregation", "--prefill", "http://a:1", "none", "--decode", "http://b:1")
    for flag in ("--pd-disaggregation", "--prefill", "--decode"):
        assert f"{flag} (" in said
    assert "grpc://a:1" in failed("--worker-urls", "grpc://a:1")


# ---- as a library ----


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports modules of the package, as if it were installed; they are gone after."""
    monkeypatch.syspath_prepend(str(SHIM))

    def load(name: str) -> ModuleType:
        import importlib

        return importlib.import_module(f"sglang_router{name}")

    yield load
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang_router"]:
        del sys.modules[name]


def test_programs_find_what_they_import(shim: Callable[[str], Any]) -> None:
    from packaging.version import parse

    assert parse(shim("").__version__) > parse("0.2.1"), "older ones speak another interface"
    for place in (".launch_router", ".launch_server"):
        assert callable(shim(place).launch_router)
        assert shim(place).RouterArgs().policy == "cache_aware"


def test_arguments_beside_those_of_a_server(shim: Callable[[str], Any]) -> None:
    import argparse

    router_args = shim(".launch_router").RouterArgs
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="0.0.0.0")
    router_args.add_cli_args(parser, use_router_prefix=True, exclude_host_port=True)
    words = "--router-policy random --router-selector a=b c=d --router-request-timeout-secs 9"
    found = router_args.from_cli_args(parser.parse_args(words.split()), use_router_prefix=True)
    assert (found.policy, found.selector, found.request_timeout_secs) == (
        "random",
        {"a": "b", "c": "d"},
        9,
    )
    assert (found.host, found.prometheus_port, found.worker_urls) == ("0.0.0.0", 29000, [])


@pytest.mark.parametrize(
    ("words", "prefill"),
    [
        ("http://a:1 9000", [("http://a:1", 9000)]),
        ("http://a:1 none", [("http://a:1", None)]),
        ("http://a:1", [("http://a:1", None)]),
    ],
)
def test_ports_of_prefill_servers(shim: Callable[[str], Any], words: str, prefill: Any) -> None:
    parse = shim(".launch_router").parse_router_args
    found = parse(["--prefill", *words.split(), "--decode", "http://b:1"])
    assert (found.prefill_urls, found.decode_urls) == (prefill, ["http://b:1"])
    with pytest.raises(ValueError, match="bootstrap port"):
        parse(["--prefill", "http://a:1", "x"])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("random", "least_loaded"),
        ("round_robin", "least_loaded"),
        ("power_of_two", "least_loaded"),
        ("cache_aware", "seer"),
        ("manual", "seer"),
        ("consistent_hashing", "seer"),
    ],
)
def test_policies(shim: Callable[[str], Any], theirs: str, ours: str) -> None:
    args = shim(".router_args").RouterArgs(policy=theirs, worker_urls=["http://a:1"], api_key="k")
    plan = shim(".translation").planned(args)
    assert plan.head.router.policy == ours
    assert plan.notes == [f"policy {theirs} of the stock router: {ours} of seer-sgl"]
    assert (plan.head.attach, plan.head.attach_api_key) == (("http://a:1",), "k")
    assert (plan.head.engines, plan.head.pool, plan.head.router.draft) == (0, False, None)


def test_arguments_without_meaning_are_named_in_one_line(shim: Callable[[str], Any]) -> None:
    args = shim(".router_args").RouterArgs(retry_max_retries=3, dp_aware=True, host="[::1]")
    plan = shim(".translation").planned(args)
    assert plan.notes[1:] == [
        "accepted, but without meaning in seer-sgl: --dp-aware, --retry-max-retries"
    ]
    assert plan.head.router.host == "::1"
