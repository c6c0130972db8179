"""`/workers` and its older names: who runs requests, as the stock router's clients know it."""

import asyncio
import socket
import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from seer_sgl.errors import RequestError
from seer_sgl.router.http.bodies import decoded_as, json_response, read_body
from seer_sgl.router.http.front import Front
from seer_sgl.router.http.operations import Answer, Operation, Parameter
from seer_sgl.router.workers import (
    Engine,
    Registration,
    Worker,
    described,
    listed,
    named,
    normal_url,
    url_parts,
)
from seer_sgl.types import EngineId

JOIN_PATIENCE_S = 1.0
"""How long an answer waits for a server that was just registered, or for one that was removed to be
gone; the answer is the same after. Clients that send requests at once find the server there."""
_POLL_S = 0.01
_WILDCARDS = ("0.0.0.0", "::", "")


class NewWorker(msgspec.Struct):
    """A server to take in. Fields of the stock router that say nothing here are accepted."""

    url: str
    worker_type: Literal["regular"] | None = None
    model_id: str | None = None
    priority: int | None = None
    cost: float | None = None
    labels: dict[str, str] | None = None
    api_key: str | None = None


class WorkerChanges(msgspec.Struct):
    """What may be changed. It is shown in the list, and changes no scheduling."""

    priority: int | None = None
    cost: float | None = None
    labels: dict[str, str] | None = None


class WorkerEntry(msgspec.Struct):
    """One server; or the router itself, where it stands for all its engines."""

    id: str
    url: str
    model_id: str
    priority: int
    cost: float
    worker_type: str
    is_healthy: bool
    load: int
    connection_mode: str
    metadata: dict[str, str]
    disable_health_check: bool


class WorkerStats(msgspec.Struct):
    """Counts by type."""

    prefill_count: int
    decode_count: int
    regular_count: int


class WorkerList(msgspec.Struct):
    """All entries."""

    workers: list[WorkerEntry]
    total: int
    stats: WorkerStats


class Accepted(msgspec.Struct):
    """A change that was taken."""

    status: str
    worker_id: str
    message: str
    url: str
    location: str


class OldAnswer(msgspec.Struct):
    """A change by an older name."""

    status: str
    url: str


class UrlList(msgspec.Struct):
    """URLs of all entries."""

    urls: list[str]


def operations(front: Front) -> list[Operation]:
    """Routes about workers."""
    routes = _Workers(front)
    return [*_current(routes), *_older(routes)]


def _current(routes: "_Workers") -> list[Operation]:
    name = Parameter("worker", "path", {"type": "string"}, "Id, or URL, percent-encoded.", True)
    accepted = {202: Answer("Taken.", Accepted)}

    def one(method: str, handler: Any, text: str, answers: dict[int, Answer], **more: Any) -> Operation:
        path = "/workers/{worker:path}"
        more = {"parameters": [name], "errors": [404], **more}
        return Operation(path, [method], handler, text, "workers", answers, **more)

    return [
        Operation(
            "/workers",
            ["GET"],
            routes.all,
            "All servers; or the router itself, where it stands for all its engines.",
            "workers",
            {200: Answer("Entries.", WorkerList)},
        ),
        Operation(
            "/workers",
            ["POST"],
            routes.add,
            "Take a running SGLang server in. It is an engine once it answers, however long that takes.",
            "workers",
            accepted,
            [503],
            NewWorker,
        ),
        one("GET", routes.get, "One server.", {200: Answer("The entry.", WorkerEntry)}),
        one(
            "PUT",
            routes.change,
            "Change what the list says of a server.",
            accepted,
            request=WorkerChanges,
            request_required=False,
        ),
        one("DELETE", routes.remove, "Let a server go; what it runs goes on elsewhere.", accepted),
    ]


