"""`seer-sgl profile` against servers of known speed: in time that passes at once, and over HTTP."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from cli.profile import COMMENTS, as_toml
from seer_sgl.engine.process import free_port
from seer_sgl.engine.sglang import Answer, SGLangClient
from seer_sgl.errors import ChildFailedError, StartError
from seer_sgl.rollout import profile as profiling
from seer_sgl.rollout.profile import Profile, profile_servers
from seer_sgl.sim.fit import Fit
from seer_sgl.sim.model import EngineModel
from seer_sgl.spec.cost import profiled_steps
from seer_sgl.testing.controls import Reply
from seer_sgl.testing.engine import FakeAnswer
from tests.unit.router.conftest import hurried

TRUE = EngineModel(
    fixed_s=3e-4,
    weights_s=0.0,
    token_s=3e-5,
    kv_token_s=2e-7,
    prefill_token_s=1e-5,
    kv_capacity_tokens=2048,
    page_tokens=16,
    max_running_requests=4,
    admission="sglang",
    prefill_s=5e-4,
    prefix_token_s=1e-6,
    turnaround_s=2e-3,
    move_s=3e-3,
    move_token_s=4e-6,
)


class FakeEngine:
    """What a server answers, and how long it takes. Servers with one `pool` share KV."""

    def __init__(self, pool: set[tuple[int, ...]] | None = None, **info: Any) -> None:
        self.pool = pool
        self.cached: set[tuple[int, ...]] = set()
        self.flushed = self.broken = self.running = self.calls = 0
        self.speculates = False
        self.counts: dict[str, int] | None = None
        """Of our own speculation; None where it is not there."""
        self.most_nodes = 31
        self.stopped_s = 0.0
        """How long prefills have kept everything else from going on."""
        self.info = {"served_model_name": "/models/small", "weight_version": "1", **info}

    def get(self, path: str) -> dict[str, Any]:
        if path == "/v1/loads":
            load = {"num_running_reqs": self.running, "num_waiting_reqs": 0, "num_used_tokens": 0}
            return {"loads": [load]}
        if path == "/server_info":
            state: dict[str, Any] = {"effective_max_running_requests_per_dp": TRUE.max_running_requests}
            if self.counts is not None:
                state["seer_sgl"] = {"vocab_size": 500, "speculation": self.counts}
            sizes = {"max_total_num_tokens": TRUE.kv_capacity_tokens, "page_size": TRUE.page_tokens}
            return {**sizes, "version": "0.5.23", "internal_states": [state]}
        if path == "/v1/models":
            return {"data": [{"max_model_len": 2048}]}
        return self.info

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any, float]:
        """Status, answer, seconds."""
        self.calls += 1
        if self.broken and self.calls > self.broken:
            return 500, {"error": {"message": "out of memory"}}, 0.0
        if path.startswith("/flush_cache"):
            self.flushed += 1
            return 200, "Cache flushed.", 0.0
        sampling = body["sampling_params"]
        assert sampling["ignore_eos"]
        assert sampling["temperature"] == 0
        prompts, steps = body["input_ids"], sampling["max_new_tokens"]
        answers, seconds = [], TRUE.turnaround_s
        for ids in prompts:
            answer, prompt_s = self._prefill(ids, steps)
            answers.append(answer)
            seconds += prompt_s
        tokens = sum(map(len, prompts))
        # The first token comes with the prefill, and counts as a step of one request.
        seconds += TRUE.step_s(1, tokens / len(prompts))
        # On average over the steps, as it grows by one per request and step.
        kv_tokens = tokens + len(prompts) * steps / 2
        width = self._width(sampling, len(prompts) * (steps - 1))
        seconds += (steps - 1) * TRUE.step_s(len(prompts), kv_tokens, width)
        return 200, answers, seconds

    def _width(self, sampling: dict[str, Any], requests: int) -> int:
        """Rows of each request in a step, counted as our speculation counts them."""
        if self.counts is None:
            assert "custom_params" not in sampling
            return 1
        width = 1 + min(sampling["custom_params"]["seer"]["force"], self.most_nodes)
        for name, count in (("requests", requests), ("rows", width * requests), ("accepted", requests)):
            self.counts[name] = self.counts.get(name, 0) + count
        return int(width)

    def _prefill(self, ids: list[int], steps: int) -> tuple[dict[str, Any], float]:
        here, there = _longest(self.cached, ids), _longest(self.pool or set(), ids)
        from_pool = max(0, there - here)
        cached = max(here, there)
        seconds = TRUE.start_s(len(ids) - cached, cached)
        self.stopped_s += seconds
        if from_pool:
            seconds += TRUE.move_s + from_pool * TRUE.move_token_s
        output = list(range(20, 20 + steps))
        self.cached.add((*ids, *output))
        self.cached.add(tuple(ids))
        if self.pool is not None:
            self.pool.add(tuple(ids))
        meta: dict[str, Any] = {"cached_tokens_details": {"device": here, "storage": from_pool}}
        if self.speculates:
            meta["spec_verify_ct"] = 3
        return {"output_ids": output, "meta_info": meta}, seconds


def _longest(known: set[tuple[int, ...]], ids: list[int]) -> int:
    return max((len(k) for k in known if k == tuple(ids[: len(k)])), default=0)


# ---- in time that passes at once ----


class InstantLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer as soon as there is nothing else to do."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        loop: Any = self
        if not loop._ready and loop._scheduled:
            self.now_s = max(self.now_s, loop._scheduled[0].when())
        super()._run_once()  # type: ignore[misc]


def measure(*engines: FakeEngine, **options: Any) -> Profile:
    """A profile of engines that take no real time."""
    named = {f"http://fake-{number}": engine for number, engine in enumerate(engines)}

    class FakeClient(SGLangClient):
        @contextlib.asynccontextmanager
        async def open(self, method: str, target: str, *sent: Any, **_: Any) -> AsyncIterator[Answer]:
            engine, path = named[self.url], target.partition("?")[0]
            if method == "GET":
                status, body, seconds = 200, engine.get(path), 0.0
            else:
                status, body, seconds = engine.post(path, json.loads(sent[0]))
            done_s = engine.stopped_s
            await asyncio.sleep(seconds)
            while (stopped_s := engine.stopped_s) > done_s:
                await asyncio.sleep(stopped_s - done_s)
                done_s = stopped_s
            yield FakeAnswer(Reply(status, body))

    with hurried(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiling, "SGLangClient", FakeClient)
        with asyncio.Runner(loop_factory=InstantLoop) as runner:
            return runner.run(profile_servers(list(named), **options))


def assert_found(found: EngineModel, *but: str) -> None:
    """The coefficients are the true ones, but for some that are 0."""
    for name, true in msgspec.structs.asdict(TRUE).items():
        value = getattr(found, name)
        expected = 0 if name in but else true
        assert value == (expected if isinstance(true, str) else pytest.approx(expected, rel=0.03)), name


@pytest.mark.parametrize("quick", [False, True])
def test_servers_of_known_speed(quick: bool) -> None:
    pool: set[tuple[int, ...]] = set()
    lines: list[str] = []
    engines = [FakeEngine(pool), FakeEngine(pool)]
    measured = measure(*engines, quick=quick, say=lines.append)
    assert_found(measured.fit.engine)
    assert measured.fit.residual_worst < 0.01
    assert (measured.model, measured.sglang_version, measured.servers) == ("small", "0.5.23", 2)
    assert measured.notes == []
    assert lines[-1] == ("round 3 of 3" if quick else "round 5 of 5")
    assert [engine.flushed for engine in engines] == [1, 1]
    assert engines[0].calls == engines[1].calls, "both get the same load"
    assert {row.observation.requests for row in measured.fit.fitted} == {1, 2, 4}


@pytest.mark.parametrize(
    ("engines", "note"),
    [
        ([FakeEngine()], "two servers"),
        ([FakeEngine(), FakeEngine()], "share no KV pool"),
        ([FakeEngine(set()), FakeEngine(set())], "share no KV pool"),
    ],
)
def test_moves_need_a_pool(engines: list[FakeEngine], note: str) -> None:
    measured = measure(*engines, quick=True)
    assert_found(measured.fit.engine, "move_s", "move_token_s")
    assert note in measured.notes[0]


def test_a_smaller_batch_is_all_that_is_measured() -> None:
    measured = measure(FakeEngine(), quick=True, max_batch=2)
    assert {row.observation.requests for row in measured.fit.fitted} == {1, 2}
    assert measured.fit.engine.max_running_requests == TRUE.max_running_requests


@pytest.mark.parametrize("most_nodes", [31, 7, 0])
def test_a_server_with_our_speculation_is_measured_in_all_widths_that_it_runs(most_nodes: int) -> None:
    engine = broken(counts={"requests": 0, "rows": 0, "accepted": 0}, most_nodes=most_nodes)
    measured = measure(engine)
    assert_found(measured.fit.engine, "move_s", "move_token_s")
    wide = [row for row in measured.fit.fitted if row.observation.kind == "verify"]
    widths = {row.observation.rows // row.observation.requests for row in wide}
    assert widths == {width for width in (2, 4, 8, 16, 32) if width <= most_nodes + 1}
    assert all(row.residual is not None and abs(row.residual) < 0.01 for row in wide)
    steps = profiled_steps(msgspec.json.encode(measured))
    assert len(steps) == sum(row.observation.kind in ("step", "verify") for row in measured.fit.fitted)
    assert max(step.rows // step.requests for step, _ in steps) == max(widths, default=1)


def broken(**state: Any) -> FakeEngine:
    engine = FakeEngine()
    for name, value in state.items():
        setattr(engine, name, value)
    return engine


@pytest.mark.parametrize(
    ("second", "kind", "says"),
    [
        (broken(running=3), StartError, "http://fake-1 runs 3 requests"),
        (broken(speculates=True), StartError, "http://fake-1 decodes speculatively"),
        (broken(info={"detail": "?"}), StartError, "no SGLang server answers at http://fake-1 "),
        (FakeEngine(served_model_name="/models/large"), StartError, "differ in model"),
        (broken(broken=9), ChildFailedError, "http://fake-1 refused /generate: out of memory"),
    ],
)
def test_what_is_no_server_to_measure(second: FakeEngine, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind) as caught:
        measure(FakeEngine(), second, quick=True)
    assert says in str(caught.value)


# ---- the command, over HTTP ----


class Handler(BaseHTTPRequestHandler):
    """Answers as a `FakeEngine` does, as fast as it can."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    engine: FakeEngine

    def do_GET(self) -> None:
        self._answer(200, self.engine.get(self.path.partition("?")[0]))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, answer, seconds = self.engine.post(self.path, body)
        time.sleep(seconds)
        self._answer(status, answer)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def _answer(self, status: int, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def url(engine: FakeEngine) -> Iterator[str]:
    class Mine(Handler):
        pass

    Mine.engine = engine

    with ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


def command(*args: object) -> Result:
    return CliRunner().invoke(app, ["profile", *map(str, args)])


def test_the_command_writes_an_engine(url: str, tmp_path: Path) -> None:
    output, report = tmp_path / "new" / "profile.toml", tmp_path / "other" / "profile.json"
    with hurried():
        result = command(url + "/", "--output", output, "--json", report, "--quick")
    assert result.exit_code == 0, result.output
    written = msgspec.toml.decode(output.read_bytes())
    engine = msgspec.convert(written["engine"], EngineModel)
    measured = msgspec.json.decode(report.read_bytes(), type=Profile)
    for name, value in msgspec.structs.asdict(measured.fit.engine).items():
        assert getattr(engine, name) == (
            value if isinstance(value, str) else pytest.approx(value, rel=1e-3)
        )
    assert 0 < engine.step_s(4, 1000) < 1
    assert engine.kv_capacity_tokens == TRUE.kv_capacity_tokens
    for shown in ("step", "prefill", "turnaround", "two servers"):
        assert shown in result.output


def test_the_file_says_where_it_comes_from() -> None:
    engine = msgspec.structs.replace(TRUE, token_s=1.23456e-7, move_s=0.0)
    measured = Profile(Fit(engine, 0.01, [], 0.02, 0.05), "small", "0.5.23", 2, 33.0, ["no pool"])
    text = as_toml(measured, "2030-01-01 12:00 UTC")
    for part in ("small, SGLang 0.5.23, 2 servers", "2030-01-01 12:00 UTC", "median 2.0%, worst 5.0%"):
        assert part in text
    assert "# No pool." in text
    table = text.partition("[engine]\n")[2].splitlines()
    assert [line.partition(" = ")[0] for line in table] == [*EngineModel.__struct_fields__]
    for line in table:
        name = line.partition(" = ")[0]
        assert line.endswith(f"  # {COMMENTS[name]}")
    assert "token_s = 1.235e-07  #" in text
    assert "move_s = 0.0  #" in text


def test_the_command_without_a_server(tmp_path: Path) -> None:
    output = tmp_path / "profile.toml"
    result = command(f"http://127.0.0.1:{free_port()}", "--output", output)
    assert result.exit_code == 2
    assert "error: no SGLang server answers at http://127.0.0.1:" in result.output
    assert "Traceback" not in result.output
    assert not output.exists()


def test_the_command_with_a_server_that_fails(url: str, engine: FakeEngine, tmp_path: Path) -> None:
    engine.broken = 4
    output = tmp_path / "profile.toml"
    with hurried():
        result = command(url, "--output", output, "--quick")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].endswith("refused /generate: out of memory")
    assert not output.exists()
