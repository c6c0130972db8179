"""The list of workers as stock routers show it: which entries there are, by what names. Pure."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from seer_sgl.errors import RequestError
from seer_sgl.types import UNKNOWN_MODEL, EngineId

DEFAULT_PRIORITY = 50
DEFAULT_COST = 1.0
"""The stock router's."""
PORTS = {"http": 80, "https": 443}
LONGEST_URL = 2048


class Attachments(Protocol):
    """Servers that somebody else runs, taken in by their URLs. Each is an engine once it answers."""

    @property
    def engines(self) -> Mapping[str, EngineId]:
        """The engine that each URL is, or will be once its server answers."""
        ...

    def attach(self, url: str, api_key: str = "") -> EngineId:
        """Take a server in, which may ask for a key; nothing more where it is already."""
        ...

    async def detach(self, url: str) -> None:
        """Let it go: its engine leaves. Nothing where it is not attached."""
        ...


@dataclass(slots=True)
class Registration:
    """What a client said of a worker that it registered."""

    engine_id: EngineId | None
    """None: the router itself."""
    priority: int = DEFAULT_PRIORITY
    cost: float = DEFAULT_COST
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Engine:
    """What the list tells of an engine that is here."""

    model: str
    load: int
    """Chunks and calls that it runs."""
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Worker:
    """One entry: an address, and the engines behind it."""

    url: str
    engines: tuple[EngineId, ...]

    @property
    def id(self) -> str:
        """The same for an address for ever."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, self.url))


def normal_url(text: str) -> str:
    """A server's URL in one spelling: scheme and host in lower case, no slash at the end.

    Raises:
        RequestError: it is none that HTTP reaches.
    """
    wrong = RequestError("url", f"{text[:200]!r} is not the URL of an HTTP server: http://HOST:PORT")
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in PORTS or not host or len(text) > LONGEST_URL:
        raise wrong
    if parts.query or parts.fragment or parts.username is not None or not host.isascii():
        raise wrong
    if port == 0 or any(char.isspace() or not char.isprintable() for char in text.strip()):
        raise wrong
    place = f"[{host}]" if ":" in host else host
    place = f"{place}:{port}" if port else place  # one that is not written stays so: clients look for it
    return f"{parts.scheme}://{place}{parts.path.rstrip('/')}"


def url_parts(url: str) -> tuple[str, int]:
    """Host and port of a normal URL."""
    parts = urlsplit(url)
    assert parts.hostname
    return parts.hostname, parts.port or PORTS[parts.scheme]


def listed(
    own_url: str,
    engines: Iterable[EngineId],
    port_urls: Mapping[EngineId, str],
    attached: Mapping[str, EngineId],
    registered: Mapping[str, Registration],
) -> list[Worker]:
    """The entries, in a lasting order.

    A server that a client registered or attached is listed by its own URL. The other engines are
    listed by the router's port for each; or, where it has no such ports, all together as the router
    itself, by the name under which a client registered the router with itself.

    Args:
        own_url: the router, as the client reaches it.
        engines: those that are here.
        port_urls: of engines that have a port of the router's own.
        attached: URL and engine of servers that the router takes in by itself.
        registered: what clients registered, by URL.
    """
    by_url = dict(attached)
    for url, registration in registered.items():
        if registration.engine_id is not None:
            by_url.setdefault(url, registration.engine_id)
    known = set(by_url.values())
    others = [engine for engine in engines if engine not in known]
    rest = tuple(engine for engine in others if engine not in port_urls)
    ports = set(port_urls.values())
    names = [u for u, each in registered.items() if each.engine_id is None and u not in ports]
    if rest and not names:
        names = [own_url]
    entries = [Worker(name, rest) for name in names]
    entries += [Worker(port_urls[engine], (engine,)) for engine in others if engine in port_urls]
    entries += [Worker(url, (engine,)) for url, engine in by_url.items()]
    return entries


def described(
    worker: Worker, engines: Mapping[EngineId, Engine], registration: Registration | None
) -> dict[str, Any]:
    """An entry as the stock router writes it."""
    here = [engines[engine] for engine in worker.engines if engine in engines]
    labels = registration.labels if registration else {}
    facts = here[0].facts if len(here) == 1 else {"engines": str(len(here))}
    return {
        "id": worker.id,
        "url": worker.url,
        "model_id": here[0].model if here else UNKNOWN_MODEL,
        "priority": registration.priority if registration else DEFAULT_PRIORITY,
        "cost": registration.cost if registration else DEFAULT_COST,
        "worker_type": "regular",
        "is_healthy": bool(here),
        "load": sum(engine.load for engine in here),
        "connection_mode": "HTTP",
        "metadata": {**facts, **labels},
        "disable_health_check": False,
    }


def named(workers: Sequence[Worker], name: str) -> Worker | None:
    """The entry with this id or URL."""
    for worker in workers:
        if name in (worker.id, worker.url):
            return worker
    try:
        url = normal_url(name)
    except RequestError:
        return None
    return next((worker for worker in workers if worker.url == url), None)
