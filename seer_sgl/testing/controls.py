"""What a fake server answers to calls other than `/generate`, in the shapes of SGLang 0.5.23.

A new answer is a function in `ANSWERS`: it takes the server's state and the call.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from seer_sgl.types import EngineSpec


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that a fake server was sent."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def json(self) -> Any:
        """The decoded body; an empty one is an empty object."""
        return msgspec.json.decode(self.body) if self.body else {}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer in full: what an entry of `ANSWERS` or of a script may give instead of a JSON value."""

    status: int = 200
    body: Any = None
    """JSON, or bytes as they are."""
    events: AsyncIterator[bytes] | None = None
    """Instead of a body: the parts of a stream of events."""
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else msgspec.json.encode(self.body)


@dataclass
class FakeState:
    """What a fake server's control calls have made of it."""

    spec: EngineSpec
    facts: dict[str, Any]
    aborted: set[str] = field(default_factory=set)
    running: dict[str, None] = field(default_factory=dict)
    """rids, in the order of their arrival."""
    waiting: dict[str, None] = field(default_factory=dict)
    """rids that wait for the end of a pause."""
    weight_version: str = "default"
    weights: bytes = b""
    """What stands for them: the last update's body, less its version."""
    updating: bool = False
    """Between `/begin_weight_update` and `/end_weight_update`."""
    groups: set[str] = field(default_factory=set)
    """Names of weight update groups."""
    going: asyncio.Event = field(default_factory=asyncio.Event)
    """Clear while generation is paused."""

    def __post_init__(self) -> None:
        self.going.set()

    def abort_all(self) -> int:
        count = len(self.running) + len(self.waiting)
        self.aborted.update(self.running, self.waiting)
        return count

    @property
    def tokens_held(self) -> int:
        return 16 * len(self.running)


def _abort(state: FakeState, asked: Asked) -> Any:
    body = asked.json()
    if body.get("abort_all"):
        state.abort_all()
    elif body.get("rid") is not None:
        state.aborted.add(body["rid"])
    return Reply(200, b"")


def _pause(state: FakeState, asked: Asked) -> Any:
    mode = asked.json().get("mode", "abort")
    if mode not in ("abort", "retract", "in_place"):
        return Reply(400, {"error": {"message": f"mode {mode!r}"}})
    if mode == "abort":
        state.abort_all()
    state.going.clear()
    return {"message": "Generation paused successfully.", "status": "ok"}


def _continue(state: FakeState, asked: Asked) -> Any:
    state.going.set()
    return {"message": "Generation continued successfully.", "status": "ok"}


def _flush(state: FakeState, asked: Asked) -> Any:
    if state.running and state.going.is_set():
        return Reply(400, b"Flush cache failed.")
    return Reply(200, b"Cache flushed.\nPlease check backend logs for more details.\n")


def _init_group(state: FakeState, asked: Asked) -> Any:
    name = asked.json().get("group_name", "weight_update_group")
    if name in state.groups:
        return Reply(400, {"success": False, "message": f"group {name} exists"})
    state.groups.add(name)
    return {"success": True, "message": "Succeeded to initialize custom process group."}


def _destroy_group(state: FakeState, asked: Asked) -> Any:
    name = asked.json().get("group_name", "weight_update_group")
    if name not in state.groups:
        return Reply(400, {"success": False, "message": "The group to be destroyed does not exist."})
    state.groups.discard(name)
    return {"success": True, "message": "Succeeded to destroy custom process group."}


def _begin_update(state: FakeState, asked: Asked) -> Any:
    state.updating = True
    return {"success": True, "message": "Success."}


def _end_update(state: FakeState, asked: Asked) -> Any:
    state.updating = False
    return {"success": True, "message": "Success."}


def _update_in_session(state: FakeState, asked: Asked) -> Any:
    if not state.updating:
        message = "update requires an open weight update session: call begin_weight_update first"
        return Reply(400, {"success": False, "message": message})
    return _update(state, asked)


def _update(state: FakeState, asked: Asked) -> Any:
    body = asked.json()
    aborted = state.abort_all() if body.get("abort_all_requests") else 0
    state.weight_version = body.get("weight_version") or state.weight_version
    state.weights = msgspec.json.encode({k: v for k, v in body.items() if k != "weight_version"})
    answer = {"success": True, "message": "Succeeded to update model weights."}
    return {**answer, "num_paused_requests": aborted} if asked.path.endswith("disk") else answer


