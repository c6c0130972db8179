"""The table against SGLang's own source, and by itself."""

import importlib.util
import re
from pathlib import Path

import pytest

from seer_sgl.router.control.table import ROWS, TABLE, Act, Merge, Row, Scope, row_of


def sglang_routes() -> set[tuple[str, str]]:
    """Method and path of every route that the installed SGLang declares."""
    found = importlib.util.find_spec("sglang")
    if found is None or not found.submodule_search_locations:
        pytest.skip("SGLang is not installed")
    entry = Path(found.submodule_search_locations[0]) / "srt" / "entrypoints"
    source = "".join((entry / name).read_text() for name in ("http_server.py", "v1_loads.py"))
    routes = set()
    for verb, path, rest in re.findall(r'@(?:app|router)\.(\w+)\(\s*"([^"]+)"([^\n]*)', source):
        methods = re.findall(r'"([A-Z]+)"', rest) if verb == "api_route" else [verb.upper()]
        routes |= {(method, path) for method in methods}
    return routes


def asked_of_engines(row: Row, method: str) -> tuple[str, str]:
    return row.asks or method, row.target.partition("?")[0]


METRICS = ("GET", "/metrics")
"""Mounted by SGLang where it runs with --enable-metrics, not declared as a route."""


def test_engines_are_asked_only_for_what_sglang_serves() -> None:
    known = sglang_routes() | {METRICS}
    asked = {asked_of_engines(row, method) for row in TABLE for method in row.methods}
    assert len(asked) > 40
    assert asked <= known, asked - known


def test_every_method_that_sglang_takes_is_taken() -> None:
    known = sglang_routes()
    for row in TABLE:
        served = {method for method, path in known if path == row.path}
        ours = {method for path, method in ROWS if path == row.path}
        assert served <= ours, row.path


def test_no_call_has_two_rows() -> None:
    assert len(ROWS) == sum(len(row.methods) for row in TABLE)
    assert row_of("/flush_cache", "GET") is row_of("/flush_cache", "POST")
    assert row_of("/flush_cache", "PUT") is None


@pytest.mark.parametrize("path", ["/get_weight_version", "/get_load", "/get_loads"])
def test_what_sglang_has_dropped_is_answered(path: str) -> None:
    row = row_of(path, "GET")
    assert row is not None
    assert row.older
    assert ("GET", path) not in sglang_routes()


def test_only_updates_go_between_begin_and_end() -> None:
    kinds = {row.path: (row.full, row.own_session) for row in TABLE if row.act is Act.UPDATE}
    assert kinds == {
        "/update_weights_from_distributed": (False, True),
        "/update_weights_from_tensor": (False, True),
        "/update_weights_from_disk": (True, False),
        "/update_weights_from_ipc": (True, False),
    }


def test_what_changes_engines_goes_to_all_of_them() -> None:
    to_one = {row.path for row in TABLE if row.scope is Scope.ONE}
    assert to_one == {
        "/get_weights_by_name",
        "/hicache/storage-backend/clear",
        "/open_session",
        "/close_session",
        "/tokenize",
        "/v1/tokenize",
        "/detokenize",
        "/v1/detokenize",
        "/parse_function_call",
        "/separate_reasoning",
    }
    assert all(row.merge in (Merge.PASS, Merge.TEXT) for row in TABLE if row.scope is Scope.ONE)
