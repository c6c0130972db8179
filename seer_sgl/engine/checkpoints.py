"""Folders of weights, read without loading them: what is in them, and whether it fits another one.

SGLang 0.5.23 rolls a failed update from disk back by loading the new folder again, and takes no offence
at one that lacks half of the tensors. So what does not fit has to be known before it is asked.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]

CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_CONSOLIDATED = "consolidated.safetensors"
_READ_AS_SAFETENSORS = ("auto", "safetensors", "fastsafetensors", "instanttensor")
_ONLY_SAFETENSORS = _READ_AS_SAFETENSORS[1:]
_LARGEST_HEADER_BYTES = 100 << 20
_LENGTH_BYTES = 8
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}  # fmt: skip
"""Of one value; a type that is not here goes unchecked."""
SHAPING = (
    "hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads"
    " num_key_value_heads head_dim vocab_size num_experts num_local_experts n_routed_experts"
    " n_shared_experts shared_expert_intermediate_size q_lora_rank kv_lora_rank qk_nope_head_dim"
    " qk_rope_head_dim v_head_dim first_k_dense_replace"
).split()
"""Fields of `config.json` that tensors follow; a running server takes none of them anew."""
_TIED = ("lm_head.weight",)
"""Tied to the embedding, it is written by some and not by others."""
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
"""Layers behind the last one predict further tokens; trainers leave them out, SGLang does without."""
_SKIPPED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""Computed, not learned: in a checkpoint they mean nothing."""


class UnfitError(Exception):
    """A checkpoint cannot be loaded; the message names the file and what is to be done."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a checkpoint, and the file that it is in."""

    shape: Shape
    file: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a folder holds.

    Args:
        config: `config.json`; empty where there is none.
        tensors: by name; None where they are in files of another kind than safetensors.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored] | None


def is_folder_name(model: str) -> bool:
    """Whether it names a folder, rather than a model of some hub or a place behind a URL."""
    if "://" in model:
        return False
    return os.path.exists(model) or model.startswith(("/", "./", "../", "~")) or model.count("/") != 1


def local_folder(
    model: str, revision: str | None = None, env: Mapping[str, str] = os.environ
) -> Path | None:
    """Where a model lies on this machine: as a folder, or as Hugging Face's cache keeps it.

    None where it does not lie here, or lies where it cannot be read.
    """
    if is_folder_name(model):
        return Path(model) if os.path.isdir(model) else None
    home = Path(env.get("HF_HOME") or Path(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.path.expanduser(env.get("HF_HUB_CACHE") or home / "hub"))
    kept = cache / f"models--{model.replace('/', '--')}"
    reference = kept / "refs" / (revision or "main")
    try:
        commit = reference.read_text().strip() if os.path.isfile(reference) else revision or ""
    except (OSError, UnicodeDecodeError):
        return None
    found = kept / "snapshots" / commit
    return found if commit and os.path.isdir(found) else None


def read_checkpoint(folder: Path, load_format: str | None = None) -> Checkpoint:
    """What a folder holds, if it is whole.

    Args:
        load_format: SGLang's word for the kind of files; None lets it choose.

    Raises:
        UnfitError: it is not there, cannot be read, or is not whole.
    """
    names = _names_in(folder)
    config = _read_json(folder / CONFIG) if CONFIG in names else {}
    kind = (load_format or "auto").lower()
    if kind not in _READ_AS_SAFETENSORS:
        return Checkpoint(folder, config, None)
    listed = _weight_map(folder / _INDEX) if _INDEX in names else None
    if files := _safetensors_of(names, listed):
        return Checkpoint(folder, config, _read_all(folder, files, listed or {}))
    others = [name for name in names if name.endswith((".bin", ".pt"))]
    if kind in _ONLY_SAFETENSORS or not others:
        raise UnfitError(f"{folder} holds no weights: no *.safetensors that SGLang would read")
    if not config:
        raise UnfitError(f"{folder / CONFIG} is missing, and nothing else tells what its weights are")
    return Checkpoint(folder, config, None)


def _names_in(folder: Path) -> list[str]:
    """What a folder lists, in order.

    Asked of the system itself: `Path.exists` raises on a parent that may not be searched or on a name
    that is too long, and `Path.glob` finds nothing where it may not look.
    """
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        found = "is a file" if os.path.exists(folder) else "does not exist"
    except OSError as error:
        found = f"cannot be read: {error.strerror or error}"
    except ValueError as error:  # a name that no system can have
        found = f"cannot be read: {error}"
    raise UnfitError(f"the folder {folder} {found}; name one that this engine's machine can read")


def read_tensors(file: Path) -> dict[str, Shape]:
    """Names and shapes of a safetensors file, by its header. Raises UnfitError where it is not whole."""
    remedy = "; write it again, to the end, before the update"
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _LARGEST_HEADER_BYTES):
                raise UnfitError(
                    f"{file} is cut off or no safetensors: {size} bytes, a header of {length}{remedy}"
                )
            header = json.loads(opened.read(length))
    except OSError as error:
        raise UnfitError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UnfitError(f"the header of {file} is no JSON: {error}{remedy}") from None
    if not isinstance(header, dict):
        raise UnfitError(f"the header of {file} is no JSON object{remedy}")
    header.pop("__metadata__", None)
    shapes = {name: _shape_of(file, name, entry) for name, entry in header.items()}
    ends = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if ends != size - _LENGTH_BYTES - length:
        raise UnfitError(
            f"{file} is not whole: its header tells of {ends} bytes of tensors, "
            f"{size - _LENGTH_BYTES - length} are there{remedy}"
        )
    return shapes


