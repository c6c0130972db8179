"""What a change of weights is, which of them may meet, and which version is older."""

from typing import Any

import msgspec
import pytest

from seer_sgl.errors import RequestError
from seer_sgl.router.control.table import row_of
from seer_sgl.router.control.weights.changes import Change, Turn, change_of, in_the_way, older_version
from seer_sgl.router.control.weights.recipe import Recipe, Repeated

DISK, TENSOR = "/update_weights_from_disk", "/update_weights_from_tensor"


def change(path: str = DISK, **fields: Any) -> Change:
    row = row_of(path, "POST")
    assert row is not None
    return change_of(row, msgspec.json.encode(fields), fields)


def test_what_a_call_is() -> None:
    disk = change(model_path="/new", flush_cache=False)
    assert (disk.full, disk.in_session, disk.flushes, disk.version) == (True, False, False, None)
    assert disk.key == (DISK, "/new")
    tensor = change(TENSOR, serialized_named_tensors=["x"], weight_version="7")
    assert (tensor.full, tensor.in_session, tensor.flushes) == (False, True, True)
    assert tensor.key == ("version", "7")
    assert not change(model_path="/new", selector="draft").full


def test_weights_of_one_version_are_the_same_wherever_they_come_from() -> None:
    keys = {change(model_path=path, weight_version="7").key for path in ("/a", "/b")}
    assert len(keys) == 1
    assert change(model_path="/a").key != change(model_path="/b").key


def test_parts_with_other_names_are_other_parts() -> None:
    path = "/update_weights_from_distributed"
    described = {"dtypes": ["bfloat16"], "shapes": [[1]]}
    one, same, other = (change(path, names=[name], **described) for name in "vvw")
    assert one.key == same.key != other.key
    named = change(path, names=["v"], **described, weight_version="7")
    assert named.key == ("version", "7", one.key[1])
    assert change(TENSOR, serialized_named_tensors=["x"]).key == (TENSOR, "")


def test_what_is_the_routers_own_does_not_go_to_engines() -> None:
    body = msgspec.json.decode(change(model_path="/a", allow_older_version=True).body)
    assert body == {"model_path": "/a"}
    raw = b'{ "model_path": "/a" }'
    row = row_of(DISK, "POST")
    assert row is not None
    assert change_of(row, raw, msgspec.json.decode(raw)).body is raw
    with pytest.raises(RequestError, match="allow_older_version"):
        change(model_path="/a", allow_older_version="yes")


@pytest.mark.parametrize(
    ("version", "serving", "newer"),
    [
        ("6", ["7", "5"], "7"),
        ("9", ["10"], "10"),
        ("7", ["7"], ""),
        ("8", ["7"], ""),
        ("-1", ["0"], "0"),
        ("6", ["default"], ""),
        ("6", ["default", "7"], "7"),
        ("six", ["7"], ""),
        ("6", [], ""),
        (None, ["7"], ""),
        ("6" * 30, ["7" * 31], ""),
        ("\u0666", ["7"], ""),
    ],
)
def test_which_version_is_older(version: str | None, serving: list[str], newer: str) -> None:
    assert older_version(version, serving) == newer


def turn(path: str, engines: str = "ab", **known: Any) -> Turn:
    return Turn(path, frozenset(engines), **known)


def parts(engines: str = "ab", version: str | None = None, path: str = TENSOR) -> Turn:
    return turn(path, engines, in_session=True, version=version)


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        (turn(DISK), turn(DISK), True),
        (turn(DISK, "a"), turn(DISK, "b"), False),
        (turn(DISK, "a"), turn(DISK, "ab"), True),
        (parts(), parts(), False),
        (parts(), parts(path="/update_weights_from_distributed"), True),
        (parts(), turn(DISK), True),
        (parts(version="7"), parts(version="8"), True),
        (parts(version="7"), parts(version="7"), False),
        (parts(version="7"), parts(), False),
        (parts(), turn("/begin_weight_update"), True),
        (turn(DISK), turn("/load_lora_adapter", waits=True), False),
    ],
)
def test_which_may_meet(one: Turn, other: Turn, collide: bool) -> None:
    assert bool(in_the_way(one, [other])) == bool(in_the_way(other, [one])) == collide


def test_a_refusal_names_what_is_on_and_where() -> None:
    reason = in_the_way(turn(DISK, "bc"), [parts("abc")])
    assert TENSOR in reason
    assert "b, c" in reason


def test_what_brings_a_fresh_engine_up_to_date() -> None:
    disk, name = Repeated(DISK, b"1"), Repeated("/update_weight_version", b"2")
    recipe = Recipe()
    recipe.renamed(name)
    assert (recipe.weights, recipe.is_whole) == ((name,), False)
    recipe.replaced(disk)
    recipe.renamed(name)
    newer = Repeated(name.target, b"3")
    recipe.renamed(newer)
    assert (recipe.weights, recipe.is_whole) == ((disk, newer), True)
    recipe.replaced(None)
    recipe.renamed(name)
    assert (recipe.weights, recipe.is_whole) == (None, False)
    for adapter in ("x", "y", "x"):
        recipe.loaded(adapter, Repeated("/load_lora_adapter", adapter.encode()))
    before = recipe.copy()
    recipe.unloaded("y")
    assert (list(before.adapters), list(recipe.adapters)) == (["y", "x"], ["x"])
    assert before != recipe
