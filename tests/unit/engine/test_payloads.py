"""Pickled tensors, looked at from outside."""

import base64
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from seer_sgl.engine.payloads import BUCKET, PayloadError, named_shapes
from tests.unit.engine.stored import Made, bucket, pickled, tensor


def refusal(payload: str, load_format: str | None = None) -> str:
    with pytest.raises(PayloadError) as raised:
        named_shapes(payload, load_format)
    return str(raised.value)


def test_names_and_shapes_are_read() -> None:
    content = [("a", tensor(3, 4)), ("b", tensor()), ("c", Made("some.wrapper", tensor(2)))]
    assert named_shapes(pickled(content), None) == {"a": (3, 4), "b": (), "c": None}
    told = bucket({"a": (3, 4), "b": (2,)})
    assert named_shapes(pickled(told), BUCKET) == {"a": (3, 4), "b": (2,)}


def test_memory_of_a_device_tells_its_shape_too() -> None:
    for maker in (
        "torch.multiprocessing.reductions.rebuild_cuda_tensor",
        "sglang.srt.utils.patch_torch._rebuild_cuda_tensor_modified",
    ):
        handle = Made(maker, 0, Made("torch.Size", (5, 6)), (6, 1), 0, b"handle")
        assert named_shapes(pickled([("w", handle)]), None) == {"w": (5, 6)}


@pytest.mark.parametrize(
    ("content", "load_format", "said"),
    [
        ({"a": 1}, None, "a dict, where a list of pairs"),
        (["a"], None, "lists a str, where a pair"),
        ([("a", 3)], None, "a is a int, no tensor"),
        ([("a", tensor(1))], BUCKET, "is a dict of flattened_tensor and metadata, not a list"),
        ({"flattened_tensor": 1, "metadata": []}, BUCKET, "flattened_tensor is no tensor"),
        ({"flattened_tensor": tensor(1), "metadata": [3]}, BUCKET, "lists a int"),
    ],
)
def test_what_is_no_list_of_tensors_is_refused(content: Any, load_format: str | None, said: str) -> None:
    assert said in refusal(pickled(content), load_format)


def test_what_is_no_pickle_is_refused() -> None:
    assert "no base64" in refusal("*")
    whole = base64.b64decode(pickled([("a", tensor(3, 4))]))
    for length in (0, 1, 20, len(whole) - 1):
        assert "no whole pickle" in refusal(base64.b64encode(whole[:length]).decode())
    assert "outside of itself" in refusal(base64.b64encode(b"\x80\x04Px\n.").decode())


def test_nothing_in_it_is_called(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    content = base64.b64encode(pickle.dumps([("a", Bomb())])).decode()
    assert named_shapes(content, None) == {"a": None}
    assert not (tmp_path / "made").exists()
