"""What speculation brings a lone request, the tail of a rollout, and what it costs a full batch.

Two real servers of one model stand side by side, one plain and one that speculates, and are asked in
turn, each while the other is idle. The model is the small one's padded twin, whose steps cost memory
traffic and arithmetic as a large model's do; the small one's figures, mostly Python, stand beside.

    python -m bench.alone --json out.json [--quick]
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from bench.report import Report, Row, finish
from seer_sgl.config import EngineConfig
from seer_sgl.engine.server import LaunchedServer
from seer_sgl.smallmodel import WEIGHTS
from seer_sgl.smallmodel import twin as padded
from seer_sgl.smallmodel.checkpoint import load, save
from seer_sgl.smallmodel.problems import prompts
from seer_sgl.spec.settings import DraftSettings

MAX_NEW_TOKENS = 1000
FULL_BATCH = 16
FULL_TOKENS = 200
GROUP_SIZES = (8, 16)


class Plan(msgspec.Struct, frozen=True):
    """How much is measured."""

    prompts: int
    rounds: int


class Said(msgspec.Struct):
    """What requests of one kind gave."""

    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0
    """Steps of these requests, verified or plain."""

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def accept_length(self) -> float:
        """Tokens per step; the first token comes from the prompt's own step."""
        return self.tokens / max(1, self.steps)


class Asked:
    """One server under measurement."""

    def __init__(self, server: LaunchedServer) -> None:
        self._client = server.client

    async def ask(self, prompt: str, tags: list[dict[str, Any]], said: Said, **params: Any) -> None:
        """Samples of one prompt at once, added up in `said`."""
        shared = {"temperature": 1.0, "max_new_tokens": MAX_NEW_TOKENS, **params}
        each = [{**shared, "custom_params": {"seer": tag}} for tag in tags]
        body = {"text": [prompt] * len(tags), "sampling_params": each}
        begun_s = time.perf_counter()
        status, answers = await self._client.post("/generate", body)
        if status != 200:
            raise RuntimeError(f"{self._client.url} answered {status}: {answers}")
        said.seconds += time.perf_counter() - begun_s
        for answer in answers:
            info = answer["meta_info"]
            said.tokens += info["completion_tokens"] - 1
            said.steps += info.get("spec_verify_ct") or info["completion_tokens"] - 1


def tags_of(group: str, first: int, count: int) -> list[dict[str, Any]]:
    """What the router would say of these samples."""
    return [
        {"group": group, "request": request, "done": 0, "probe": False}
        for request in range(first, first + count)
    ]


async def measure_model(name: str, model: Path, plan: Plan, scratch: Path) -> tuple[list[Row], Row]:
    """Rows for one model, and its ratios."""
    plain = _server(f"{name}-plain", model, scratch, None)
    drafts = _server(f"{name}-seer", model, scratch, DraftSettings())
    try:
        for server in (plain, drafts):
            await server.start()
        return await _compare(name, Asked(plain), Asked(drafts), plan)
    finally:
        for server in (plain, drafts):
            await server.stop()


def _server(name: str, model: Path, scratch: Path, draft: DraftSettings | None) -> LaunchedServer:
    config = EngineConfig(
        name=name, model=str(model), max_running_requests=FULL_BATCH, threads=2, draft=draft
    )
    return LaunchedServer(config, True, scratch)


