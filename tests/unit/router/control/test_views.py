"""Several servers described as one."""

from typing import Any

import pytest

from seer_sgl.router.control import views
from seer_sgl.router.control.merging import Replies, Reply, json_reply, refused
from seer_sgl.router.control.views import Queue
from seer_sgl.types import EngineId

A, B = EngineId("node-2"), EngineId("node-10")
URLS = {A: "http://a:1", B: "http://b:1"}
STAMP = {"timestamp": "now", "version": "?"}


def both(a: Any, b: Any) -> Replies:
    return {A: json_reply(a), B: json_reply(b)}


def test_names_are_ordered_by_their_numbers() -> None:
    names = ["e-10", "e-2", "e-1", "f", "10", "9", "e"]
    assert sorted(names, key=views.in_order) == ["9", "10", "e", "e-1", "e-2", "e-10", "f"]


def test_server_info_sums_devices_and_capacity() -> None:
    one = {
        "tp_size": 2,
        "pp_size": 2,
        "max_total_num_tokens": 100,
        "max_running_requests": None,
        "internal_states": [{"x": 1}, {"x": 2}],
        "disaggregation_mode": "null",
    }
    other = {**one, "tp_size": 1, "internal_states": [{"x": 3}]}
    merged = views.server_info(both(one, other), URLS).json()
    assert (merged["num_gpus"], merged["num_engines"], merged["max_total_num_tokens"]) == (6, 2, 200)
    assert (merged["tp_size"], merged["max_running_requests"]) == (2, None)
    assert merged["internal_states"] == [{"x": 1}, {"x": 2}, {"x": 3}]
    assert merged["engines"][1] == {"id": B, "url": "http://b:1", "num_gpus": 2}


def test_model_info_tells_of_different_weights() -> None:
    agreed = views.model_info(both({"weight_version": "9"}, {"weight_version": "9"}), URLS).json()
    assert agreed == {"weight_version": "9"}
    differ = both({"weight_version": "10", "model_path": "m"}, {"weight_version": "9"})
    versions = {"http://a:1": "10", "http://b:1": "9"}
    assert views.model_info(differ, URLS).json() == {
        "weight_version": "9",
        "model_path": "m",
        "weight_versions": versions,
    }
    told = views.weight_version(differ, URLS).json()
    assert told == {"weight_version": "9", "weight_versions": versions}


def loads(running: int, waiting: int, ranks: int = 1) -> dict[str, Any]:
    entries = [
        {
            "dp_rank": rank,
            "num_running_reqs": running,
            "num_waiting_reqs": waiting,
            "num_used_tokens": 10,
            "token_usage": 0.5,
            "memory": {"x": 1},
        }
        for rank in range(ranks)
    ]
    return {"timestamp": "then", "version": "0.5.23", "num_accelerators": ranks, "loads": entries}


def test_loads_count_ranks_on_and_add_the_routers_queue() -> None:
    merged = views.loads(both(loads(1, 0, ranks=2), loads(2, 1)), Queue(5, 3, 900), STAMP).json()
    assert [entry["dp_rank"] for entry in merged["loads"]] == [0, 1, 2, 3]
    assert [entry["worker"] for entry in merged["loads"]] == [A, A, B, "router"]
    assert (merged["timestamp"], merged["version"], merged["num_accelerators"]) == ("now", "0.5.23", 3)
    router = merged["loads"][-1]
    assert (router["num_running_reqs"], router["num_waiting_reqs"]) == (0, 5)
    assert (router["num_total_tokens"], router["num_used_tokens"], router["memory"]) == (900, 0, None)


@pytest.mark.parametrize(("in_flight", "unseen"), [(2, 0), (3, 0), (7, 4)])
def test_what_is_on_its_way_to_an_engine_is_not_forgotten(in_flight: int, unseen: int) -> None:
    merged = views.loads(both(loads(1, 0), loads(2, 0)), Queue(0, in_flight, 0), STAMP).json()
    assert merged["loads"][-1]["num_running_reqs"] == unseen


def test_no_engine_and_a_queue() -> None:
    merged = views.loads({}, Queue(4, 0, 12), STAMP).json()
    assert merged["loads"][0]["num_waiting_reqs"] == 4
    assert (merged["loads"][0]["dp_rank"], merged["timestamp"]) == (0, "now")


def test_one_rank_alone_and_no_queue() -> None:
    merged = views.loads(both(loads(1, 0), loads(2, 1)), None, STAMP, only_rank=1).json()
    assert [entry["num_running_reqs"] for entry in merged["loads"]] == [2]


def test_the_older_shapes() -> None:
    replies = both(loads(1, 4), loads(2, 1))
    assert views.load(replies, Queue(3, 0, 70)).json()[1:] == [
        {"dp_rank": 1, "num_reqs": 3, "num_waiting_reqs": 1, "num_tokens": 0},
        {"dp_rank": 2, "num_reqs": 3, "num_waiting_reqs": 3, "num_tokens": 70},
    ]
    failed = {**replies, B: refused("gone", 503)}
    told = views.worker_loads(failed, Queue(), URLS, total=2).json()
    assert told["workers"] == [{"worker": "http://a:1", "load": 5}, {"worker": "router", "load": 0}]
    assert (told["total_workers"], told["successful"], told["failed"]) == (2, 1, 1)


def test_loads_as_metrics() -> None:
    page = views.loads_as_metrics(both(loads(1, 0), loads(2, 1)), Queue(5, 0, 9)).body.decode()
    assert 'sglang_num_waiting_reqs{dp_rank="2",worker="router"} 5' in page.splitlines()
    assert "memory" not in page
    assert page.count("# TYPE sglang_num_running_reqs gauge") == 1


def test_an_answer_that_is_no_object_is_left_out() -> None:
    replies = {A: Reply(200, b"[]"), B: json_reply({"weight_version": "1"})}
    assert views.model_info(replies, URLS).json() == {"weight_version": "1"}


def test_ranks_of_an_engine() -> None:
    assert views.ranks({"tp_size": 4, "pp_size": 2}) == 8
    assert views.ranks({"tp_size": 0, "pp_size": None}) == 1
