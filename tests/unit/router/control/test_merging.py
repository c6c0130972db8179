"""Many answers to one command as one answer."""

from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from seer_sgl.router.control import merging
from seer_sgl.router.control.merging import Replies, Reply, json_reply, refused
from seer_sgl.types import EngineId


def replies(*each: Reply) -> Replies:
    return {EngineId(name): reply for name, reply in zip("abcd", each, strict=False)}


def good(**body: Any) -> Reply:
    return json_reply({"success": True, "message": "done", **body})


def test_success_sums_counts_and_joins_what_differs() -> None:
    one, other = good(num_paused_requests=2, new_version="3"), good(num_paused_requests=5)
    assert merging.success(replies(one, other)).json() == {
        "success": True,
        "message": "done",
        "num_paused_requests": 7,
        "new_version": "3",
    }
    joined = merging.success(replies(good(message="x"), good(message="y"), good(message="x")))
    assert joined.json()["message"] == "x | y"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (json_reply({"success": False, "message": "no memory"}, 400), "no memory"),
        (json_reply({"success": False, "error_message": "no adapter"}, 400), "no adapter"),
        (json_reply({"error": {"message": "wrong name"}}, 400), "wrong name"),
        (json_reply({"error": "plain"}, 500), "plain"),
        (json_reply({"object": "error", "message": "flat", "code": 400}, 400), "flat"),
        (Reply(400, b"Flush cache failed.\n", "text/plain"), "Flush cache failed."),
        (Reply(500, b"", ""), "status 500"),
        (Reply(500, b"\xff\xfe", ""), "\ufffd\ufffd"),
    ],
)
@pytest.mark.parametrize("merge", [merging.success, merging.text, merging.passed, merging.same])
def test_one_failure_fails_all_and_names_its_engine(answer: Reply, said: str, merge: Any) -> None:
    merged = merge(replies(good(), answer))
    body = merged.json()
    assert merged.status == 400
    assert body["success"] is False
    assert body["failed_engines"] == ["b"]
    assert body["message"] == f"1 of 2 engines failed: engine b: {said}"
    assert body["error"]["message"] == body["message"]
    assert isinstance(body["error"]["code"], str)


@pytest.mark.parametrize(
    ("status", "seen"), [(404, 404), (401, 401), (500, 400), (503, 400), (422, 400)]
)
def test_the_status_that_all_gave_is_kept_where_it_is_the_callers(status: int, seen: int) -> None:
    assert merging.success(replies(refused("x", status), refused("y", status))).status == seen
    assert merging.success(replies(refused("x", status), refused("y", 400))).status == 400


def test_text_is_text_whatever_type_the_engine_gave_it() -> None:
    merged = merging.text(
        replies(Reply(200, b"Cache flushed.\n", ""), Reply(200, b"Cache flushed.\n", ""))
    )
    assert merged == Reply(200, b"Cache flushed.\n", merging.TEXT)


def test_checksums_are_compared() -> None:
    def checked(total: str) -> Reply:
        return good(ranks=[], per_engine_checksum=total)

    same = merging.same(replies(checked("1f"), checked("1f")))
    assert same.status == 200
    assert same.json()["per_engine_checksum"] == "1f"
    differ = merging.same(replies(checked("1f"), checked("1f"), checked("2e")))
    assert differ.status == 400
    assert differ.json()["checksums"] == {"a": "1f", "b": "1f", "c": "2e"}
    assert "a: 1f, b: 1f, c: 2e" in differ.json()["message"]


def test_answers_that_are_no_objects_pass() -> None:
    assert merging.passed(replies(Reply(200, b"null"), Reply(200, b"null"))).body == b"null"
    assert merging.success(replies(Reply(200, b""), Reply(200, b""))).status == 200


PAGE_A = b"""# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m",tp_rank="0"} 3.0
# HELP sglang:ttft_seconds Time to first token.
# TYPE sglang:ttft_seconds histogram
sglang:ttft_seconds_bucket{le="0.1"} 1.0
sglang:ttft_seconds_sum 0.5
plain 7
"""


def test_metrics_of_several_servers_are_one_page() -> None:
    page_b = PAGE_A.replace(b"3.0", b"5.0")
    merged = merging.metrics({"http://a:1": PAGE_A, "http://b:1": page_b}).body.decode().splitlines()
    assert merged == [
        "# HELP sglang:num_running_reqs The number of running requests.",
        "# TYPE sglang:num_running_reqs gauge",
        'sglang:num_running_reqs{worker_addr="http://a:1",model_name="m",tp_rank="0"} 3.0',
        'sglang:num_running_reqs{worker_addr="http://b:1",model_name="m",tp_rank="0"} 5.0',
        "# HELP sglang:ttft_seconds Time to first token.",
        "# TYPE sglang:ttft_seconds histogram",
        'sglang:ttft_seconds_bucket{worker_addr="http://a:1",le="0.1"} 1.0',
        'sglang:ttft_seconds_sum{worker_addr="http://a:1"} 0.5',
        'sglang:ttft_seconds_bucket{worker_addr="http://b:1",le="0.1"} 1.0',
        'sglang:ttft_seconds_sum{worker_addr="http://b:1"} 0.5',
        'plain{worker_addr="http://a:1"} 7',
        'plain{worker_addr="http://b:1"} 7',
    ]


def test_the_page_is_what_prometheus_reads() -> None:
    page = merging.metrics({"http://a:1": PAGE_A, "http://b:1": PAGE_A}).body.decode()
    families = {f.name: f for f in text_string_to_metric_families(page)}
    running = families["sglang:num_running_reqs"].samples
    assert {(s.labels["worker_addr"], s.value) for s in running} == {
        ("http://a:1", 3),
        ("http://b:1", 3),
    }
    assert families["sglang:ttft_seconds"].type == "histogram"


def test_a_refusal_is_read_by_both_kinds_of_clients() -> None:
    body = msgspec.json.decode(refused("no", 404).body)
    assert (body["success"], body["message"], body["error"]["code"]) == (False, "no", "not_found")
