"""What every family of routes needs of the router."""

import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from seer_sgl.config import RouterConfig
from seer_sgl.router.batch.service import BatchService
from seer_sgl.router.calls import EngineCalls
from seer_sgl.router.control.plane import ControlPlane
from seer_sgl.router.dispatcher import Dispatcher
from seer_sgl.router.ports import EnginePorts
from seer_sgl.router.roster import Roster
from seer_sgl.router.workers import Attachments


@dataclass(frozen=True)
class Front:
    """Handed to each module's `operations(front)`."""

    config: RouterConfig
    dispatcher: Dispatcher
    roster: Roster
    calls: EngineCalls
    registry: CollectorRegistry
    plane: ControlPlane
    ports: EnginePorts | None = None
    """A port for each engine; None where there are none."""
    began_s: int = field(default_factory=lambda: int(time.time()))
    """Unix time of the start."""
    attached: Attachments | None = None
    """Takes servers in by their URLs; None where nothing does."""
    batches: BatchService | None = None
    """None without a data folder."""
