"""Tensors that a trainer has pickled, looked at without being loaded: their names and shapes. Pure.

Loading such a pickle maps another process's memory, and what is wrong with it ends SGLang's server. Here
no name in it is ever looked up and nothing in it is called: every object becomes a note of itself.
"""

import base64
import binascii
import io
import pickle
from collections.abc import Iterator
from typing import Any

from seer_sgl.engine.checkpoints import Shape

BUCKET = "flattened_bucket"
"""SGLang's load format of one tensor with the bytes of many."""
_REBUILDS = {
    "torch.multiprocessing.reductions.rebuild_tensor": (2, 1),
    "torch.multiprocessing.reductions.rebuild_cuda_tensor": (1,),
    "sglang.srt.utils.patch_torch._rebuild_cuda_tensor_modified": (1,),
    "torch._utils._rebuild_tensor_v2": (2,),
}
"""What makes a tensor, and where in its arguments the shape stands."""
_SIZE = "torch.Size"


class PayloadError(Exception):
    """These are no serialized tensors."""


class _Note:
    """An object of a pickle: what would have made it, of what."""

    where = ""
    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any, **_: Any) -> "_Note":
        note = super().__new__(cls)
        note.args = args
        return note

    def __init__(self, *_: Any, **__: Any) -> None:
        """All has been noted."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, _key: Any, _value: Any) -> None:
        """Some mapping's entry, which tells no shape."""

    def append(self, _value: Any) -> None:
        """Some list's entry, which tells no shape."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Note,), {"where": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to {str(pid)[:50]!r} outside of itself")


def named_shapes(payload: str, load_format: str | None) -> dict[str, Shape | None]:
    """Tensors of one rank's entry of `serialized_named_tensors`, by name; None: a shape not understood.

    Args:
        load_format: as in the call.

    Raises:
        PayloadError: it is not what SGLang would take.
    """
    found = _read(payload)
    if load_format == BUCKET:
        return dict(_of_bucket(found))
    if not isinstance(found, list | tuple):
        raise PayloadError(f"it holds {_kind(found)}, where a list of pairs (name, tensor) belongs")
    shapes: dict[str, Shape | None] = {}
    for pair in found:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise PayloadError(f"it lists {_kind(pair)}, where a pair (name, tensor) belongs")
        if not isinstance(pair[1], _Note):
            raise PayloadError(f"{pair[0]} is {_kind(pair[1])}, no tensor")
        shapes[pair[0]] = _shape_of(pair[1])
    return shapes


def _read(payload: str) -> Any:
    try:
        content = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PayloadError(f"it is no base64: {error}") from None
    try:
        return _Reader(io.BytesIO(content)).load()
    except Exception as error:  # a pickle can go wrong in any way
        raise PayloadError(f"it is no whole pickle: {type(error).__name__} {error}") from None


def _of_bucket(found: Any) -> Iterator[tuple[str, Shape | None]]:
    if not (isinstance(found, dict) and {"flattened_tensor", "metadata"} <= set(found)):
        raise PayloadError(f"a {BUCKET} is a dict of flattened_tensor and metadata, not {_kind(found)}")
    if not isinstance(found["flattened_tensor"], _Note) or not isinstance(found["metadata"], list):
        raise PayloadError(f"its flattened_tensor is no tensor, or its metadata no list ({BUCKET})")
    for entry in found["metadata"]:
        fields = entry.state if isinstance(entry, _Note) else None
        if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
            raise PayloadError(f"its metadata lists {_kind(entry)}, which names no tensor ({BUCKET})")
        yield fields["name"], _as_shape(fields.get("shape"))


def _shape_of(note: _Note) -> Shape | None:
    value: Any = note.args
    for place in _REBUILDS.get(note.where, ()):
        if not isinstance(value, tuple) or len(value) <= place:
            return None
        value = value[place]
    return None if value is note.args else _as_shape(value)


def _as_shape(value: Any) -> Shape | None:
    if isinstance(value, _Note) and value.where == _SIZE and value.args:
        value = value.args[0]
    whole = isinstance(value, list | tuple) and all(type(length) is int for length in value)
    return tuple(value) if whole else None


def _kind(value: Any) -> str:
    return value.where if isinstance(value, _Note) else f"a {type(value).__name__}"