async def _compare(name: str, plain: Asked, drafts: Asked, plan: Plan) -> tuple[list[Row], Row]:
    problems = prompts(plan.prompts, seed=23)
    lone_plain, own = Said(), Said()
    lone = {size: Said() for size in GROUP_SIZES}
    for server in (plain, drafts):  # both have seen every kind of step
        await server.ask(problems[0], tags_of("warm", 0, FULL_BATCH), Said(), max_new_tokens=300)
        await server.ask(problems[0], tags_of("warm alone", 0, 1), Said(), max_new_tokens=300)
    for number, problem in enumerate(problems):
        await plain.ask(problem, tags_of("", 0, 1), lone_plain)
        await drafts.ask(problem, tags_of(f"own {number}", 0, 1), own)
        for size in GROUP_SIZES:
            group = f"{size} {number}"
            await drafts.ask(problem, tags_of(group, 0, size - 1), Said())
            await drafts.ask(problem, tags_of(group, size - 1, 1), lone[size])
        shown = f"plain {lone_plain.rate:.0f}, own {own.rate:.0f}, {_rates(lone)}"
        _say(f"{name}, prompt {number + 1}: {shown}")
    full = await _full_batches(plain, drafts, plan, problems)
    rows: list[Row] = [
        _row(name, "lone, plain decoding", lone_plain),
        _row(name, "lone, own history", own),
    ]
    rows += [_row(name, f"lone, after {size - 1} siblings", said) for size, said in lone.items()]
    rows += [_row(name, f"batch of {FULL_BATCH}, {kind}", said) for kind, said in full[0].items()]
    best = lone[GROUP_SIZES[-1]]
    ratios: Row = {
        "lone_request_x": best.rate / lone_plain.rate,
        "lone_request_group8_x": lone[8].rate / lone_plain.rate,
        "full_batch_x": full[1],
        "accept_length": best.accept_length,
        "accept_length_group8": lone[8].accept_length,
        "accept_length_own": own.accept_length,
        "plain_step_ms": 1000 * lone_plain.seconds / lone_plain.steps,
    }
    return rows, ratios


async def _full_batches(
    plain: Asked, drafts: Asked, plan: Plan, problems: list[str]
) -> tuple[dict[str, Said], float]:
    """Batches of samples that do not end, in turn; and the median of the ratios of neighbours."""
    said = {"plain decoding": Said(), "speculating": Said()}
    ratios = []
    for number in range(plan.rounds):
        rates = []
        for server, total in zip((plain, drafts), said.values(), strict=True):
            once = Said()
            tags = [tags_of(f"full {number} {each}", 0, 1)[0] for each in range(FULL_BATCH)]
            problem = problems[number % len(problems)]
            await server.ask(problem, tags, once, max_new_tokens=FULL_TOKENS, ignore_eos=True)
            rates.append(once.rate)
            total.seconds += once.seconds
            total.tokens += once.tokens
            total.steps += once.steps
        ratios.append(rates[1] / rates[0])
    return said, statistics.median(ratios)


def _rates(lone: dict[int, Said]) -> str:
    return ", ".join(f"{size}: {said.rate:.0f} tokens/s" for size, said in lone.items())


def _row(model: str, what: str, said: Said) -> Row:
    return {
        "model": model,
        "requests": what,
        "tokens_per_s": said.rate,
        "accept_length": said.accept_length,
        "tokens": said.tokens,
    }


async def measure(quick: bool) -> tuple[list[Row], dict[str, float]]:
    """Rows of the twin and the small model; figures are the twin's, the small model's named so."""
    plan = Plan(prompts=3, rounds=2) if quick else Plan(prompts=5, rounds=4)
    rows: list[Row] = []
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        twin = scratch / "twin"
        save(padded.widened(load(WEIGHTS), padded.INTERMEDIATE_SIZE), twin)
        for name, model, suffix in (("padded twin", twin, ""), ("small model", WEIGHTS, "_small")):
            more, ratios = await measure_model(name, model, plan, scratch / "logs")
            rows += more
            figures |= {f"{key}{suffix}": float(str(value)) for key, value in ratios.items()}
    return rows, figures


def main() -> None:
    parser = argparse.ArgumentParser(description="A lone request and a full batch.")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--quick", action="store_true", help="fewer prompts and rounds")
    args = parser.parse_args()
    rows, figures = asyncio.run(measure(args.quick))
    finish(Report("bench.alone", rows, figures), args.json)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
