"""Calls that would end SGLang's server: refused before they reach it. Pure.

SGLang 0.5.23 checks some control calls by assertion, or not at all, in its scheduler's process; what
fails there takes the whole server down. Each check here stands for such a place.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

Facts = Mapping[str, Any]
LARGEST_READ_BYTES = 64 * 2**20
"""A larger body is passed on unread: it is no slip of the hand, and reading it takes long."""
_PICKLE_START = ("gA",)
"""Base64 of a pickle's first byte, 0x80."""


def objection(method: str, target: str, body: bytes, facts: Facts) -> str:
    """Why this call may not be made, with the flag that would allow it; empty where it may.

    Args:
        facts: what a `Watched` holds.
    """
    path = target.partition("?")[0]
    if not path.startswith("/"):
        return f"{target!r} is no path"
    check = _CHECKS.get(path)
    if check is None or len(body) > LARGEST_READ_BYTES:
        return ""
    reason = check(body_object(body), facts)
    return f"{path}: {reason}" if reason else ""


def asks_for_load(target: str) -> bool:
    """Whether `objection` wants to know what the server runs now: see `Watched.note_load`."""
    return target.partition("?")[0] == "/release_memory_occupation"


def profile_folder(target: str, body: bytes) -> str:
    """Where this call would have a profile written; empty where it says nothing of it."""
    if target.partition("?")[0] != "/start_profile":
        return ""
    folder = body_object(body).get("output_dir")
    return folder if isinstance(folder, str) else ""


class Watched:
    """What is known of one server, as far as calls went through its agent.

    `facts` are its scalar arguments, as `/server_info` tells them, and where they are known
    `running_requests`, `waiting_requests`, `paused`, `released`, `send_groups`, `profiles`, and
    `no_folder`: why the folder of the next profile cannot be made.

    Args:
        launched: nobody has told it anything yet.
    """

    def __init__(self, facts: Facts, launched: bool) -> None:
        fresh = {"released": [], "send_groups": [], "profiles": False}
        self.facts: dict[str, Any] = {**facts, **(fresh if launched else {})}

    def note_load(self, load: tuple[int, int, int]) -> None:
        """What runs and waits, as `SGLangClient.load` tells it."""
        self.facts["running_requests"], self.facts["waiting_requests"], _ = load

    def note_done(self, target: str, body: bytes) -> None:
        """A call went well."""
        said = body_object(body)
        released, tags = self.facts.get("released", []), _tags(said)
        match target.partition("?")[0]:
            case "/pause_generation":
                # By `abort` the scheduler itself is not paused.
                self.facts["paused"] = said.get("mode", "abort") != "abort"
            case "/continue_generation":
                self.facts["paused"] = False
            case "/start_profile":
                # One of so many steps ends by itself, who knows when.
                self.facts["profiles"] = None if said.get("num_steps") else True
            case "/stop_profile":
                self.facts["profiles"] = False
            case "/init_weights_send_group_for_remote_instance" if "send_groups" in self.facts:
                self.facts["send_groups"] = [*self.facts["send_groups"], _send_group(said)]
            case "/release_memory_occupation":
                self.facts["released"] = [*released, *(tag for tag in tags if tag not in released)]
            case "/resume_memory_occupation":
                self.facts["released"] = [tag for tag in released if tag not in tags]


def body_object(body: bytes) -> dict[str, Any]:
    """A body as JSON; one that is none is refused by SGLang itself."""
    try:
        decoded = msgspec.json.decode(body) if body else {}
    except msgspec.DecodeError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _release(body: dict[str, Any], facts: Facts) -> str:
    if reason := _memory_saver(body, facts):
        return reason
    # The scheduler asserts that it is idle; what waits does not count while it is paused.
    running, waiting = facts.get("running_requests", 0), facts.get("waiting_requests", 0)
    if running or (waiting and not facts.get("paused")):
        return (
            f"the engine is not idle: {running} requests run, {waiting} wait; end them first with "
            '/pause_generation {"mode": "abort"}'
        )
    return ""


def _resume(body: dict[str, Any], facts: Facts) -> str:
    if reason := _memory_saver(body, facts):
        return reason
    released = facts.get("released")
    if released is None:
        return ""
    missing = [tag for tag in _tags(body) if tag not in released]
    return f"these were not released: {', '.join(missing)}" if missing else ""


def _memory_saver(body: dict[str, Any], facts: Facts) -> str:
    if not facts.get("enable_memory_saver"):
        return "the engine runs without --enable-memory-saver"
    return _shared_weights(body, facts) if "weights" in _tags(body) else ""


def _tags(body: dict[str, Any]) -> list[str]:
    tags = body.get("tags")
    return [str(tag) for tag in tags] if isinstance(tags, list) and tags else list(MEMORY_TAGS)


MEMORY_TAGS = ("kv_cache", "weights", "cuda_graph")
"""What a release without `tags` releases."""


