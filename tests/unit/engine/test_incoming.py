"""Which weights an engine is spared."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from seer_sgl.engine.incoming import Incoming
from tests.unit.engine.stored import SHAPES, bucket, lock, pickled, tensor, write_checkpoint

DISK = "/update_weights_from_disk"
TENSOR = "/update_weights_from_tensor"
DISTRIBUTED = "/update_weights_from_distributed"


@pytest.fixture
def incoming(tmp_path: Path) -> Incoming:
    return Incoming({"model_path": str(write_checkpoint(tmp_path / "served")), "load_format": "auto"})


def said(incoming: Incoming, target: str, **body: Any) -> str:
    return incoming.objection(target, msgspec.json.encode(body))


def test_what_fits_is_let_through(incoming: Incoming, tmp_path: Path) -> None:
    new = str(write_checkpoint(tmp_path / "new", dtype="BF16"))
    assert said(incoming, DISK, model_path=new) == ""
    names, shapes = list(SHAPES), [list(shape) for shape in SHAPES.values()]
    types = ["bfloat16"] * len(names)
    assert said(incoming, DISTRIBUTED, names=names, dtypes=types, shapes=shapes) == ""
    content = pickled([(name, tensor(*shape)) for name, shape in SHAPES.items()])
    assert said(incoming, TENSOR, serialized_named_tensors=[content]) == ""
    bucketed = pickled(bucket({"model.qkv": (9, 9), **SHAPES}))
    assert (
        said(incoming, TENSOR, serialized_named_tensors=[bucketed], load_format="flattened_bucket") == ""
    )
    assert said(incoming, TENSOR, serialized_named_tensors=["gA"], load_format="direct") == ""
    assert said(incoming, "/flush_cache", model_path="/none") == ""
    assert Incoming.concerns(f"{DISK}?x=1")
    assert not Incoming.concerns("/flush_cache")


def test_a_refusal_begins_with_the_path(incoming: Incoming, tmp_path: Path) -> None:
    assert said(incoming, DISK, model_path="/none").startswith(f"{DISK}: the folder /none does not")
    other = {**SHAPES, "model.norm.weight": (7,)}
    new = str(write_checkpoint(tmp_path / "new", other))
    assert f"{DISK}: {new}/model.safetensors: tensor model.norm" in said(incoming, DISK, model_path=new)
    assert said(incoming, f"{DISK}?x=1", model_path="/none").startswith(f"{DISK}: ")


def test_where_nothing_can_be_known_nothing_is_said(incoming: Incoming, tmp_path: Path) -> None:
    for body in ({}, {"model_path": "owner/name"}, {"model_path": "/none", "load_format": "remote"}):
        assert said(incoming, DISK, **body) == ""
    assert said(incoming, DISTRIBUTED, names=["model.norm.weight"]) == ""
    assert said(incoming, TENSOR, serialized_named_tensors=3) == ""
    blind = Incoming({"model_path": str(tmp_path / "gone")})
    new = str(write_checkpoint(tmp_path / "new", {"w": (1,)}))
    assert said(blind, DISK, model_path=new) == ""
    assert "does not exist" in said(blind, DISK, model_path="/none")
    types = {"names": ["w"], "dtypes": ["float32"], "shapes": [[3]]}
    assert said(blind, DISTRIBUTED, **types) == ""
    hollow = tmp_path / "hollow"
    hollow.mkdir()
    assert Incoming({"model_path": str(hollow)}).served() is None


def test_shapes_on_their_way_are_compared(incoming: Incoming) -> None:
    body: dict[str, Any] = {"names": ["model.norm.weight"], "dtypes": ["float32"], "shapes": [[5]]}
    told = said(incoming, DISTRIBUTED, **body)
    assert told.startswith(f"{DISTRIBUTED}: tensor model.norm.weight has shape [5], but [4] in ")
    assert told.endswith("send it as that checkpoint has it")
    body["shapes"] = []
    assert "must be as many, not 1, 1 and 0" in said(incoming, DISTRIBUTED, **body)
    content = pickled([("model.norm.weight", tensor(4, 1))])
    told = said(incoming, TENSOR, serialized_named_tensors=[content])
    assert told.startswith(f"{TENSOR}: serialized_named_tensors[0]: tensor model.norm.weight has")
    assert "no whole pickle" in said(incoming, TENSOR, serialized_named_tensors=["gASV"])


def test_a_folder_that_cannot_be_looked_at_is_refused(
    incoming: Incoming, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "locked")
    lock(monkeypatch, folder)
    told = said(incoming, DISK, model_path=str(folder))
    assert told.startswith(f"{DISK}: the folder {folder} cannot be read: Permission denied; ")
    assert "cannot be read: File name too long" in said(incoming, DISK, model_path="/" + "x" * 300)
    monkeypatch.undo()

    new = str(write_checkpoint(tmp_path / "new"))
    for served in (tmp_path / "none" / ("x" * 300), folder):
        blind = Incoming({"model_path": str(served)})
        lock(monkeypatch, folder)
        assert said(blind, DISK, model_path=new) == "", "nothing to compare with"


def test_lengths_that_are_none_are_left_to_sglang(incoming: Incoming) -> None:
    body: dict[str, Any] = {"names": ["model.norm.weight"], "dtypes": ["float32"], "shapes": [[None]]}
    assert said(incoming, DISTRIBUTED, **body) == ""


def test_a_check_that_fails_is_a_refusal(
    incoming: Incoming, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that ends instead leaves open what became of the weights, and they are as they were."""

    def bug(*_: Any) -> str:
        raise KeyError("w")

    monkeypatch.setattr("seer_sgl.engine.incoming.misfit", bug)
    new = str(write_checkpoint(tmp_path / "new"))
    assert said(incoming, DISK, model_path=new) == f"{DISK}: could not be checked: KeyError 'w'"


def test_each_rank_has_an_entry_of_its_own(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path / "served"))
    two = Incoming({"model_path": folder, "tp_size": 2})
    good = pickled([("model.norm.weight", tensor(4))])
    assert "tensors[1]: " in said(two, TENSOR, serialized_named_tensors=[good, "gASV"])
    one = Incoming({"model_path": folder, "tp_size": 1})
    assert said(one, TENSOR, serialized_named_tensors=[good, "gASV"]) == "", "nobody reads the second"
