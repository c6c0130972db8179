"""What SGLang's own words say of the weights that an engine has after them."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from seer_sgl.router.control.merging import Reply, json_reply, refused
from seer_sgl.router.control.weights import outcome as module
from seer_sgl.router.control.weights.outcome import NOT_BEGUN, Outcome, adapter_outcome, outcome
from seer_sgl.router.control.weights.results import Results
from seer_sgl.types import EngineId

DISK, DISTRIBUTED = "/update_weights_from_disk", "/update_weights_from_distributed"
ONE: dict[str, Any] = {"tp_size": 1}
TWO: dict[str, Any] = {"tp_size": 2}
A, B, C = EngineId("a"), EngineId("b"), EngineId("c")


def failed(message: str) -> Reply:
    return json_reply({"success": False, "message": message}, 400)


def sglang_source() -> str:
    found = importlib.util.find_spec("sglang")
    if found is None or not found.submodule_search_locations:
        pytest.skip("SGLang is not installed")
    root = Path(found.submodule_search_locations[0]) / "srt"
    names = (
        "managers/scheduler_components/weight_updater.py",
        "model_executor/model_runner_components/weight_updater.py",
        "managers/tokenizer_control_mixin.py",
    )
    return "".join((root / name).read_text() for name in names).replace('"\n                "', "")


def test_sglang_says_all_of_them() -> None:
    source = sglang_source()
    own = (*module._BEFORE, *module._BEFORE_ON_ONE_NODE, *module._BEFORE_ON_ONE_RANK)
    for words in own:
        if words == NOT_BEGUN:
            continue
        said = words.replace("Failed to receive weights: Group ", "Failed to receive weights: ")
        assert said in source, words
    assert 'f"Group {group_name} not in' in source


@pytest.mark.parametrize(
    ("message", "facts", "found"),
    [
        ("Failed to get weights iterator: no such folder.", ONE, Outcome.UNTOUCHED),
        ("Failed to get weights iterator: no such folder.", TWO, Outcome.UNTOUCHED),
        ("Failed to get weights iterator: x.", {"nnodes": 2}, Outcome.DOUBTFUL),
        ("Failed to get weights iterator: x.", {"speculative_algorithm": "EAGLE"}, Outcome.DOUBTFUL),
        ("Failed to get weights iterator: x.", {"speculative_algorithm": "SEER"}, Outcome.UNTOUCHED),
        ("Failed to get model loader: x.", ONE, Outcome.UNTOUCHED),
        ("Failed to update weights: x.\nRolling back to original weights.", ONE, Outcome.DOUBTFUL),
        ("Weights were updated, but the cache was not flushed because", ONE, Outcome.DOUBTFUL),
        ("Failed to update parameter online: x. The full weights", ONE, Outcome.DOUBTFUL),
        ("Failed to receive weights: Group g not in []. Please", TWO, Outcome.UNTOUCHED),
        ("Failed to receive weights: NCCL error", ONE, Outcome.UNTOUCHED),
        ("Failed to receive weights: NCCL error", TWO, Outcome.DOUBTFUL),
        ("a weight-update session is already open; call", ONE, Outcome.UNTOUCHED),
        ("what nobody has ever seen", ONE, Outcome.DOUBTFUL),
        (
            "Failed to get model loader: x. | Succeeded to update model weights.",
            ONE,
            Outcome.DOUBTFUL,
        ),
        (f"{NOT_BEGUN}b did not", ONE, Outcome.UNTOUCHED),
    ],
)
def test_what_sglang_says_of_a_change(message: str, facts: dict[str, Any], found: Outcome) -> None:
    assert outcome(DISK, failed(message), facts) is found


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (json_reply({"success": True}), Outcome.TOOK),
        (json_reply({"error": {"message": f"{DISK}: no such folder"}}, 400), Outcome.UNTOUCHED),
        (json_reply({"error": {"message": "boom"}}, 400), Outcome.DOUBTFUL),
        (json_reply({"object": "error", "message": "1 validation error"}, 400), Outcome.UNTOUCHED),
        (json_reply({"detail": "Not Found"}, 404), Outcome.UNTOUCHED),
        (Reply(401), Outcome.UNTOUCHED),
        (Reply(500, b"Internal Server Error"), Outcome.DOUBTFUL),
        (refused("no answer", 503), Outcome.DOUBTFUL),
        (refused("no answer in time", 504), Outcome.DOUBTFUL),
        (Reply(400, b"\xff"), Outcome.DOUBTFUL),
    ],
)
def test_who_says_it_counts(reply: Reply, found: Outcome) -> None:
    assert outcome(DISK, reply, ONE) is found


def test_an_adapter_that_is_refused_is_not_there() -> None:
    refusal = json_reply({"success": False, "error_message": "rank 64 is too large"}, 400)
    assert adapter_outcome("/load_lora_adapter", refusal, ONE) is Outcome.UNTOUCHED
    assert adapter_outcome("/load_lora_adapter", Reply(500), ONE) is Outcome.DOUBTFUL


# ---- what callers are told ----


def results(**each: tuple[Reply, Outcome]) -> Results:
    found = Results()
    for name, (reply, what) in each.items():
        found.set(EngineId(name), reply, what)
    return found


VERSIONS = {A: "7", B: "6", C: "6"}
GOOD = json_reply({"success": True, "message": "done"})


def test_a_failure_tells_of_every_engine_and_what_to_do() -> None:
    told = results(
        a=(GOOD, Outcome.TOOK),
        b=(failed("Failed to get model loader"), Outcome.UNTOUCHED),
        c=(failed("CUDA error"), Outcome.DOUBTFUL),
    ).told(VERSIONS)
    body = told.json()
    assert told.status == 400
    assert body["failed_engines"] == ["b", "c"]
    assert body["engines"] == {
        "a": {"success": True, "message": "done", "weight_version": "7"},
        "b": {"success": False, "message": "Failed to get model loader", "weight_version": "6"},
        "c": {"success": False, "message": "CUDA error", "weight_version": "6"},
    }
    assert "Engines c may have a mixture" in body["message"]
    assert "Engines b do not have what the others have" in body["message"]
    assert body["error"]["message"] == body["message"]


def test_a_refusal_by_all_says_that_nothing_has_changed() -> None:
    found = results(a=(failed("x"), Outcome.UNTOUCHED), b=(failed("x"), Outcome.UNTOUCHED))
    assert not found.changed
    assert "nothing was changed" in found.told(VERSIONS).json()["message"]


def test_an_engine_that_takes_too_long_makes_it_a_timeout() -> None:
    found = results(a=(GOOD, Outcome.TOOK), b=(refused("too long", 504), Outcome.DOUBTFUL))
    assert found.changed
    assert found.told(VERSIONS).status == 504
    assert found.told(VERSIONS).json()["error"]["code"] == "timeout"


def test_when_all_have_left_that_is_said() -> None:
    assert Results().told(VERSIONS).status == 503
