"""Process groups of a trainer and of all engines. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from seer_sgl.errors import RequestError
from seer_sgl.types import EngineId


def group_bodies(body: bytes, ranks: Mapping[EngineId, int]) -> dict[EngineId, bytes]:
    """A body of `/init_weights_update_group` for each engine: each gets ranks after those before it.

    Args:
        body: the caller's; its `rank_offset` is the first engine's.
        ranks: of each engine, in the order of the engines.

    Raises:
        RequestError: a number is none, or `world_size` has no room for all of them.
    """
    fields = msgspec.json.decode(body)
    for name in ("rank_offset", "world_size", "master_port"):
        fields[name] = _whole_number(fields, name)
    bodies, offset = {}, fields["rank_offset"]
    for engine, count in ranks.items():
        bodies[engine] = msgspec.json.encode({**fields, "rank_offset": offset})
        offset += count
    if len(ranks) > 1 and offset > fields["world_size"]:
        raise RequestError(
            "world_size",
            f"{fields['world_size']} has no room for the engines' ranks "
            f"{fields['rank_offset']} to {offset - 1}; see num_gpus in /server_info",
        )
    return bodies


def _whole_number(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)  # AReaL sends the port as text
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(name, f"must be a whole number, not {value!r}")
    return value
