"""Settings of the processes: frozen, with their defaults and units, passed on explicitly."""

from pathlib import Path

import msgspec

from seer_sgl.kv.pool import PoolAddress
from seer_sgl.spec.settings import DraftSettings

TRIED_SGLANG = ("0.5.23",)
"""SGLang versions that the plugin and the command line were tried with."""


CPU_SEGMENT_BYTES = 256 << 20
LENT_SHARE = 8
"""On a GPU machine all engines together lend one part in so many of its memory, by default."""


class RouterConfig(msgspec.Struct, frozen=True):
    """One router."""

    host: str = "127.0.0.1"
    http_port: int = 30000
    agent_port: int = 30001
    """ZeroMQ port that engine agents dial."""
    policy: str = "seer"
    estimate: str | None = None
    """Length estimate of a policy that uses one; its own where None."""
    chunk_tokens: int = 8192
    chunk_plan: str = "short_probe"
    """How much of that a request gets, by its phase."""
    settle_s: float = 0.5
    """How long a chunk's KV may take to be in the pool; no request moves sooner."""
    pull_margin_tokens: int = 512
    """An engine that lacks more of a chunk's prefix than this pulls it from the pool; less of it is
    computed again, at once. 0 always pulls."""
    heartbeat_s: float = 1.0
    engine_timeout_s: float = 20.0
    """An engine that is silent for longer is taken for gone. An agent answers within milliseconds
    even beside a busy engine; the margin is for machines that swap or are suspended."""
    max_body_bytes: int = 64 << 20
    prometheus_port: int | None = None
    """Serves `/metrics` there, too."""
    prometheus_host: str | None = None
    """Where that port listens; None: where the router does."""
    engine_ports: int | None = None
    """First of the ports on which every engine is a server of its own; None: there are none."""
    data_dir: Path | None = None
    """Folder of files and batches, for this router alone; None: it keeps none."""
    group_size: int | None = None
    """Samples of a group, where clients do not name groups; None: as many as come together."""
    group_window_s: float = 60.0
    """A group that no request has come for in so long is closed."""
    salted: bool = True
    """Every chunk names the weights that it runs under, so that it finds no KV of others. False only to
    show what would come of it."""
    model: str = ""
    """Model that joining nodes serve unless they say otherwise."""
    pool: PoolAddress | None = None
    pool_keeper: str = ""
    """ZeroMQ address of the keeper of `pool`; empty where nobody keeps it."""
    update_timeout_s: float = 600.0
    """An engine that takes longer over a change of weights has failed."""
    draft: DraftSettings | None = None
    """How the engines of joining nodes draft, and where the draft servers are; None: they do not."""
    engine_args: tuple[str, ...] = ()
    """SGLang flags that joining nodes add to their own."""


class EngineConfig(msgspec.Struct, frozen=True):
    """One SGLang server and its agent."""

    name: str
    model: str
    pool: PoolAddress | None = None
    local_host: str = "127.0.0.1"
    """This node's address as the other nodes' Mooncake clients reach it."""
    segment_bytes: int = CPU_SEGMENT_BYTES
    """Memory that this server lends to the pool, over all its ranks."""
    page_tokens: int = 16
    kv_tokens: int | None = None
    """KV pool of the engine. None lets SGLang take what the device has; on a CPU that would be
    most of the machine's memory, so there the default is `CPU_KV_TOKENS`."""
    max_running_requests: int | None = None
    threads: int | None = None
    """CPU threads of one engine, unless OMP_NUM_THREADS says otherwise; None on a GPU machine."""
    draft: DraftSettings | None = None
    """None serves without speculation."""
    extra_args: tuple[str, ...] = ()
    start_timeout_s: float = 600.0


CPU_KV_TOKENS = 65_536
CPU_MAX_RUNNING = 16
