"""The core's invariants, checked the slow and obvious way."""

from collections.abc import Mapping

from seer_sgl.router.core.buffer import RequestBuffer
from seer_sgl.router.core.fleet import MOST_VOID, Fleet
from seer_sgl.router.core.state import Chunk, Group, Request
from seer_sgl.types import ChunkId

Chunks = Mapping[ChunkId, Chunk]


def check_state(fleet: Fleet, chunks: Chunks, buffer: RequestBuffer, reserves: bool) -> None:
    """Raise AssertionError, naming the object, where the state contradicts itself. O(n).

    Args:
        reserves: whether the policy keeps engines within their KV and slots.
    """
    _check_engines(fleet, chunks, reserves)
    _check_indexes(fleet, reserves)
    for group in buffer.groups.values():
        _check_group(group, [r for r in buffer.requests.values() if r.group is group])
    for request in buffer.requests.values():
        assert buffer.groups.get(request.group.group_id) is request.group, "a lost group"
        _check_request(request, chunks)
    places = [request.place for request in buffer.requests.values()]
    queued = len(places) - places.count("in_flight") - places.count("parked")
    assert len(buffer.queue) == queued, "the queue miscounts"
    assert len(buffer.parked) == places.count("parked"), "parked requests are miscounted"
    assert len(chunks) == places.count("in_flight"), "a chunk belongs to no live request"


def _check_engines(fleet: Fleet, chunks: Chunks, reserves: bool) -> None:
    on_engines = {}
    for engine in fleet.engines.values():
        on_engines.update(engine.chunks)
        reserved = sum(chunk.reserved_tokens for chunk in engine.chunks.values())
        assert engine.reserved_tokens == reserved, f"{engine.engine_id}: reserved tokens drifted"
        if reserves:
            assert engine.free_tokens >= 0, f"{engine.engine_id}: over its KV capacity"
            slots = engine.spec.max_running_requests
            assert len(engine.chunks) <= slots, f"{engine.engine_id}: over its request slots"
    assert on_engines == chunks, "a chunk runs on no engine that is here"


def _check_indexes(fleet: Fleet, reserves: bool) -> None:
    engines = list(fleet.engines.values())
    assert fleet.held is None, f"{fleet.held}: held after the round"
    assert all(engine.status == "open" for engine in engines), "an engine that is here is not open"
    rooms = [e.room_now() for e in engines]
    assert not reserves or [e.room_tokens for e in engines] == rooms, "the room drifted"
    by_load = [(*e.load, e.number, e.version, e) for e in engines]
    by_room = [(-e.room_now(), len(e.chunks), e.number, e.version, e) for e in engines]
    for index, right in ((fleet.by_load, by_load), (fleet.by_room, by_room if reserves else [])):
        valid = [entry for entry in index.entries if entry[3] == entry[4].version]
        assert sorted(valid) == sorted(right), "an index says what is not so"
        assert len(index.entries) <= MOST_VOID * (len(engines) + 16), "void entries are not dropped"
    loads = [len(engine.chunks) for engine in engines]
    counts = [loads.count(load) for load in range(len(fleet.counts))]
    assert fleet.counts == counts, "the histogram of loads drifted"
    if engines:
        assert fleet.spread_requests == max(loads) - min(loads), "the spread drifted"
        assert fleet.least_slots == min(e.spec.max_running_requests for e in engines), "slots drifted"
        assert fleet.could_hold(max(e.capacity_tokens for e in engines)), "capacities drifted"


def _check_group(group: Group, members: list[Request]) -> None:
    assert group.live == len(members), f"group {group.group_id}: miscounts its live requests"
    waiting = sum(request.place == "group" for request in members)
    assert group.waiting_count == waiting, f"group {group.group_id}: miscounts its waiting requests"
    probes = [request for request in members if request.is_probe]
    assert probes == ([group.probe] if group.probe else []), f"group {group.group_id}: two probes"


def _check_request(request: Request, chunks: Chunks) -> None:
    name = request.request_id
    assert request.place != "nowhere", f"request {name} is in no place"
    assert request.remaining_tokens > 0, f"request {name} is complete and was not delivered"
    if request.place == "in_flight":
        assert request.chunk is not None, f"request {name} is in flight without a chunk"
        assert chunks.get(request.chunk.chunk_id) is request.chunk, f"{name}: unknown chunk"
    else:
        assert request.chunk is None, f"request {name} waits with a chunk in flight"
        assert not request.cancelled, f"request {name} waits though it was cancelled"
