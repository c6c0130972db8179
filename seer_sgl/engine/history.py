"""What a server was told about its weights since it started, in a form that can be compared. Pure.

An agent may have to register again while its server goes on: the router was restarted, or has not heard
of it for too long. By then the server's weights are not those that it started with, and their name may
be the same. Servers with equal histories have equal weights; of others nobody knows.
"""

from hashlib import blake2b

import msgspec

_PATHS = (
    "/update_weights_from_disk",
    "/update_weights_from_distributed",
    "/update_weights_from_tensor",
    "/update_weights_from_ipc",
    "/update_weight_version",
    "/end_weight_update",
    "/weights_checker",
    "/load_lora_adapter",
    "/load_lora_adapter_from_tensors",
    "/unload_lora_adapter",
)
_READS = (b"snapshot", b"compare", b"checksum")
"""Actions of `/weights_checker` that leave weights as they are."""
_TELLING = "model_path weight_version new_version lora_name lora_path action".split()
"""Fields that say which weights come; handles of memory differ from server to server."""
_LARGEST_READ_BYTES = 1 << 20


class WeightHistory:
    """The history of one server."""

    def __init__(self) -> None:
        self._asked: dict[int, str] = {}
        self._digest = ""

    def asked(self, call_id: int, target: str, body: bytes) -> None:
        """A call goes to the server."""
        path = target.partition("?")[0]
        reads = path == "/weights_checker" and any(action in body for action in _READS)
        if path in _PATHS and not reads:
            self._asked[call_id] = f"{path} {_source(body)}"

    def answered(self, call_id: int, status: int) -> None:
        """It was answered. 0: it was not, and never will be."""
        asked = self._asked.pop(call_id, None)
        if asked is not None:
            told = f"{self._digest} {asked} {status}".encode()
            self._digest = blake2b(told, digest_size=8).hexdigest()

    def told(self) -> str:
        """Empty for a server that has the weights that it started with."""
        for call_id in list(self._asked):
            self.answered(call_id, 0)  # whoever asked hears no answer any more
        return self._digest


def _source(body: bytes) -> list[object]:
    """What a call says of the weights that it brings, as far as another server may be told the same."""
    if len(body) > _LARGEST_READ_BYTES:
        return []
    try:
        fields = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return []
    return [fields.get(name) for name in _TELLING] if isinstance(fields, dict) else []
