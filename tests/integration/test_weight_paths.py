"""All the ways that weights come to real servers, and what is refused on each of them."""

import base64
import importlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from safetensors.torch import save_file

from seer_sgl.engine.process import free_port
from seer_sgl.smallmodel import WEIGHTS
from seer_sgl.smallmodel.problems import prompts
from seer_sgl.smallmodel.variants import changed, save_variant
from tests.integration.conftest import Cluster, start_cluster, stop_cluster
from tests.integration.trainer import BUCKET, Trainer, Weights, serialized
from tests.integration.weights import (
    OTHER,
    PROMPT_TOKENS,
    Answer,
    ask,
    check_only_new,
    check_same,
    check_whole,
    engines,
    found,
    furthest,
    post,
)

COUNT = 8
UPDATE_TIMEOUT_S = 6
LORA_FLAGS = (
    "--enable-lora --lora-backend torch_native --max-lora-rank 8 --lora-target-modules q_proj v_proj"
).split()


@dataclass
class Served:
    """A cluster, and a trainer's two sets of weights as folders, with what a server says of them."""

    cluster: Cluster
    http: httpx.Client
    folder: Path
    asked: list[list[int]]
    weights: Sequence[Weights]
    expected: list[list[Answer]]
    version: int

    def ask(self) -> list[Answer]:
        return ask(self.http, self.asked)

    def next(self) -> str:
        self.version += 1
        return str(self.version)

    def disk(self, which: int) -> None:
        path, version = str(self.folder / str(which)), self.next()
        post(self.http, "/update_weights_from_disk", model_path=path, weight_version=version)

    def ports(self) -> list[str]:
        return [worker["url"] for worker in got(self.http, "/workers")["workers"]]

    def still_serves(self, which: int, pids: set[int]) -> None:
        """Nothing has changed: neither weights, nor their name, nor a process."""
        assert {process.pid for process in self.cluster.family()} == pids
        check_whole(self.cluster, str(self.version))
        check_same(self.ask(), self.expected[which])

    def pids(self) -> set[int]:
        return {process.pid for process in self.cluster.family()}


def got(http: httpx.Client, path: str) -> Any:
    answer = http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("paths")
    weights = [changed(seed) for seed in (1, 2)]
    for number, each in enumerate(weights):
        save_variant(folder / str(number), each)
    options = ["--model", str(folder / "0"), "--engines", "2", "--engine-ports", str(free_port())]
    options += ["--no-speculate", "--update-timeout-s", str(UPDATE_TIMEOUT_S), "--", *LORA_FLAGS]
    cluster = start_cluster(folder, *options)
    try:
        importlib.import_module("sglang.srt.utils")  # takes long, as the servers do
        cluster.wait_for_engines(2)
        with httpx.Client(base_url=cluster.url, timeout=120) as http:
            texts = post(http, "/tokenize", prompt=prompts(COUNT, seed=6))["tokens"]
            asked = [(ids * PROMPT_TOKENS)[:PROMPT_TOKENS] for ids in texts]
            served = Served(cluster, http, folder, asked, weights, [ask(http, asked)], 0)
            served.disk(1)
            served.expected.append(served.ask())
            assert furthest(*served.expected) > OTHER, "these are other weights"
            yield served
        stop_cluster(cluster)
    finally:
        cluster.process.kill()
        cluster.process.wait()


@pytest.fixture(autouse=True)
def afresh(served: Served) -> None:
    """Whatever the test before has come to: no pause, and the first set of weights everywhere."""
    post(served.http, "/continue_generation")
    served.disk(0)


# ---- from memory, to each engine at its own port ----


@pytest.mark.parametrize("load_format", [None, BUCKET])
def test_weights_from_memory_come_to_each_engine_at_its_port(
    served: Served, load_format: str | None
) -> None:
    served.ask()
    refused = served.http.post(
        "/update_weights_from_tensor", json={"serialized_named_tensors": [serialized({})]}
    )
    assert (refused.status_code, "--engine-ports" in refused.text) == (400, True)
    version, content = served.next(), serialized(served.weights[1], load_format)
    post(served.http, "/pause_generation", mode="abort")
    for url in served.ports():
        with httpx.Client(base_url=url, timeout=120) as port:
            told: dict[str, Any] = {"serialized_named_tensors": [content], "load_format": load_format}
            post(port, "/update_weights_from_tensor", **told, weight_version=version)
    post(served.http, "/continue_generation")
    check_whole(served.cluster, version)
    check_only_new(served.ask(), served.expected[1])


