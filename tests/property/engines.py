"""A simulated engine: an agent and a server that knows which weights it has."""

import asyncio
import itertools
from collections.abc import Container
from typing import Any, Protocol

import msgspec

from seer_sgl.engine.history import WeightHistory
from seer_sgl.router.messages import (
    Call,
    CallAnswered,
    ChunkAnswered,
    Register,
    RunChunk,
    StopCall,
    StopChunk,
)
from seer_sgl.types import ChunkId, EngineId, EngineSpec

TOKEN_S, CALL_S, HANG_S = 0.02, 0.01, 1.5
UPDATES = ("/update_weights_from_disk", "/update_weights_from_distributed")
FIRST = "w0"
Weights = tuple[Any, ...]
"""What an engine's weights are made of. Equal ones are equal weights."""


class World(Protocol):
    """What an engine knows of all that is around it."""

    serial: "itertools.count[int]"

    def from_engine(self, peer: bytes, message: Any) -> None: ...
    def judge_prefill(self, engine: "Engine", message: RunChunk) -> None: ...
    def new_token(self, rid: str, engine: "Engine") -> int: ...
    def crash(self, engine: "Engine") -> None: ...


class Engine:
    """A server and its agent."""

    def __init__(self, fleet: World, name: str, life: int) -> None:
        self.fleet = fleet
        self.name = EngineId(name)
        self.peer = f"{name}.{life}".encode()
        self.alive = True
        self.content: Weights = (FIRST,)
        self.version = "default"
        self.adapters: dict[str, str] = {}
        self.session = False
        self.faults: list[str] = []
        """What happens to the next calls that change weights: refuse, fail, hang, die."""
        self.parts: dict[int, set[int]] = {}
        self._going = asyncio.Event()
        self._going.set()
        self._updating = asyncio.Lock()
        self._chunks: dict[int, asyncio.Task[None]] = {}
        self._stopped: set[int] = set()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._silent: set[int] = set()
        """Calls that nobody hears the answer of, though the server goes on with them."""
        self.history = WeightHistory()

    @property
    def weights(self) -> Weights:
        return (*self.content, *sorted(self.adapters.items()))

    @property
    def doubtful(self) -> bool:
        return bool(self.content[0] == "mixed")

    def register(self) -> None:
        """Tell the router that it is here."""
        if self.alive:
            self.fleet.from_engine(self.peer, self.card())

    def card(self) -> Register:
        spec = EngineSpec(self.name, 4096, 16, 4, 2048)
        told = self.history.told()
        return Register(spec, f"http://{self.name}", "m", "0.5.23", "default", {}, told)

    def forget(self) -> None:
        """The agent hears that the router does not know it."""
        for task in self._chunks.values():
            task.cancel()
        self._chunks.clear()
        self._silent |= set(self._calls)

    def die(self) -> None:
        """Nothing more is heard of it, but for what is on its way."""
        self.alive = False
        for task in [*self._chunks.values(), *self._calls.values()]:
            task.cancel()

    # ---- from the router ----

    def take(self, message: Any) -> None:
        if not self.alive:
            return
        match message:
            case RunChunk(chunk_id=chunk_id):
                self._chunks[chunk_id] = asyncio.ensure_future(self._run(message))
            case StopChunk(chunk_id=chunk_id):
                self._stopped.add(chunk_id)
            case Call(call_id=call_id):
                self.history.asked(call_id, message.target, message.body)
                self._calls[call_id] = asyncio.ensure_future(self._answer(message))
            case StopCall():
                pass  # SGLang goes on with an update, whoever hangs up

    def _say(self, message: Any) -> None:
        if self.alive:
            self.fleet.from_engine(self.peer, message)

    # ---- chunks ----

    async def _run(self, message: RunChunk) -> None:
        body, chunk_id = message.body, message.chunk_id
        ids, limit = body["input_ids"], body["sampling_params"]["max_new_tokens"]
        await self._going_or_stopped(chunk_id)
        self.fleet.judge_prefill(self, message)
        output: list[int] = []
        spans: list[dict[str, Any]] = []
        while len(output) < limit and chunk_id not in self._stopped:
            await asyncio.sleep(TOKEN_S)
            await self._going_or_stopped(chunk_id)
            if chunk_id in self._stopped:
                break
            output.append(self.fleet.new_token(body["rid"], self))
            if not spans or spans[-1]["version"] != self.version:
                spans.append({"version": self.version, "start": len(output) - 1})
            spans[-1]["end"] = len(output)
        stopped = len(output) < limit
        finish = {"type": "abort", "message": "x"} if stopped else {"type": "length", "length": limit}
        meta = {
            "id": body["rid"],
            "finish_reason": finish,
            "prompt_tokens": len(ids),
            "completion_tokens": len(output),
            "cached_tokens": 0,
            "weight_versions": spans,
        }
        self._chunks.pop(chunk_id, None)
        text = "".join(f"<{token}>" for token in output)
        self._say(
            ChunkAnswered(
                self.name, message.chunk_id, {"text": text, "output_ids": output, "meta_info": meta}
            )
        )

    async def _going_or_stopped(self, chunk_id: int) -> None:
        while not self._going.is_set() and chunk_id not in self._stopped:  # noqa: ASYNC110
            await asyncio.sleep(TOKEN_S)

    def works_for(self, chunks: Container[ChunkId]) -> bool:
        """Whether it makes tokens now for one of these chunks."""
        running = [chunk for chunk in self._chunks if chunk not in self._stopped]
        return self._going.is_set() and any(ChunkId(chunk) in chunks for chunk in running)

    # ---- calls ----

    async def _answer(self, call: Call) -> None:
        body = msgspec.json.decode(call.body) if call.body else {}
        status, answer = await self._answered(call.target.partition("?")[0], body)
        if call.call_id in self._silent:
            return
        self.history.answered(call.call_id, status)
        headers = {"content-type": "application/json"}
        self._say(CallAnswered(self.name, call.call_id, status, headers, msgspec.json.encode(answer)))

    async def _answered(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        await asyncio.sleep(CALL_S)
        good = (200, {"success": True, "message": ""})
        match path:
            case "/pause_generation":
                if body.get("mode", "abort") == "abort":
                    self._stopped |= set(self._chunks)
                self._going.clear()
            case "/continue_generation":
                self._going.set()
            case "/abort_request":
                self._stopped |= set(self._chunks)
            case "/model_info" | "/weights_checker" | "/detokenize":
                return 200, self._told(path, body)
            case "/begin_weight_update" | "/end_weight_update":
                return self._bracket(path) or good
            case "/flush_cache":
                return (400, "busy") if self._chunks else (200, "flushed")
            case _:
                paused = not self._going.is_set()
                while self._chunks and path in UPDATES and not paused:  # noqa: ASYNC110 - as SGLang
                    await asyncio.sleep(CALL_S)
                async with self._updating:
                    return await self._changed(path, body) or good
        return good

    def _told(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/model_info":
            return {"weight_version": self.version}
        if path == "/weights_checker":
            return {"success": True, "message": "", "per_engine_checksum": repr(self.content)}
        return {"text": ["".join(f"<{token}>" for token in ids) for ids in body["tokens"]]}

    def _bracket(self, path: str) -> tuple[int, Any] | None:
        begins = path == "/begin_weight_update"
        if self.session == begins:
            said = (
                "a weight-update session is already open"
                if begins
                else "no weight-update session is open"
            )
            return 400, {"success": False, "message": said}
        self.session = begins
        return None

    async def _changed(self, path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        fault = self.faults.pop(0) if self.faults else ""
        if path in ("/load_lora_adapter", "/unload_lora_adapter"):
            return self._adapter(path, body, fault)
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return None
        if fault == "refuse":
            return 400, {"success": False, "message": "Failed to get weights iterator: no such folder."}
        if path != "/update_weights_from_disk" and not self.session:
            message = f"{path[1:]} must run between begin_weight_update() and end_weight_update()"
            return 400, {"success": False, "message": message}
        await asyncio.sleep(HANG_S if fault == "hang" else CALL_S)
        if fault in ("fail", "die"):
            self.content = ("mixed", next(self.fleet.serial))
        if fault == "die":
            self.fleet.crash(self)
            await asyncio.sleep(60)
        if fault == "fail":
            return 400, {
                "success": False,
                "message": "Failed to update weights: CUDA error. Rolling back",
            }
        self._load(body)
        if body.get("weight_version") is not None:
            self.version = body["weight_version"]
        return None

    def _load(self, body: dict[str, Any]) -> None:
        if "model_path" in body:
            self.content, self.parts = (body["model_path"],), {}
            return
        series, number, total = body["part"]
        got = self.parts.setdefault(series, set())
        got.add(number)
        if len(got) == total:
            self.content, self.parts = (f"series {series}",), {}
        elif self.content[0] == "mixed":
            self.content = ("mixed", next(self.fleet.serial))
        else:
            self.content = (*self.content, (series, number))

    def _adapter(self, path: str, body: dict[str, Any], fault: str) -> tuple[int, Any] | None:
        name = body["lora_name"]
        if fault in ("refuse", "fail"):
            return 400, {"success": False, "error_message": "no such adapter"}
        if path == "/unload_lora_adapter":
            if self.adapters.pop(name, None) is None:
                return 400, {"success": False, "error_message": f"LoRA with name {name} does not exist."}
        elif name in self.adapters:
            return 400, {"success": False, "error_message": f"{name} is already loaded"}
        else:
            self.adapters[name] = body["lora_path"]
        return None
