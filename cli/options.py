"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

LOG_DIR = Path.home() / ".local" / "state" / "seer-sgl"
DATA_DIR = Path.home() / ".local" / "share" / "seer-sgl"

Model = Annotated[
    str, typer.Option(help="Model path or hub name. Default: the small model that comes along.")
]
Engines = Annotated[int, typer.Option(min=0, help="SGLang servers to start on this node.")]
ServedEngines = Annotated[
    int | None,
    typer.Option(min=0, help="SGLang servers to start on this node. Default: 2; none with --attach."),
]
Attach = Annotated[
    list[str] | None,
    typer.Option(help="URL of an SGLang server that runs already; may be given again."),
]
KvTokens = Annotated[
    int | None, typer.Option(min=1, help="KV pool of each engine, in tokens. Default: SGLang's own.")
]
MaxRunning = Annotated[int | None, typer.Option(min=1, help="Requests that one engine runs at once.")]
PageTokens = Annotated[int, typer.Option(min=1, help="Tokens per KV page.")]
Speculate = Annotated[
    bool,
    typer.Option(help="Draft from what siblings generate, as long as that pays."),
]
DraftShards = Annotated[
    int,
    typer.Option(min=0, help="Draft servers that groups are spread over; 0 drafts within each engine."),
]
DraftMib = Annotated[
    int,
    typer.Option(min=1, max=8000, help="Memory of each draft server: about 9 bytes for a token."),
]
_POOL = "KV pool"
Pool = Annotated[
    bool | None,
    typer.Option(
        help="Share KV between engines through Mooncake. Default: unless --attach.",
        rich_help_panel=_POOL,
    ),
]
PoolMib = Annotated[
    int | None,
    typer.Option(
        min=16,
        help="MiB of memory that each engine lends to the pool. Default: all engines of a node together "
        "an eighth of its memory; 256 each on a CPU.",
        rich_help_panel=_POOL,
    ),
]
KvRelease = Annotated[
    bool,
    typer.Option(
        help="Keep account of the pool, and free KV of a finished request at once. Without that, KV is "
        "evicted when room is needed.",
        rich_help_panel=_POOL,
    ),
]
PoolMaster = Annotated[
    str,
    typer.Option(
        help="HOST:PORT of a Mooncake master that runs already; or, of several that stand in for each "
        "other, etcd://HOST:PORT. Default: one is started here.",
        rich_help_panel=_POOL,
    ),
]
PoolMetadata = Annotated[
    str,
    typer.Option(
        help="Mooncake's metadata server. Default: none; engines tell each other where their memory is.",
        rich_help_panel=_POOL,
    ),
]
PoolProtocol = Annotated[str, typer.Option(help="How KV travels: tcp, or rdma.", rich_help_panel=_POOL)]
PoolDevice = Annotated[
    str,
    typer.Option(help="Network devices for RDMA. Default: Mooncake chooses.", rich_help_panel=_POOL),
]
PoolArg = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VALUE, a flag of the mooncake_master that is started here, as enable_snapshot=true; "
        "may be given again. With enable_ha=true it is one of several: see --pool-master. cluster_id "
        "tells engines, too, which of the clusters that share an etcd is theirs.",
        rich_help_panel=_POOL,
    ),
]
UpdateTimeout = Annotated[
    float,
    typer.Option(min=1.0, help="An engine that takes longer over new weights, in s, has failed."),
]
LogDir = Annotated[Path, typer.Option(help="Where the logs of child processes go.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="HTTP port of the router.")]
AgentPort = Annotated[
    int, typer.Option(min=1, max=65535, help="ZeroMQ port that engines of all nodes dial.")
]
EnginePorts = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="First of the ports that engines get, one each. Default: none."),
]
PrometheusPort = Annotated[
    int | None, typer.Option(min=1, max=65535, help="Serve /metrics on a port of its own, too.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Files and batches of this router. Default: ~/.local/share/seer-sgl/PORT."),
]
Batches = Annotated[bool, typer.Option(help="Serve /v1/files and /v1/batches.")]
GroupSize = Annotated[
    int | None,
    typer.Option(min=1, help="Samples of a group, where requests do not name their groups."),
]
GroupWindow = Annotated[
    float, typer.Option(min=0.0, help="Close a group that got no request for so many seconds.")
]
PolicyName = Annotated[str, typer.Option(help="fifo_group, least_loaded, divided or seer.")]
EstimateName = Annotated[
    str | None,
    typer.Option(help="Length estimate: finished, longest, remaining or likely (the default)."),
]
ChunkPlanName = Annotated[
    str, typer.Option(help="Chunk length by phase: constant, short_probe, short_first or growing.")
]
ChunkTokens = Annotated[int, typer.Option(min=1, help="Longest chunk, in tokens.")]
PullMargin = Annotated[
    int,
    typer.Option(min=0, help="An engine that lacks no more of a prefix, in tokens, computes it again."),
]


def small_model() -> str:
    """Path of the model that comes with the package."""
    from seer_sgl.smallmodel import WEIGHTS

    return str(WEIGHTS)
