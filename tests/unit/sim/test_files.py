"""Workload files: what is right loads as it stands, what is wrong is named with its range."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seer_sgl.errors import StartError
from seer_sgl.sim.files import LIMITS, WORKLOADS, load_workload, with_changes
from seer_sgl.sim.hardware import Hardware, ModelShape, engine_model
from seer_sgl.sim.model import EngineModel
from seer_sgl.sim.workload import Workload

ENGINE = {
    "fixed_s": 0.002,
    "weights_s": 0.01,
    "token_s": 1e-4,
    "kv_token_s": 1e-8,
    "prefill_token_s": 1e-4,
    "kv_capacity_tokens": 4096,
    "page_tokens": 16,
    "max_running_requests": 64,
}
MODEL = {"weights_bytes": 2e9, "active_parameters": 1e9, "layers": 24, "kv_bytes_per_token": 1e5}
HARDWARE = {
    "devices": 2,
    "memory_bytes": 2e10,
    "memory_share": 0.9,
    "memory_bytes_per_s": 1e12,
    "flop_per_s": 1e14,
    "link_bytes_per_s": 1e11,
    "migration_bytes_per_s": 1e10,
    "launch_s": 1e-5,
    "reduction_s": 1e-5,
    "efficiency": 0.5,
}
BASE: dict[str, Any] = {
    "name": "small",
    "engines": 4,
    "groups": 10,
    "group_size": 8,
    "prompt_tokens": 100,
    "max_new_tokens": 2000,
    "chunk_tokens": 256,
    "lengths": {"mean_tokens": 500, "spread": 1.0, "correlation": 0.9},
    "speculation": {"max_draft": 8},
    "engine": ENGINE,
}
COMPUTED = {key: value for key, value in BASE.items() if key != "engine"} | {
    "model": MODEL,
    "hardware": HARDWARE,
}
MISSING = object()


def toml_value(value: object) -> str:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def written(folder: Path, tables: dict[str, Any], name: str = "w.toml") -> Path:
    lines = [f"{json.dumps(key)} = {toml_value(value)}" for key, value in tables.items()]
    path = folder / name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def changed(tables: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    tables = copy.deepcopy(tables)
    *parents, last = key.split(".")
    table = tables
    for parent in parents:
        table = table[parent]
    if value is MISSING:
        del table[last]
    else:
        table[last] = value
    return tables


def faults(path: Path | str) -> list[str]:
    with pytest.raises(StartError) as caught:
        load_workload(str(path))
    return str(caught.value).splitlines()


def leaves(table: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of all values, and of the tables."""
    found = []
    for key, value in table.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += leaves(value, f"{prefix}{key}.")
    return found


# ---- what is right ----


def test_a_file_becomes_the_workload_that_it_describes(tmp_path: Path) -> None:
    expected = msgspec.convert(BASE, Workload)
    assert load_workload(str(written(tmp_path, BASE))) == expected
    assert expected.lengths.mean_tokens == 500
    assert expected.engine.move_s == 0.0, "a default"


def test_speculation_may_be_missing(tmp_path: Path) -> None:
    assert (
        load_workload(str(written(tmp_path, changed(BASE, "speculation", MISSING)))).speculation is None
    )


def test_the_engine_may_come_from_a_profile_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    written(tmp_path / "profiles", {"engine": ENGINE, "measured": {"points": [1, 2]}}, "cpu.toml")
    tables = changed(BASE, "engine", MISSING) | {"profile": "profiles/cpu.toml"}
    assert load_workload(str(written(tmp_path, tables))).engine == msgspec.convert(ENGINE, EngineModel)


def test_the_engine_may_come_from_a_model_on_hardware(tmp_path: Path) -> None:
    loaded = load_workload(str(written(tmp_path, COMPUTED)))
    shape, hardware = msgspec.convert(MODEL, ModelShape), msgspec.convert(HARDWARE, Hardware)
    assert loaded.engine == engine_model(shape, hardware)


