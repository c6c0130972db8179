"""`seer-sgl demo`: the main job on real parts, from nothing to a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from seer_sgl.head import HeadConfig

    from .work import RolloutJob

CHUNK_TOKENS = 256
"""Short, so that the small model's samples show what chunks do."""


def demo(
    groups: Annotated[int, typer.Option(min=1, help="Prompts to sample.")] = 16,
    group_size: Annotated[int, typer.Option(min=1, help="Samples of each prompt.")] = 8,
    output: Annotated[Path, typer.Option(help="Where the samples go.")] = Path("out/demo.jsonl"),
    json: Annotated[Path | None, typer.Option(help="Write the report here, too.")] = None,
    engines: options.Engines = 2,
    port: options.Port = 30000,
    agent_port: options.AgentPort = 30001,
    log_dir: options.LogDir = options.LOG_DIR,
) -> None:
    """Serve the small model on two engines, sample groups of its problems, and report."""
    from seer_sgl.config import RouterConfig
    from seer_sgl.head import HeadConfig
    from seer_sgl.rollout.client import Prompt
    from seer_sgl.smallmodel.problems import prompts, reward
    from seer_sgl.spec.settings import DraftSettings

    from .run import run_until_signal
    from .work import RolloutJob

    router = RouterConfig(
        http_port=port,
        agent_port=agent_port,
        chunk_tokens=CHUNK_TOKENS,
        model=options.small_model(),
        draft=DraftSettings(),
    )
    config = HeadConfig(router=router, engines=engines, log_dir=log_dir / str(port))
    job = RolloutJob(
        url=f"http://127.0.0.1:{port}",
        prompts=[Prompt(f"problem-{i}", text) for i, text in enumerate(prompts(groups, seed=1))],
        output=output,
        report=json,
        group_size=group_size,
        sampling={"max_new_tokens": 4000, "temperature": 1.0},
        reward=reward,
    )
    run_until_signal(_demo(config, job))


async def _demo(config: HeadConfig, job: RolloutJob) -> int:
    from seer_sgl.head import running_head

    from .run import say
    from .work import run_job

    async with running_head(config, say) as head:
        status = await head.unless_failed(run_job(job))
        say(f"samples: {job.output}")
    return status
