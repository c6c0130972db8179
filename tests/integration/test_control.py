"""Control calls on real servers: a trainer's step around a rollout."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.integration.conftest import GREEDY, MODEL, Cluster

COUNT = 16
LENGTH = 300
PAGE_TOKENS = 16


@pytest.fixture
def http(cluster: Cluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.url, timeout=120) as client:
        yield client
        client.post("/continue_generation", json={})
        assert {e["quarantine"] for e in cluster.engines()} == {None}
        assert len(cluster.engines()) == 2, "an engine went away"


def generate(http: httpx.Client, prompt: list[int], tokens: int) -> dict[str, Any]:
    body = {
        "input_ids": prompt,
        "sampling_params": {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True},
        "return_logprob": True,
    }
    answer = http.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    decoded: dict[str, Any] = answer.json()
    return decoded


def good(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def metric(http: httpx.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def wait_until_some_run(http: httpx.Client, chunks: float) -> None:
    """Return in the middle of a rollout, some requests being in their second chunk."""
    deadline_s = time.monotonic() + 60
    while metric(http, "seer_chunks_total") < chunks + COUNT + 4:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def paused_rollout(http: httpx.Client, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """What a pause in the middle of a rollout leaves."""
    before = metric(http, "seer_chunks_total")
    with ThreadPoolExecutor(COUNT) as pool:
        sent: list[Future[dict[str, Any]]] = []
        sent = [pool.submit(generate, http, prompt, LENGTH) for prompt in prompts]
        wait_until_some_run(http, before)
        assert good(http.post("/pause_generation", json={}))["status"] == "ok"
        answers = [each.result(timeout=10) for each in sent]
    loads = good(http.get("/v1/loads?include=core"))["loads"]
    assert sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads) == 0
    return answers


def test_an_interrupted_rollout_goes_on_as_if_it_had_not_been(
    http: httpx.Client, plain_answers: list[dict[str, Any]]
) -> None:
    texts = GREEDY["text"][:COUNT]
    prompts = good(http.post("/tokenize", json={"prompt": texts}))["tokens"]
    expected = [answer["output_ids"] for answer in plain_answers[:COUNT]]
    partial = paused_rollout(http, prompts)
    for answer, whole in zip(partial, expected, strict=True):
        ids, meta = answer["output_ids"], answer["meta_info"]
        assert ids == whole[: len(ids)]
        assert [entry[1] for entry in meta["output_token_logprobs"]] == ids
        assert meta["completion_tokens"] == len(ids)
        assert meta["finish_reason"]["type"] == ("abort" if len(ids) < LENGTH else "length")
    assert any(0 < len(answer["output_ids"]) < LENGTH for answer in partial)

    with ThreadPoolExecutor(COUNT) as pool:
        jobs = []
        for prompt, answer in zip(prompts, partial, strict=True):
            ids = answer["output_ids"]
            left = LENGTH - len(ids)
            jobs.append(pool.submit(generate, http, prompt + ids, left) if left else None)
        time.sleep(0.3)
        assert not any(job.done() for job in jobs if job), "they wait for the end of the pause"
        good(http.post("/continue_generation", json={}))
        rest = [job.result() if job else None for job in jobs]
    found = known = 0
    for prompt, answer, more, whole in zip(prompts, partial, rest, expected, strict=True):
        ids = answer["output_ids"]
        if more is None:
            continue
        assert ids + more["output_ids"] == whole
        found += more["meta_info"]["cached_tokens"]
        known += (len(prompt) + len(ids) - 1) // PAGE_TOKENS * PAGE_TOKENS
    assert found > 0.8 * known, "the KV of what there was is used again"


def test_weights_change_under_a_router(http: httpx.Client, plain_answers: list[dict[str, Any]]) -> None:
    prompt = good(http.post("/tokenize", json={"prompt": GREEDY["text"][0]}))["tokens"]
    before = good(http.post("/weights_checker", json={"action": "checksum"}))
    for mode in ("abort", "retract", "in_place"):
        good(http.post("/pause_generation", json={"mode": mode}))
        # The name that other tests of the cluster expect.
        body = {"model_path": MODEL, "weight_version": "default"}
        changed = good(http.post("/update_weights_from_disk", json=body))
        assert (changed["success"], changed["num_paused_requests"]) == (True, 0)
        good(http.post("/continue_generation", json={}))
        whole = generate(http, prompt, LENGTH)
        assert whole["output_ids"] == plain_answers[0]["output_ids"]
    after = good(http.post("/weights_checker", json={"action": "checksum"}))
    assert after["per_engine_checksum"] == before["per_engine_checksum"]

    for version in ("7", "default"):
        good(http.post("/update_weight_version", json={"new_version": version}))
        assert good(http.get("/get_weight_version")) == {"weight_version": version}
        assert generate(http, prompt, 4)["meta_info"]["weight_version"] == version


def test_a_flush_forgets_what_a_server_holds(http: httpx.Client) -> None:
    for method in ("GET", "POST"):
        answer = http.request(method, "/flush_cache?timeout=5")
        assert (answer.status_code, answer.text[:14]) == (200, "Cache flushed.")
    assert http.request("GET", "/flush_cache?timeout=-1").status_code == 400


def test_two_servers_are_described_as_one(http: httpx.Client, cluster: Cluster) -> None:
    info = good(http.get("/server_info"))
    assert good(http.get("/get_server_info"))["num_gpus"] == 2
    assert (info["tp_size"], info["pp_size"], info["num_gpus"]) == (1, 1, 2)
    assert len(info["internal_states"]) == 2
    assert info["max_total_num_tokens"] == sum(e["kv_capacity_tokens"] for e in cluster.engines())
    assert good(http.get("/model_info"))["weight_version"] == "default"
    loads = good(http.get("/v1/loads"))["loads"]
    assert [load["dp_rank"] for load in loads] == [0, 1, 2]
    assert len(good(http.get("/get_load"))) == 3
    assert http.get("/health_generate").status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/release_memory_occupation", {}),
        ("/resume_memory_occupation", {}),
        ("/update_weights_from_disk", {"model_path": "/does/not/exist"}),
        ("/update_weights_from_disk", {"model_path": "/tmp", "weight_version": 3}),
        ("/update_weights_from_distributed", {"names": ["w"], "dtypes": ["x"], "shapes": [[1]]}),
        ("/update_weights_from_ipc", {"zmq_handles": {"GPU": "ipc:///nowhere"}}),
        ("/destroy_weights_update_group", {"group_name": "unknown"}),
        ("/load_lora_adapter", {"lora_name": "a", "lora_path": "/nowhere"}),
        ("/unload_lora_adapter", {"lora_name": "a"}),
        ("/weights_checker", {"action": "unknown"}),
        ("/get_weights_by_name", {"name": "unknown"}),
        ("/parse_function_call", {"text": "x", "tools": [], "tool_call_parser": "unknown"}),
        ("/v1/detokenize", {"tokens": [-1]}),
    ],
)
def test_what_a_server_cannot_do_is_refused_and_the_server_stays(
    http: httpx.Client, cluster: Cluster, path: str, body: Any
) -> None:
    pids = {process.pid for process in cluster.family()}
    answer = http.post(path, json=body)
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["message"]
    assert generate(http, [5, 6, 7], 4)["output_ids"]
    assert {process.pid for process in cluster.family()} == pids
