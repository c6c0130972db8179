"""Which calls an engine is spared, and what is said instead."""

import logging
from typing import Any

import msgspec
import pytest

from seer_sgl.engine.guards import Watched, asks_for_load, objection, profile_folder

SAVER = {"enable_memory_saver": True}
GROUP = {"master_address": "h", "master_port": 1, "group_name": "g", "rank_offset": 1, "world_size": 3}


def said(target: str, body: Any = None, **facts: Any) -> str:
    return objection("POST", target, b"" if body is None else msgspec.json.encode(body), facts)


@pytest.mark.parametrize(
    ("target", "body", "facts", "complaint"),
    [
        ("/release_memory_occupation", {}, {}, "--enable-memory-saver"),
        ("/resume_memory_occupation?x=1", None, {}, "--enable-memory-saver"),
        (
            "/release_memory_occupation",
            {},
            {**SAVER, "running_requests": 2, "waiting_requests": 1},
            "not idle: 2 requests run, 1 wait",
        ),
        ("/release_memory_occupation", {}, {**SAVER, "waiting_requests": 1}, "not idle"),
        (
            "/release_memory_occupation",
            {"tags": ["weights"]},
            {**SAVER, "weight_cache_mode": "host"},
            "--weight-cache-mode host",
        ),
        (
            "/resume_memory_occupation",
            {"tags": ["weights", "kv_cache"]},
            {**SAVER, "released": ["weights"]},
            "not released: kv_cache",
        ),
        ("/resume_memory_occupation", {}, {**SAVER, "released": []}, "kv_cache, weights, cuda_graph"),
        ("/update_weights_from_disk", {}, {"weight_cache_mode": "host"}, "--weight-cache-mode"),
        ("/update_weights_from_distributed", {}, {"dp_size": 2}, "--dp-size"),
        ("/destroy_weights_update_group", {}, {"dp_size": 2}, "--dp-size"),
        ("/init_weights_update_group", {**GROUP, "group_name": ""}, {}, "group_name"),
        ("/init_weights_update_group", GROUP, {"tp_size": 4}, "plus 4 ranks"),
        ("/init_weights_update_group", {**GROUP, "rank_offset": -1}, {}, "rank_offset -1"),
        ("/update_weights_from_tensor", {"serialized_named_tensors": []}, {}, "0 entries for 1 ranks"),
        ("/update_weights_from_tensor", {"serialized_named_tensors": ["eA=="]}, {}, "no base64"),
        ("/update_weights_from_tensor", {"serialized_named_tensors": [7]}, {}, "no base64"),
        (
            "/update_weights_from_disk",
            {"load_format": "bogus"},
            {"version": "0.5.23"},
            "'bogus' is none of auto, pt",
        ),
        ("/send_weights_to_remote_instance", {}, {"send_groups": ["g"]}, "no group 'weight_send_group'"),
        ("/stop_profile", None, {"profiles": False}, "no profile runs"),
        (
            "/start_profile",
            {"output_dir": "/x"},
            {"no_folder": "full"},
            "output_dir cannot be made: full",
        ),
        ("/start_expert_distribution_record", None, {}, "--expert-distribution-recorder-mode"),
        ("/configure_logging", {"log_level": "loud"}, {}, "'loud' is none of"),
        ("/set_internal_state", {"server_args": {"x": "1"}}, {}, "server_args.x must be a number"),
        ("@evil.example/x", None, {}, "is no path"),
        ("http://evil.example/x", None, {}, "is no path"),
        ("", None, {}, "is no path"),
    ],
)
def test_refused(target: str, body: Any, facts: dict[str, Any], complaint: str) -> None:
    assert complaint in said(target, body, **facts)


@pytest.mark.parametrize(
    ("target", "body", "facts"),
    [
        ("/generate", {"x": 1}, {}),
        ("/v1/chat/completions", {}, {}),
        ("/release_memory_occupation", {}, SAVER),
        ("/release_memory_occupation", {}, {**SAVER, "waiting_requests": 3, "paused": True}),
        ("/release_memory_occupation", {"tags": ["kv_cache"]}, {**SAVER, "weight_cache_mode": "host"}),
        ("/resume_memory_occupation", {}, SAVER),
        ("/resume_memory_occupation", {"tags": ["weights"]}, {**SAVER, "released": ["weights"]}),
        ("/init_weights_update_group", GROUP, {"tp_size": 2}),
        ("/init_weights_update_group", {"group_name": "g"}, {}),
        ("/update_weights_from_distributed", {}, {"dp_size": 2, "enable_dp_attention": True}),
        ("/update_weights_from_tensor", {"serialized_named_tensors": ["gASVBA"]}, {"tp_size": 1}),
        ("/update_weights_from_tensor", {}, {}),
        ("/update_weights_from_disk", {"load_format": "bogus"}, {"version": "0.6.0"}),
        ("/update_weights_from_disk", {"load_format": "Auto"}, {"version": "0.5.23"}),
        ("/update_weights_from_disk", {"load_format": None}, {"version": "0.5.23"}),
        ("/send_weights_to_remote_instance", {"group_name": "g"}, {"send_groups": ["g"]}),
        ("/send_weights_to_remote_instance", {}, {}),
        ("/stop_profile", None, {"profiles": True}),
        ("/stop_profile", None, {}),
        ("/start_expert_distribution_record", None, {"expert_distribution_recorder_mode": "stat"}),
        ("/configure_logging", {"log_level": "info"}, {}),
        ("/configure_logging", {}, {}),
        ("/set_internal_state", {"server_args": {"pp_max_micro_batch_size": 8}}, {}),
        ("/set_internal_state", {"server_args": 3}, {}),
    ],
)
def test_allowed(target: str, body: Any, facts: dict[str, Any]) -> None:
    assert said(target, body, **facts) == ""


