"""The router as a running service: core, sockets and HTTP front wired together, started and stopped."""

import asyncio
import contextlib
import logging
import socket
import time

import uvicorn
from starlette.types import ASGIApp

from seer_sgl.config import RouterConfig
from seer_sgl.errors import StartError
from seer_sgl.router.batch.service import BatchService
from seer_sgl.router.calls import EngineCalls
from seer_sgl.router.control.plane import ControlPlane
from seer_sgl.router.core import Policy, RouterCore, policy_named
from seer_sgl.router.core.estimates import estimate_named
from seer_sgl.router.core.placement import PlacementSettings
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.router.dispatcher import Dispatcher
from seer_sgl.router.drafts import DraftWatch
from seer_sgl.router.grouping import GroupBook
from seer_sgl.router.http.app import build_app, build_metrics_app
from seer_sgl.router.http.batches import line_answerer, served_models
from seer_sgl.router.http.front import Front
from seer_sgl.router.http.port import build_port_app
from seer_sgl.router.http.protocol import BoundedProtocol
from seer_sgl.router.http.traffic import Traffic
from seer_sgl.router.link import AgentLink
from seer_sgl.router.messages import (
    AgentMessage,
    AskHead,
    CallAnswered,
    CallBegan,
    CallEnded,
    CallPart,
    ChunkAnswered,
    ChunkBroke,
    ChunkProgress,
    Head,
    Heartbeat,
    Leave,
    Refused,
    Register,
    Welcome,
    WhoAreYou,
)
from seer_sgl.router.metrics import registry_of
from seer_sgl.router.pool import NoPool, PoolKeeper
from seer_sgl.router.ports import EnginePorts
from seer_sgl.router.roster import Roster
from seer_sgl.router.workers import Attachments
from seer_sgl.spec.settings import kv_reserve_tokens
from seer_sgl.types import EngineId

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""How long an idle connection stays open. Longer than clients keep theirs: a request that meets our
closing its connection is an error to most of them."""
ACCEPTED_AT_ONCE = 32


class RouterService:
    """One router. Use as an async context manager: it serves inside, and is gone after.

    Args:
        config: ports, policy, limits.
        policy: instead of the one that `config.policy` names (tests bring their own).
        attached: takes in servers that clients register by URL.

    Raises:
        StartError: on entering, where a port is taken or the policy unknown.
    """

    def __init__(
        self,
        config: RouterConfig,
        policy: Policy | None = None,
        attached: Attachments | None = None,
    ) -> None:
        self._config = config
        self._attached = attached
        self.core = RouterCore(policy or configured_policy(config), core_settings(config))
        self.roster = Roster()

    async def __aenter__(self) -> "RouterService":
        config = self._config
        listeners = [listen_on(config.host, config.http_port)]
        try:
            if config.prometheus_port is not None:
                metrics_host = config.prometheus_host or config.host
                listeners.append(listen_on(metrics_host, config.prometheus_port, "--prometheus-port"))
            self._link = AgentLink(config.host, config.agent_port)
        except StartError:
            for listener in listeners:
                listener.close()
            raise
        batches = await self._opened_batches(listeners)
        self.pool = PoolKeeper(config.pool_keeper) if config.pool_keeper else NoPool()
        self.drafts = DraftWatch(config.draft.servers if config.draft else ())
        self._calls = EngineCalls(self._link, self.roster)
        self.dispatcher = self._dispatcher()
        self._plane = ControlPlane(self.dispatcher, self.roster, self._calls, config.update_timeout_s)
        traffic = self._traffic = Traffic()
        registry = registry_of(self.core, self.drafts, self.roster, traffic, self.pool)
        front = Front(
            config,
            self.dispatcher,
            self.roster,
            self._calls,
            registry,
            self._plane,
            attached=self._attached,
            batches=batches,
            ports=self._engine_ports(),
        )
        self._front, self._app = front, build_app(front)
        if batches is not None:
            await batches.run(line_answerer(front), served_models(front))
        apps = [traffic.counted(self._app)]
        if config.prometheus_port is not None:
            apps.append(build_metrics_app(front))
        self._servers = [_QuietServer(_http_settings(app)) for app in apps]
        self._tasks = [
            *(
                asyncio.create_task(server.serve(sockets=many_of(listener)), name="http")
                for server, listener in zip(self._servers, listeners, strict=True)
            ),
            asyncio.create_task(self._link.receive_forever(self._on_message), name="agents"),
            asyncio.create_task(self._watch(), name="watch"),
            asyncio.create_task(self.drafts.watch(), name="drafts"),
            asyncio.create_task(self.dispatcher.watch_pool(), name="pool"),
            asyncio.create_task(self._plane.catch_up_forever(), name="late engines"),
        ]
        return self

    def _dispatcher(self) -> Dispatcher:
        config = self._config
        groups = GroupBook(config.group_size, config.group_window_s)
        return Dispatcher(
            self.core, self._link, self.roster, self._calls, groups, config.salted, self.pool
        )

    def _engine_ports(self) -> EnginePorts | None:
        config = self._config
        if config.engine_ports is None:
            return None
        return EnginePorts(
            config.engine_ports,
            listen=lambda port: listen_on(config.host, port, "--engine-ports"),
            app=lambda engine_id: self._traffic.counted(
                build_port_app(self._front, engine_id, self._app)
            ),
            server=lambda app: _QuietServer(_http_settings(app)),
        )

    async def __aexit__(self, *_: object) -> None:
        if self._front.batches is not None:
            await self._front.batches.stop()
        self.dispatcher.stopping.set()
        for server in self._servers:
            server.should_exit = True
        for task in self._tasks[len(self._servers) :]:
            task.cancel()
        if self._front.ports is not None:
            await self._front.ports.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._link.close()
        self.pool.close()

    async def _opened_batches(self, listeners: list[socket.socket]) -> BatchService | None:
        """Where the configuration names a data folder.

        Raises:
            StartError: it cannot be used; nothing is left open.
        """
        if self._config.data_dir is None:
            return None
        batches = BatchService(self._config.data_dir)
        try:
            await batches.open()
        except StartError:
            self._link.close()
            for listener in listeners:
                listener.close()
            raise
        return batches

    async def wait_failed(self) -> None:
        """Return only by raising what ended one of the service's tasks."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise RuntimeError(f"the router's {next(iter(done)).get_name()} task ended")

    # ---- engines ----

    def _on_message(self, peer: bytes, message: AgentMessage) -> None:
        match message:
            case ChunkAnswered():
                self.dispatcher.chunk_answered(message)
            case ChunkProgress():
                self.dispatcher.chunk_progressed(message)
            case ChunkBroke():
                self.dispatcher.chunk_broke(message)
            case CallAnswered() | CallBegan() | CallPart() | CallEnded():
                self._calls.answered(message)
            case Heartbeat():
                if not self.roster.heard(peer, message, time.monotonic()):
                    self._link.send(peer, WhoAreYou())
            case Register():
                self._register(peer, message)
            case AskHead():
                config = self._config
                args = list(config.engine_args)
                self._link.send(peer, Head(config.model, config.pool, args, config.draft))
            case Leave():
                self._remove(message.engine_id, message.reason)

    def _register(self, peer: bytes, card: Register) -> None:
        objection = self.roster.objection_to(peer, card)
        if objection:
            log.warning("engine %s refused: %s", card.spec.engine_id, objection)
            self._link.send(peer, Refused(objection))
            return
        if card.spec.engine_id in self.roster.members:
            self._remove(card.spec.engine_id, "started afresh")
        member = self.roster.register(peer, card, time.monotonic())
        self._link.send(peer, Welcome(self._config.heartbeat_s, self._config.http_port))
        log.info("engine %s joined: %s", card.spec.engine_id, card.url)
        if layout := card.facts.get("pool_layout"):
            self.pool.layout(layout["prefix"], layout["suffixes"], card.spec.page_tokens)
        self._plane.engine_joined(card.spec.engine_id)
        if self._front.ports is not None:
            self._front.ports.engine_joined(card.spec.engine_id)
        if not member.quarantine:
            self.dispatcher.engine_joined(card.spec)

    def _remove(self, engine_id: EngineId, reason: str) -> None:
        if self.roster.remove(engine_id) is None:
            return
        log.warning("engine %s left: %s", engine_id, reason)
        self._calls.engine_left(engine_id)
        self.dispatcher.engine_left(engine_id, reason)
        self._plane.engine_left(engine_id)

    async def _watch(self) -> None:
        """Take engines that fell silent for gone."""
        timeout_s = self._config.engine_timeout_s
        while True:
            await asyncio.sleep(self._config.heartbeat_s)
            for engine_id in self.roster.silent_since(time.monotonic() - timeout_s):
                self._remove(engine_id, f"silent for {timeout_s:g} s")


