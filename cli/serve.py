"""`seer-sgl serve`: a router, a KV pool and engines on this node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    from seer_sgl.head import HeadConfig
    from seer_sgl.kv.pool import PoolSettings
    from seer_sgl.spec.settings import DraftSettings


def serve(
    context: typer.Context,
    model: options.Model = "",
    engines: options.ServedEngines = None,
    attach: options.Attach = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other nodes join.")
    ] = "127.0.0.1",
    port: options.Port = 30000,
    agent_port: options.AgentPort = 30001,
    engine_ports: options.EnginePorts = None,
    prometheus_port: options.PrometheusPort = None,
    policy: options.PolicyName = "seer",
    estimate: options.EstimateName = None,
    chunk_tokens: options.ChunkTokens = 8192,
    chunk_plan: options.ChunkPlanName = "short_probe",
    pull_margin_tokens: options.PullMargin = 512,
    kv_tokens: options.KvTokens = None,
    max_running: options.MaxRunning = None,
    page_tokens: options.PageTokens = 16,
    pool: options.Pool = None,
    pool_mib: options.PoolMib = None,
    kv_release: options.KvRelease = True,
    pool_master: options.PoolMaster = "",
    pool_metadata: options.PoolMetadata = "",
    pool_protocol: options.PoolProtocol = "tcp",
    pool_device: options.PoolDevice = "",
    pool_arg: options.PoolArg = None,
    speculate: Annotated[
        bool | None,
        typer.Option(help="Draft from what siblings generate. Default: unless --attach."),
    ] = None,
    draft_shards: options.DraftShards = 1,
    draft_mib: options.DraftMib = 1024,
    group_size: options.GroupSize = None,
    group_window_s: options.GroupWindow = 60.0,
    update_timeout_s: options.UpdateTimeout = 600.0,
    batches: options.Batches = True,
    data_dir: options.DataDir = None,
    log_dir: options.LogDir = options.LOG_DIR,
) -> None:
    """Start a router, a Mooncake pool and SGLang servers, and serve until Ctrl-C.

    Flags after `--` go to every SGLang server, those of joining nodes too.
    """
    _run({**locals()}, tuple(context.args))


def _run(given: dict[str, Any], engine_args: tuple[str, ...]) -> None:
    from .run import errors_reported, run_until_signal

    with errors_reported():
        config = head_config(given, engine_args)
    run_until_signal(_serve(config))


def head_config(given: dict[str, Any], engine_args: tuple[str, ...]) -> HeadConfig:
    """What to start, from the command's options by their names.

    Args:
        engine_args: flags for every SGLang server.
    """
    from seer_sgl.config import RouterConfig
    from seer_sgl.head import HeadConfig

    port, attach = given["port"], tuple(given["attach"] or ())
    same = {name: given[name] for name in RouterConfig.__struct_fields__ if name in given}
    kept_in = given["data_dir"] or options.DATA_DIR / str(port)
    changed = {
        "http_port": port,
        "data_dir": kept_in if given["batches"] else None,
        "model": given["model"] or options.small_model(),
        "draft": draft_settings(not attach if given["speculate"] is None else given["speculate"]),
        "engine_args": engine_args,
        "pool": None,  # the head says where it is
    }
    by_default = 0 if attach else 2
    return HeadConfig(
        router=RouterConfig(**{**same, **changed}),
        engines=by_default if given["engines"] is None else given["engines"],
        attach=attach,
        log_dir=given["log_dir"] / str(port),
        pool=not attach if given["pool"] is None else given["pool"],
        pool_settings=pool_settings(given),
        draft_shards=given["draft_shards"],
        draft_budget_bytes=given["draft_mib"] << 20,
        node_args=node_args(given["kv_tokens"], given["max_running"], given["page_tokens"]),
    )


async def _serve(config: HeadConfig) -> int:
    from seer_sgl.head import running_head

    from .run import say

    async with running_head(config, say) as head:
        router = config.router
        say(f"ready: POST http://{router.host}:{router.http_port}/generate")
        say(f"more engines: seer-sgl join {router.host}:{router.agent_port}")
        await head.wait_failed()
    return 0


def pool_settings(given: dict[str, Any]) -> PoolSettings:
    """Of the pool, from the command's options by their names.

    Raises:
        StartError: an option of Mooncake's master is none.
    """
    from seer_sgl.kv.pool import PEER_TO_PEER, PoolSettings, parsed_flags

    return PoolSettings(
        master=given["pool_master"],
        metadata=given["pool_metadata"] or PEER_TO_PEER,
        protocol=given["pool_protocol"],
        device=given["pool_device"],
        segment_bytes=given["pool_mib"] and given["pool_mib"] << 20,
        master_flags=parsed_flags(given["pool_arg"] or ()),
        release=given["kv_release"],
    )


def draft_settings(speculate: bool) -> DraftSettings | None:
    """How engines draft, if they do."""
    from seer_sgl.spec.settings import DraftSettings

    return DraftSettings() if speculate else None


def node_args(kv_tokens: int | None, max_running: int | None, page_tokens: int) -> tuple[str, ...]:
    """These settings as `join` takes them."""
    args = ["--page-tokens", str(page_tokens)]
    if kv_tokens is not None:
        args += ["--kv-tokens", str(kv_tokens)]
    if max_running is not None:
        args += ["--max-running", str(max_running)]
    return tuple(args)