# ---- over a process group ----


def halves(weights: Weights) -> Sequence[Weights]:
    names = list(weights)
    middle = len(names) // 2
    return [{name: weights[name] for name in part} for part in (names[:middle], names[middle:])]


def test_weights_come_over_one_group_of_the_trainer_and_all_engines(served: Served) -> None:
    with Trainer(served.http, f"group-{served.version}") as trainer:
        served.ask()
        # As trainers do that know nothing of SGLang's sessions.
        post(served.http, "/pause_generation", mode="abort")
        version = served.next()
        for part in halves(served.weights[1]):
            trainer.send(part, weight_version=version)
        post(served.http, "/continue_generation")
        check_whole(served.cluster, version)
        check_only_new(served.ask(), served.expected[1])

        # A session, each part of it as one tensor of bytes.
        post(served.http, "/pause_generation", mode="abort")
        post(served.http, "/begin_weight_update")
        version = served.next()
        for part in halves(served.weights[0]):
            trainer.send(part, BUCKET, weight_version=version)
        post(served.http, "/end_weight_update")
        post(served.http, "/continue_generation")
        check_whole(served.cluster, version)
        check_only_new(served.ask(), served.expected[0])


def test_a_checkpoint_engine_is_for_devices_alone(served: Served) -> None:
    pids = served.pids()
    answer = served.http.post("/update_weights_from_ipc", json={"zmq_handles": {"GPU-0": "ipc:///x"}})
    assert answer.status_code == 400
    assert "checkpoint-engine is not installed" in answer.text
    served.still_serves(0, pids)


# ---- adapters ----


