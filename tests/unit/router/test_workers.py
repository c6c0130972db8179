"""`/workers`: what the stock router's clients see of a cluster, and how they change it."""

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from seer_sgl.engine.process import free_port
from seer_sgl.errors import RequestError
from seer_sgl.router.http.workers import leads_here
from seer_sgl.router.workers import Engine, Registration, Worker, described, listed, named, normal_url
from seer_sgl.types import EngineId
from tests.unit.mock_worker import MockWorker
from tests.unit.router.conftest import Cluster, cluster, prompts, run, server, together, until

A, B, C = EngineId("a"), EngineId("b"), EngineId("c")
ROUTER = "http://router:1"
P1, P2 = "http://router:2", "http://router:3"
OF_A, OF_C = "http://a:1", "http://c:1"


# ---- the list, as values ----


@pytest.mark.parametrize(
    ("engines", "ports", "attached", "registered", "urls"),
    [
        ([], {}, {}, {}, []),
        ([A, B], {}, {}, {}, [(ROUTER, (A, B))]),
        ([], {}, {}, {ROUTER: None}, [(ROUTER, ())]),
        ([A], {}, {}, {"http://me:1": None}, [("http://me:1", (A,))]),
        ([A, B], {A: P1, B: P2}, {}, {}, [(P1, (A,)), (P2, (B,))]),
        ([A], {A: P1}, {}, {P1: None}, [(P1, (A,))]),
        ([A], {}, {OF_A: A}, {}, [(OF_A, (A,))]),
        ([A], {A: P1}, {OF_A: A}, {}, [(OF_A, (A,))]),
        ([A, B], {}, {OF_A: A, OF_C: C}, {}, [(ROUTER, (B,)), (OF_A, (A,)), (OF_C, (C,))]),
        ([A, B], {}, {}, {OF_A: A}, [(ROUTER, (B,)), (OF_A, (A,))]),
    ],
)  # fmt: skip
def test_which_entries_there_are(
    engines: list[EngineId],
    ports: Mapping[EngineId, str],
    attached: Mapping[str, EngineId],
    registered: Mapping[str, EngineId | None],
    urls: list[tuple[str, tuple[EngineId, ...]]],
) -> None:
    known = {url: Registration(engine) for url, engine in registered.items()}
    workers = listed(ROUTER, engines, ports, attached, known)
    assert [(worker.url, worker.engines) for worker in workers] == urls


def test_an_entry_tells_of_all_its_engines() -> None:
    engines = {A: Engine("m", 2, {"engine": "a"}), B: Engine("m", 3, {"engine": "b"})}
    both = described(Worker(ROUTER, (A, B)), engines, Registration(None, 7, 2.0, {"zone": "z"}))
    assert (both["load"], both["is_healthy"], both["model_id"]) == (5, True, "m")
    assert (both["priority"], both["cost"]) == (7, 2.0)
    assert both["metadata"] == {"engines": "2", "zone": "z"}
    one = described(Worker("http://b:1", (B,)), engines, None)
    assert (one["load"], one["metadata"]) == (3, {"engine": "b"})
    gone = described(Worker("http://c:1", (C,)), engines, None)
    assert (gone["is_healthy"], gone["load"], gone["model_id"]) == (False, 0, "unknown")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://a:1", "http://a:1"),
        (" http://A:1/ ", "http://a:1"),
        ("https://a/x/", "https://a/x"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_one_spelling_of_a_url(text: str, url: str) -> None:
    assert normal_url(text) == url
    assert named([Worker(url, ())], text) == Worker(url, ())


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "grpc://a:1", "a:1", "http://", "http://:1", "http://a:x", "http://a:99999",
     "http://a:0", "http://u@a:1", "http://a:1?x=1", "http://a b:1", "http://\u00e4:1", "http://[::1", "http://a:1/\x00"],
)  # fmt: skip
def test_what_is_no_servers_url(text: str) -> None:
    with pytest.raises(RequestError, match="is not the URL of an HTTP server"):
        normal_url(text)


