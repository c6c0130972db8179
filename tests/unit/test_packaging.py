"""What a user installs and starts: dependencies, pins, entry points, images, system packages."""

import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from seer_sgl.config import TRIED_SGLANG
from seer_sgl.engine import libraries
from seer_sgl.engine.libraries import MOONCAKE_LIBRARIES
from seer_sgl.version import __version__
from seer_sgl_cli import doctor
from seer_sgl_cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
NOT_FOR_A_ROUTER = re.compile(r"torch|triton|sglang|transformers|mooncake|nvidia|cuda|flashinfer")
README_LINES = 150


def requirements(*extras: str) -> list[Requirement]:
    """Base dependencies, and those of the extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [Requirement(line) for line in lines]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "every line names one exact version"
    return {canonicalize_name(name): version for name, version in pins}


def pulled_by(roots: Iterable[Requirement]) -> set[str]:
    """Names of the packages that these need here, and of those that they need in turn."""
    seen: set[tuple[str, str]] = set()
    to_do = [(canonicalize_name(root.name), extra) for root in roots for extra in ("", *root.extras)]
    while to_do:
        name, extra = to_do.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for needed in map(Requirement, lines):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                to_do += [(canonicalize_name(needed.name), e) for e in ("", *needed.extras)]
    return {name for name, _ in seen}


# ---- dependencies ----


def test_a_router_node_pulls_no_torch() -> None:
    pulled = pulled_by(requirements())
    assert {"pyzmq", "llvmlite", "h11"} <= pulled, "the walk found too little to prove anything"
    assert sorted(filter(NOT_FOR_A_ROUTER.search, pulled)) == []


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_constraints_hold_a_fitting_version_of_every_dependency(extra: str) -> None:
    pins = constraints()
    for needed in requirements(*filter(None, [extra])):
        pin = pins.get(canonicalize_name(needed.name))
        assert pin is not None, f"{needed.name} has no constraint"
        assert needed.specifier.contains(pin), f"{needed}, but the constraint is {pin}"


def test_constraints_hold_what_the_dependencies_pull() -> None:
    missing = pulled_by(requirements(*EXTRAS)) - constraints().keys()
    assert sorted(missing) == []


@pytest.mark.parametrize("extra", ["cpu", "cuda"])
def test_the_pinned_sglang_is_the_tried_one(extra: str) -> None:
    pins = [str(r.specifier) for r in requirements(extra) if r.name == "sglang"]
    assert pins == [f"=={TRIED_SGLANG[-1]}"]
    assert constraints()["sglang"] == TRIED_SGLANG[-1]


# ---- the package ----


def test_every_package_is_installed() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "seer_sgl").rglob("__init__.py")}
    expected = {".".join(folder.parts) for folder in folders if "shim" not in folder.parts}
    assert expected | {"seer_sgl_cli"} == set(tool["setuptools"]["packages"])


def test_the_stock_routers_name_is_taken_only_on_purpose() -> None:
    shim = ROOT / "seer_sgl" / "shim"
    project = tomllib.loads((shim / "pyproject.toml").read_text(encoding="utf-8"))
    assert EXTRAS["sglang-router"] == [f"{project['project']['name']}=={project['project']['version']}"]
    assert project["project"]["dependencies"] == [f"{PROJECT['name']}=={__version__}"]
    assert project["tool"]["setuptools"]["packages"] == ["sglang_router"]
    assert (shim / "sglang_router" / "__init__.py").is_file()
    main = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert not any("sglang_router" in name for name in main["packages"])


def declared_entry_points() -> list[metadata.EntryPoint]:
    groups = {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}
    return [
        metadata.EntryPoint(name, value, group)
        for group, entries in groups.items()
        for name, value in entries.items()
    ]


@pytest.mark.parametrize("entry", declared_entry_points(), ids=lambda entry: entry.name)
def test_entry_points_resolve(entry: metadata.EntryPoint) -> None:
    assert callable(entry.load())


def test_sglang_would_find_the_plugin() -> None:
    for group in ("sglang.srt.platforms", "sglang.srt.plugins"):
        ours = [
            entry for entry in metadata.entry_points(group=group) if entry.name.startswith("seer_sgl")
        ]
        assert ours, f"the installed project has no entry point in {group}"


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    assert "make demo" in text
    assert "make test" in text
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^make test\b", script.read_text(encoding="utf-8"), re.MULTILINE)


# ---- images ----


def stages() -> dict[str, list[tuple[str, str]]]:
    """(instruction, arguments) of each stage of the Dockerfile, continuation lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            image, _, name = arguments.partition(" AS ")
            assert ":" in image, f"{image} has no tag"
        found.setdefault(name, []).append((instruction, arguments))
    return found