@pytest.mark.parametrize("body", [b"{", b"[]", b"3", b"\xff"])
def test_what_is_no_object_is_left_to_sglang(body: bytes) -> None:
    assert objection("POST", "/init_weights_update_group", body, {}) == ""


def test_a_large_body_is_not_read() -> None:
    body = b'{"serialized_named_tensors": []' + b" " * 2**26 + b"}"
    assert objection("POST", "/update_weights_from_tensor", body, {}) == ""


def test_every_level_of_logging_is_known() -> None:
    for name in logging.getLevelNamesMapping():
        assert said("/configure_logging", {"log_level": name.lower()}) == ""


def tags(*names: str) -> bytes:
    return msgspec.json.encode({"tags": names})


def test_what_was_released_is_remembered() -> None:
    watched = Watched(SAVER, launched=True)
    resume = "/resume_memory_occupation"
    assert objection("POST", resume, b"", watched.facts)
    watched.note_done("/release_memory_occupation", tags("weights"))
    watched.note_done("/release_memory_occupation", tags("weights", "kv_cache"))
    assert objection("POST", resume, tags("weights", "kv_cache"), watched.facts) == ""
    assert "cuda_graph" in objection("POST", resume, b"", watched.facts)
    watched.note_done(resume, tags("weights"))
    assert "not released: weights" in objection("POST", resume, tags("weights"), watched.facts)
    watched.note_done("/release_memory_occupation", b"")
    assert objection("POST", resume, b"", watched.facts) == ""


def test_profiles_and_groups_are_remembered() -> None:
    watched = Watched({}, launched=True)
    assert objection("POST", "/stop_profile", b"", watched.facts)
    watched.note_done("/start_profile", b"")
    assert objection("POST", "/stop_profile", b"", watched.facts) == ""
    watched.note_done("/stop_profile", b"")
    watched.note_done("/start_profile", b'{"num_steps":3}')
    assert objection("POST", "/stop_profile", b"", watched.facts) == ""
    send = "/send_weights_to_remote_instance"
    assert objection("POST", send, b"", watched.facts)
    watched.note_done("/init_weights_send_group_for_remote_instance", b"{}")
    assert objection("POST", send, b"", watched.facts) == ""


def test_of_a_server_that_others_may_have_told_something_nothing_is_believed() -> None:
    watched = Watched(SAVER, launched=False)
    assert objection("POST", "/resume_memory_occupation", b"", watched.facts) == ""
    watched.note_done("/init_weights_send_group_for_remote_instance", b"{}")
    for path in ("/stop_profile", "/send_weights_to_remote_instance"):
        assert objection("POST", path, b'{"group_name":"g"}', watched.facts) == ""


@pytest.mark.parametrize(("mode", "refused"), [("retract", False), ("in_place", False), ("abort", True)])
def test_what_waits_in_a_paused_scheduler_does_not_count(mode: str, refused: bool) -> None:
    watched = Watched(SAVER, launched=True)
    watched.note_load((0, 5, 100))
    release = "/release_memory_occupation"
    assert objection("POST", release, b"", watched.facts)
    watched.note_done("/pause_generation", msgspec.json.encode({"mode": mode}))
    assert bool(objection("POST", release, b"", watched.facts)) is refused
    watched.note_done("/continue_generation", b"")
    assert objection("POST", release, b"", watched.facts)


@pytest.mark.parametrize(
    ("target", "body", "folder"),
    [
        ("/start_profile?x", {"output_dir": "/x"}, "/x"),
        ("/start_profile", {"output_dir": 3}, ""),
        ("/start_profile", {}, ""),
        ("/stop_profile", {"output_dir": "/x"}, ""),
    ],
)
def test_the_folder_of_a_profile(target: str, body: Any, folder: str) -> None:
    assert profile_folder(target, msgspec.json.encode(body)) == folder


def test_the_load_is_asked_for_where_it_matters() -> None:
    assert asks_for_load("/release_memory_occupation?x")
    assert not asks_for_load("/resume_memory_occupation")
