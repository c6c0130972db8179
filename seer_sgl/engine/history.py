"""What a server was told about its weights since it started, in a form that can be compared. Pure.

An agent may have to register again while its server goes on: the router was restarted, or has not heard
of it for too long. By then the server's weights are not those that it started with, and their name may
be the same. Servers with equal histories have equal weights, unless a call has failed: then one may have
taken more of it than another. Of others nobody knows.
"""

from hashlib import blake2b

import msgspec

_WHOLE = ("/update_weights_from_disk", "/update_weights_from_ipc")
"""All weights are known after one of these, whatever has failed before."""
_PARTS = ("/update_weights_from_distributed", "/update_weights_from_tensor", "/end_weight_update")
_NAME, _CHECKER = "/update_weight_version", "/weights_checker"
_LOADS = ("/load_lora_adapter", "/load_lora_adapter_from_tensors")
_UNLOAD = "/unload_lora_adapter"
_READS = (b"snapshot", b"compare", b"checksum")
"""Actions of `/weights_checker` that leave weights as they are."""
_TELLING = "model_path weight_version new_version lora_name lora_path action".split()
"""Fields that say which weights come; handles of memory differ from server to server."""
_LARGEST_READ_BYTES = 1 << 20
_NOT_TRIED = (401, 403, 404, 405, 413)
"""SGLang's front answers these itself: nothing has changed."""


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """A history as others hear of it.

    Args:
        weights: a digest; empty where they are those that the server started with.
        unsure: a call has failed, or reset them: equal histories prove nothing.
        adapters: a digest; empty where there is none.
        names: of adapters that may be there.
    """

    weights: str = ""
    unsure: bool = False
    adapters: str = ""
    names: tuple[str, ...] = ()


def told_of(text: str) -> Told:
    """What `WeightHistory.told` has given."""
    try:
        return msgspec.json.decode(text, type=Told) if text else Told()
    except msgspec.DecodeError:  # of another release
        return Told(text)


class _Adapter(msgspec.Struct):
    lora_name: str = ""
    lora_path: str = ""


class WeightHistory:
    """The history of one server."""

    def __init__(self) -> None:
        self._asked: dict[int, tuple[str, str, bool]] = {}
        """Path, what else counts, and whether all weights are meant."""
        self._asked_adapters: dict[int, tuple[str, _Adapter]] = {}
        self._weights = ""
        self._unsure = False
        self._adapters = ""
        self._names: set[str] = set()

    def asked(self, call_id: int, target: str, body: bytes) -> None:
        """A call goes to the server."""
        path = target.partition("?")[0]
        if path in (*_WHOLE, *_PARTS, _NAME):
            fields = _fields(body)
            told = str([fields.get(name) for name in _TELLING])
            full = path in _WHOLE and fields.get("selector", "all") == "all"
            self._asked[call_id] = path, told, full
        elif path in (*_LOADS, _UNLOAD):
            self._asked_adapters[call_id] = path, _adapter(body)
        elif path == _CHECKER and not any(action in body for action in _READS):
            self._asked[call_id] = path, "", False

    def answered(self, call_id: int, status: int) -> None:
        """It was answered. 0: it was not, and never will be."""
        asked = self._asked.pop(call_id, None)
        if asked is not None and status not in _NOT_TRIED:
            self._changed(*asked, status)
        adapter = self._asked_adapters.pop(call_id, None)
        if adapter is not None and status not in (*_NOT_TRIED, 400):  # which is a refusal here
            self._adapter_changed(*adapter, status)

    def refused(self, call_id: int) -> None:
        """It never went to the server."""
        self._asked.pop(call_id, None)
        self._asked_adapters.pop(call_id, None)

    def _changed(self, path: str, told: str, full: bool, status: int) -> None:
        self._weights = _longer(self._weights, f"{path} {told} {status}")
        if path == _CHECKER or (path != _NAME and status != 200):
            self._unsure = True
        elif full:
            self._unsure = False

    def _adapter_changed(self, path: str, adapter: _Adapter, status: int) -> None:
        if path == _UNLOAD and status == 200:
            self._names.discard(adapter.lora_name)
        else:
            self._names.add(adapter.lora_name)
        told = f"{path} {adapter.lora_name} {adapter.lora_path} {status}"
        self._adapters = _longer(self._adapters, told) if self._names else ""

    def told(self) -> str:
        """For `told_of`; empty for a server that has what it started with."""
        for call_id in [*self._asked, *self._asked_adapters]:
            self.answered(call_id, 0)  # whoever asked hears no answer any more
        told = Told(self._weights, self._unsure, self._adapters, tuple(sorted(self._names)))
        return "" if told == Told() else msgspec.json.encode(told).decode()


def _longer(digest: str, told: str) -> str:
    return blake2b(f"{digest} {told}".encode(), digest_size=8).hexdigest()


def _fields(body: bytes) -> dict[str, object]:
    """What a call says of the weights that it brings, as far as another server may be told the same."""
    if len(body) > _LARGEST_READ_BYTES:
        return {}
    try:
        fields = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _adapter(body: bytes) -> _Adapter:
    try:
        return msgspec.json.decode(body, type=_Adapter)
    except msgspec.DecodeError:
        return _Adapter()
