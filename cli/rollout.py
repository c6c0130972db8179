"""`seer-sgl rollout`: prompts from a file, samples to a file, a report to the terminal."""

from pathlib import Path
from typing import Annotated

import typer


def rollout(
    prompts: Annotated[
        Path,
        typer.Argument(help="JSONL; a line has `text` or `input_ids`, and `group_id` if it likes."),
    ],
    output: Annotated[Path, typer.Option(help="Where the samples go, as JSONL.")],
    url: Annotated[str, typer.Option(help="The router.")] = "http://127.0.0.1:30000",
    group_size: Annotated[int, typer.Option(min=1, help="Samples of each prompt.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a sample.")] = 4096,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 1.0,
    logprobs: Annotated[bool, typer.Option(help="Keep the log-probability of each token.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the report here, too.")] = None,
) -> None:
    """Sample every prompt of a file through a running router."""
    from .run import run_until_signal
    from .work import RolloutJob, read_prompts, run_job

    async def work() -> int:
        job = RolloutJob(
            url=url.rstrip("/"),
            prompts=read_prompts(prompts),
            output=output,
            report=json,
            group_size=group_size,
            sampling={"max_new_tokens": max_new_tokens, "temperature": temperature},
            extra={"return_logprob": True} if logprobs else {},
        )
        return await run_job(job)

    run_until_signal(work())
