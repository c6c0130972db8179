"""`seer-sgl join`: the engines of another node."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from seer_sgl.engine.node import NodeConfig


def join(
    context: typer.Context,
    head: Annotated[str, typer.Argument(help="HOST:PORT of the head's --agent-port.")],
    engines: options.Engines = 1,
    attach: options.Attach = None,
    name: Annotated[
        str, typer.Option(help="Name of this node, unlike any other's.")
    ] = socket.gethostname(),
    model: Annotated[str, typer.Option(help="Model path, if not the head's own.")] = "",
    kv_tokens: options.KvTokens = None,
    max_running: options.MaxRunning = None,
    page_tokens: options.PageTokens = 16,
    pool_mib: options.PoolMib = None,
    speculate: options.Speculate = True,
    log_dir: options.LogDir = options.LOG_DIR,
) -> None:
    """Add this node's engines to a running head, until Ctrl-C.

    Flags after `--` go to this node's SGLang servers, after the head's own.
    """
    from seer_sgl.engine.node import NodeConfig

    from .run import run_until_signal

    config = NodeConfig(
        head=head,
        name=name,
        engines=engines,
        log_dir=log_dir,
        attach=tuple(attach or ()),
        model=model,
        kv_tokens=kv_tokens,
        max_running_requests=max_running,
        page_tokens=page_tokens,
        segment_bytes=pool_mib and pool_mib << 20,
        speculate=speculate,
        engine_args=tuple(context.args),
    )
    run_until_signal(_join(config))


async def _join(config: NodeConfig) -> int:
    from seer_sgl.engine.node import run_node

    await run_node(config)
    return 0