def _older(routes: "_Workers") -> list[Operation]:
    url = Parameter("url", "query", {"type": "string"}, "URL of the server.", True)
    answers = {200: Answer("Done.", OldAnswer)}

    def older(path: str, handler: Any, text: str, errors: list[int]) -> Operation:
        return Operation(
            path, ["POST"], handler, text, "workers", answers, errors, parameters=[url], hidden=True
        )

    return [
        older("/add_worker", routes.old_add, "As POST /workers.", [400, 503]),
        older("/remove_worker", routes.old_remove, "As DELETE /workers.", [400]),
        Operation(
            "/list_workers",
            ["GET"],
            routes.old_list,
            "URLs of all servers.",
            "workers",
            {200: Answer("URLs.", UrlList)},
            hidden=True,
        ),
    ]


class _Workers:
    def __init__(self, front: Front) -> None:
        self._front = front
        self._registered: dict[str, Registration] = {}

    # ---- handlers ----

    async def all(self, request: Request) -> Response:
        engines = self._engines()
        entries = [
            described(worker, engines, self._registered.get(worker.url))
            for worker in self._listed(request)
        ]
        stats = {"prefill_count": 0, "decode_count": 0, "regular_count": len(entries)}
        return json_response({"workers": entries, "total": len(entries), "stats": stats})

    async def get(self, request: Request) -> Response:
        worker = self._named(request)
        registration = self._registered.get(worker.url)
        return json_response(described(worker, self._engines(), registration))

    async def add(self, request: Request) -> Response:
        body = decoded_as(await read_body(request, self._front.config.max_body_bytes), NewWorker)
        registration = await self._add(request, body.url, body.api_key or "")
        _apply(registration, body)
        itself = registration.engine_id is None
        message = "this is the router itself" if itself else "the server is an engine once it answers"
        return _accepted(Worker(normal_url(body.url), ()), message)

    async def change(self, request: Request) -> Response:
        body = decoded_as(await read_body(request, self._front.config.max_body_bytes), WorkerChanges)
        worker = self._named(request)
        engine = None if worker.url == own_url(request) else worker.engines[0]
        _apply(self._registered.setdefault(worker.url, Registration(engine)), body)
        return _accepted(worker, "changed in the list; it changes no scheduling")

    async def remove(self, request: Request) -> Response:
        worker = self._named(request)
        return _accepted(worker, await self._remove(worker.url))

    async def old_add(self, request: Request) -> Response:
        url = _url_of(request)
        await self._add(request, url)
        return json_response({"status": "success", "url": url})

    async def old_remove(self, request: Request) -> Response:
        url = _url_of(request)
        await self._remove(normal_url(url))
        return json_response({"status": "success", "url": url})

    async def old_list(self, request: Request) -> Response:
        return json_response({"urls": [worker.url for worker in self._listed(request)]})

    # ---- what they do ----

    async def _add(self, request: Request, text: str, api_key: str = "") -> Registration:
        """Register a server, and attach it unless its engine is here by other means."""
        url = normal_url(text)
        attached = self._front.attached
        if await self._is_ours(request, url):
            return self._registered.setdefault(url, Registration(None))
        engine = self._here_by_other_means(url)
        if engine is None:
            if attached is None:
                raise RequestError("", "this router takes no servers in by URL", 503, "not_supported")
            engine = attached.attach(url, api_key)
            await self._until(lambda: engine in self._front.roster.members)
        return self._registered.setdefault(url, Registration(engine))

    async def _remove(self, url: str) -> str:
        """Forget a registration, and let its server go if it was attached here; says what was done."""
        self._registered.pop(url, None)
        attached = self._front.attached
        engine = attached.engines.get(url) if attached is not None else None
        if attached is None or engine is None:
            return "not listed by itself any more; whoever runs the engine stops it"
        await attached.detach(url)
        await self._until(lambda: engine not in self._front.roster.members)
        return "the server gets no more requests"

    async def _until(self, holds: Any) -> None:
        deadline_s = time.monotonic() + JOIN_PATIENCE_S
        while not holds() and time.monotonic() < deadline_s:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(_POLL_S)

    # ---- what they know ----

    def _listed(self, request: Request) -> list[Worker]:
        attached = self._front.attached
        return listed(
            own_url(request),
            self._front.roster.members,
            self._port_urls(request),
            attached.engines if attached is not None else {},
            self._registered,
        )

    def _named(self, request: Request) -> Worker:
        """The entry that the path names; the router itself is always known."""
        name = request.path_params["worker"]
        itself = Worker(own_url(request), ())
        worker = named([*self._listed(request), itself], name)
        if worker is None:
            raise RequestError("worker", f"there is no worker {name[:200]!r}", 404, "worker_not_found")
        return worker

    def _engines(self) -> dict[EngineId, Engine]:
        running, calls = self._front.dispatcher.core.engines, self._front.calls.in_flight
        return {
            engine_id: Engine(
                member.card.model,
                calls[engine_id] + (len(running[engine_id].chunks) if engine_id in running else 0),
                {"engine": engine_id, "weight_version": member.card.weight_version},
            )
            for engine_id, member in self._front.roster.members.items()
        }

    def _port_urls(self, request: Request) -> Mapping[EngineId, str]:
        """The router's own address for each engine, where it has one."""
        ports = self._front.ports
        return ports.urls(url_parts(own_url(request))[0]) if ports is not None else {}

    def _here_by_other_means(self, url: str) -> EngineId | None:
        """The engine of a server that an agent elsewhere brought in."""
        attached = self._front.attached
        ours = attached.engines.values() if attached is not None else ()
        for engine_id, member in self._front.roster.members.items():
            if engine_id not in ours and member.card.url.rstrip("/") == url:
                return engine_id
        return None

    async def _is_ours(self, request: Request, url: str) -> bool:
        """Whether a URL leads back to this router. A client may know it by another name than ours."""
        if url == own_url(request) or url in self._port_urls(request).values():
            return True
        host, port = url_parts(url)
        ports = self._front.ports
        ours = {self._front.config.http_port, *(ports.numbers.values() if ports is not None else ())}
        return port in ours and await leads_here(host, self._front.config.host)


