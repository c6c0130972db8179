"""Rollouts of the small model on two real SGLang servers, one scheduling policy after the other.

Each policy has a router of its own and a cache namespace of its own, so that none finds what another has
computed. Before that the servers are profiled; beside the time of each rollout stands what a simulation
from the profile says of it (`predicted_s`), given the lengths of its samples. Then the same servers are
started with speculation, and `seer` runs on them once more. `--alone` adds what `bench.alone` measures.

    python -m bench.rollout --json out.json [--quick]
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Literal, TypeAlias

import httpx
import msgspec

from bench.alone import measure as measure_alone
from bench.predict import Forecaster, level_with, prediction_figures
from bench.report import Report, Row, finish
from seer_sgl.config import RouterConfig
from seer_sgl.engine.process import free_port
from seer_sgl.head import HeadConfig, running_head
from seer_sgl.rollout.client import Prompt, Rollout, SampleResult, run_rollout
from seer_sgl.rollout.profile import profile_servers
from seer_sgl.rollout.report import report_on
from seer_sgl.router.core import POLICIES, policy_named
from seer_sgl.sim.model import EngineModel
from seer_sgl.smallmodel import WEIGHTS
from seer_sgl.smallmodel import twin as padded
from seer_sgl.smallmodel.checkpoint import load, save
from seer_sgl.smallmodel.problems import prompts, reward
from seer_sgl.spec.settings import DraftSettings
from seer_sgl.testing.cluster import attached_router

PAGE_TOKENS = 16
MAX_NEW_TOKENS = 4000

SPECULATING = "seer, speculating"

Run: TypeAlias = dict[str, Any]
"""A row of the report, of one round."""


class Settings(msgspec.Struct, frozen=True):
    """What is run."""

    groups: int
    group_size: int
    rounds: int
    chunk_tokens: int
    kv_tokens: int
    max_running: int
    pad_layers: int
    twin: bool
    conservativeness: float
    admission: Literal["eager", "sglang"]
    quick: bool


def main() -> None:
    args = _arguments()
    os.environ["SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION"] = str(args.clip_tokens)
    settings = Settings(
        groups=args.groups or (16 if args.quick else 32),
        group_size=args.group_size,
        rounds=args.rounds or (1 if args.quick else 3),
        chunk_tokens=args.chunk_tokens,
        kv_tokens=args.kv_tokens,
        max_running=args.max_running,
        pad_layers=args.pad_layers,
        twin=args.twin,
        conservativeness=args.conservativeness,
        admission="eager" if args.clip_tokens < MAX_NEW_TOKENS else "sglang",
        quick=args.quick,
    )
    with tempfile.TemporaryDirectory() as scratch:
        runs = asyncio.run(_measure(settings, Path(scratch)))
    alone, alone_figures = asyncio.run(measure_alone(args.quick)) if args.alone else ([], {})
    measured_s = {name: [run["seconds"] for run in runs[name]] for name in runs}
    predicted_s = {
        name: [run["predicted_s"] for run in runs[name]] for name in runs if name != SPECULATING
    }
    rows = [_middle(runs[name], level_with(name, measured_s)) for name in runs]
    figures = _figures(rows) | alone_figures
    figures |= prediction_figures({name: measured_s[name] for name in predicted_s}, predicted_s)
    tables = [{"table": "rollouts", **row} for row in rows]
    tables += [{"table": "alone and together", **row} for row in alone]
    finish(Report("bench.rollout", tables, figures), args.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Policies side by side on two SGLang servers.")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--quick", action="store_true", help="fewer groups, one round")
    parser.add_argument("--groups", type=int, default=0)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--chunk-tokens", type=int, default=128)
    parser.add_argument("--kv-tokens", type=int, default=8192, help="KV pool of each engine")
    parser.add_argument("--max-running", type=int, default=16, help="request slots of each engine")
    parser.add_argument(
        "--conservativeness",
        type=float,
        default=0.05,
        help="SGLang's --schedule-conservativeness; near 0 it admits what fits now, as vLLM does",
    )
    parser.add_argument(
        "--clip-tokens",
        type=int,
        default=128,
        help="output that SGLang expects of a request when it admits it; above, it would never preempt",
    )
    parser.add_argument("--alone", action="store_true", help="as bench.alone, too")
    parser.add_argument("--twin", action="store_true", help="the padded twin, whose steps cost memory")
    parser.add_argument("--pad-layers", type=int, default=0, help="layers that compute and add nothing")
    return parser.parse_args()


async def _measure(settings: Settings, scratch: Path) -> dict[str, list[Run]]:
    """The runs of each policy, a round each."""
    model = _model(settings, scratch)
    runs: dict[str, list[Run]] = {name: [] for name in POLICIES}
    async with running_head(_head(settings, model, scratch, None), _say) as head:
        urls = [member.card.url for member in head.service.roster.members.values()]
        profile = await profile_servers(urls, quick=settings.quick, say=_say)
        engine = msgspec.structs.replace(profile.fit.engine, admission=settings.admission)
        bench = _Bench(urls, settings, engine, None)
        await bench.run("divided", -1, groups=2)
        names = list(POLICIES)
        for number in range(settings.rounds):
            # Each policy comes early and late: a machine that warms or slows favours none.
            for name in names[number % len(names) :] + names[: number % len(names)]:
                runs[name].append(await bench.run(name, number, settings.groups))
                _tell(number, name, runs[name][-1])
    runs[SPECULATING] = []
    draft = DraftSettings()
    async with running_head(_head(settings, model, scratch, draft), _say) as head:
        urls = [member.card.url for member in head.service.roster.members.values()]
        bench = _Bench(urls, settings, engine, draft)
        await bench.run("seer", -1, groups=2)
        for number in range(settings.rounds):
            run = await bench.run("seer", number, settings.groups)
            runs[SPECULATING].append({**run, "policy": SPECULATING, "predicted_s": None})
            _tell(number, SPECULATING, run)
    return runs


def _head(settings: Settings, model: str, scratch: Path, draft: DraftSettings | None) -> HeadConfig:
    node_args = ("--kv-tokens", str(settings.kv_tokens), "--max-running", str(settings.max_running))
    router = RouterConfig(
        http_port=free_port(),
        agent_port=free_port(),
        model=model,
        draft=draft,
        engine_args=("--schedule-conservativeness", str(settings.conservativeness)),
    )
    name = "plain" if draft is None else "speculating"
    return HeadConfig(router, engines=2, log_dir=scratch / name, node_args=node_args)


def _tell(number: int, name: str, run: Run) -> None:
    told = f"{run['tokens_per_s']:.0f} tokens/s, {run['seconds']:.1f} s, {run['retractions']} retracted"
    _say(f"round {number + 1}, {name}: {told}, predicted {run['predicted_s']:.1f} s")


def _model(settings: Settings, scratch: Path) -> str:
    twin = scratch / "twin"
    if settings.twin:
        save(padded.widened(load(WEIGHTS), padded.INTERMEDIATE_SIZE), twin)
        return str(twin)
    if not settings.pad_layers:
        return str(WEIGHTS)
    command = [sys.executable, "-m", "seer_sgl.smallmodel.train", "--out", str(twin)]
    command += ["--from", str(WEIGHTS), "--pad-layers", str(settings.pad_layers)]
    subprocess.run(command, check=True, capture_output=True)
    return str(twin)


class _Bench:
    """Servers, what is run on them, and what their profile says of it."""

    def __init__(
        self, urls: list[str], settings: Settings, engine: EngineModel, draft: DraftSettings | None
    ) -> None:
        self._urls, self._settings, self._engine, self._draft = urls, settings, engine, draft

    async def run(self, policy: str, number: int, groups: int) -> Run:
        """One rollout under one policy, on servers with empty caches."""
        problems = prompts(groups, seed=number + 1)
        texts = {f"{number} {policy} {index}": text for index, text in enumerate(problems)}
        async with httpx.AsyncClient(timeout=60.0) as client:
            for url in self._urls:
                (await client.post(f"{url}/flush_cache")).raise_for_status()
            # As token ids, or the first seconds would show how fast the servers tokenize.
            answer = await client.post(f"{self._urls[0]}/tokenize", json={"prompt": problems})
            ids = dict(zip(texts, answer.raise_for_status().json()["tokens"], strict=True))
        chunk_tokens = self._settings.chunk_tokens
        plan = policy_named(policy)
        async with attached_router(self._urls, plan, chunk_tokens, self._draft) as (url, service):
            rollout = Rollout(
                url,
                [Prompt(name, input_ids=ids[name]) for name in texts],
                self._settings.group_size,
                {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 1.0},
                {"cache_salt": f"{policy}-{number}"},
            )
            results = [result async for result in run_rollout(rollout)]
        forecaster = Forecaster(self._engine, len(self._urls), service.core.settings, MAX_NEW_TOKENS)
        answered = [result for result in results if result.status == 200]
        predicted = forecaster.predict(policy, answered, list(texts))
        row = _row(policy, results, texts, groups * self._settings.group_size)
        return {**row, "predicted_s": predicted.makespan_s}


def _row(policy: str, results: list[SampleResult], texts: dict[str, str], samples: int) -> Run:
    rewards = [reward(texts[r.group_id], r.text) for r in results if r.status == 200]
    report = report_on(results, PAGE_TOKENS, rewards)
    answers = Counter((result.group_id, result.sample) for result in results if result.status == 200)
    shown: dict[str, Any] = msgspec.to_builtins(report)
    return {
        "policy": policy,
        **{name: shown[name] for name in ("tokens_per_s", "seconds", "tail_s", "tokens", "chunks")},
        **{name: shown[name] for name in ("moved_chunks", "prefix_found_share", "pool_share")},
        **{name: shown[name] for name in ("retractions", "reward")},
        "lost": samples - len(answers),
        "duplicated": sum(count - 1 for count in answers.values()),
        "accept_length": accept_length(results),
        "patched": sum(_does_not_add_up(result) for result in results if result.status == 200),
    }


def accept_length(results: list[SampleResult]) -> float | None:
    """Tokens per step of the engine, where it speculates."""
    answers = [result.meta_info for result in results if result.status == 200]
    steps = sum(info.get("spec_verify_ct", 0) for info in answers)
    tokens: int = sum(info["completion_tokens"] for info in answers)
    return tokens / steps if steps else None


def _does_not_add_up(result: SampleResult) -> bool:
    """Whether the chunks do not make up the sample exactly, token for token counted."""
    chunks: list[dict[str, int]] = result.meta_info["seer"]["chunks"]
    return sum(chunk["new_tokens"] for chunk in chunks) != len(result.output_ids)


def _middle(runs: list[Run], level: list[str]) -> Row:
    """Medians of times and shares over the rounds, sums of what must not happen."""
    first = runs[0]
    merged: Run = {"policy": first["policy"], "rounds": len(runs)}
    for name, value in first.items():
        values: list[Any] = [run[name] for run in runs if run[name] is not None]
        if name in ("retractions", "lost", "duplicated", "patched"):
            merged[name] = sum(values)
        elif not isinstance(value, str):
            merged[name] = statistics.median(values) if values else None
            if name == "predicted_s" and values:
                merged["error"] = statistics.median(values) / merged["seconds"] - 1
    return {**merged, "level_with": ", ".join(level)}


def _figures(rows: list[Row]) -> dict[str, float]:
    by_name: dict[Any, dict[str, Any]] = {row["policy"]: dict(row) for row in rows}
    base = by_name["fifo_group"]
    best = max(by_name.values(), key=lambda row: row["tokens_per_s"])
    reserving = [row for name, row in by_name.items() if name == SPECULATING or POLICIES[name].reserves]
    figures: dict[str, float] = {
        "throughput_x": best["tokens_per_s"] / base["tokens_per_s"],
        "tail_cut": 1 - min(row["tail_s"] for row in reserving) / base["tail_s"],
        "retractions": sum(row["retractions"] for row in reserving),
        "retractions_fifo_group": base["retractions"],
        "lost": sum(row["lost"] for row in rows if isinstance(row["lost"], int)),
        "duplicated": sum(row["duplicated"] for row in rows if isinstance(row["duplicated"], int)),
    }
    shares = [row["prefix_found_share"] for row in reserving if row["prefix_found_share"]]
    if shares:
        figures["prefix_found_share"] = min(shares)
    for row in by_name.values():
        name = row["policy"].replace(", ", "_")
        figures[f"tokens_per_s_{name}"] = row["tokens_per_s"]
        figures[f"tail_s_{name}"] = row["tail_s"]
    drafting = by_name[SPECULATING]
    figures["speculation_x"] = drafting["tokens_per_s"] / by_name["seer"]["tokens_per_s"]
    figures["rollout_accept_length"] = drafting["accept_length"]
    return figures


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
