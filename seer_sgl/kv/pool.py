"""How SGLang servers and Mooncake find each other. Values only: nothing here starts or talks."""

import json
from collections.abc import Iterable, Mapping

import msgspec

from seer_sgl.errors import StartError

PEER_TO_PEER = "P2PHANDSHAKE"
"""Mooncake's name for clients that tell each other where their memory is. No server has to remember it,
so that a master that starts afresh finds all clients as they were."""

CLIENT_BOUNDS = {
    # A master that hangs holds up a call for 30 s otherwise, and the one thread of a server that
    # looks for prefixes with it.
    "MC_RPC_TIMEOUT_MS": "2000",
    "MC_RPC_CONNECT_TIMEOUT_MS": "2000",
    # Of a host that no longer answers, a read gives up after 60 s otherwise; with these after 5 s, and
    # by then the master has forgotten what lies there.
    "MC_TCP_PROGRESS_TIMEOUT_SEC": "3",
    "MC_TCP_STATUS_TIMEOUT_SEC": "2",
}
"""Environment of a Mooncake client that bounds its calls. Who has set one of them keeps it."""

PREFETCH_BASE_S = 2.0
PREFETCH_PER_KI_TOKEN_S = 0.5
"""A chunk waits so long for its prefix at most, and then computes what has not come: much longer than a
pool that works takes, and not longer than its clients wait for a master that hangs."""

LEASE_MS = 3000
"""For so long nothing is removed that somebody has asked for. It has to outlast a read, whose patience
`CLIENT_BOUNDS` ends soon after; every s more keeps the pages of a finished request for a s more."""

CLIENT_TTL_S = 5
"""The master forgets what lies on a client that has been silent for so long (they speak once a s). Until
then it offers pages on an engine that is gone, and places new ones there: both fail, at once where the
host still answers."""


class PoolAddress(msgspec.Struct, frozen=True):
    """Where a Mooncake store is, as any node can reach it, and how its memory is lent and moved."""

    master: str
    """`host:port` of `mooncake_master`; of several that stand in for each other what names the one that
    leads, as `etcd://host:port`."""
    metadata: str = PEER_TO_PEER
    """Or the URL of a metadata server."""
    protocol: str = "tcp"
    """`tcp`, `rdma` or another one of Mooncake's."""
    device: str = ""
    """Network devices of RDMA; empty lets Mooncake choose."""
    segment_bytes: int | None = None
    """Memory that each engine lends to the pool; None: what `lent_bytes` says of its node."""
    cluster: str = ""
    """Name of the cluster among those that share an etcd; empty: Mooncake's own."""

    def environment(self, local_host: str, segment_bytes: int) -> dict[str, str]:
        """What SGLang's Mooncake store reads from its environment.

        Args:
            local_host: this node's address as the other nodes reach it.
            segment_bytes: memory that one server lends to the pool.
        """
        named = {"MC_STORE_CLUSTER_ID": self.cluster} if self.cluster else {}
        return named | {
            "MOONCAKE_MASTER": self.master,
            "MOONCAKE_TE_META_DATA_SERVER": self.metadata,
            "MOONCAKE_PROTOCOL": self.protocol,
            "MOONCAKE_DEVICE": self.device,
            "MOONCAKE_LOCAL_HOSTNAME": local_host,
            "MOONCAKE_GLOBAL_SEGMENT_SIZE": str(segment_bytes),
        }


class PoolSettings(msgspec.Struct, frozen=True):
    """What a head is told of the pool."""

    master: str = ""
    """Of a cluster that runs already; empty: the head starts a master of its own."""
    metadata: str = PEER_TO_PEER
    protocol: str = "tcp"
    device: str = ""
    segment_bytes: int | None = None
    master_flags: Mapping[str, str] = {}
    """Flags of the head's own master, by their names in Mooncake."""
    release: bool = True
    """Free a request's KV as soon as it has finished, rather than when room is needed. That is the
    keeper's work; without one, nobody can say what is in the pool either."""

    @property
    def starts_master(self) -> bool:
        return not self.master or bool(self.master_flags.keys() - {"cluster_id"})

    @property
    def highly_available(self) -> bool:
        """Whether the head's master is one of several, of which one leads."""
        return self.starts_master and self.master_flags.get("enable_ha") in (
            "true",
            "1",
            "yes",
            "t",
            "y",
        )

    def check(self) -> None:
        """Raise StartError where engines would not find the master that they are meant to use."""
        by_name = "://" in self.master
        if self.highly_available and not by_name:
            raise StartError(
                "with enable_ha, engines have to ask which master leads: give --pool-master as well, "
                "as etcd://HOST:PORT"
            )
        if self.master and not by_name:
            if self.master_flags:
                raise StartError(
                    f"--pool-arg is for a master that is started here, but --pool-master {self.master} "
                    "names one that runs: leave one of them out"
                )
            host, _, port = self.master.rpartition(":")
            if not host or not port.isdecimal():
                raise StartError(f"--pool-master {self.master!r} is no address; write HOST:PORT")

    def own_master(self, near: str, rpc_port: int) -> str:
        """Where the head's master listens, unless its flags say otherwise.

        Args:
            near: the head's address as other nodes reach it.
        """
        flags = self.master_flags
        return f"{flags.get('rpc_address', near)}:{flags.get('rpc_port', rpc_port)}"

    def address(self, own_master: str) -> PoolAddress:
        """The pool as engines are told of it."""
        return PoolAddress(
            master=self.master or own_master,
            metadata=self.metadata,
            protocol=self.protocol,
            device=self.device,
            segment_bytes=self.segment_bytes,
            cluster=self.master_flags.get("cluster_id", ""),
        )


def client_bounds(environment: Mapping[str, str]) -> dict[str, str]:
    """`CLIENT_BOUNDS`, as far as `environment` does not say otherwise."""
    return {name: environment.get(name, value) for name, value in CLIENT_BOUNDS.items()}


def parsed_flags(flags: Iterable[str]) -> dict[str, str]:
    """`name=value`, with or without dashes before it, as a dict.

    Raises:
        StartError: one has another form.
    """
    parsed = {}
    for flag in flags:
        name, equals, value = flag.lstrip("-").partition("=")
        if not name or not equals:
            raise StartError(
                f"--pool-arg {flag!r} is no flag of mooncake_master: write NAME=VALUE, as enable_ha=true"
            )
        parsed[name] = value
    return parsed


def hicache_args(page_tokens: int) -> list[str]:
    """SGLang flags that put every finished chunk's KV into the pool and load it from there.

    `timeout`: a resumed chunk waits for its prefix instead of computing it, but not for ever. The
    threshold of one page (SGLang's default is 256 tokens) lets short prefixes move too.
    """
    extra = {
        "prefetch_threshold": page_tokens,
        "prefetch_timeout_base": PREFETCH_BASE_S,
        "prefetch_timeout_per_ki_token": PREFETCH_PER_KI_TOKEN_S,
    }
    return [
        "--enable-hierarchical-cache",
        *("--hicache-write-policy", "write_through"),
        *("--hicache-mem-layout", "page_first_direct"),
        *("--hicache-io-backend", "direct"),
        *("--hicache-storage-backend", "mooncake"),
        *("--hicache-storage-prefetch-policy", "timeout"),
        *("--hicache-storage-backend-extra-config", json.dumps(extra)),
    ]


def master_settings(
    settings: PoolSettings, host: str, rpc_port: int, metrics_port: int
) -> dict[str, str]:
    """Flags of `mooncake_master`; what the user says wins."""
    return {
        "rpc_address": host,
        "rpc_port": str(rpc_port),
        "metrics_host": host,
        "metrics_port": str(metrics_port),
        "default_kv_lease_ttl": str(LEASE_MS),
        "client_ttl": str(CLIENT_TTL_S),
        "logtostderr": "true",
        **settings.master_flags,
    }
