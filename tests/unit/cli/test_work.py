"""A rollout at the terminal, against a router with a made-up engine."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli.work import _LABELS, RolloutJob, read_prompts, run_job
from seer_sgl.rollout.client import Prompt
from seer_sgl.rollout.report import Report
from seer_sgl.testing.engine import continuation
from tests.unit.router.conftest import Cluster, cluster, run, server


def test_prompts_are_named_by_their_line_unless_they_have_a_name(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{"input_ids": [1, 2], "group_id": "g", "answer": 7}\n')
    assert read_prompts(path) == [Prompt("line-1", text="a"), Prompt("g", input_ids=[1, 2])]


def job(it: Cluster, folder: Path, prompts: list[Prompt]) -> RolloutJob:
    return RolloutJob(
        url=f"http://127.0.0.1:{it.config.http_port}",
        prompts=prompts,
        output=folder / "new" / "samples.jsonl",
        report=folder / "new" / "report.json",
        group_size=2,
        sampling={"max_new_tokens": 5},
        reward=lambda prompt, text: float(len(prompt)),
    )


def written(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    lines = (folder / "new" / "samples.jsonl").read_bytes().splitlines()
    report = msgspec.json.decode((folder / "new" / "report.json").read_bytes())
    return [msgspec.json.decode(line) for line in lines], report


def test_samples_and_report_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with cluster(server()) as it:
            assert await run_job(job(it, tmp_path, [Prompt("g", text="abc")])) == 0

    run(scenario())
    samples, report = written(tmp_path)
    expected = continuation(list(b"abc"), 5)
    assert [sample["output_ids"] for sample in samples] == [expected] * 2
    assert [sample["reward"] for sample in samples] == [3.0, 3.0]
    assert (report["groups"], report["samples"], report["failed"]) == (1, 2, 0)
    assert (report["tokens"], report["reward"], report["retractions"]) == (2 * len(expected), 3.0, 0)
    table = capsys.readouterr().out
    for label in ("tokens/s", "retractions", "mean reward", "seconds on the last 10 % of requests"):
        assert label in table


def test_failures_are_told_and_make_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        prompts = [
            Prompt("good", input_ids=[5]),
            *(Prompt(f"bad-{i}", input_ids=[999]) for i in range(4)),
        ]
        async with cluster(server()) as it:
            assert await run_job(job(it, tmp_path, prompts)) == 1

    run(scenario())
    samples, report = written(tmp_path)
    assert (len(samples), report["failed"]) == (10, 8)
    shown = capsys.readouterr().err
    assert shown.count("token ids must lie in") == 5
    assert "and 3 more" in shown


def test_every_figure_of_the_report_is_shown() -> None:
    assert set(_LABELS) == set(Report.__struct_fields__)
