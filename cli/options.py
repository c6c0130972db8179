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