def _shared_weights(_: dict[str, Any], facts: Facts) -> str:
    mode = facts.get("weight_cache_mode")
    if mode in (None, "off"):
        return ""
    return f"the weights are shared between servers (--weight-cache-mode {mode}); start it with `off`"


def _one_replica(body: dict[str, Any], facts: Facts) -> str:
    if (facts.get("dp_size") or 1) > 1 and not facts.get("enable_dp_attention"):
        return "the engine has data-parallel replicas (--dp-size), which this call does not serve"
    return _shared_weights(body, facts)


def _init_group(body: dict[str, Any], facts: Facts) -> str:
    if reason := _one_replica(body, facts):
        return reason
    if body.get("group_name") == "":
        return "group_name must not be empty"
    offset, size = body.get("rank_offset"), body.get("world_size")
    ranks = facts.get("tp_size") or 1
    if isinstance(offset, int) and isinstance(size, int) and not 0 <= offset <= size - ranks:
        return f"rank_offset {offset} plus {ranks} ranks (--tp-size) do not fit world_size {size}"
    return ""


def _from_tensor(body: dict[str, Any], facts: Facts) -> str:
    if reason := _one_replica(body, facts):
        return reason
    parts, ranks = body.get("serialized_named_tensors"), facts.get("tp_size") or 1
    if not isinstance(parts, list):
        return ""
    if len(parts) < ranks:
        return f"serialized_named_tensors has {len(parts)} entries for {ranks} ranks (--tp-size)"
    if not all(isinstance(part, str) and part.startswith(_PICKLE_START) for part in parts):
        return "serialized_named_tensors has an entry that is no base64 of serialized tensors"
    return ""


def _from_disk(body: dict[str, Any], facts: Facts) -> str:
    name = body.get("load_format")
    known = facts.get("version") == "0.5.23" and isinstance(name, str)
    if known and str(name).lower() not in LOAD_FORMATS:
        return f"load_format {name!r} is none of {', '.join(LOAD_FORMATS)}"
    return _shared_weights(body, facts)


LOAD_FORMATS = (
    "auto pt safetensors instanttensor npcache dummy sharded_state presharded gguf expert_pack"
    " bitsandbytes mistral layered flash_rl jax remote remote_instance rdma local_cached"
    " fastsafetensors private runai_streamer ipc_cache"
).split()
"""Those of SGLang 0.5.23."""


def _send_group(body: dict[str, Any]) -> str:
    return str(body.get("group_name", "weight_send_group"))


def _send_weights(body: dict[str, Any], facts: Facts) -> str:
    groups = facts.get("send_groups")
    if groups is None or _send_group(body) in groups:
        return ""
    return f"there is no group {_send_group(body)!r}: /init_weights_send_group_for_remote_instance first"


def _start_profile(_: dict[str, Any], facts: Facts) -> str:
    # It is made when the profile ends, in the scheduler's own loop.
    reason = facts.get("no_folder")
    return f"output_dir cannot be made: {reason}" if reason else ""


def _stop_profile(_: dict[str, Any], facts: Facts) -> str:
    return "no profile runs: /start_profile first" if facts.get("profiles") is False else ""


def _expert_record(_: dict[str, Any], facts: Facts) -> str:
    if facts.get("expert_distribution_recorder_mode") is None:
        return "the engine runs without --expert-distribution-recorder-mode"
    return ""


def _log_level(body: dict[str, Any], _: Facts) -> str:
    level = body.get("log_level")
    if level is None or str(level).upper() in logging.getLevelNamesMapping():
        return ""
    return f"log_level {level!r} is none of {', '.join(logging.getLevelNamesMapping()).lower()}"


def _state_values(body: dict[str, Any], _: Facts) -> str:
    values = body.get("server_args")
    for name, value in values.items() if isinstance(values, dict) else ():
        if not isinstance(value, int | float):
            return f"server_args.{name} must be a number"
    return ""


_CHECKS: dict[str, Callable[[dict[str, Any], Facts], str]] = {
    "/release_memory_occupation": _release,
    "/resume_memory_occupation": _resume,
    "/init_weights_update_group": _init_group,
    "/destroy_weights_update_group": _one_replica,
    "/begin_weight_update": _shared_weights,
    "/update_weights_from_disk": _from_disk,
    "/update_weights_from_ipc": _one_replica,
    "/update_weights_from_distributed": _one_replica,
    "/update_weights_from_tensor": _from_tensor,
    "/send_weights_to_remote_instance": _send_weights,
    "/start_profile": _start_profile,
    "/stop_profile": _stop_profile,
    "/start_expert_distribution_record": _expert_record,
    "/stop_expert_distribution_record": _expert_record,
    "/dump_expert_distribution_record": _expert_record,
    "/configure_logging": _log_level,
    "/set_internal_state": _state_values,
}
