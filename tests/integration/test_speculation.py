"""Speculation on real servers changes how soon an answer comes, and nothing else.

One plain server says what is right; then come, one at a time, a server that speculates under pages,
HiCache and chunked prefill, and one with overlapped scheduling on two ranks.
"""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from seer_sgl.config import EngineConfig
from seer_sgl.engine.argv import server_argv, server_environment
from seer_sgl.engine.process import Child
from seer_sgl.engine.server import LaunchedServer
from seer_sgl.engine.sglang import SGLangClient
from seer_sgl.smallmodel.problems import prompts
from seer_sgl.spec.settings import DraftSettings
from seer_sgl.types import EngineId
from tests.integration.conftest import GREEDY, MODEL
from tests.statistics import homogeneity_p

Answers = list[dict[str, Any]]

DRAFT = DraftSettings(mode="fixed", widths=(1, 2, 4, 8, 16), max_nodes=11)
"""Drafts in every step, whatever it costs, so that there is something to verify."""

HICACHE = (
    *("--enable-hierarchical-cache", "--hicache-io-backend", "direct"),
    *("--hicache-mem-layout", "page_first_direct", "--hicache-write-policy", "write_through"),
    *("--chunked-prefill-size", "256"),
)


def tags(group: str, count: int) -> list[dict[str, Any]]:
    """Of `count` samples of a group."""
    return [
        {"seer": {"group": group, "request": sample, "done": 0, "probe": sample == 0}}
        for sample in range(count)
    ]


def body(texts: Sequence[str], group: str, **params: Any) -> dict[str, Any]:
    shared = {"temperature": 0, "ignore_eos": True, **params}
    return {
        "text": list(texts),
        "sampling_params": [{**shared, "custom_params": tag} for tag in tags(group, len(texts))],
        "return_logprob": True,
        "top_logprobs_num": 2,
    }


SEEDED = body(
    prompts(24, seed=5), "seeded", max_new_tokens=160, temperature=0.9, top_p=0.95, sampling_seed=7
)
MIN_P = body(
    prompts(12, seed=6),
    "min_p",
    max_new_tokens=60,
    temperature=1.2,
    min_p=0.05,
    top_k=20,
    sampling_seed=1,
)
ODD_PARAMS: list[dict[str, Any]] = [
    {"frequency_penalty": 0.5},
    {"presence_penalty": 0.7},
    {"repetition_penalty": 1.3},
    {"min_new_tokens": 40, "ignore_eos": False},
    {"logit_bias": {"20": 4.0, "31": -6.0}},
    # With `ignore_eos`, SGLang's plain decode gives one token more than its speculative one after a
    # grammar has ended.
    {"regex": "[a-z ]{30,60}", "ignore_eos": False},
    {"temperature": 1.0, "sampling_seed": 3},
    {},
]
"""Each on a request of its own, all in one batch: what is odd about one may not reach another."""


def odd() -> dict[str, Any]:
    """The requests of `ODD_PARAMS`, among them those that are not drafted for."""
    asked = body(prompts(len(ODD_PARAMS), seed=8), "odd", max_new_tokens=80)
    for params, extra in zip(asked["sampling_params"], ODD_PARAMS, strict=True):
        params.update(extra)
    return asked


BODIES = {"greedy": GREEDY, "seeded": SEEDED, "min_p": MIN_P, "odd": odd()}

SAMPLES, PLAIN_SAMPLES, SAMPLE_TOKENS, BATCH = 20_000, 10_000, 8, 2_000


def sampled(group: str) -> dict[str, Any]:
    """Many short samples of one prompt at temperature 1."""
    params = {"max_new_tokens": SAMPLE_TOKENS, "temperature": 1.0, "ignore_eos": True}
    return {
        "text": prompts(1, seed=11) * BATCH,
        "sampling_params": [{**params, "custom_params": tag} for tag in tags(group, BATCH)],
    }


