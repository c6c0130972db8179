"""Whether weights that are about to come fit the model that a server serves.

What SGLang 0.5.23 finds out while it loads, it finds out too late: weights are mixed by then, or the
server has ended. All that a call itself tells is held against the served checkpoint before.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seer_sgl.engine.checkpoints import (
    Checkpoint,
    Shape,
    UnfitError,
    is_folder_name,
    local_folder,
    misfit,
    other_shape,
    read_checkpoint,
)
from seer_sgl.engine.guards import LARGEST_READ_BYTES, Facts, body_object
from seer_sgl.engine.payloads import BUCKET, PayloadError, named_shapes

log = logging.getLogger(__name__)
_NOT_READ = ("dummy", "sharded_state", "presharded", "gguf", "remote", "remote_instance")


class Incoming:
    """Checks of the weight updates of one server, which runs on this machine.

    Args:
        facts: its arguments; `model_path` is what it was started with.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._read = False
        self._known: Checkpoint | None = None

    @staticmethod
    def concerns(target: str) -> bool:
        """Whether `objection` could object to calls of this path; it reads files."""
        return target.partition("?")[0] in _CHECKS

    def objection(self, target: str, body: bytes) -> str:
        """Why these weights may not be loaded; begins with the path, and nothing has been touched.

        Empty where nothing speaks against it, as far as one can know.
        """
        path = target.partition("?")[0]
        check = _CHECKS.get(path)
        if check is None or len(body) > LARGEST_READ_BYTES:
            return ""
        try:
            reason = check(self, body_object(body))
        except Exception as error:  # nobody has told SGLang: the update is refused, the engine as it was
            log.exception("a bug: the check of %s failed", path)
            reason = f"could not be checked: {type(error).__name__} {error}"
        return f"{path}: {reason}" if reason else ""

    def served(self) -> Checkpoint | None:
        """What the server was started with, None where that is not to be found here.

        Read when the first update comes, so that an engine that never gets one neither waits for the
        headers of a large model nor keeps its names. A trainer that has overwritten this very folder
        before is held against what it has written: then only what is not whole is refused.
        """
        if not self._read:
            self._read = True
            name, revision = self._facts.get("model_path"), self._facts.get("revision")
            folder = local_folder(str(name), revision) if name else None
            try:
                self._known = read_checkpoint(folder) if folder else None
            except UnfitError:  # as with --load-format dummy: a configuration alone
                self._known = None
        return self._known

    def from_disk(self, body: Mapping[str, Any]) -> str:
        """A folder."""
        name, kind = body.get("model_path"), body.get("load_format") or self._facts.get("load_format")
        if not isinstance(name, str) or kind in _NOT_READ or not is_folder_name(name):
            return ""
        try:
            new = read_checkpoint(Path(name), kind if isinstance(kind, str) else None)
        except UnfitError as error:
            return str(error)
        served = self.served()
        return misfit(served, new) if served else ""

    def from_distributed(self, body: Mapping[str, Any]) -> str:
        """Names, types and shapes of what a trainer is about to broadcast."""
        names, shapes, types = (body.get(key) for key in ("names", "shapes", "dtypes"))
        if not (isinstance(names, list) and isinstance(shapes, list) and isinstance(types, list)):
            return ""
        if not len(names) == len(shapes) == len(types):
            return (
                f"names, dtypes and shapes must be as many, not {len(names)}, {len(types)} and "
                f"{len(shapes)}"
            )
        return self._shapes(
            (str(name), _as_shape(shape)) for name, shape in zip(names, shapes, strict=True)
        )

    def from_tensor(self, body: Mapping[str, Any]) -> str:
        """Pickled tensors, an entry for each rank."""
        entries, kind = body.get("serialized_named_tensors"), body.get("load_format")
        if not isinstance(entries, list) or kind not in (None, BUCKET):
            return ""
        ranks = int(self._facts.get("tp_size") or 1)
        for rank, entry in enumerate(entries[:ranks]):
            try:
                found = named_shapes(entry, kind)
            except PayloadError as error:
                return f"serialized_named_tensors[{rank}]: {error}"
            if reason := self._shapes(found.items()):
                return f"serialized_named_tensors[{rank}]: {reason}"
        return ""

    def _shapes(self, found: Any) -> str:
        served = self.served()
        if served is None:
            return ""
        reasons = (other_shape(served, name, shape) for name, shape in found if shape is not None)
        reason = next(filter(None, reasons), "")
        return f"{reason}; send it as that checkpoint has it" if reason else ""


def _as_shape(value: Any) -> Shape | None:
    """None where it is none: SGLang has something to say of that."""
    whole = isinstance(value, list) and all(type(length) is int for length in value)
    return tuple(value) if whole else None


_CHECKS: dict[str, Callable[[Incoming, Mapping[str, Any]], str]] = {
    "/update_weights_from_disk": Incoming.from_disk,
    "/update_weights_from_distributed": Incoming.from_distributed,
    "/update_weights_from_tensor": Incoming.from_tensor,
}
