"""Weight updates from disk under load: how long each takes, and that nobody loses a request by it.

Two SGLang servers of the small model run 32 groups of 8 greedy samples, all at any time, while a trainer
brings one of two checkpoints after the other: at once (`drain`: requests end first), or inside a pause
that ends requests with what they have (`abort`) or takes them up again with new weights (`retract`).

    python -m bench.weights --json out.json [--quick]
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeAlias

from bench.report import Report, finish
from bench.weight_load import WAYS, Load, Outcome, Trainer, faults, run, sure_tokens
from seer_sgl.config import RouterConfig
from seer_sgl.engine.process import free_port
from seer_sgl.engine.sglang import SGLangClient
from seer_sgl.head import HeadConfig, running_head
from seer_sgl.smallmodel import WEIGHTS
from seer_sgl.smallmodel.problems import prompts
from seer_sgl.smallmodel.variants import changed, save_variant

GROUPS, SAMPLES = 32, 8
MAX_RUNNING = GROUPS * SAMPLES // 2
LENGTHS = (8, 16, 24, 48, 96)
UPDATES, QUICK_UPDATES = 20, 4

Run: TypeAlias = dict[str, Any]
"""A row of the report: one way to update."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Weight updates from disk under load.")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--quick", action="store_true", help="fewer updates")
    args = parser.parse_args()
    updates = dict.fromkeys(WAYS, QUICK_UPDATES if args.quick else UPDATES)
    with tempfile.TemporaryDirectory() as scratch:
        rows = asyncio.run(_measure(Path(scratch), updates))
    figures = {f"update_{row['way']}_s": row["median_s"] for row in rows}
    lost = sum(row["faults"] + row["problems"] for row in rows)
    finish(Report("bench.weights", rows, {**figures, "update_faults": lost}), args.json)
    sys.exit(1 if lost else 0)


async def _measure(scratch: Path, updates: Mapping[str, int]) -> list[Run]:
    folders = [str(save_variant(scratch / str(seed), changed(seed))) for seed in (1, 2)]
    router = RouterConfig(
        http_port=free_port(), agent_port=free_port(), model=str(WEIGHTS), chunk_tokens=32
    )
    node_args = ("--max-running", str(MAX_RUNNING))
    config = HeadConfig(router, engines=2, log_dir=scratch / "logs", node_args=node_args)
    async with running_head(config, _say):
        client = SGLangClient(f"http://{router.host}:{router.http_port}")
        try:
            return await under_load(client, folders, updates)
        finally:
            await client.close()


async def under_load(
    client: SGLangClient, folders: Sequence[str], updates: Mapping[str, int], first_version: int = 1
) -> list[Run]:
    """A row for each way to update. Besides these updates there is one of each folder first.

    Args:
        client: of the router.
        updates: how many, by the way.
    """
    _, answer = await client.post("/tokenize", {"prompt": prompts(GROUPS, seed=11)})
    load = Load(answer["tokens"], SAMPLES, LENGTHS)
    trainer = Trainer(client, folders, first_version)
    references: list[list[list[int]]] = [[] for _ in folders]
    for _ in folders:
        await trainer.update(Outcome("drain"))
        references[trainer.versions[str(trainer.version)]] = await _reference(client, load)
    rows = []
    for way, count in updates.items():
        outcome = await run(client, trainer, load, way, count)
        found = faults(outcome, trainer.versions, references)
        for line in [*outcome.problems, *found][:20]:
            _say(f"{way}: {line}")
        rows.append(_row(outcome, len(found)))
        _say(str(rows[-1]))
    return rows


async def _reference(client: SGLangClient, load: Load) -> list[list[int]]:
    """What the engines answer to each group under the weights that they have now, and nothing runs."""
    length = max(load.lengths)
    sampling = {"max_new_tokens": length, "temperature": 0, "ignore_eos": True}
    bodies = [
        {
            "input_ids": list(prompt),
            "sampling_params": sampling,
            "return_logprob": True,
            "top_logprobs_num": 2,
        }
        for prompt in load.prompts
    ]
    answers = await asyncio.gather(*(client.post("/generate", body) for body in bodies))
    return [sure_tokens(answer) for _, answer in answers]


def _row(outcome: Outcome, found: int) -> Run:
    answers = [each.answer for each in outcome.sent if each.status == 200]
    aborted = sum(a["meta_info"]["finish_reason"]["type"] == "abort" for a in answers)
    mixed = sum(len(a["meta_info"]["weight_versions"]) > 1 for a in answers)
    return {
        "way": outcome.way,
        "updates": len(outcome.seconds),
        "mean_s": round(mean(outcome.seconds), 4),
        "median_s": round(median(outcome.seconds), 4),
        "max_s": round(max(outcome.seconds), 4),
        "pause_mean_s": round(mean(outcome.waited_s), 4),
        "requests": len(outcome.sent),
        "aborted": aborted,
        "of_two_weights": mixed,
        "faults": found,
        "problems": len(outcome.problems),
    }


def _say(line: Any) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
