"""Changes that leave the weights as they are, or as nobody wants them: adapters, names, resets."""

from typing import Any

import msgspec

from seer_sgl.errors import RequestError
from seer_sgl.router.control.merging import Replies, Reply
from seer_sgl.router.control.table import Row
from seer_sgl.router.control.weights.changes import ALLOW_OLDER, Turn, without_permission
from seer_sgl.router.control.weights.late import NOT_THERE, THERE, UNLOAD
from seer_sgl.router.control.weights.making import Making
from seer_sgl.router.control.weights.outcome import Outcome
from seer_sgl.router.control.weights.recipe import Repeated
from seer_sgl.types import EngineId

LOAD = "/load_lora_adapter"
RESETS = "reset_tensors"
"""The action of `/weights_checker` that fills all weights with something else."""
_RESET = "its weights were reset by /weights_checker, and it waits for a whole update"


class Adapters:
    """Performs such changes."""

    def __init__(self, making: Making) -> None:
        self._making = making

    async def change(self, row: Row, engines: list[EngineId], body: bytes) -> Reply:
        """An adapter is loaded or unloaded."""
        making, fields = self._making, msgspec.json.decode(body)
        name = str(fields["lora_name"])
        async with making.turn(Turn(row.target, frozenset(engines), waits=True)), making.held():
            results = await making.ask(engines, row.target, body, keeps_weights=True)
            took = results.of(Outcome.TOOK)
            if took:
                # An engine that has it already got it when an earlier call failed elsewhere.
                results.forget(NOT_THERE if row.target == UNLOAD else THERE)
            if took and row.target == UNLOAD:
                making.sync.unloaded(took, name)
                if not making.sync.wanted_adapter(name):  # else it was an older one of this name
                    making.recipe.unloaded(name)
            elif took:
                making.sync.loaded(took, name, _source(fields))
                if any(making.sync.has_wanted_adapter(engine, name) for engine in took):
                    repeated = Repeated(row.target, body) if row.target == LOAD else None
                    making.recipe.loaded(name, repeated)
            await making.settle(results, row.target)
        return results.told(making.versions())

    async def rename(self, row: Row, engines: list[EngineId], body: bytes) -> Reply:
        """`/update_weight_version`: the weights stay, and get another name."""
        making, fields = self._making, msgspec.json.decode(body)
        version = str(fields["new_version"])
        allow_older = fields.get(ALLOW_OLDER, False)
        if not isinstance(allow_older, bool):
            raise RequestError(ALLOW_OLDER, f"must be true or false, not {allow_older!r}")
        turn = Turn(row.target, frozenset(engines), waits=True)
        if (refusal := making.objection(turn, version, allow_older)) is not None:
            return refusal
        body = without_permission(body, fields)
        if fields.get("abort_all_requests", True):
            making.dispatcher.abort_all()
        async with making.turn(turn), making.held():
            results = await making.ask(engines, row.target, body, keeps_weights=True)
            await making.verify(results, version)
            took = results.of(Outcome.TOOK)
            making.sync.part(took, ("name", version), loads=False)
            if any(map(making.sync.has_wanted_weights, took)):
                making.recipe.renamed(Repeated(row.target, body))
            await making.settle(results, row.target)
        return results.told(making.versions())

    async def reset(self, row: Row, engines: list[EngineId], body: bytes) -> Replies:
        """`/weights_checker` with `reset_tensors`: what an engine has then serves nobody."""
        making = self._making
        async with making.turn(Turn(row.target, frozenset(engines))), making.quiet({}, engines):
            results = await making.ask(engines, row.target, body)
            await making.settle(results, row.target)
            for engine in results.of(Outcome.TOOK):
                making.sync.doubted(engine, _RESET)
        return results.replies


def _source(fields: dict[str, Any]) -> str:
    """What tells an adapter's weights from others of its name. Handles of memory differ from engine to
    engine, and say nothing."""
    return str(fields.get("lora_path") or "memory")
