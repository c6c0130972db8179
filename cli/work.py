"""A rollout at the terminal: progress bar, JSONL of samples, report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from seer_sgl.errors import StartError
from seer_sgl.rollout.client import Prompt, Rollout, SampleResult, page_tokens_of, run_rollout
from seer_sgl.rollout.report import Report, report_on

Reward = Callable[[str, str], float]
"""(prompt's text, sample's text) -> reward."""


class RolloutJob(msgspec.Struct, frozen=True):
    """What to sample, and where it goes."""

    url: str
    prompts: list[Prompt]
    output: Path
    report: Path | None
    group_size: int
    sampling: dict[str, Any]
    extra: dict[str, Any] = {}
    reward: Reward | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a JSONL file.

    Raises:
        StartError: it cannot be read, or a line is none.
    """
    prompts = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = msgspec.json.decode(line, type=dict[str, Any])
            prompt = msgspec.convert({"group_id": f"line-{number}", **fields}, Prompt)
        except msgspec.MsgspecError as error:
            raise StartError(f"{path}, line {number}: {error}") from None
        prompts.append(prompt)
    if not prompts:
        raise StartError(f"{path} holds no prompt")
    return prompts


async def run_job(job: RolloutJob) -> int:
    """Run it; 0 where every sample has an answer, else 1."""
    page_tokens = await page_tokens_of(job.url)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    results: list[SampleResult] = []
    rewards: list[float] = []
    texts = {prompt.group_id: prompt.text or "" for prompt in job.prompts}
    rollout = Rollout(job.url, job.prompts, job.group_size, job.sampling, job.extra)
    with _progress() as progress, job.output.open("wb") as output:
        bar = progress.add_task("samples", total=len(job.prompts) * job.group_size)
        async for result in run_rollout(rollout):
            line = msgspec.to_builtins(result)
            if job.reward and result.status == 200:
                rewards.append(job.reward(texts[result.group_id], result.text))
                line["reward"] = rewards[-1]
            output.write(msgspec.json.encode(line) + b"\n")
            results.append(result)
            progress.update(bar, advance=1)
    report = report_on(results, page_tokens, rewards)
    show_report(report)
    if job.report is not None:
        job.report.parent.mkdir(parents=True, exist_ok=True)
        job.report.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    _show_failures(results)
    return 1 if report.failed else 0


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


_LABELS = {
    "groups": "groups",
    "samples": "samples",
    "failed": "failed",
    "tokens": "tokens",
    "seconds": "seconds",
    "tokens_per_s": "tokens/s",
    "tail_s": "seconds on the last 10 % of requests",
    "chunks": "chunks",
    "moved_chunks": "chunks resumed on another engine",
    "prefix_found_share": "share of their prefix found",
    "pool_share": "share of their prefix loaded from the pool",
    "moved_without_prefix": "of these chunks, those that found nothing",
    "computed_again_tokens": "prompt tokens computed again",
    "pool_wait_s": "seconds that chunks waited for the pool",
    "retractions": "retractions",
    "reward": "mean reward",
}


def show_report(report: Report) -> None:
    """Print the report as a table."""
    table = Table(show_header=False)
    for name, label in _LABELS.items():
        table.add_row(label, _shown(getattr(report, name)))
    Console().print(table)


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def _show_failures(results: list[SampleResult]) -> None:
    failures = [result for result in results if result.error]
    for result in failures[:5]:
        typer.echo(f"{result.group_id}, sample {result.sample}: {result.error}", err=True)
    if len(failures) > 5:
        typer.echo(f"and {len(failures) - 5} more", err=True)
