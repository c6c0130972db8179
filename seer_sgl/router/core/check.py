"""The core's invariants, checked the slow and obvious way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seer_sgl.router.core.state import Group, Request

if TYPE_CHECKING:
    from seer_sgl.router.core.machine import RouterCore


def check_state(core: RouterCore) -> None:
    """Raise AssertionError, naming the object, where the state contradicts itself. O(n)."""
    _check_engines(core)
    for group in core.buffer.groups.values():
        _check_group(core, group)
    for request in core.buffer.requests.values():
        _check_request(core, request)
    places = [request.place for request in core.buffer.requests.values()]
    queued = len(places) - places.count("in_flight") - places.count("parked")
    assert len(core.buffer.queue) == queued, "the queue miscounts"
    assert len(core.buffer.parked) == places.count("parked"), "parked requests are miscounted"
    assert len(core.chunks) == places.count("in_flight"), "a chunk belongs to no live request"


def _check_engines(core: RouterCore) -> None:
    on_engines = {}
    for engine in core.engines.values():
        on_engines.update(engine.chunks)
        reserved = sum(chunk.reserved_tokens for chunk in engine.chunks.values())
        assert engine.reserved_tokens == reserved, f"{engine.engine_id}: reserved tokens drifted"
        if core.policy.reserves:
            assert engine.free_tokens >= 0, f"{engine.engine_id}: over its KV capacity"
            slots = engine.spec.max_running_requests
            assert len(engine.chunks) <= slots, f"{engine.engine_id}: over its request slots"
    assert on_engines == core.chunks, "a chunk runs on no engine that is here"


def _check_group(core: RouterCore, group: Group) -> None:
    members = [r for r in core.buffer.requests.values() if r.group is group]
    assert group.live == len(members), f"group {group.group_id}: miscounts its live requests"
    waiting = sum(request.place == "group" for request in members)
    assert group.waiting_count == waiting, f"group {group.group_id}: miscounts its waiting requests"
    probes = [request for request in members if request.is_probe]
    assert probes == ([group.probe] if group.probe else []), f"group {group.group_id}: two probes"


def _check_request(core: RouterCore, request: Request) -> None:
    name = request.request_id
    assert request.place != "nowhere", f"request {name} is in no place"
    assert core.buffer.groups.get(request.group.group_id) is request.group, f"{name}: lost group"
    assert request.remaining_tokens > 0, f"request {name} is complete and was not delivered"
    if request.place == "in_flight":
        assert request.chunk is not None, f"request {name} is in flight without a chunk"
        assert core.chunks.get(request.chunk.chunk_id) is request.chunk, f"{name}: unknown chunk"
    else:
        assert request.chunk is None, f"request {name} waits with a chunk in flight"
        assert not request.cancelled, f"request {name} waits though it was cancelled"
