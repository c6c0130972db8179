"""What a server says of itself, as an engine. Servers that say less are taken for unlimited. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from seer_sgl.engine.plugin import PROOF_KEY
from seer_sgl.types import UNKNOWN_MODEL, EngineId, EngineSpec

UNKNOWN_KV_TOKENS = 1 << 40
UNKNOWN_CONTEXT_TOKENS = 1 << 20
UNKNOWN_RUNNING = 1 << 16
UNKNOWN_PAGE_TOKENS = 1
"""Where a server does not say: nothing is held back from it, and it refuses what it cannot take."""
DEFAULT_WEIGHTS = "default"
"""SGLang's name of weights that nobody has named."""


class EngineInfo(msgspec.Struct, frozen=True):
    """What a running server says of itself."""

    spec: EngineSpec
    model: str
    sglang_version: str
    weight_version: str
    plugin: dict[str, Any] | None
    """Our plugin's own line, None where the plugin is not active in the server."""
    facts: dict[str, Any] = {}
    """Its arguments, scalars only, and `front`: whether our plugin serves divided chat. Where our plugin
    knows how pages are named in the pool, `pool_layout`, as `engine/kvlayout.py` has it."""
    launched: bool = False
    """It was started for us, and nobody has told it anything yet."""

    @property
    def says_what_it_holds(self) -> bool:
        """Whether it does; if not, it is taken for unlimited."""
        return self.spec.kv_capacity_tokens != UNKNOWN_KV_TOKENS


def info_of(
    engine_id: EngineId,
    server: Mapping[str, Any],
    model: Mapping[str, Any],
    models: Mapping[str, Any],
) -> EngineInfo:
    """An engine from a server's `/server_info`, `/model_info` and `/v1/models`; any may be empty."""
    state = _first(server.get("internal_states"))
    card = _first(models.get("data"))
    plugin = state.get(PROOF_KEY)
    capacity = server.get("max_total_num_tokens")
    running = state.get("effective_max_running_requests_per_dp", server.get("max_running_requests"))
    context = card.get("max_model_len", server.get("context_length"))
    spec = EngineSpec(
        engine_id=engine_id,
        kv_capacity_tokens=_positive(capacity, UNKNOWN_KV_TOKENS),
        page_tokens=_positive(server.get("page_size"), UNKNOWN_PAGE_TOKENS),
        max_running_requests=_positive(running, UNKNOWN_RUNNING),
        context_tokens=_positive(context, UNKNOWN_CONTEXT_TOKENS),
        vocab_size=plugin["vocab_size"] if plugin else None,
    )
    name = model.get("served_model_name") or model.get("model_path") or UNKNOWN_MODEL
    return EngineInfo(
        spec=spec,
        model=str(name),
        sglang_version=str(server.get("version") or "unknown"),
        weight_version=str(model.get("weight_version") or DEFAULT_WEIGHTS),
        plugin=plugin,
        facts=_facts(server, plugin),
    )


def _facts(server: Mapping[str, Any], plugin: Mapping[str, Any] | None) -> dict[str, Any]:
    """As `EngineInfo.facts`; what is secret is left out."""
    facts = {
        name: value
        for name, value in server.items()
        if (value is None or isinstance(value, bool | int | float | str)) and "api_key" not in name
    }
    known = {name: plugin[name] for name in ("pool_layout",) if plugin and plugin.get(name)}
    return {**facts, **known, "front": bool(plugin and plugin.get("front"))}


def load_of(loads: Any) -> tuple[int, int, int] | None:
    """Running and waiting requests, used KV tokens, out of `/v1/loads`; None where it is not that."""
    entries = loads.get("loads") if isinstance(loads, Mapping) else None
    if not isinstance(entries, list):
        return None
    names = ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")
    sums = [0, 0, 0]
    for entry in entries:
        for place, name in enumerate(names):
            value = entry.get(name) if isinstance(entry, Mapping) else None
            sums[place] += value if isinstance(value, int) else 0
    return sums[0], sums[1], sums[2]


def _first(values: Any) -> Mapping[str, Any]:
    first = values[0] if isinstance(values, list) and values else None
    return first if isinstance(first, Mapping) else {}


def _positive(value: Any, otherwise: int) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if good else otherwise
