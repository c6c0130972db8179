"""`seer-sgl serve`: a router, a KV pool and engines on this node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from pathlib import Path

    from seer_sgl.config import RouterConfig
    from seer_sgl.spec.settings import DraftSettings


def serve(
    context: typer.Context,
    model: options.Model = "",
    engines: options.Engines = 2,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other nodes join.")
    ] = "127.0.0.1",
    port: options.Port = 30000,
    agent_port: options.AgentPort = 30001,
    policy: options.PolicyName = "seer",
    estimate: options.EstimateName = None,
    chunk_tokens: options.ChunkTokens = 8192,
    chunk_plan: options.ChunkPlanName = "short_probe",
    pull_margin_tokens: options.PullMargin = 512,
    kv_tokens: options.KvTokens = None,
    max_running: options.MaxRunning = None,
    page_tokens: options.PageTokens = 16,
    pool: Annotated[bool, typer.Option(help="Share KV between engines through Mooncake.")] = True,
    speculate: options.Speculate = True,
    draft_shards: options.DraftShards = 1,
    draft_mib: options.DraftMib = 1024,
    log_dir: options.LogDir = options.LOG_DIR,
) -> None:
    """Start a router, a Mooncake pool and SGLang servers, and serve until Ctrl-C.

    Flags after `--` go to every SGLang server, those of joining nodes too.
    """
    from seer_sgl.config import RouterConfig

    from .run import run_until_signal

    router = RouterConfig(
        host=host,
        http_port=port,
        agent_port=agent_port,
        policy=policy,
        estimate=estimate,
        chunk_tokens=chunk_tokens,
        chunk_plan=chunk_plan,
        pull_margin_tokens=pull_margin_tokens,
        model=model or options.small_model(),
        draft=draft_settings(speculate),
        engine_args=tuple(context.args),
    )
    engine_options = node_args(kv_tokens, max_running, page_tokens)
    shards = (draft_shards, draft_mib << 20)
    run_until_signal(_serve(router, engines, log_dir, pool, shards, engine_options))


async def _serve(
    router: RouterConfig,
    engines: int,
    log_dir: Path,
    pool: bool,
    shards: tuple[int, int],
    engine_options: tuple[str, ...],
) -> int:
    from seer_sgl.head import HeadConfig, running_head

    from .run import say

    config = HeadConfig(
        router=router,
        engines=engines,
        log_dir=log_dir / str(router.http_port),
        pool=pool,
        draft_shards=shards[0],
        draft_budget_bytes=shards[1],
        node_args=engine_options,
    )
    async with running_head(config, say) as head:
        say(f"ready: POST http://{router.host}:{router.http_port}/generate")
        say(f"more engines: seer-sgl join {router.host}:{router.agent_port}")
        await head.wait_failed()
    return 0


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
