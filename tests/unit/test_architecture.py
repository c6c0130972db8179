"""The rules of the layout, read from the source: who may import whom, and how long things may get."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"seer_sgl": "seer_sgl", "cli": "seer_sgl_cli", "bench": "bench", "tests": "tests"}
"""Folder and the name that it is imported by."""

CORE = "seer_sgl.router.core"
NOT_PURE = set("asyncio http logging os pathlib random socket subprocess threading time urllib".split())
PURE = {name for name in sys.stdlib_module_names if name not in NOT_PURE}
MODELS = ["torch", "transformers", "tokenizers", "safetensors"]
HEAVY = ["torch", "sglang", "numba", "uvicorn", "zmq"]
FILE_LINES = 400
CORE_FILE_LINES = 250
FUNCTION_LINES = 50


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGES[folder], *rest]).removesuffix(".__init__")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def source(path: Path, node: ast.ImportFrom) -> str:
    """The module that a `from ... import` takes from, with leading dots resolved."""
    if not node.level:
        return node.module or ""
    package = module_name(path).split(".")
    package = package[: len(package) - node.level + (path.name == "__init__.py")]
    return ".".join([*package, *([node.module] if node.module else [])])


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of everything imported anywhere in a file: modules, and what is taken from them."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{source(path, node)}.{alias.name}" for alias in node.names}
    return frozenset(found)


def within(name: str, *parents: str) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def importers(folder: str, *names: str) -> dict[str, list[str]]:
    """Files below a folder that import one of the names, or what is below it."""
    hits = {shown(p): sorted(n for n in imports(p) if within(n, *names)) for p in files(folder)}
    return {path: found for path, found in hits.items() if found}


def outside(hits: dict[str, list[str]], *allowed: str) -> dict[str, list[str]]:
    return {path: found for path, found in hits.items() if not path.startswith(allowed)}


def test_every_package_is_found() -> None:
    assert len(files("seer_sgl/router/core")) > 5
    assert importers("seer_sgl", CORE), "nobody imports the core: the rules below check nothing"


def test_the_core_imports_nothing_that_acts() -> None:
    allowed = ("msgspec", "seer_sgl.types", "seer_sgl.errors", CORE)
    wrong = {
        shown(path): bad
        for path in files("seer_sgl/router/core")
        if (bad := [n for n in imports(path) if n.split(".")[0] not in PURE and not within(n, *allowed)])
    }
    assert not wrong


@pytest.mark.parametrize("name", ["types", "errors", "version"])
def test_the_bottom_layer_imports_nothing_above_it(name: str) -> None:
    bottom = ("seer_sgl.version", "seer_sgl.types", "seer_sgl.errors")
    ours = [n for n in imports(ROOT / f"seer_sgl/{name}.py") if within(n, *PACKAGES.values())]
    assert [n for n in ours if not within(n, *bottom)] == []


def test_the_package_does_not_import_its_users() -> None:
    assert not importers("seer_sgl", "seer_sgl_cli", "bench", "tests")
    assert not importers("cli", "bench", "tests")


def test_only_the_engine_folder_knows_sglang_and_torch() -> None:
    for folder in ("seer_sgl", "cli"):
        assert not outside(importers(folder, "sglang"), "seer_sgl/engine/")
        assert not outside(importers(folder, *MODELS), "seer_sgl/engine/", "seer_sgl/smallmodel/")


@pytest.mark.parametrize("name", ["mooncake", "sglang.srt.speculative"])
def test_one_file_touches_what_changes_under_us(name: str) -> None:
    assert len(importers("seer_sgl", name)) <= 1, importers("seer_sgl", name)


def test_what_the_keeper_knows_is_pure() -> None:
    pure = ["keys", "runs", "ledger", "seeking", "salts"]
    allowed = tuple(f"seer_sgl.kv.{name}" for name in pure)
    wrong = {
        name: bad
        for name in pure
        if (
            bad := [
                n
                for n in imports(ROOT / f"seer_sgl/kv/{name}.py")
                if n.split(".")[0] not in PURE and not within(n, *allowed)
            ]
        )
    }
    assert not wrong


def test_native_code_of_the_pool_stays_in_its_own_process() -> None:
    inside = [f"seer_sgl.kv.{name}" for name in ("client", "keeper", "keeping")]
    assert importers("seer_sgl/kv", "seer_sgl.kv.client"), "nobody uses the client: this checks nothing"
    assert not outside(importers("seer_sgl", *inside), "seer_sgl/kv/")


def test_one_file_builds_sglangs_command_line() -> None:
    builders = [
        shown(path)
        for folder in ("seer_sgl", "cli")
        for path in files(folder)
        if any(
            isinstance(n, ast.Constant) and n.value == "sglang.launch_server"
            for n in ast.walk(tree(path))
        )
    ]
    assert builders in ([], ["seer_sgl/engine/argv.py"])


def long_files() -> Iterator[str]:
    for path in (path for folder in PACKAGES for path in files(folder)):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        allowed = CORE_FILE_LINES if within(module_name(path), CORE) else FILE_LINES
        if lines > allowed:
            yield f"{shown(path)}: {lines} lines, {allowed} allowed"


def long_functions() -> Iterator[str]:
    for path in (path for folder in PACKAGES for path in files(folder)):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    yield f"{shown(path)}:{node.lineno} {node.name}: {lines} lines"


def test_nothing_is_too_long() -> None:
    offenders = [*long_files(), *long_functions()]
    assert not offenders, "\n" + "\n".join(offenders)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("seer_sgl_cli.main", HEAVY),
        ("seer_sgl.kv.keeper", ["torch", "sglang", "numba", "numpy", "uvicorn", "mooncake", "asyncio"]),
    ],
)
def test_small_processes_import_nothing_heavy(module: str, heavy: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]", f"imported by {module}: {ran.stdout}"