@pytest.mark.parametrize("path", sorted(WORKLOADS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_built_in_workload_loads_under_its_name(path: Path) -> None:
    assert load_workload(path.stem).name == path.stem


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("group_size", 0, "group_size must be at least 1 and at most 1000000, got 0"),
        ("engines", "four", 'engines must be a whole number, got "four"'),
        ("engines", 2.0, "engines must be a whole number, got 2.0"),
        ("engines", True, "engines must be a whole number, got true"),
        ("groups", MISSING, "groups is missing; it is a whole number"),
        ("lengths", MISSING, "lengths is missing; it is a table"),
        ("lengths", 3, "lengths must be a table, got 3"),
        ("name", "", "name must not be empty"),
        ("lengths.mean_tokens", 2001, "at least 1 and at most max_new_tokens = 2000, got 2001.0"),
        ("lengths.spread", -0.1, "lengths.spread must be at least 0 and at most 10, got -0.1"),
        ("lengths.spread", math.nan, "lengths.spread must be finite and at most 1e+30, got nan"),
        ("lengths.correlation", 1.01, "lengths.correlation must be at least 0 and at most 1, got 1.01"),
        ("lengths.correlation", "all", 'lengths.correlation must be a number, got "all"'),
        ("speculation.accepted_x", 11, "at least 0 and at most 10, got 11.0"),
        ("speculation.max_draft", 0, "speculation.max_draft must be at least 1"),
        ("engine.token_s", math.inf, "engine.token_s must be finite and at most 1e+30, got inf"),
        ("engine.kv_token_s", -1e-9, "engine.kv_token_s must be at least 0, got -1e-09"),
        (
            "engine.page_tokens",
            8192,
            "at least 1 and at most engine.kv_capacity_tokens = 4096, got 8192",
        ),
        ("engine.kv_capacity_tokens", 0, "engine.kv_capacity_tokens must be at least 1"),
        (
            "engine.kv_capacity_tokens",
            2110,  # 2096 in whole pages
            "(in whole pages) must be at least prompt_tokens + max_new_tokens = 2100, got 2096",
        ),
        ("engine.admission", "eagre", 'engine.admission must be "eager" or "sglang", got "eagre"'),
        ("group_sise", 8, "group_sise is unknown; the keys here are: name, engine, engines, groups"),
        ("engine.speed", 8, "engine.speed is unknown; the keys here are: fixed_s, weights_s"),
    ],
)
def test_a_wrong_value_is_named_with_its_range(
    key: str, value: object, says: str, tmp_path: Path
) -> None:
    path = written(tmp_path, changed(BASE, key, value))
    lines = faults(path)
    assert any(line.startswith(f"{path}: {key}") and says in line for line in lines), lines


def test_a_step_must_take_time(tmp_path: Path) -> None:
    tables = BASE | {"engine": ENGINE | {"fixed_s": 0, "weights_s": 0, "token_s": 0}}
    (line,) = faults(written(tmp_path, tables))
    assert line.endswith("engine.fixed_s + engine.weights_s + engine.token_s must be above 0, got 0.0")


