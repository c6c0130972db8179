"""Workloads from TOML files: all that is wrong with one is said at once, with key, value and range.

A file holds `Workload`'s keys and tables; `speculation` is optional. The engine is one of:

- `[engine]`: the keys of `EngineModel`;
- `profile = "measured.toml"`: a file, relative to this one, whose `[engine]` is taken;
- `[model]` and `[hardware]`, from which `seer_sgl.sim.hardware` works the engine out.

The keys and their types come from the structs; what a value may be stands in `LIMITS`.
"""

import json
import operator
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec.structs import FieldInfo

from seer_sgl.errors import StartError
from seer_sgl.sim.workload import Workload

WORKLOADS = Path(__file__).parent / "workloads"
"""The built-in ones, a file each."""

WHOLE_PAGES = "engine.kv_capacity_tokens (in whole pages)"
"""What the router can hand out: what is left of the last page cannot be used."""

LIMITS: tuple[tuple[str, str, float | str], ...] = (
    # key, or a sum of keys | relation | number, or a sum of keys
    ("engines", "at least", 1),
    ("engines", "at most", 1_000_000),
    ("groups", "at least", 1),
    ("groups", "at most", 10_000_000),
    ("group_size", "at least", 1),
    ("group_size", "at most", 1_000_000),
    ("prompt_tokens", "at least", 1),
    ("max_new_tokens", "at least", 1),
    ("chunk_tokens", "at least", 1),
    ("lengths.mean_tokens", "at least", 1),
    ("lengths.mean_tokens", "at most", "max_new_tokens"),
    ("lengths.spread", "at least", 0),
    ("lengths.spread", "at most", 10),  # e to the 10th: one sample is 20,000 times another
    ("lengths.correlation", "at least", 0),
    ("lengths.correlation", "at most", 1),
    ("speculation.max_draft", "at least", 1),
    ("speculation.max_draft", "at most", 1_000),
    ("speculation.step_x", "at least", 1),
    ("speculation.accepted_x", "at least", 0),
    ("speculation.accepted_x", "at most", 10),
    ("engine.fixed_s", "at least", 0),
    ("engine.weights_s", "at least", 0),
    ("engine.token_s", "at least", 0),
    ("engine.kv_token_s", "at least", 0),
    ("engine.prefill_token_s", "at least", 0),
    ("engine.prefill_s", "at least", 0),
    ("engine.prefix_token_s", "at least", 0),
    ("engine.turnaround_s", "at least", 0),
    ("engine.move_s", "at least", 0),
    ("engine.move_token_s", "at least", 0),
    # A step that takes no time never gets anywhere.
    ("engine.fixed_s + engine.weights_s + engine.token_s", "above", 0),
    ("engine.max_running_requests", "at least", 1),
    ("engine.page_tokens", "at least", 1),
    ("engine.page_tokens", "at most", "engine.kv_capacity_tokens"),
    ("engine.kv_capacity_tokens", "at least", 1),
    ("engine.kv_capacity_tokens", "at most", 10**12),
    # The longest sample's last chunk needs all of it: less, and it could not run on any engine.
    (WHOLE_PAGES, "at least", "prompt_tokens + max_new_tokens"),
    ("model.weights_bytes", "at least", 1),
    ("model.active_parameters", "at least", 1),
    ("model.layers", "at least", 1),
    ("model.kv_bytes_per_token", "at least", 1),
    ("model.reductions_per_layer", "at least", 0),
    ("model.reduced_bytes_per_token", "at least", 0),
    ("hardware.devices", "at least", 1),
    ("hardware.memory_bytes", "at least", 1),
    ("hardware.memory_share", "above", 0),
    ("hardware.memory_share", "at most", 1),
    ("hardware.memory_bytes_per_s", "at least", 1),
    ("hardware.flop_per_s", "at least", 1),
    ("hardware.link_bytes_per_s", "at least", 1),
    ("hardware.migration_bytes_per_s", "at least", 1),
    ("hardware.launch_s", "at least", 0),
    ("hardware.reduction_s", "at least", 0),
    ("hardware.efficiency", "at least", 0.001),
    ("hardware.efficiency", "at most", 1),
    ("hardware.page_tokens", "at least", 1),
    ("hardware.max_running_requests", "at least", 1),
    ("hardware.turnaround_s", "at least", 0),
    ("hardware.move_s", "at least", 0),
)

