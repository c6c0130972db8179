"""Small checkpoints, whole, broken and locked, and pickles of tensors that no torch has made."""

import base64
import errno
import io
import json
import os
import pickle
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest

CONFIG = {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 4, "num_attention_heads": 2}
SHAPES = {"model.embed.weight": (8, 4), "model.norm.weight": (4,)}


def write_tensors(file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32") -> None:
    """A safetensors file of zeros."""
    width, at, header = {"F32": 4, "BF16": 2}[dtype], 0, {}
    for name, shape in shapes.items():
        end = at + prod(shape) * width
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    write_header(file, {"__metadata__": {"format": "pt"}, **header}, at)


def write_header(file: Path, header: Any, size: int) -> None:
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(size))


def write_checkpoint(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    config: Mapping[str, Any] | None = CONFIG,
    dtype: str = "F32",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    write_tensors(folder / "model.safetensors", shapes, dtype)
    return folder


def lock(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have the system refuse a look at a folder, as where its parent may not be searched. A test that
    runs as root is refused nothing, whatever a folder's permissions are."""

    def refusing(asked: Callable[..., Any]) -> Callable[..., Any]:
        def refused(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
            if str(path).startswith(str(folder)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return asked(path, *args, **kwargs)

        return refused

    for name in ("stat", "listdir", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


class _Global:
    """A name that a pickle looks up; `__reduce__` of `Made` refers to it."""

    def __init__(self, where: str) -> None:
        module, _, self.__name__ = where.rpartition(".")
        self.__module__ = module

    def __call__(self) -> None:
        """Only what can be called may stand there."""


_Plain: Any = pickle._Pickler


class _Pickler(_Plain):  # type: ignore[misc]
    """Writes names without asking whether there is such a thing here."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        del name
        self.save(obj.__module__)
        self.save(obj.__name__)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, _Global):
            self.save_global(obj)
        else:
            super().save(obj, save_persistent_id)


class Made:
    """What a call of a name gives, as a pickle tells it."""

    def __init__(self, where: str, *args: Any, state: Any = None) -> None:
        self._told = (_Global(where), args, state)

    def __reduce__(self) -> Any:
        return self._told if self._told[2] is not None else self._told[:2]


def tensor(*shape: int) -> Made:
    """A tensor in shared memory, as torch pickles it."""
    parts = "torch.multiprocessing.reductions"
    storage = Made(
        f"{parts}.rebuild_storage_filename", _Global("torch.storage.UntypedStorage"), b"/x", 9
    )
    size = Made("torch.Size", shape)
    return Made(f"{parts}.rebuild_tensor", _Global("torch.Tensor"), storage, (0, size, (1,), False))


def bucket(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """SGLang's bucket of many tensors in one."""
    kind = "sglang.srt.weight_sync.tensor_bucket.FlattenedTensorMetadata"
    told = [
        Made(kind, state={"name": name, "shape": Made("torch.Size", shape), "numel": prod(shape)})
        for name, shape in shapes.items()
    ]
    return {"flattened_tensor": tensor(1), "metadata": told}


def pickled(content: Any) -> str:
    written = io.BytesIO()
    _Pickler(written, 4).dump(content)
    return base64.b64encode(written.getvalue()).decode()