def parsed(command: list[str]) -> dict[str, Any]:
    """The parameters that the command line makes of this; an unknown option raises."""
    group: Any = typer.main.get_command(app)
    name, *args = command
    params: dict[str, Any] = group.commands[name].make_context(name, args).params
    return params


def test_there_is_an_image_for_each_kind_of_machine() -> None:
    assert set(stages()) == {"cpu", "cuda"}


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_an_image_starts_the_command_as_an_ordinary_user(stage: str) -> None:
    by_name = dict(stages()[stage])
    assert by_name["ENTRYPOINT"] == '["seer-sgl"]'
    assert by_name["USER"] not in ("root", "0")
    assert parsed(yaml.safe_load(by_name["CMD"]))["host"] == "0.0.0.0"


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_an_image_holds_what_engines_need(stage: str) -> None:
    runs = [arguments for instruction, arguments in stages()[stage] if instruction == "RUN"]
    apt = next(run for run in runs if "apt-get install" in run)
    assert "rm -rf /var/lib/apt/lists/*" in apt
    installed = {word.removesuffix("t64") for word in shlex.split(apt)}
    assert installed >= {*MOONCAKE_LIBRARIES.values(), "g++", "libssl-dev"}
    pips = [run for run in runs if "pip install" in run]
    assert f"/src[{stage}]" in pips[-1]
    for run in pips:
        assert "--no-cache-dir" in run
        assert "constraints.txt" in run


def test_compose_joins_a_node_to_a_head() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    for service in services.values():
        assert service["build"]["target"] in stages()
        assert service["shm_size"]
    head, node = parsed(services["head"]["command"]), parsed(services["node"]["command"])
    assert head["host"] == "0.0.0.0"
    assert node["head"] == f"head:{head['agent_port']}"
    assert f"127.0.0.1:{head['port']}/health" in services["head"]["healthcheck"]["test"][-1]


# ---- system packages ----


@pytest.fixture
def missing_libnuma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "missing_libraries", lambda: ["libnuma1"])
    monkeypatch.setattr(libraries, "missing_build_tools", list)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been run."""
    ran: list[list[str]] = []

    def note(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(doctor.subprocess, "run", note)
    return ran


@pytest.mark.usefixtures("missing_libnuma")
def test_doctor_installs_as_root(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    CliRunner().invoke(app, ["doctor", "--install"])
    assert commands == [
        ["apt-get", "update"],
        ["apt-get", "install", "-y", "--no-install-recommends", "libnuma1"],
    ]


@pytest.mark.usefixtures("missing_libnuma")
def test_doctor_tells_others_the_exact_command(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(app, ["doctor", "--install"])
    assert result.exit_code == 1
    assert commands == []
    expected = "sudo apt-get update && sudo apt-get install -y --no-install-recommends libnuma1"
    assert expected in result.output


@pytest.mark.usefixtures("missing_libnuma")
def test_doctor_without_install_only_reports(commands: list[list[str]]) -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert commands == []
    assert re.search(r"MISSING .*\n +apt-get update && apt-get install .* libnuma1", result.output)
