"""What Prometheus reads from the router."""

from prometheus_client.parser import text_string_to_metric_families

from seer_sgl.engine.process import free_port
from seer_sgl.kv.messages import Usage
from seer_sgl.router.http.traffic import Timed
from seer_sgl.router.pool import PoolKeeper
from seer_sgl.testing.controls import Reply
from tests.unit.router.conftest import Cluster, cluster, run, server

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def metrics(it: Cluster) -> Values:
    page = (await it.http.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def value(found: Values, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def test_requests_and_answers_are_counted_by_the_stock_routers_names() -> None:
    async def scenario() -> None:
        async with cluster(server("a")) as it:
            for _ in range(3):
                await it.generate([5, 6])
            await it.post({"input_ids": "x"})
            await it.http.get("/no/such/path")
            await it.http.get("/v1/models/v1/models")
            found = await metrics(it)
            generate = {"method": "POST", "path": "/generate"}
            assert value(found, "smg_http_requests_total", **generate) == 4
            assert value(found, "smg_http_request_duration_seconds_count", **generate) == 4
            assert value(found, "smg_http_request_duration_seconds_bucket", le="+Inf", **generate) == 4
            models = {"method": "GET", "path": "/v1/models/{model}"}
            assert value(found, "smg_http_requests_total", **models) == 1
            assert value(found, "smg_http_requests_total", method="GET", path="(unknown)") == 1
            answers = [(200, 3), (400, 1), (404, 2)]
            for status, count in answers:
                labels = {"status_code": str(status), "error_code": ""}
                assert value(found, "smg_http_responses_total", **labels) == count
            routed = {
                "router_type": "http",
                "backend_type": "regular",
                "connection_mode": "http",
                "model": "default",
                "endpoint": "generate",
            }
            assert value(found, "smg_router_requests_total", streaming="false", **routed) == 4
            assert value(found, "smg_router_request_duration_seconds_count", **routed) == 4
            assert value(found, "seer_delivered_total") == 3

    run(scenario())


def test_a_stream_is_told_from_a_whole_answer() -> None:
    async def scenario() -> None:
        async with cluster(server("a")) as it:
            body = {"input_ids": [5, 6], "stream": True}
            async with it.http.stream("POST", "/generate", json=body) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                assert await answer.aread()
            found = await metrics(it)
            kinds = {
                dict(labels)["streaming"]: count
                for (name, labels), count in found.items()
                if name == "smg_router_requests_total"
            }
            assert kinds == {"true": 1}

    run(scenario())


def test_engines_are_shown_by_the_stock_routers_names() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        b.client.url = "http://other"
        async with cluster(a, b) as it:
            pool = {"worker_type": "regular", "connection_mode": "http", "model": "fake-model"}
            found = await metrics(it)
            assert value(found, "smg_worker_pool_size", **pool) == 2
            assert value(found, "smg_worker_health", worker="http://other") == 1
            assert value(found, "smg_worker_requests_active", worker="http://other") == 0
            b.script["/update_weights_from_disk"] = Reply(400, {"success": False, "message": "no"})
            await it.http.post("/update_weights_from_disk", json={"model_path": "/new"})
            found = await metrics(it)
            assert value(found, "smg_worker_health", worker="http://other") == 0
            assert value(found, "smg_worker_health", worker="http://fake") == 1
            assert value(found, "seer_engines") == 1

    run(scenario())


def test_durations_fall_into_the_bound_that_they_do_not_exceed() -> None:
    timed = Timed()
    for seconds in (0.005, 0.0051, 7200.0):
        timed.add(seconds)
    assert (timed.by_bound[0], timed.by_bound[1], timed.by_bound[-1]) == (1, 1, 1)


def test_the_pool_is_shown_where_it_has_a_keeper() -> None:
    async def scenario() -> None:
        async with cluster(server("a")) as it:
            assert value(await metrics(it), "seer_pool_up") is None
        async with cluster(server("a"), pool_keeper=f"tcp://127.0.0.1:{free_port()}") as it:
            assert value(await metrics(it), "seer_pool_up") == 0
            assert isinstance(it.service.pool, PoolKeeper)
            it.service.pool.usage = Usage(used_bytes=7, late_pages=2, up=True)
            found = await metrics(it)
            assert value(found, "seer_pool_up") == 1
            assert value(found, "seer_pool_used_bytes") == 7
            assert value(found, "seer_pool_late_pages_total") == 2

    run(scenario())