def _new_version(state: FakeState, asked: Asked) -> Any:
    body = asked.json()
    if body.get("abort_all_requests", True):
        state.abort_all()
    state.weight_version = body["new_version"]
    message = f"Weight version updated to {body['new_version']}"
    return {"success": True, "message": message, "new_version": body["new_version"]}


def _loads(state: FakeState, asked: Asked) -> Any:
    load = {
        "dp_rank": 0,
        "num_running_reqs": len(state.running),
        "num_waiting_reqs": len(state.waiting),
        "num_waiting_uncached_tokens": 0,
        "num_used_tokens": state.tokens_held,
        "max_total_num_tokens": state.spec.kv_capacity_tokens,
        "max_running_requests": state.spec.max_running_requests,
        "token_usage": state.tokens_held / state.spec.kv_capacity_tokens,
    }
    return {
        "timestamp": "2026-01-01T00:00:00+00:00",
        "version": "0.5.23",
        "dp_rank_count": 1,
        "loads": [load],
    }


def _server_info(state: FakeState, asked: Asked) -> Any:
    spec = state.spec
    own = {
        "effective_max_running_requests_per_dp": spec.max_running_requests,
        "last_gen_throughput": 0.0,
    }
    return {
        "tp_size": 1,
        "pp_size": 1,
        "dp_size": 1,
        "disaggregation_mode": "null",
        "enable_memory_saver": False,
        "incremental_streaming_output": False,
        **state.facts,
        "max_total_num_tokens": spec.kv_capacity_tokens,
        "page_size": spec.page_tokens,
        "version": "0.5.23",
        "internal_states": [own],
    }


def _model_info(state: FakeState, asked: Asked) -> Any:
    return {
        "model_path": "/models/fake-model",
        "tokenizer_path": "/models/fake-model",
        "is_generation": True,
        "weight_version": state.weight_version,
        "served_model_name": "fake-model",
    }


def _models(state: FakeState, asked: Asked) -> Any:
    card = {
        "id": "fake-model",
        "object": "model",
        "created": 1,
        "owned_by": "sglang",
        "root": "fake-model",
        "parent": None,
        "max_model_len": state.spec.context_tokens,
    }
    return {"object": "list", "data": [card]}


def _tokenize(state: FakeState, asked: Asked) -> Any:
    prompt = asked.json()["prompt"]
    if isinstance(prompt, str):
        return {"tokens": list(prompt.encode())}
    return {"tokens": [list(text.encode()) for text in prompt]}


def _detokenize(state: FakeState, asked: Asked) -> Any:
    return {"text": ["".join(map(piece, ids)) for ids in asked.json()["tokens"]]}


def _check(state: FakeState, asked: Asked) -> Any:
    answer = {"success": True, "message": "Success."}
    if asked.json().get("action", "checksum") != "checksum":
        return answer
    return {**answer, "per_engine_checksum": f"{zlib.crc32(state.weights):08x}"}


def _nothing(state: FakeState, asked: Asked) -> Any:
    return Reply(200, None)


END_TOKEN = 1


def piece(token: int) -> str:
    """A token's text."""
    return "" if token == END_TOKEN else f"<{token}>"


ANSWERS: dict[str, Callable[[FakeState, Asked], Any]] = {
    "/abort_request": _abort,
    "/pause_generation": _pause,
    "/continue_generation": _continue,
    "/flush_cache": _flush,
    "/init_weights_update_group": _init_group,
    "/destroy_weights_update_group": _destroy_group,
    "/begin_weight_update": _begin_update,
    "/end_weight_update": _end_update,
    "/update_weights_from_distributed": _update_in_session,
    "/update_weights_from_tensor": _update_in_session,
    "/update_weights_from_disk": _update,
    "/update_weights_from_ipc": _update,
    "/update_weight_version": _new_version,
    "/weights_checker": _check,
    "/release_memory_occupation": _nothing,
    "/resume_memory_occupation": _nothing,
    "/v1/loads": _loads,
    "/server_info": _server_info,
    "/model_info": _model_info,
    "/v1/models": _models,
    "/tokenize": _tokenize,
    "/detokenize": _detokenize,
}
"""By path. Another path is answered 200 with `{"success": true, "message": ""}`."""