class Running:
    """A server, asked from tests that are not asynchronous."""

    def __init__(self, server: LaunchedServer, runner: asyncio.Runner) -> None:
        self._server, self._runner = server, runner

    def ask(self, asked: dict[str, Any]) -> Answers:
        status, answers = self._runner.run(self._server.client.post("/generate", asked))
        assert status == 200, answers
        answered: Answers = answers
        return answered

    def sample(self, group: str, count: int) -> torch.Tensor:
        """`[count, SAMPLE_TOKENS]` tokens."""
        parts = [self.ask(sampled(f"{group} {part}")) for part in range(count // BATCH)]
        return torch.tensor([answer["output_ids"] for answers in parts for answer in answers])

    def counters(self) -> dict[str, Any]:
        info = self._runner.run(self._server.client.info(EngineId("any")))
        assert info.plugin is not None
        counted: dict[str, Any] = info.plugin["speculation"]
        return counted


def running(server: LaunchedServer) -> Iterator[Running]:
    with asyncio.Runner() as runner:
        try:
            runner.run(server.start())
            yield Running(server, runner)
        finally:
            runner.run(server.stop())


def config(**changes: Any) -> EngineConfig:
    return EngineConfig(**{"name": "e", "model": MODEL, "max_running_requests": 128, **changes})


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a plain server says; it is over before another one starts."""
    server = LaunchedServer(config(), True, tmp_path_factory.mktemp("right"))
    for plain in running(server):
        said: dict[str, Any] = {name: plain.ask(asked) for name, asked in BODIES.items()}
        said["samples"] = plain.sample("plain", PLAIN_SAMPLES)
    return said


@pytest.fixture(scope="module")
def drafting(right: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    del right  # only so that the plain server is over
    settings = config(draft=DRAFT, page_tokens=16, extra_args=HICACHE)
    yield from running(LaunchedServer(settings, True, tmp_path_factory.mktemp("drafting")))


def check_same(answers: Answers, right: Answers) -> None:
    """Token by token, and logprobs up to what another order of sums makes of them."""
    for answer, expected in zip(answers, right, strict=True):
        assert answer["output_ids"] == expected["output_ids"]
        said, meant = answer["meta_info"], expected["meta_info"]
        assert said["finish_reason"] == meant["finish_reason"]
        check_logprobs(said["output_token_logprobs"], meant["output_token_logprobs"])
        for ours, theirs in zip(
            said.get("output_top_logprobs", []), meant.get("output_top_logprobs", []), strict=True
        ):
            check_logprobs(ours, theirs)


def check_logprobs(answered: list[Any], right: list[Any]) -> None:
    assert len(answered) == len(right)
    for (logprob, *_), (expected, *_) in zip(answered, right, strict=True):
        assert logprob == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", BODIES)
def test_answers_are_those_of_a_plain_server(
    drafting: Running, right: dict[str, Any], name: str
) -> None:
    check_same(drafting.ask(BODIES[name]), right[name])


def test_a_second_pass_over_known_texts_accepts_more_and_says_the_same(
    drafting: Running, right: dict[str, Any]
) -> None:
    before = drafting.counters()
    check_same(drafting.ask(SEEDED), right["seeded"])
    after = drafting.counters()
    steps = after["requests"] - before["requests"]
    assert after["verify_steps"] > before["verify_steps"]
    assert after["drafter_failures"] == 0
    assert (after["accepted"] - before["accepted"]) / steps > 2.0


def test_samples_are_distributed_as_those_of_a_plain_server(
    drafting: Running, right: dict[str, Any]
) -> None:
    before = drafting.counters()
    chance = homogeneity_p(right["samples"], drafting.sample("first", SAMPLES))
    if chance < 0.01:
        # One time in a hundred that is chance; twice in a row it is not.
        chance = homogeneity_p(right["samples"], drafting.sample("second", SAMPLES))
    assert chance > 0.01
    after = drafting.counters()
    drafted = after["rows"] - before["rows"] - (after["requests"] - before["requests"])
    assert drafted > SAMPLES, "hardly anything was drafted: this showed nothing"


def test_an_aborted_request_leaves_the_others_alone(drafting: Running, right: dict[str, Any]) -> None:
    async def abort(client: SGLangClient) -> Any:
        long = {"max_new_tokens": 3000, "temperature": 0, "ignore_eos": True}
        one = {"text": prompts(1, seed=9)[0], "rid": "to abort", "sampling_params": long}
        running_on = asyncio.create_task(client.post("/generate", one))
        others = asyncio.create_task(client.post("/generate", SEEDED))
        await asyncio.sleep(0.5)
        await client.post("/abort_request", {"rid": "to abort"})
        return (await running_on)[1], (await others)[1]

    aborted, others = drafting._runner.run(abort(drafting._server.client))
    assert aborted["meta_info"]["finish_reason"]["type"] == "abort"
    check_same(others, right["seeded"])


def overlapping(log_dir: Path) -> LaunchedServer:
    """Two ranks, and the scheduler a step ahead of its results."""
    ours = config(draft=DRAFT, extra_args=("--tp-size", "2"))
    server = LaunchedServer(ours, True, log_dir)
    port = int(server.client.url.rpartition(":")[2])
    argv = [word for word in server_argv(ours, port, True) if word != "--disable-overlap-schedule"]
    server._child = Child("overlapping", argv, log_dir / "overlapping.log")
    return server


@pytest.fixture(scope="module")
def two_ranks(right: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    del right
    assert server_environment(config())  # what follows is added to it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")
        yield from running(overlapping(tmp_path_factory.mktemp("two_ranks")))


# SGLang's penalties lag a token behind where scheduling overlaps, with and without speculation.
@pytest.mark.parametrize("name", ["seeded", "min_p"])
def test_two_ranks_with_overlap_say_the_same(
    two_ranks: Running, right: dict[str, Any], name: str
) -> None:
    check_same(two_ranks.ask(BODIES[name]), right[name])
    assert two_ranks.counters()["verify_steps"] > 0
