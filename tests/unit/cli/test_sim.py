"""`seer-sgl sim` at the terminal. The simulator is replaced: this is about what goes in and out."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from seer_sgl.sim.result import SimResult, Timeline
from seer_sgl.sim.workload import Workload

POLICIES = ("fifo_group", "least_loaded", "divided", "seer", "oracle")
WORKLOAD = """
name = "small"
engines = 4
groups = 10
group_size = 8
prompt_tokens = 100
max_new_tokens = 2000
lengths = { mean_tokens = 500, spread = 1.0, correlation = 0.9 }
SPECULATION
[engine]
fixed_s = 0.002
weights_s = 0.01
token_s = 1e-4
kv_token_s = 1e-8
prefill_token_s = 1e-4
kv_capacity_tokens = 4096
page_tokens = 16
max_running_requests = 64
"""
SPECULATION = "speculation = { max_draft = 8 }"


class Simulator:
    """Notes what it is asked for, and makes results up: the later a policy stands, the faster it is."""

    def __init__(self) -> None:
        self.calls: list[tuple[Workload, str, dict[str, Any]]] = []

    def simulate(self, workload: Workload, policy: str, **options: Any) -> SimResult:
        self.calls.append((workload, policy, options))
        makespan_s = 12_000.0 / (1 + POLICIES.index(policy))
        timeline = Timeline([0.0, makespan_s], [[3, 0]], [[0.5, 0.0]], [0.0, 1.0])
        return SimResult(
            policy=policy,
            requests=workload.groups * workload.group_size,
            output_tokens=1_000_000,
            makespan_s=makespan_s,
            tail_s=55.25,
            tokens_per_s=1_000_000 / makespan_s,
            chunks=1_234_567,
            moved_chunks=4_321,
            moved_tokens=9_870_000,
            preemptions=17,
            prefilled_tokens=5,
            idle_share=0.125,
            decision_us=0.0,
            timeline=timeline if options["timeline_points"] else None,
        )

    @property
    def policies(self) -> list[str]:
        return [policy for _, policy, _ in self.calls]


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Simulator:
    module: Any = ModuleType("seer_sgl.sim.run")
    simulator = Simulator()
    module.SIM_POLICIES = POLICIES
    module.simulate = simulator.simulate
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return simulator


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(WORKLOAD.replace("SPECULATION", SPECULATION), encoding="utf-8")
    return path


def sim(*args: object) -> Result:
    return CliRunner().invoke(app, ["sim", *map(str, args)])


def assert_refused(result: Result, *says: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: "), result.stderr
    assert "Traceback" not in result.stderr
    for words in says:
        assert words in result.stderr


# ---- what goes in ----


def test_it_compares_all_policies_on_a_built_in_workload(simulator: Simulator) -> None:
    result = sim()
    assert result.exit_code == 0, result.output
    assert simulator.policies == list(POLICIES)
    workload, _, options = simulator.calls[0]
    assert workload.name == "qwen2-vl-72b"
    assert options == {"seed": 0, "estimate": None, "speculation": False, "timeline_points": 0}


def test_options_replace_the_workloads_values(simulator: Simulator, workload: Path) -> None:
    result = sim(
        *(workload, "--policy", "seer", "--policy", "oracle", "--policy", "seer", "--seed", 7),
        *("--groups", 3, "--group-size", 2, "--engines", 9, "--chunk-tokens", 64, "--correlation", 0),
        *("--estimate", "longest", "--speculation"),
    )
    assert result.exit_code == 0, result.output
    assert simulator.policies == ["seer", "oracle"], "once each"
    for changed, _, options in simulator.calls:
        assert (changed.groups, changed.group_size, changed.engines) == (3, 2, 9)
        assert (changed.chunk_tokens, changed.lengths.correlation) == (64, 0.0)
        assert changed.lengths.spread == 1.0
        assert options["seed"] == 7
        assert options["estimate"] == "longest"
        assert options["speculation"] is True


# ---- what comes out ----


def test_a_row_per_policy_with_whole_figures(simulator: Simulator, workload: Path) -> None:
    result = sim(workload, "--policy", "fifo_group", "--policy", "least_loaded")
    assert "small: 80 requests, 4 engines, seed 0" in result.stdout
    assert "times that of fifo_group" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    shared = ["1,234,567", "4,321", "9.9", "17", "12.5%"]
    assert ["fifo_group", "12,000", "55.2", "83", "1.00", *shared] in rows
    assert ["least_loaded", "6,000", "55.2", "167", "2.00", *shared] in rows
    assert "…" not in result.stdout


def test_progress_goes_to_stderr(simulator: Simulator, workload: Path) -> None:
    result = sim(workload, "--policy", "divided", "--policy", "seer")
    said = [line.split(":")[0] for line in result.stderr.splitlines()]
    assert said == ["1/2 divided", "2/2 seer"]


def test_results_as_json(simulator: Simulator, workload: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.json"
    picture = tmp_path / "new" / "p.png"
    args = ("--policy", "seer", "--seed", 3, "--engines", 2, "--json", path, "--picture", picture)
    result = sim(workload, *args)
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_bytes())
    assert {key: report[key] for key in ("seed", "estimate", "speculation")} == {
        "seed": 3,
        "estimate": None,
        "speculation": False,
    }
    assert msgspec.convert(report["workload"], Workload) == simulator.calls[0][0]
    (outcome,) = msgspec.convert(report["results"], list[SimResult])
    assert (outcome.policy, outcome.makespan_s, outcome.timeline) == ("seer", 3000.0, None)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert simulator.calls[0][2]["timeline_points"] > 100


# ---- what is refused ----


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ("--policy", "seer", "--policy", "fast"),
            ["'fast'", "fifo_group, least_loaded, divided, seer"],
        ),
        (("--estimate", "guess"), ["'guess'", "longest"]),
        (("--group-size", 0), ["small: group_size must be at least 1", "got 0"]),
        (("--engines", 0, "--correlation", 2), ["small: engines", "\nsmall: lengths.correlation"]),
        (("--picture", "p.pdf"), ["p.pdf", ".png or .svg"]),
        (("--json", "/proc/none/r.json"), ["/proc/none: No such file"]),
        (("--json", "/"), ["/ is a folder"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    args: tuple[object, ...], says: list[str], simulator: Simulator, workload: Path
) -> None:
    assert_refused(sim(workload, *args), *says)
    assert simulator.calls == []


def test_an_unknown_workload(simulator: Simulator) -> None:
    assert_refused(sim("moonlit"), "'moonlit'", "qwen2-vl-72b")


def test_a_broken_file(simulator: Simulator, workload: Path) -> None:
    workload.write_text("name = \n", encoding="utf-8")
    assert_refused(sim(workload), f"{workload}: ", "line 1")


def test_speculation_needs_its_table(simulator: Simulator, workload: Path) -> None:
    workload.write_text(WORKLOAD.replace("SPECULATION", ""), encoding="utf-8")
    assert sim(workload, "--policy", "seer").exit_code == 0
    assert_refused(sim(workload, "--speculation"), "small: --speculation needs the table [speculation]")


def test_without_matplotlib_only_pictures_are_refused(
    simulator: Simulator, workload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_refused(sim(workload, "--picture", "p.png"), "pip install 'seer-sgl[plot]'")
    assert sim(workload, "--policy", "seer").exit_code == 0


def test_ctrl_c_ends_it_quietly(
    simulator: Simulator, workload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> SimResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["seer_sgl.sim.run"], "simulate", interrupted)
    result = sim(workload)
    assert result.exit_code == 130
    assert "Traceback" not in result.output


def test_help_is_light() -> None:
    code = """
import sys
from seer_sgl_cli.main import app
try:
    app(["sim", "--help"])
except SystemExit as end:
    assert not end.code, end.code
print([name for name in ("numpy", "matplotlib", "torch", "numba") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, heavy = ran.stdout.splitlines()
    assert any("--correlation" in line for line in text)
    assert heavy == "[]"
