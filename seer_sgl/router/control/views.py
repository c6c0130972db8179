"""What several engines say of themselves, told as one server would tell it. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seer_sgl.router.control.merging import Replies, Reply, json_reply
from seer_sgl.types import EngineId

_SUMMED = ("max_total_num_tokens", "max_running_requests")
ROUTER = "router"
"""The name of the entry that stands for the router's own queue."""


@dataclass(frozen=True, slots=True)
class Queue:
    """What the router holds that no engine shows: requests, and their tokens."""

    waiting: int = 0
    in_flight: int = 0
    waiting_tokens: int = 0


def in_order(engine_id: str) -> list[tuple[int, int, str]]:
    """A key that sorts `e-2` before `e-10`: the order of ranks, ports and loads."""
    parts = re.split(r"(\d+)", engine_id)
    return [(1, int(p), "") if p.isdecimal() else (0, 0, p) for p in parts]


def ranks(facts: Mapping[str, Any]) -> int:
    """Devices of one engine: its ranks in a process group of weights."""
    return _count(facts, "tp_size") * _count(facts, "pp_size")


def _count(facts: Mapping[str, Any], name: str) -> int:
    value = facts.get(name)
    return value if isinstance(value, int) and value > 0 else 1


# ---- /server_info, /model_info ----


def server_info(replies: Replies, urls: Mapping[EngineId, str]) -> Reply:
    """The first engine's settings; devices and capacity summed; the internal states of all."""
    bodies = _bodies(replies)
    devices = [ranks(body) for body in bodies.values()]
    states = [state for body in bodies.values() for state in body.get("internal_states") or []]
    first = next(iter(bodies.values()))
    merged = {
        **first,
        "num_gpus": sum(devices),
        "num_gpus_per_engine": sum(devices),
        "num_engines": len(bodies),
        "internal_states": states,
        "engines": [
            {"id": engine, "url": urls.get(engine), "num_gpus": count}
            for engine, count in zip(bodies, devices, strict=True)
        ],
    }
    for key in _SUMMED:
        values = [body.get(key) for body in bodies.values()]
        if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            merged[key] = sum(values)
    return json_reply(merged)


def model_info(replies: Replies, urls: Mapping[EngineId, str]) -> Reply:
    """The first engine's; where weight versions differ, the lowest, and each engine's by URL."""
    bodies = _bodies(replies)
    versions = {e: str(body.get("weight_version")) for e, body in bodies.items()}
    merged = {**next(iter(bodies.values())), "weight_version": min(versions.values(), key=in_order)}
    if len(set(versions.values())) > 1:
        merged["weight_versions"] = {urls.get(e) or e: version for e, version in versions.items()}
    return json_reply(merged)


def weight_version(replies: Replies, urls: Mapping[EngineId, str]) -> Reply:
    """`{"weight_version"}` out of `/model_info`."""
    found = model_info(replies, urls).json()
    kept = ("weight_version", "weight_versions")
    return json_reply({key: found[key] for key in kept if key in found})


def _bodies(replies: Replies) -> dict[EngineId, dict[str, Any]]:
    found = {engine: reply.json() for engine, reply in replies.items() if reply.good}
    return {engine: body for engine, body in found.items() if isinstance(body, dict)}


# ---- loads ----


def all_loads(replies: Replies, queue: Queue | None) -> list[dict[str, Any]]:
    """Every rank's load with `dp_rank` counted on, then the router's own.

    Args:
        queue: None where another port shows it.
    """
    entries: list[dict[str, Any]] = []
    for engine, body in _bodies(replies).items():
        for load in body.get("loads") or []:
            entries.append({**load, "dp_rank": len(entries), "worker": engine})
    if queue is not None:
        shown = sum(_number(load, "num_running_reqs", "num_waiting_reqs") for load in entries)
        blank = {key: _blank(value) for key, value in (entries[0] if entries else _BLANK).items()}
        entries.append(
            {
                **blank,
                "dp_rank": len(entries),
                # On the way to an engine, or from it: in no engine's own count.
                "num_running_reqs": max(0, queue.in_flight - shown),
                "num_waiting_reqs": queue.waiting,
                "num_waiting_uncached_tokens": queue.waiting_tokens,
                "num_total_tokens": queue.waiting_tokens,
                "worker": ROUTER,
            }
        )
    return entries


_BLANK = {"num_used_tokens": 0, "max_total_num_tokens": 0, "max_running_requests": 0}


def _blank(value: Any) -> Any:
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return type(value)(0)
    return None


def loads(
    replies: Replies, queue: Queue | None, stamp: Mapping[str, Any], only_rank: int | None = None
) -> Reply:
    """`/v1/loads`.

    Args:
        stamp: `timestamp`, and `version` for where no engine tells one.
        only_rank: this rank's load alone.
    """
    entries = all_loads(replies, queue)
    bodies = list(_bodies(replies).values())
    top = {key: value for body in bodies[:1] for key, value in body.items() if key != "loads"}
    if any("num_accelerators" in body for body in bodies):
        top["num_accelerators"] = sum(body.get("num_accelerators") or 0 for body in bodies)
    shown = [load for load in entries if only_rank in (None, load["dp_rank"])]
    return json_reply({**stamp, **top, "timestamp": stamp["timestamp"], "loads": shown})


def loads_as_metrics(replies: Replies, queue: Queue | None) -> Reply:
    """`/v1/loads?format=prometheus`, with SGLang's names."""
    entries = all_loads(replies, queue)
    lines: list[str] = []
    names = dict.fromkeys(key for load in entries for key in load)
    for name in names:
        if name in ("dp_rank", "worker"):
            continue
        values = [(load["dp_rank"], load["worker"], load.get(name)) for load in entries]
        numbers = [
            (rank, worker, value)
            for rank, worker, value in values
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        if numbers:
            lines.append(f"# TYPE sglang_{name} gauge")
        for rank, worker, value in numbers:
            lines.append(f'sglang_{name}{{dp_rank="{rank}",worker="{worker}"}} {value}')
    page = "".join(f"{line}\n" for line in lines)
    return Reply(200, page.encode(), "text/plain; version=0.0.4; charset=utf-8")


def load(replies: Replies, queue: Queue | None) -> Reply:
    """`/get_load` as SGLang answered it before 0.5.23."""
    return json_reply([_old_load(entry) for entry in all_loads(replies, queue)])


def _old_load(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dp_rank": entry["dp_rank"],
        "num_reqs": _number(entry, "num_running_reqs", "num_waiting_reqs"),
        "num_waiting_reqs": _number(entry, "num_waiting_reqs"),
        "num_tokens": _number(entry, "num_total_tokens"),
    }


def worker_loads(
    replies: Replies, queue: Queue | None, urls: Mapping[EngineId, str], total: int
) -> Reply:
    """`/get_loads` as the stock router answers it (`workers`), and its successor (`loads`).

    Args:
        total: engines that were asked.
    """
    by_worker: dict[str, int] = {}
    for entry in all_loads(replies, queue):
        worker = urls.get(entry["worker"], entry["worker"])
        count = _number(entry, "num_running_reqs", "num_waiting_reqs")
        by_worker[worker] = by_worker.get(worker, 0) + count
    answered = len(_bodies(replies))
    workers = [{"worker": worker, "load": count} for worker, count in by_worker.items()]
    return json_reply(
        {
            "workers": workers,
            "loads": workers,
            "total_workers": total,
            "successful": answered,
            "failed": total - answered,
        }
    )


def _number(entry: Mapping[str, Any], *names: str) -> int:
    values: Sequence[Any] = [entry.get(name) for name in names]
    return sum(value for value in values if isinstance(value, int))