def save_adapter(folder: Path, seed: int) -> str:
    """A LoRA adapter of the small model's queries and values."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    tensors = {}
    for layer in range(4):
        for module, width in (("q_proj", 256), ("v_proj", 128)):
            place = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            for name, shape in (("lora_A", (4, 256)), ("lora_B", (width, 4))):
                tensor = 0.2 * torch.randn(shape, generator=generator)
                tensors[f"{place}.{name}.weight"] = tensor
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
    config |= {"target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": str(WEIGHTS)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def test_adapters_come_and_go_and_leave_no_kv(served: Served, tmp_path: Path) -> None:
    http = served.http
    first, second = (save_adapter(tmp_path / str(seed), seed) for seed in (1, 2))
    said = http.post("/load_lora_adapter", json={"lora_name": "a", "lora_path": "/nowhere"})
    assert said.status_code == 400
    post(http, "/load_lora_adapter", lora_name="a", lora_path=first)
    old = ask(http, served.asked, lora_path="a")
    assert furthest(old, served.ask()) > OTHER, "it changes what is said"
    assert found(ask(http, served.asked, lora_path="a")) > 0, "while it stays"

    post(http, "/unload_lora_adapter", lora_name="a")
    post(http, "/load_lora_adapter", lora_name="a", lora_path=second)
    new = ask(http, served.asked, lora_path="a")
    assert found(new) == 0
    assert furthest(new, old) > OTHER
    post(http, "/unload_lora_adapter", lora_name="a")
    check_same(served.ask(), served.expected[0])


# ---- what is refused ----


def broken(served: Served, tmp_path: Path, which: str) -> tuple[str, str]:
    """A folder, and what is to be said of it."""
    weights = dict(served.weights[1])
    norm = "model.norm.weight"
    match which:
        case "missing":
            return str(tmp_path / "none"), "does not exist"
        case "architecture":
            told = {"architectures": ["LlamaForCausalLM"]}
            return str(save_variant(tmp_path / "a", weights, **told)), "LlamaForCausalLM"
        case "shape":
            weights[norm] = torch.zeros(7)
            return str(save_variant(tmp_path / "s", weights)), f"{norm} has shape [7], but [256]"
        case "incomplete":
            del weights[norm]
            return str(save_variant(tmp_path / "i", weights)), f"lacks {norm}"
    folder = save_variant(tmp_path / "t", weights)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return str(folder), "is not whole"


@pytest.mark.parametrize("which", ["missing", "architecture", "shape", "incomplete", "truncated"])
def test_a_folder_that_does_not_fit_changes_nothing(served: Served, tmp_path: Path, which: str) -> None:
    pids = served.pids()
    folder, said = broken(served, tmp_path, which)
    body = {"model_path": folder, "weight_version": str(served.version + 1)}
    answer = served.http.post("/update_weights_from_disk", json=body)
    assert answer.status_code == 400
    told = answer.json()
    assert said in told["error"]["message"]
    assert len(told["engines"]) == 2
    assert all(said in each["message"] for each in told["engines"].values())
    served.still_serves(0, pids)


def to_first_port(served: Served, content: str) -> httpx.Response:
    body = {"serialized_named_tensors": [content], "weight_version": str(served.version)}
    return httpx.post(f"{served.ports()[0]}/update_weights_from_tensor", json=body, timeout=60)


def test_tensors_that_do_not_fit_change_nothing(served: Served) -> None:
    pids = served.pids()
    wrong = {"model.norm.weight": torch.zeros(7)}
    for content, said in (
        (serialized(wrong), "model.norm.weight has shape [7], but [256]"),
        (serialized(served.weights[1])[:-400], "no whole pickle"),
        ("gA==", "no whole pickle"),
    ):
        answer = to_first_port(served, content)
        assert (answer.status_code, said in answer.text) == (400, True), answer.text
        served.still_serves(0, pids)

    body = {"names": list(wrong), "dtypes": ["float32"], "shapes": [[7]], "group_name": "none"}
    answer = served.http.post("/update_weights_from_distributed", json=body)
    assert (answer.status_code, "has shape [7], but [256]" in answer.text) == (400, True)
    served.still_serves(0, pids)


def test_memory_that_is_gone_costs_one_engine_its_traffic_and_no_server(served: Served) -> None:
    pids = served.pids()
    content = base64.b64decode(serialized(served.weights[1]))
    gone = base64.b64encode(content.replace(b"/torch_", b"/trash_")).decode()
    answer = to_first_port(served, gone)
    assert (answer.status_code, "weights are undefined" in answer.text) == (400, True), answer.text
    state = [engine["quarantine"] for engine in served.cluster.engines()]
    assert sorted(map(bool, state)) == [False, True]
    said = served.ask()
    assert len(engines(said)) == 1
    check_same(said, served.expected[0])
    served.disk(0)
    served.still_serves(0, pids)


def test_weights_do_not_grow_older_unless_that_is_meant(served: Served) -> None:
    pids = served.pids()
    body = {"model_path": str(served.folder / "1"), "weight_version": str(served.version - 1)}
    answer = served.http.post("/update_weights_from_disk", json=body)
    assert (answer.status_code, "allow_older_version" in answer.text) == (409, True), answer.text
    served.still_serves(0, pids)
    served.version -= 1
    post(served.http, "/update_weights_from_disk", **body, allow_older_version=True)
    served.still_serves(1, pids)


def scheduler_of(cluster: Cluster, engine: dict[str, Any]) -> psutil.Process:
    """The process of a server that computes."""
    port = engine["url"].rpartition(":")[2]
    return next(
        process
        for process in cluster.family()
        if "sglang::scheduler" in " ".join(process.cmdline())
        and any(port in parent.cmdline() for parent in process.parents())
    )


def test_an_engine_that_hangs_is_left_behind_until_an_update_reaches_it(served: Served) -> None:
    pids = served.pids()
    hanging, fine = served.cluster.engines()
    scheduler = scheduler_of(served.cluster, hanging)
    body = {"model_path": str(served.folder / "0"), "weight_version": served.next()}
    scheduler.suspend()
    try:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(served.http.post, "/update_weights_from_disk", json=body)
            time.sleep(1.0)
            second = served.http.post("/update_weights_from_disk", json=body)
            assert (second.status_code, "is being performed" in second.text) == (409, True)
            answer = first.result()
        assert answer.status_code == 504, answer.text
        told = answer.json()["engines"]
        assert [told[engine["id"]]["success"] for engine in (hanging, fine)] == [False, True]
        said = served.ask()
        assert engines(said) == {fine["id"]}
        check_same(said, served.expected[0])
    finally:
        scheduler.resume()
    # What it was told while it hung, it does now; then it may take the next update.
    deadline_s = time.monotonic() + 30
    body["weight_version"] = served.next()
    while served.http.post("/update_weights_from_disk", json=body).status_code != 200:
        assert time.monotonic() < deadline_s, served.cluster.engines()
        time.sleep(0.5)
    served.still_serves(0, pids)