def own_url(request: Request) -> str:
    """The router as this client reaches it."""
    try:
        return normal_url(f"{request.url.scheme}://{request.url.netloc}")
    except RequestError:  # an HTTP/1.0 client that names no host, or nonsense
        host, port = request.scope.get("server") or ("127.0.0.1", 80)
        return normal_url(f"http://{f'[{host}]' if ':' in host else host}:{port}")


async def leads_here(host: str, listens_on: str) -> bool:
    """Whether `host` is this machine, at an address that a socket bound to `listens_on` serves."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
        ours = await loop.getaddrinfo(listens_on or "0.0.0.0", None, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    addresses = {(family, address[0]) for family, *_, address in found}
    if listens_on in _WILDCARDS:
        return any(_is_local(family, str(address)) for family, address in addresses)
    return bool(addresses & {(family, address[0]) for family, *_, address in ours})


def _is_local(family: int, address: str) -> bool:
    """Only a machine's own addresses can be bound."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _apply(registration: Registration, changes: NewWorker | WorkerChanges) -> None:
    if changes.priority is not None:
        registration.priority = changes.priority
    if changes.cost is not None:
        registration.cost = changes.cost
    if changes.labels is not None:
        registration.labels = changes.labels


def _accepted(worker: Worker, message: str) -> Response:
    body = {
        "status": "accepted",
        "worker_id": worker.id,
        "url": worker.url,
        "location": f"/workers/{worker.id}",
        "message": message,
    }
    return json_response(body, 202)


def _url_of(request: Request) -> str:
    url = request.query_params.get("url", "")
    if not url:
        raise RequestError("url", "the query names no server: ?url=http://HOST:PORT")
    return url
