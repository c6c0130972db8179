"""What control calls must say. Other fields are SGLang's affair, and go to it as they are. Pure."""

from typing import Any, Literal

import msgspec

Integer = int | str
"""A number, or text that is one: AReaL sends the port so."""


class Anything(msgspec.Struct):
    """Fields that only SGLang knows."""


class Abort(msgspec.Struct):
    """One request, or all."""

    rid: str | None = None
    abort_all: bool = False


class Pause(msgspec.Struct):
    """What becomes of requests that run: ended with what they have, or kept."""

    mode: Literal["abort", "retract", "in_place"] = "abort"


class Continue(msgspec.Struct):
    """Whether to give unused device memory back first."""

    torch_empty_cache: bool = True


class InitGroup(msgspec.Struct):
    """A process group. `rank_offset` is the first engine's; those after it follow."""

    master_address: str
    master_port: Integer
    rank_offset: Integer
    world_size: Integer
    group_name: str = "weight_update_group"
    backend: str = "nccl"


class Group(msgspec.Struct):
    """A process group's name."""

    group_name: str = "weight_update_group"


class Selected(msgspec.Struct):
    """Which of the engine's models."""

    selector: Literal["target", "draft", "all"] = "all"


class Changing(msgspec.Struct, kw_only=True):
    """New weights, or a new name for them. A version lower than the one that serves is refused unless
    `allow_older_version` says that it is meant so; SGLang does not see that field."""

    allow_older_version: bool = False


class FromDistributed(Changing):
    """Weights that come over a process group, in this order."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class FromTensor(Changing):
    """Serialized weights, one entry for each rank."""

    serialized_named_tensors: list[str]


class FromDisk(Changing):
    """A folder that every engine can read."""

    model_path: str


class FromIpc(Changing):
    """Sockets of a checkpoint engine, by device."""

    zmq_handles: dict[str, str]


class NewVersion(Changing):
    """What the weights are called from now on."""

    new_version: str
    abort_all_requests: bool = True


class Check(msgspec.Struct):
    """What to do with weights: compare them, or fill them with something else to see a later update."""

    action: str = ""


class WeightName(msgspec.Struct):
    """A weight, and how many of its values."""

    name: str
    truncate_size: int = 100


class Adapter(msgspec.Struct):
    """An adapter, and where it lies."""

    lora_name: str
    lora_path: str


class AdapterInMemory(msgspec.Struct):
    """An adapter as serialized tensors, one copy for each rank."""

    lora_name: str
    config_dict: dict[str, Any]
    serialized_named_tensors: list[str]


class AdapterName(msgspec.Struct):
    """An adapter."""

    lora_name: str


class Tags(msgspec.Struct):
    """Kinds of memory; all where none is named."""

    tags: list[Literal["kv_cache", "weights", "cuda_graph"]] | None = None


class Store(msgspec.Struct):
    """A KV store."""

    hicache_storage_backend: str


class OpenSession(msgspec.Struct):
    """A session, and how long its text may get."""

    capacity_of_str_len: int
    session_id: str | None = None


class CloseSession(msgspec.Struct):
    """A session."""

    session_id: str


class SlowDown(msgspec.Struct):
    """Seconds to sleep in each forward pass; null for none."""

    forward_sleep_time: float | None


class State(msgspec.Struct):
    """Numbers to set."""

    server_args: dict[str, float]


class Tokenize(msgspec.Struct):
    """Text; or messages, for the chat template."""

    prompt: str | list[str] | None = None


class Detokenize(msgspec.Struct):
    """Token ids, of one text or of several."""

    tokens: list[int | list[int]]


class FunctionCall(msgspec.Struct):
    """What the model wrote, and the tools that it may call."""

    text: str
    tools: list[Any] = []
    tool_call_parser: str | None = None


class Reasoning(msgspec.Struct):
    """What the model wrote."""

    text: str
    reasoning_parser: str
    return_blocks: bool = False