def _shape_of(file: Path, name: str, entry: Any) -> Shape:
    try:
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        bits = _BITS.get(entry["dtype"])
        values = 1
        for length in shape:
            values *= length
        if begin < 0 or end < begin or min(shape, default=0) < 0:
            raise ValueError
        if bits is not None and values * bits != (end - begin) * 8:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UnfitError(f"{file}: tensor {name} is described wrongly: {str(entry)[:200]}") from None
    return shape


def _weight_map(index: Path) -> dict[str, str]:
    """Tensors that an index lists, and the files that they are to be in."""
    listed = _read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UnfitError(f"{index} has no weight_map from tensors to files")
    return listed


def _safetensors_of(names: list[str], listed: Mapping[str, str] | None) -> list[str]:
    """Names of the files that SGLang would read, of those in a folder and what its index lists."""
    if listed is not None:
        return sorted(set(listed.values()))
    files = [name for name in names if name.endswith(".safetensors")]
    return files[1:] if files == [_CONSOLIDATED, "model.safetensors"] else files


def _read_all(folder: Path, files: Iterable[str], listed: Mapping[str, str]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for file in files:
        for name, shape in read_tensors(folder / file).items():
            if name in found:
                raise UnfitError(f"tensor {name} is in {folder / found[name].file} and in {file}, too")
            found[name] = Stored(shape, file)
    lost = [name for name, file in listed.items() if name not in found or found[name].file != file]
    if lost:
        raise UnfitError(
            f"{folder / _INDEX} names {_some(lost)} in files that do not hold it; write it again"
        )
    return found


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise UnfitError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UnfitError(f"{file} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UnfitError(f"{file} is no JSON object")
    return found


def misfit(served: Checkpoint, new: Checkpoint) -> str:
    """Why the new one cannot take the served one's place; empty where it can, as far as one can know."""
    reason = _other_config(served, new)
    if reason or served.tensors is None or new.tensors is None:
        return reason
    remedy = "; save it with the names and shapes of the model that the engine was started with"
    for name, stored in new.tensors.items():
        if reason := other_shape(served, name, stored.shape):
            return f"{new.folder / stored.file}: {reason}{remedy}"
    config = served.config
    lacks = [n for n in served.tensors if n not in new.tensors and not _may_lack(n, config)]
    if lacks:
        return f"{new.folder} lacks {_some(lacks)}, which {served.folder} has{remedy}"
    more = [n for n in new.tensors if n not in served.tensors and not _may_lack(n, config)]
    return f"{new.folder} has {_some(more)}, which {served.folder} has not{remedy}" if more else ""


def other_shape(served: Checkpoint, name: str, shape: Shape) -> str:
    """That a tensor has another shape than in the served checkpoint; a name unknown there passes."""
    known = (served.tensors or {}).get(name)
    if known is None or known.shape == shape or _numbers(known.shape) == _numbers(shape) == 1:
        return ""
    file = served.folder / known.file
    return f"tensor {name} has shape {list(shape)}, but {list(known.shape)} in {file}, which is served"


def _other_config(served: Checkpoint, new: Checkpoint) -> str:
    """The first field that says that it is another model."""
    for old, fresh, where in _levels(served.config, new.config):
        for field in ("architectures", *SHAPING):
            if field in old and field in fresh and old[field] != fresh[field]:
                return (
                    f"{new.folder / CONFIG}: {where}{field} is {_short(fresh[field])}, but the engine "
                    f"serves {_short(old[field])}; start an engine for this model instead"
                )
    return ""


def _levels(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[Any, Any, str]]:
    """The fields of two configurations, and of those inside them that describe a part of the model."""
    inner = [
        (old[name], new[name], f"{name}.")
        for name in old
        if name.endswith("_config") and isinstance(old[name], dict) and isinstance(new.get(name), dict)
    ]
    return [(old, new, ""), *inner]


def _may_lack(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is whole with or without it."""
    if name in _TIED:
        return bool(config.get("tie_word_embeddings", True))
    layer, layers = _LAYER.search(name), config.get("num_hidden_layers")
    predicts_more = layer is not None and isinstance(layers, int) and int(layer[1]) >= layers
    return predicts_more or name.startswith("mtp.") or name.endswith(_SKIPPED)


def _numbers(shape: Shape) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _short(value: Any) -> str:
    said = json.dumps(value)
    return said if len(said) <= 200 else f"{said[:200]}..."