_LARGEST = 1e30
"""No number may be larger, so that products of a few of them are finite."""

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "at least": operator.ge,
    "at most": operator.le,
    "above": operator.gt,
    "below": operator.lt,
}
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_SOURCES = "[engine], profile, or [model] and [hardware]"


def load_workload(name_or_path: str) -> Workload:
    """The workload of a TOML file, or the built-in one of that name.

    Raises:
        StartError: there is none, or something in it is wrong; one line per fault.
    """
    path = _path_of(name_or_path)
    tables = _read_toml(path)
    form = _Form(str(path))
    sources: dict[str, Any] = {
        key: tables.pop(key) for key in ("engine", "profile", "model", "hardware") if key in tables
    }
    engine = _engine_table(form, path, sources)
    form.read(tables if engine is None else {**tables, "engine": engine}, Workload, but=("engine",))
    return form.workload()


def with_changes(workload: Workload, changes: Mapping[str, Any]) -> Workload:
    """The workload with other values, by dotted key (`lengths.correlation`); None takes the default.

    Raises:
        StartError: the result would be none; one line per fault.
    """
    tables = msgspec.to_builtins(workload)
    for key, value in changes.items():
        *parents, last = key.split(".")
        table = tables
        for parent in parents:
            table[parent] = table = table.get(parent) or {}
        table[last] = value
    form = _Form(workload.name)
    form.read(_without_none(tables), Workload)
    return form.workload()