@pytest.mark.parametrize(
    ("host", "listens_on", "here"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("localhost", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("192.0.2.1", "0.0.0.0", False),
        ("127.0.0.2", "127.0.0.1", False),
        ("no-such-host.invalid", "0.0.0.0", False),
    ],
)
def test_names_of_this_machine(host: str, listens_on: str, here: bool) -> None:
    assert asyncio.run(leads_here(host, listens_on)) is here


# ---- over HTTP ----


async def urls(it: Cluster) -> list[str]:
    return [worker["url"] for worker in (await it.http.get("/workers")).json()["workers"]]


async def registered(it: Cluster, url: str, **more: Any) -> dict[str, Any]:
    """What the router answers to a registration that it takes."""
    answer = await it.http.post("/workers", json={"url": url, **more})
    assert answer.status_code == 202, answer.text
    body: dict[str, Any] = answer.json()
    return body


def own(it: Cluster) -> str:
    return f"http://127.0.0.1:{it.config.http_port}"


def test_all_engines_are_one_server() -> None:
    async def scenario() -> None:
        async with cluster(server("a"), server("b")) as it:
            listing = (await it.http.get("/workers")).json()
            (entry,) = listing["workers"]
            assert (entry["url"], entry["is_healthy"], listing["total"]) == (own(it), True, 1)
            assert (await it.http.get("/list_workers")).json() == {"urls": [own(it)]}
            for name in (entry["id"], quote(own(it), safe="")):
                assert (await it.http.get(f"/workers/{name}")).json() == entry

    run(scenario())


def test_a_router_that_is_registered_with_itself_makes_no_loop() -> None:
    """As slime does, whose servers register with their router."""

    async def scenario() -> None:
        async with cluster(server("a")) as it:
            for name in (own(it), own(it) + "/", f"http://localhost:{it.config.http_port}"):
                answer = await registered(it, name, worker_type="regular")
                assert answer["status"] == "accepted"
            assert list(it.service.roster.members) == [A]
            assert await urls(it) == [own(it), f"http://localhost:{it.config.http_port}"]
            mine = (await registered(it, own(it)))["worker_id"]
            assert (await it.http.delete(f"/workers/{mine}")).status_code == 202
            assert (await it.generate(prompts(1)[0]))["output_ids"]

    run(scenario())


def test_an_engines_port_that_is_registered_makes_no_loop() -> None:
    async def scenario() -> None:
        async with cluster(server("a"), server("b"), engine_ports=free_port()) as it:
            before = await urls(it)
            assert len(before) == 2
            for url in before:
                await registered(it, url, worker_type="regular")
            assert await urls(it) == before
            assert sorted(it.service.roster.members) == [A, B]

    run(scenario())


def test_a_server_is_listed_by_its_exact_url_before_it_is_there() -> None:
    """As NeMo-RL polls for it, and ROLL removes it."""

    async def scenario() -> None:
        url = f"http://127.0.0.1:{free_port()}"
        async with cluster(server("a")) as it:
            began_s = time.monotonic()
            answer = await registered(it, url)
            assert time.monotonic() - began_s < 3
            assert answer["url"] == url
            assert url in await urls(it)
            entry = (await it.http.get(answer["location"])).json()
            assert (entry["is_healthy"], entry["id"]) == (False, answer["worker_id"])
            removed = await it.http.delete(f"/workers/{quote(url, safe='')}")
            assert removed.status_code == 202
            assert await urls(it) == [own(it)]
            assert (await it.http.delete(f"/workers/{answer['worker_id']}")).status_code == 404

    run(scenario())


def test_requests_wait_for_the_first_server_and_go_to_it() -> None:
    async def scenario() -> None:
        with MockWorker("w") as worker:
            async with cluster() as it, together(it.generate([5, 6])) as waiting:
                assert (await it.http.get("/workers")).json()["workers"] == []
                await registered(it, worker.url, labels={"zone": "z"}, priority=3)
                assert (await waiting)["text"] == "w"
                (entry,) = (await it.http.get("/workers")).json()["workers"]
                assert (entry["is_healthy"], entry["priority"]) == (True, 3)
                assert entry["metadata"]["zone"] == "z"
                changed = await it.http.put(f"/workers/{entry['id']}", json={"cost": 4.5})
                assert changed.status_code == 202
                assert (await it.http.get(f"/workers/{entry['id']}")).json()["cost"] == 4.5

    run(scenario())


def test_what_runs_on_a_removed_server_goes_on_elsewhere() -> None:
    async def scenario() -> None:
        with MockWorker("w", hangs=True) as worker:
            async with cluster() as it:
                await registered(it, worker.url)
                async with together(it.generate(prompts(1)[0])) as asked:
                    await until(lambda: worker.bodies)
                    await it.join(server("a", page_tokens=1))
                    await it.http.delete(f"/workers/{quote(worker.url, safe='')}")
                    assert list(it.service.roster.members) == [A]
                    (chunk,) = (await asked)["meta_info"]["seer"]["chunks"]
                    assert chunk["engine"] == "a"

    run(scenario())


def test_an_engine_of_another_node_is_not_attached_a_second_time() -> None:
    async def scenario() -> None:
        async with cluster(server("a"), server("b")) as it:
            theirs = it.service.roster.members[A].card.url
            await registered(it, theirs)
            assert sorted(it.service.roster.members) == [A, B]
            assert await urls(it) == [own(it), theirs]
            removed = await it.http.delete(f"/workers/{quote(theirs, safe='')}")
            assert "whoever runs the engine stops it" in removed.json()["message"]
            assert await urls(it) == [own(it)]

    run(scenario())


def test_older_names() -> None:
    """As verl and older routers' clients send them."""

    async def scenario() -> None:
        with MockWorker("w") as worker:
            async with cluster() as it:
                added = await it.http.post("/add_worker", params={"url": worker.url})
                assert (added.status_code, added.json()["status"]) == (200, "success")
                assert (await it.http.get("/list_workers")).json() == {"urls": [worker.url]}
                for _ in range(2):  # it need not be there
                    removed = await it.http.post("/remove_worker", params={"url": worker.url})
                    assert removed.status_code == 200
                assert (await it.http.get("/list_workers")).json() == {"urls": []}
                assert (await it.http.post("/add_worker")).status_code == 400

    run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/workers", {}, 400),
        ("POST", "/workers", {"url": 5}, 400),
        ("POST", "/workers", {"url": "nonsense"}, 400),
        ("POST", "/workers", {"url": "http://a:1", "worker_type": "prefill"}, 400),
        ("POST", "/workers", {"url": "http://a:1", "priority": "high"}, 400),
        ("PUT", "/workers/x", {"priority": "high"}, 400),
        ("PUT", "/workers/x", {}, 404),
        ("GET", "/workers/x", None, 404),
        ("DELETE", "/workers/" + quote("http://a:1", safe=""), None, 404),
        ("PATCH", "/workers", None, 405),
    ],
)
def test_bad_requests(method: str, path: str, body: Any, status: int) -> None:
    async def scenario() -> httpx.Response:
        async with cluster() as it:
            answer = await it.http.request(method, path, json=body)
            assert await urls(it) == []
            return answer

    async def checked() -> None:
        answer = await scenario()
        assert answer.status_code == status, answer.text
        assert re.fullmatch(r"\w+", answer.json()["error"]["code"])

    run(checked())


def test_a_server_that_is_refused_is_offered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_sgl.engine.attached.REFUSED_PAUSE_S", 0.01)

    async def scenario() -> None:
        with MockWorker("w") as worker:  # its pages are of one token
            async with cluster() as it:
                other = await it.join(server("a", page_tokens=16))
                await registered(it, worker.url)
                assert list(it.service.roster.members) == [A]
                other.cancel()
                await until(
                    lambda: list(it.service.roster.members) == [worker.url.removeprefix("http://")]
                )

    run(scenario())
