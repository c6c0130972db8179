"""What a server was told about its weights since it started, in a form that can be compared. Pure.

An agent may have to register again while its server goes on: the router was restarted, or has not heard
of it for too long. By then the server's weights are not those that it started with, and their name may
be the same. Servers with equal histories have equal weights; of others nobody knows.
"""

from hashlib import blake2b

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
            self._asked[call_id] = path

    def answered(self, call_id: int, status: int) -> None:
        """It was answered. 0: it was not, and never will be."""
        path = self._asked.pop(call_id, None)
        if path is not None:
            told = f"{self._digest} {path} {status}".encode()
            self._digest = blake2b(told, digest_size=8).hexdigest()

    def told(self) -> str:
        """Empty for a server that has the weights that it started with."""
        for call_id in list(self._asked):
            self.answered(call_id, 0)  # whoever asked hears no answer any more
        return self._digest