def test_all_faults_are_said_at_once(tmp_path: Path) -> None:
    tables = changed(BASE, "engines", 0)
    tables = changed(tables, "groups", "many")
    tables = changed(tables, "lengths.correlation", 2)
    tables = changed(tables, "engine.fixed_s", MISSING)
    lines = faults(written(tmp_path, tables))
    named = [line.split(": ")[1].split()[0] for line in lines]
    assert sorted(named) == ["engine.fixed_s", "engines", "groups", "lengths.correlation"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"engine": MISSING}, "none of them"),
        ({"profile": "cpu.toml"}, "[engine] and profile"),
        ({"engine": MISSING, "model": MODEL}, "[model]"),
        ({"hardware": HARDWARE}, "[engine] and [hardware]"),
    ],
)
def test_the_engine_comes_from_exactly_one_source(
    changes: dict[str, Any], found: str, tmp_path: Path
) -> None:
    tables = {key: value for key, value in (BASE | changes).items() if value is not MISSING}
    (line,) = faults(written(tmp_path, tables))
    assert line.endswith(f"[engine], profile, or [model] and [hardware]; here is {found}")


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        (5, "profile must be a file's path, got 5"),
        ("none.toml", "none.toml: No such file or directory"),
        ("empty.toml", "empty.toml: the table [engine] is missing"),
        ("slow.toml", "slow.toml: engine.kv_token_s must be at least 0, got -1.0"),
    ],
)
def test_a_profile_that_is_none(profile: object, says: str, tmp_path: Path) -> None:
    written(tmp_path, {"measured": 1}, "empty.toml")
    written(tmp_path, {"engine": ENGINE | {"kv_token_s": -1}}, "slow.toml")
    path = written(tmp_path, changed(BASE, "engine", MISSING) | {"profile": profile})
    (line,) = faults(path)
    assert line.endswith(says)
    assert line.startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("hardware.memory_bytes_per_s", -1, "hardware.memory_bytes_per_s must be at least 1, got -1.0"),
        ("hardware.memory_share", 1.5, "hardware.memory_share must be above 0 and at most 1, got 1.5"),
        ("model.layers", 0.5, "model.layers must be a whole number, got 0.5"),
        ("model.experts", 8, "model.experts is unknown"),
        ("hardware", 7, "hardware must be a table, got 7"),
        ("model.weights_bytes", 1e12, "([model] on [hardware]): engine.kv_capacity_tokens must be"),
    ],
)
def test_a_wrong_model_or_hardware(key: str, value: object, says: str, tmp_path: Path) -> None:
    assert says in "\n".join(faults(written(tmp_path, changed(COMPUTED, key, value))))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name = 'a'\nengines = = 4\n", "line 2"),
        (b"name = '\xff'\n", "not UTF-8 at byte 8"),
        (b"engines = " + b"9" * 5000, "digits"),
        (b"a = " + b"[" * 100_000, ""),
        (b"engines = 0x" + b"f" * 5000, "got a number of thousands of digits"),
        (b'"a\\nb" = 1', '"a\\nb" is unknown'),
    ],
)
def test_a_file_that_is_no_toml_or_hardly(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_bytes(content)
    lines = faults(path)
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert any(says in line for line in lines), lines


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert faults(tmp_path / "none.toml") == [f"{tmp_path}/none.toml: No such file or directory"]
    (tmp_path / "folder.toml").mkdir()
    assert faults(tmp_path / "folder.toml") == [f"{tmp_path}/folder.toml: Is a directory"]


@pytest.mark.parametrize("name", ["nonsense", "", "a\0b"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    (line,) = faults(name)
    names = ", ".join(sorted(path.stem for path in WORKLOADS.glob("*.toml")))
    assert line.startswith(f"no workload is called {name!r}; there are: {names}; ")


# ---- every value ----


def numbers_of(kind: type[msgspec.Struct], prefix: str = "") -> list[str]:
    return [prefix + field.name for field in msgspec.structs.fields(kind) if field.type in (int, float)]


def test_every_number_has_a_limit() -> None:
    limited = {key for left, _, _ in LIMITS for key in left.split(" + ")}
    tables = {field.name: field.type for field in msgspec.structs.fields(Workload)}
    needed = numbers_of(Workload) + numbers_of(ModelShape, "model.") + numbers_of(Hardware, "hardware.")
    needed += numbers_of(EngineModel, "engine.") + numbers_of(tables["lengths"], "lengths.")
    assert "lengths.spread" in needed, "too little was looked at to prove anything"
    assert sorted(set(needed) - limited) == []


SCALARS = (
    st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from([-1, 0, 1, 10**30, 10**400, 0.0, -0.0, 1e-300, 5e-324, 1e300, math.inf, -math.inf])
    | st.floats()
    | st.booleans()
    | st.text(st.characters(codec="utf-8"), max_size=20)
)
VALUES = (
    SCALARS
    | st.lists(SCALARS, max_size=3)
    | st.dictionaries(st.text("abc_", min_size=1), SCALARS, max_size=3)
    | st.just(MISSING)
)


def outcome(path: Path) -> tuple[str, Workload | None]:
    try:
        return "", load_workload(str(path))
    except StartError as error:
        return str(error), None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_loads_as_it_is_or_is_named(data: st.DataObject, tmp_path: Path) -> None:
    tables = data.draw(st.sampled_from([BASE, COMPUTED]))
    key = data.draw(st.sampled_from(leaves(tables)))
    value: Any = data.draw(VALUES)
    path = written(tmp_path, changed(tables, key, value))
    said, loaded = outcome(path)
    if loaded is None:
        source = key.split(".", maxsplit=1)[0]
        named = [key, f"[{source}]", *(["engine."] if source in ("model", "hardware") else [])]
        sums = ["engine.fixed_s + ", "prompt_tokens + max_new_tokens", "max_new_tokens ="]
        assert any(name in said for name in [*named, *sums]), said
        assert said.startswith(f"{path}")
        return
    assert with_changes(loaded, {}) == loaded, "what loads passes the same limits again"
    if tables is BASE and value is not MISSING:
        now: Any = msgspec.to_builtins(loaded)
        for part in key.split("."):
            now = now[part]
        assert isinstance(value, dict) or now == (float(value) if isinstance(now, float) else value)


# ---- changes ----


def test_changes_by_dotted_key() -> None:
    workload = msgspec.convert(BASE, Workload)
    now = with_changes(workload, {"engines": 7, "lengths.correlation": 0.0, "speculation": None})
    assert (now.engines, now.lengths.correlation, now.speculation) == (7, 0.0, None)
    assert (now.lengths.spread, now.engine) == (1.0, workload.engine)
    assert workload.engines == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"group_size": 0}, "small: group_size must be at least 1 and at most 1000000, got 0"),
        ({"lengths.correlation": 3}, "small: lengths.correlation must be at least 0 and at most 1"),
        ({"max_new_tokens": 9000}, "prompt_tokens + max_new_tokens = 9100, got 4096"),
        ({"heat": 1}, "small: heat is unknown"),
    ],
)
def test_changes_are_checked_like_a_file(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(StartError) as caught:
        with_changes(msgspec.convert(BASE, Workload), changes)
    assert says in str(caught.value)