def _path_of(name_or_path: str) -> Path:
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        return Path(name_or_path)
    path = WORKLOADS / f"{name_or_path}.toml"
    if "\0" in name_or_path or not path.is_file():
        names = ", ".join(sorted(path.stem for path in WORKLOADS.glob("*.toml")))
        raise StartError(
            f"no workload is called {name_or_path!r}; there are: {names}; a file's name ends in .toml"
        )
    return path


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise StartError(f"{path}: not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise StartError(f"{path}: {error}") from None


class _Form:
    """A workload's values, flat by dotted key, and what is wrong with them.

    Values of the wrong type are left out; a limit on what is not there is not looked at, so that one
    fault is one line.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.engine_where = where
        """Where the engine's values come from."""
        self.tables: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []

    def complain(self, key: str, fault: str) -> None:
        """Note a line that names the file, the key and what is wrong."""
        where = self.engine_where if f"{key}.".startswith("engine.") else self.where
        self.problems.append(f"{where}: {key} {fault}")

    def read(
        self,
        table: dict[str, Any],
        kind: type[msgspec.Struct],
        prefix: str = "",
        but: tuple[str, ...] = (),
    ) -> None:
        """Take the values of a table that should hold the struct's fields; `but` these may lack."""
        if not prefix:
            self.tables = table
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        for key in sorted(table.keys() - fields.keys()):
            name = key if key.isidentifier() else _shown(key)
            self.complain(prefix + name, f"is unknown; the keys here are: {', '.join(fields)}")
        for key, field in fields.items():
            if key in table:
                self._take(prefix + key, field, table[key])
            elif not field.required:
                self.values[prefix + key] = field.default
            elif key not in but:
                self.complain(prefix + key, f"is missing; it is {_wanted(field)}")

    def _take(self, key: str, field: FieldInfo, value: object) -> None:
        nested = _struct_of(field)
        if nested is not None and isinstance(value, dict):
            self.read(value, nested, f"{key}.")
            return
        try:
            taken = msgspec.convert(value, field.type)
        except msgspec.ValidationError:
            self.complain(key, f"must be {_wanted(field)}, got {_shown(value)}")
            return
        if isinstance(taken, int | float) and not abs(taken) <= _LARGEST:
            self.complain(key, f"must be finite and at most {_LARGEST}, got {_shown(value)}")
            return
        self.values[key] = taken

    def workload(self) -> Workload:
        """What the tables say; raises `StartError` if anything is wrong."""
        if self.values.get("name") == "":
            self.complain("name", "must not be empty")
        self.check_limits()
        if self.problems:
            raise StartError("\n".join(dict.fromkeys(self.problems)))
        return msgspec.convert(self.tables, Workload)

    def check_limits(self) -> None:
        """Complain about every value that is out of its range."""
        page = self.values.get("engine.page_tokens", 0)
        if page > 0 and "engine.kv_capacity_tokens" in self.values:
            self.values[WHOLE_PAGES] = self.values["engine.kv_capacity_tokens"] // page * page
        broken = [left for left, relation, bound in LIMITS if not self._holds(left, relation, bound)]
        for left in dict.fromkeys(broken):
            allowed = [
                f"{relation} {self._shown_bound(bound)}"
                for key, relation, bound in LIMITS
                if key == left and self._sum(bound) is not None
            ]
            self.complain(left, f"must be {' and '.join(allowed)}, got {_shown(self._sum(left))}")

    def _holds(self, left: str, relation: str, bound: float | str) -> bool:
        value, limit = self._sum(left), self._sum(bound)
        return value is None or limit is None or _HOLDS[relation](value, limit)

    def _sum(self, term: float | str) -> float | None:
        """The value of a number or of a sum of keys; None where a part of it is missing or wrong."""
        if not isinstance(term, str):
            return term
        parts = [self.values.get(key) for key in term.split(" + ")]
        return None if None in parts else sum(part for part in parts if part is not None)

    def _shown_bound(self, bound: float | str) -> str:
        total = _shown(self._sum(bound))
        return f"{bound} = {total}" if isinstance(bound, str) else total


def _engine_table(form: _Form, path: Path, sources: dict[str, Any]) -> Any:
    """The engine's table from whichever source the file has; None after a complaint."""
    given = [f"[{key}]" if key != "profile" else key for key in sources]
    if set(sources) not in ({"engine"}, {"profile"}, {"model", "hardware"}):
        found = " and ".join(given) or "none of them"
        form.problems.append(f"{path}: the engine comes from one of {_SOURCES}; here is {found}")
        return None
    if "engine" in sources:
        return sources["engine"]
    if "profile" in sources:
        return _profiled_engine(form, path, sources["profile"])
    return _computed_engine(form, path, sources)


def _profiled_engine(form: _Form, path: Path, profile: object) -> Any:
    if not isinstance(profile, str):
        form.complain("profile", f"must be a file's path, got {_shown(profile)}")
        return None
    profile_path = path.parent / profile
    try:
        tables = _read_toml(profile_path)
    except StartError as error:
        form.problems.append(f"{path}: profile: {error}")
        return None
    form.engine_where = str(profile_path)
    if "engine" not in tables:
        form.problems.append(f"{profile_path}: the table [engine] is missing")
    return tables.get("engine")


def _computed_engine(form: _Form, path: Path, sources: dict[str, Any]) -> Any:
    from seer_sgl.sim.hardware import Hardware, ModelShape, engine_model

    kinds: dict[str, type[msgspec.Struct]] = {"model": ModelShape, "hardware": Hardware}
    parts = _Form(str(path))
    for key, kind in kinds.items():
        if isinstance(sources[key], dict):
            parts.read(sources[key], kind, f"{key}.")
        else:
            parts.complain(key, f"must be a table, got {_shown(sources[key])}")
    parts.check_limits()
    form.problems += parts.problems
    if parts.problems:
        return None
    shape = msgspec.convert(sources["model"], ModelShape)
    hardware = msgspec.convert(sources["hardware"], Hardware)
    form.engine_where = f"{path} ([model] on [hardware])"
    return msgspec.to_builtins(engine_model(shape, hardware))


def _struct_of(field: FieldInfo) -> type[msgspec.Struct] | None:
    """The struct that a field holds, perhaps among other things."""
    for kind in get_args(field.type) or (field.type,):
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return kind
    return None


def _wanted(field: FieldInfo) -> str:
    if _struct_of(field) is not None:
        return "a table"
    kinds = get_args(field.type) or (field.type,)
    return " or ".join(_WORDS.get(kind) or _shown(kind) for kind in kinds if kind is not type(None))


def _shown(value: object) -> str:
    """A value as TOML writes it, or nearly; cut where it gets long."""
    if isinstance(value, float):
        return repr(value)
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }
