"""How SGLang servers and Mooncake find each other. Values only: nothing here starts or talks."""

import json

import msgspec


class PoolAddress(msgspec.Struct, frozen=True):
    """Where a Mooncake store is, as any node can reach it."""

    master: str
    """`host:port` of `mooncake_master`."""
    metadata_url: str
    """Its HTTP metadata server."""
    protocol: str = "tcp"
    """`tcp` or `rdma`."""

    def environment(self, local_host: str, segment_bytes: int) -> dict[str, str]:
        """What SGLang's Mooncake store reads from its environment.

        Args:
            local_host: this node's address as the other nodes reach it.
            segment_bytes: memory that one server lends to the pool.
        """
        return {
            "MOONCAKE_MASTER": self.master,
            "MOONCAKE_TE_META_DATA_SERVER": self.metadata_url,
            "MOONCAKE_PROTOCOL": self.protocol,
            "MOONCAKE_LOCAL_HOSTNAME": local_host,
            "MOONCAKE_GLOBAL_SEGMENT_SIZE": str(segment_bytes),
        }


def hicache_args(page_tokens: int) -> list[str]:
    """SGLang flags that put every finished chunk's KV into the pool and load it from there.

    `wait_complete`: a resumed chunk waits for its prefix instead of computing it. The threshold of one
    page (SGLang's default is 256 tokens) lets short prefixes move too.
    """
    extra = {"prefetch_threshold": page_tokens}
    return [
        "--enable-hierarchical-cache",
        *("--hicache-write-policy", "write_through"),
        *("--hicache-mem-layout", "page_first_direct"),
        *("--hicache-io-backend", "direct"),
        *("--hicache-storage-backend", "mooncake"),
        *("--hicache-storage-prefetch-policy", "wait_complete"),
        *("--hicache-storage-backend-extra-config", json.dumps(extra)),
    ]


def master_args(host: str, rpc_port: int, metadata_port: int, metrics_port: int) -> list[str]:
    """The command line of `mooncake_master` with its own HTTP metadata server."""
    return [
        "mooncake_master",
        f"--rpc_address={host}",
        f"--rpc_port={rpc_port}",
        "--enable_http_metadata_server=true",
        f"--http_metadata_server_host={host}",
        f"--http_metadata_server_port={metadata_port}",
        f"--metrics_port={metrics_port}",
        "--logtostderr=true",
    ]