def configured_policy(config: RouterConfig) -> Policy:
    """The policy and length estimate that the configuration names."""
    estimate = estimate_named(config.estimate) if config.estimate else None
    return policy_named(config.policy, estimate)


def core_settings(config: RouterConfig) -> CoreSettings:
    """What a router of this configuration tells its core."""
    return CoreSettings(
        chunk_tokens=config.chunk_tokens,
        chunk_plan=config.chunk_plan,
        settle_s=config.settle_s,
        draft_tokens=kv_reserve_tokens(config.draft) if config.draft is not None else 0,
        placement=PlacementSettings(pull_margin_tokens=config.pull_margin_tokens),
    )


def _http_settings(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=2,
    )


class _QuietServer(uvicorn.Server):
    """Leaves signals to whoever runs the service."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


def listen_on(host: str, port: int, option: str = "--port") -> socket.socket:
    """A listening socket.

    Args:
        option: what chooses the port, for the message.

    Raises:
        StartError: the port is taken, or is not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; it costs 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {host}:{port}: {error.strerror}. Is another router running? "
            f"Choose another port with {option}."
        ) from None
    listener.listen(2048)
    return listener


def many_of(listener: socket.socket) -> list[socket.socket]:
    """A listening socket several times over: uvloop accepts one connection from each in a turn.

    Of a thousand clients that come at once to a busy router the last ones would wait for seconds.
    """
    return [listener, *(listener.dup() for _ in range(ACCEPTED_AT_ONCE - 1))]
